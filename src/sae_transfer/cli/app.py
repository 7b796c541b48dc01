"""The program `sae-transfer`: its sub-commands, and the one place where errors become a line and an exit code."""

import sys
import tempfile
import traceback
from pathlib import Path

import typer

from sae_transfer.cli import measuring, reading
from sae_transfer.errors import UserError

INTERRUPTED = 130

app = typer.Typer(
    name="sae-transfer",
    help="Does a sparse autoencoder trained on one language model still work on its fine-tuned version?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("evaluate")(measuring.evaluate)
app.command("show")(reading.show)


@app.callback()
def _program() -> None:
    """Sub-commands are asked for by name, even where there is one."""


def main(args: list[str] | None = None) -> None:
    """Run the program and exit: 0 done, 2 the user's mistake, 130 interrupted, 1 anything else (with a log's path)."""
    try:
        code = app(args, prog_name="sae-transfer", standalone_mode=False)
        if code == INTERRUPTED:  # typer turns Ctrl-C into this code
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except UserError as error:
        _stop(f"error: {error}", 2)
    except typer.TyperException as error:
        given = _value(sys.argv[1:] if args is None else args, getattr(getattr(error, "param", None), "opts", []))
        _stop(f"error: {' '.join(error.format_message().split()).rstrip('.')}{given}: see sae-transfer --help [E-OPTION]", 2)
    except (KeyboardInterrupt, typer.Abort):
        _stop("interrupted: the same command goes on where this one stopped", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        with tempfile.NamedTemporaryFile("w", prefix="sae-transfer-", suffix=".log", delete=False, encoding="utf-8") as log:
            traceback.print_exc(file=log)
        line = next(iter(str(error).splitlines()), "")
        _stop(f"error: {type(error).__name__}: {line} (traceback in {Path(log.name)})", 1)


def _value(args: list[str], options: list[str]) -> str:
    """The value that an option was given, which typer's own message leaves out."""
    for argument, following in zip(args, [*args[1:], ""], strict=True):
        name, joined, value = argument.partition("=")
        if name in options:
            return f" (given {value if joined else following!r})"
    return ""


def _stop(line: str, code: int) -> None:
    print(line, file=sys.stderr)  # noqa: T201
    sys.exit(code)
