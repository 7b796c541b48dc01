"""Commands that measure: options -> spec -> workflow -> print."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from typer import Option, echo

from sae_transfer.specs import TOKEN_KINDS

Many = list[str]
SOURCE = "[NAME=]SOURCE[+ADAPTER]"
SAE = "[NAME[@MODEL]=]SOURCE"
FILE = "[NAME=]FILE"
SAES = (
    "Folder; SAELens's release:sae_id; hf:org/repo[/path][@revision]; wandb:entity/project/artifact:version. "
    "MODEL is its own model, else that of the same NAME."
)
PICKLE = "Open pickled SAEs (ae.pt): only from who you trust; a pickle can run code, though only tensors are let through."


def evaluate(
    model: Annotated[Many, Option(metavar=SOURCE, help="Folder, .gguf file, or Hub id org/name[@revision].")],
    sae: Annotated[Many, Option(metavar=SAE, help=SAES)],
    text: Annotated[Many | None, Option(metavar=FILE, help="Documents: .txt, .jsonl or .parquet.")] = None,
    chats: Annotated[Many | None, Option(metavar=FILE, help=".jsonl of instruction + completion, or messages.")] = None,
    rows: Annotated[Many | None, Option(metavar=FILE, help="Token ids, never repacked: .jsonl or .parquet.")] = None,
    out: Annotated[Path | None, Option("--out", "-o", help="Run directory; default: one under runs/.")] = None,
    chat_template: Annotated[str, Option(help="tokenizer, qwen, mistral, gemma, or a file with {instruction}.")] = "tokenizer",
    token_kinds: Annotated[str, Option(help="Kinds to measure, of those that occur.")] = ",".join(TOKEN_KINDS),
    norm_scaling_factor: Annotated[str, Option(help="auto, saelens, own, or a number.")] = "auto",
    outlier_threshold: Annotated[str, Option(help="auto, off, or a number (scaled norm).")] = "auto",
    context_size: Annotated[int | None, Option(help="Of packed rows (default: the SAEs' smallest); longest chat.")] = None,
    batch_size: Annotated[int, Option(help="Rows that run together.")] = 8,
    max_documents: Annotated[int | None, Option(help="Only the first N documents of each data set.")] = None,
    bos: Annotated[bool | None, Option("--bos/--no-bos", help="Pack with BOS; default: as the SAEs say.")] = None,
    dtype: Annotated[str, Option(help="The model's: float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    activation_cache: Annotated[str, Option(help="Disk for residuals, so that no layer runs twice.")] = "2GB",
    allow_pickle: Annotated[bool, Option("--allow-pickle", help=PICKLE)] = False,
) -> None:
    """Measure every SAE on every model and data set, and print the transfer matrix.

    --model, --sae, --text, --chats and --rows may be given several times.
    """
    from sae_transfer.cli.progress import for_terminal
    from sae_transfer.cli.reading import show_run
    from sae_transfer.workflows import evaluate as workflow

    began = datetime.now(UTC)
    with for_terminal() as progress:
        run = workflow.evaluate(
            model,
            sae,
            text=text,
            chats=chats,
            rows=rows,
            out=out,
            chat_template=chat_template,
            token_kinds=token_kinds,
            norm_scaling_factor=norm_scaling_factor,
            outlier_threshold=outlier_threshold,
            context_size=context_size,
            batch_size=batch_size,
            max_documents=max_documents,
            bos=bos,
            dtype=dtype,
            device=device,
            activation_cache=activation_cache,
            allow_pickle=allow_pickle,
            progress=progress,
        )
    show_run(run, "table")
    finished = run.manifest.sessions[-1].finished
    if finished is not None and finished < began:
        echo(f"already measured, finished {finished:%Y-%m-%d %H:%M} UTC: nothing was run", err=True)
