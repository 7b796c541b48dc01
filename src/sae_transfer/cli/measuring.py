"""Commands that measure: options -> spec -> workflow -> print."""

from pathlib import Path
from typing import Annotated

import typer

from sae_transfer.specs import TOKEN_KINDS

Many = list[str]


def evaluate(
    model: Annotated[Many, typer.Option(help="[NAME=]SOURCE[+ADAPTER]: folder, .gguf file or Hub id org/name[@revision].")],
    sae: Annotated[Many, typer.Option(help="[NAME[@MODEL]=]SOURCE: a SAELens folder. MODEL is the SAE's own model.")],
    text: Annotated[Many | None, typer.Option(help="[NAME=]FILE: .txt, .jsonl or .parquet of documents.")] = None,
    chats: Annotated[Many | None, typer.Option(help="[NAME=]FILE: .jsonl of instruction + completion, or messages.")] = None,
    rows: Annotated[Many | None, typer.Option(help="[NAME=]FILE: .jsonl or .parquet of token ids, never repacked.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run directory; default: one under runs/.")] = None,
    chat_template: Annotated[
        str, typer.Option(help="tokenizer, qwen, mistral, gemma, or a file with {instruction}.")
    ] = "tokenizer",
    token_kinds: Annotated[
        str, typer.Option(help="Kinds to measure, separated by commas; default: all that occur.")
    ] = ",".join(TOKEN_KINDS),
    norm_scaling_factor: Annotated[str, typer.Option(help="auto, saelens, own, or a number.")] = "auto",
    outlier_threshold: Annotated[str, typer.Option(help="auto, off, or a number (scaled norm).")] = "auto",
    context_size: Annotated[int | None, typer.Option(help="Tokens of a packed row; default: the SAEs' smallest.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows that run together.")] = 8,
    max_documents: Annotated[int | None, typer.Option(help="Only the first N documents of each data set.")] = None,
    bos: Annotated[bool | None, typer.Option("--bos/--no-bos", help="Pack with BOS; default: as the SAEs say.")] = None,
    dtype: Annotated[str, typer.Option(help="The model's: float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    activation_cache: Annotated[str, typer.Option(help="Disk for residuals, so that no layer runs twice.")] = "2GB",
) -> None:
    """Measure every SAE on every model and data set, and print the transfer matrix."""
    from sae_transfer.cli.progress import for_terminal
    from sae_transfer.cli.reading import show_run
    from sae_transfer.workflows import evaluate as workflow

    with for_terminal() as progress:
        run = workflow.evaluate(
            model,
            sae,
            text=text,
            chats=chats,
            rows=rows,
            out=out,
            chat_template=chat_template,
            token_kinds=[kind.strip() for kind in token_kinds.split(",")],
            norm_scaling_factor=norm_scaling_factor,
            outlier_threshold=outlier_threshold,
            context_size=context_size,
            batch_size=batch_size,
            max_documents=max_documents,
            bos=bos,
            dtype=dtype,
            device=device,
            activation_cache=activation_cache,
            progress=progress,
        )
    show_run(run, "table")
