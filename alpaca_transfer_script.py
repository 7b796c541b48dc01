"""Evaluate a base and a chat SAE on a chat model, on its own answers to Alpaca: the chat results of 2024.

--model_path, --base_sae_path, --chat_sae_path and --chats put files of this machine in the place of what was published.
"""

from collections.abc import Sequence

from sae_transfer.cli import scripts
from sae_transfer.workflows.scripts import alpaca


def main(args: Sequence[str] | None = None) -> None:
    """Append a record to results/alpaca_sae_transfer_results.json."""
    parser = scripts.Parser(__doc__)
    add = parser.add_argument
    add("--chat_model_name", required=True, help="name of the chat model, as TransformerLens has it")
    add("--base_sae_project", required=True, help="name of the base SAE's W&B project")
    add("--chat_sae_project", required=True, help="name of the chat SAE's W&B project")
    add("--wandb_entity", default="ckkissane", help="W&B entity of the SAEs")
    add("--mask_type", required=True, help="tokens under test: rollout, user_prompt or control_tokens")
    add(
        "--num_samples",
        type=scripts.count,
        help="Alpaca records to answer, those with an input counted; unused if chats are there",
    )
    add("--batch_size", required=True, type=scripts.count, help="chats in a batch; changes no number")
    parser.outlier_flags(default=None)
    add("--base_sae_path", help="folder of the base SAE")
    add("--chat_sae_path", help="folder of the chat SAE")
    add("--chats", help=".jsonl of instruction and completion, a published .pkl, or masked rows of token ids")
    scripts.main(parser, alpaca, args)


if __name__ == "__main__":
    main()
