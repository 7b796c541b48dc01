"""What the three published scripts share: how flags are read, how a record is told, and how they end."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from typer import echo

from sae_transfer.cli.app import ending
from sae_transfer.errors import UserError
from sae_transfer.workflows.scripts import Result


class Parser(argparse.ArgumentParser):
    """Flags as published, of which the missing and the misspelt are one line."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UserError("E-OPTION", message, f"see {self.prog} --help")

    def text_flags(self) -> "Parser":
        """What the Pile script and the one for fine-tuned SAEs both take."""
        self.add_argument("--model_name", required=True, help="name of the model, as TransformerLens has it")
        self.add_argument("--wandb_entity", default="sae-finetuning", help="W&B entity of the SAEs")
        self.add_argument("--eval_batch_size_prompts", required=True, type=count, help="rows in a batch")
        self.add_argument("--eval_batches", required=True, type=count, help="batches")
        self.add_argument("--num_act_batches", required=True, type=count, help="recorded; MSE and L0 use the batches above")
        self.outlier_flags(default=100_000)
        self.add_argument("--sae_path", help="folder of an SAE, in place of the published one")
        text = "documents (.txt, .jsonl, .parquet) or rows of token ids (.jsonl of tokens); else of the Hub: "
        text += "what the SAE records that it was trained on, or the Pile"
        self.add_argument("--text", help=text)
        return self

    def outlier_flags(self, default: int | None) -> None:
        """What all three take."""
        self.add_argument("--ignore_outliers", action="store_true", help="leave outliers out")
        self.add_argument("--outlier_threshold", type=number, default=default, help="scaled norm above which they begin")
        self.add_argument("--model_path", help="folder or .gguf of a model, in place of the published one")
        self.add_argument("--norm_scaling_factor", type=float, help="in place of the published model's")


def count(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def number(text: str) -> float:
    """A whole number as such, as it is recorded; any other as a float."""
    return int(text) if text.lstrip("+-").isdigit() else float(text)


def main(parser: Parser, workflow: Callable[..., Result], args: Sequence[str] | None = None) -> None:
    """Flags -> workflow -> the record on stdout; then exit."""

    def work() -> int:
        from sae_transfer.cli.progress import for_terminal

        options: dict[str, Any] = vars(parser.parse_args(args))
        with for_terminal() as progress:
            result = workflow(progress, **options)
        for key, value in result.record.items():
            echo(f"{key}: {value}")
        echo("MSE, L0 and explained variance are over the tokens of the losses (published: other batches, no seed)", err=True)
        echo(f"Results saved to {result.path}", err=True)
        return 0

    ending(work, sys.argv[1:] if args is None else args)
