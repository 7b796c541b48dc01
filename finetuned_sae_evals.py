"""Evaluate the base SAE that was fine-tuned on a chat model, there, on text: the fine-tuned results of 2024.

They were published without --ignore_outliers, the results that they are compared with, with it. --model_path, --sae_path and
--text put files of this machine in the place of what was published.
"""

from collections.abc import Sequence

from sae_transfer.cli import scripts
from sae_transfer.workflows.scripts import finetuned


def main(args: Sequence[str] | None = None) -> None:
    """Append a record to results/sae_finetuning_evals.json."""
    scripts.main(scripts.Parser(__doc__).text_flags(), finetuned, args)


if __name__ == "__main__":
    main()
