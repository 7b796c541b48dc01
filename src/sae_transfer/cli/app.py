"""The program `sae-transfer`: its sub-commands, and the one place where errors become a line and an exit code."""

import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from sae_transfer.cli import measuring, reading
from sae_transfer.errors import UserError, printable

INTERRUPTED = 130

app = typer.Typer(
    name="sae-transfer",
    help="Does a sparse autoencoder trained on one language model still work on its fine-tuned version?",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("demo")(measuring.demo)
app.command("drift")(measuring.drift)
app.command("evaluate")(measuring.evaluate)
app.command("rollouts")(measuring.rollouts)
app.command("show")(reading.show)
app.command("check")(reading.check)


@app.callback()
def _program(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"sae-transfer {metadata.version('sae-transfer')}")  # noqa: T201
        raise typer.Exit


def main(args: list[str] | None = None) -> None:
    """Run the program and exit: 0 done, 2 the user's mistake, 130 interrupted, 1 anything else (with a log's path); `check`
    alone also 3 and 4."""
    given = sys.argv[1:] if args is None else args
    ending(lambda: app(given or ["--help"], prog_name="sae-transfer", standalone_mode=False), given)


def ending(work: Callable[[], Any], given: Sequence[str]) -> NoReturn:
    """Do what was asked for by the words `given`, and exit as `main` says."""
    try:
        code = work()
        if code == INTERRUPTED:  # typer turns Ctrl-C into this code
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except UserError as error:
        _stop(f"error: {error}", 2)
    except typer.TyperException as error:
        what = " ".join(error.format_message().split()).rstrip(".")
        value = _value(given, getattr(getattr(error, "param", None), "opts", []))
        command = getattr(getattr(error, "ctx", None), "command_path", "sae-transfer")
        _stop(f"error: {what}{value}: see {command} --help [E-OPTION]", 2)
    except (KeyboardInterrupt, typer.Abort):
        _stop("interrupted: what is finished is kept, and the same command goes on from there", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        with tempfile.NamedTemporaryFile("w", prefix="sae-transfer-", suffix=".log", delete=False, encoding="utf-8") as log:
            traceback.print_exc(file=log)
        line = next(iter(str(error).splitlines()), "")
        _stop(f"error: {type(error).__name__}: {line} (traceback in {Path(log.name)})", 1)


def _value(args: Sequence[str], options: list[str]) -> str:
    """The value that an option was given, which typer's own message leaves out."""
    for argument, following in zip_longest(args, args[1:], fillvalue=""):
        name, joined, value = argument.partition("=")
        if name in options:
            return f" (given {value if joined else following!r})"
    return ""


def _stop(line: str, code: int) -> NoReturn:
    print(printable(line), file=sys.stderr)  # noqa: T201
    sys.exit(code)
