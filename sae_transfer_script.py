"""Evaluate a published SAE on a published model, on text: the Pile results of "SAEs (usually) Transfer" (2024).

--model_path, --sae_path and --text put files of this machine in the place of what was published.
"""

from collections.abc import Sequence

from sae_transfer.cli import scripts
from sae_transfer.workflows.scripts import pile


def main(args: Sequence[str] | None = None) -> None:
    """Append a record to results/sae_transfer_results_post.json."""
    parser = scripts.Parser(__doc__)
    parser.add_argument("--sae_project", required=True, help="name of the SAE's W&B project")
    scripts.main(parser.text_flags(), pile, args)


if __name__ == "__main__":
    main()
