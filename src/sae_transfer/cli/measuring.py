"""Commands that measure: options -> spec -> workflow -> print."""

from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

from typer import Option, echo

from sae_transfer.specs import TOKEN_KINDS

if TYPE_CHECKING:
    from sae_transfer.report.run import Run

Many = list[str]
SOURCE = "[NAME=]SOURCE[+ADAPTER]"
SAE = "[NAME[@MODEL]=]SOURCE"
FILE = "[NAME=]FILE"
DATA = "[NAME=]FILE|ORG/DATA[:CONFIG[:SPLIT]][@REVISION]"
SAES = (
    "Folder; SAELens's release:sae_id; hf:org/repo[/path][@revision]; wandb:entity/project/artifact:version. "
    "MODEL is its own model, else that of the same NAME."
)
TEXT = "Documents: .txt, .jsonl or .parquet; or of the Hub, streamed. Without any data: what the SAEs record as theirs."
DTYPE = "float32 (default), bfloat16, float16, 8bit or 4bit (bitsandbytes): of the model NAME, or of all others."
PUBLISHED = "Chats and legacy CE recovered as the published code has them, quirks and all."
DEVICE = "auto, cpu, mps, cuda or cuda:N; map: a model too large for one over all GPUs, then memory, then disk."
PICKLE = "Open pickled SAEs (ae.pt): only from who you trust; a pickle can run code, though only tensors are let through."


def evaluate(
    model: Annotated[Many, Option(metavar=SOURCE, help="Folder, .gguf file, or Hub id org/name[@revision].")],
    sae: Annotated[Many, Option(metavar=SAE, help=SAES)],
    text: Annotated[Many | None, Option(metavar=DATA, help=TEXT)] = None,
    chats: Annotated[
        Many | None,
        Option(
            metavar=DATA, help=".jsonl of instruction + completion, or messages; a published .pkl; or of the Hub, shuffled."
        ),
    ] = None,
    rows: Annotated[Many | None, Option(metavar=FILE, help="Token ids, never repacked: .jsonl or .parquet.")] = None,
    out: Annotated[Path | None, Option("--out", "-o", help="Run directory; default: one under runs/.")] = None,
    chat_template: Annotated[str, Option(help="tokenizer, qwen, mistral, gemma, or a file with {instruction}.")] = "tokenizer",
    token_kinds: Annotated[str, Option(help="Kinds to measure, of those that occur.")] = ",".join(TOKEN_KINDS),
    norm_scaling_factor: Annotated[str, Option(help="auto, saelens, own, or a number.")] = "auto",
    outlier_threshold: Annotated[str, Option(help="auto, off, or a number (scaled norm).")] = "auto",
    context_size: Annotated[int | None, Option(help="Of packed rows (default: the SAEs' smallest); longest chat.")] = None,
    batch_size: Annotated[int, Option(help="Rows that run together.")] = 8,
    max_documents: Annotated[
        int | None, Option(help="Only the first N documents of each data set (of the SAEs' own text: 1000).")
    ] = None,
    bos: Annotated[bool | None, Option("--bos/--no-bos", help="Pack with BOS; default: as the SAEs say.")] = None,
    dtype: Annotated[Many | None, Option(metavar="[NAME=]DTYPE", help=DTYPE)] = None,
    published: Annotated[bool, Option("--published", help=PUBLISHED)] = False,
    device: Annotated[str, Option(help=DEVICE)] = "auto",
    activation_cache: Annotated[str, Option(help="Disk for residuals, so that no layer runs twice.")] = "2GB",
    allow_pickle: Annotated[bool, Option("--allow-pickle", help=PICKLE)] = False,
) -> None:
    """Measure every SAE on every model and data set, and print the verdicts and the transfer matrix.

    --model, --sae, --text, --chats, --rows and --dtype may be given several times.
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
            published=published,
            device=device,
            activation_cache=activation_cache,
            allow_pickle=allow_pickle,
            progress=progress,
        )
    show_run(run, run.records(), "table")
    _say_if_old(run, began)


def drift(
    model: Annotated[Many, Option(metavar=SOURCE, help="Twice or more; the first is what the others are compared with.")],
    text: Annotated[Many | None, Option(metavar=DATA, help="Documents, as in evaluate.")] = None,
    chats: Annotated[Many | None, Option(metavar=DATA, help="Chats, as in evaluate.")] = None,
    rows: Annotated[Many | None, Option(metavar=FILE, help="Token ids, never repacked: .jsonl or .parquet.")] = None,
    layer: Annotated[
        list[int] | None, Option(metavar="N", help="Before layer N; after the last, how many there are. Default: every one.")
    ] = None,
    out: Annotated[Path | None, Option("--out", "-o", help="Folder for drift.json; without it nothing is written.")] = None,
    format: Annotated[str, Option(help="table, markdown, csv or json.")] = "table",
    chat_template: Annotated[str, Option(help="tokenizer, qwen, mistral, gemma, or a file with {instruction}.")] = "tokenizer",
    token_kinds: Annotated[str, Option(help="Kinds to measure, of those that occur.")] = ",".join(TOKEN_KINDS),
    context_size: Annotated[int | None, Option(help="Of packed rows (default: 128); longest chat.")] = None,
    batch_size: Annotated[int, Option(help="Rows that run together.")] = 8,
    max_documents: Annotated[int | None, Option(help="Only the first N documents of each data set.")] = None,
    bos: Annotated[bool | None, Option("--bos/--no-bos", help="Pack with BOS, which is the default.")] = None,
    dtype: Annotated[Many | None, Option(metavar="[NAME=]DTYPE", help=DTYPE)] = None,
    device: Annotated[str, Option(help=DEVICE)] = "auto",
    activation_cache: Annotated[str, Option(help="Disk for residuals, so that no layer runs twice.")] = "2GB",
) -> None:
    """How far every further model's residual stream moved from the first one's, layer by layer, and a forecast. Needs no SAE.

    --model, --text, --chats, --rows, --layer and --dtype may be given several times.
    """
    from sae_transfer.cli.progress import for_terminal
    from sae_transfer.cli.reading import known_format, show_drift
    from sae_transfer.workflows import drift as workflow

    known_format(format)
    began = datetime.now(UTC)
    with for_terminal() as progress:
        drifts = workflow.drift(
            model,
            text=text,
            chats=chats,
            rows=rows,
            layers=layer,
            out=out,
            chat_template=chat_template,
            token_kinds=token_kinds,
            context_size=context_size,
            batch_size=batch_size,
            max_documents=max_documents,
            bos=bos,
            dtype=dtype,
            device=device,
            activation_cache=activation_cache,
            progress=progress,
        )
    show_drift(drifts, format)
    _say_if_finished_before(drifts.manifest.session.finished, began)


def demo(
    out: Annotated[Path, Option("--out", "-o", help="Run directory.")] = Path("runs/demo"),
) -> None:
    """Measure the small pair that ships with the package, and say in plain sentences what transfers. Needs no download."""
    from sae_transfer.cli.progress import for_terminal
    from sae_transfer.cli.reading import show_matrix, show_verdicts
    from sae_transfer.workflows import demo as workflow

    began = datetime.now(UTC)
    with for_terminal() as progress:
        run = workflow.demo(out, progress)
    show_matrix(run, run.records())
    echo("\n" + "\n".join(f"- {sentence}" for sentence in workflow.found(run)) + "\n")
    show_verdicts(workflow.transfers(run))
    echo(f"run directory: {run.path}", err=True)
    _say_if_old(run, began)
    echo(f"\nNext: sae-transfer show {quote(str(run.path))} --format markdown\n      sae-transfer evaluate --help", err=True)


def _say_if_old(run: "Run", began: datetime) -> None:
    """Tell that a finished run was read, not measured."""
    _say_if_finished_before(run.manifest.sessions[-1].finished, began)


def _say_if_finished_before(finished: datetime | None, began: datetime) -> None:
    if finished is not None and finished < began:
        echo(f"already measured, finished {finished:%Y-%m-%d %H:%M} UTC: nothing was run", err=True)


def rollouts(
    model: Annotated[str, Option(metavar=SOURCE, help="Folder, .gguf file, or Hub id org/name[@revision].")],
    instructions: Annotated[
        str,
        Option(
            "--instructions", "--chats", metavar="SOURCE", help=".jsonl or .parquet of instruction; or of the Hub, shuffled."
        ),
    ],
    out: Annotated[Path, Option("--out", "-o", help="The .jsonl of instruction + completion, which --chats reads.")],
    chat_template: Annotated[str, Option(help="tokenizer, qwen, mistral, gemma, or a file with {instruction}.")] = "tokenizer",
    max_tokens: Annotated[int, Option(help="Of an answer; one ends before them at an end token.")] = 64,
    batch_size: Annotated[int, Option(help="Answers that are generated together.")] = 8,
    splice: Annotated[str | None, Option(metavar="[NAME=]SOURCE", help="SAE that stands in the stream at every token.")] = None,
    norm_scaling_factor: Annotated[str, Option(help="Of the SAE: auto, saelens, or a number.")] = "auto",
    outlier_threshold: Annotated[
        str, Option(help="Above it the SAE lets pass: auto, off, or a number (scaled norm).")
    ] = "auto",
    max_documents: Annotated[int | None, Option(help="Only the first N instructions.")] = None,
    dtype: Annotated[str, Option(help="The model's: float32, bfloat16, float16, 8bit or 4bit.")] = "float32",
    device: Annotated[str, Option(help=DEVICE)] = "auto",
) -> None:
    """Let a model answer instructions greedily; the file of its answers is what evaluate takes as --chats.

    The same command goes on with a file that was cut off.
    """
    from sae_transfer.cli.progress import for_terminal
    from sae_transfer.workflows import rollouts as workflow

    with for_terminal() as progress:
        done = workflow.rollouts(
            model,
            instructions,
            out=out,
            chat_template=chat_template,
            max_tokens=max_tokens,
            batch_size=batch_size,
            splice=splice,
            norm_scaling_factor=norm_scaling_factor,
            outlier_threshold=outlier_threshold,
            max_documents=max_documents,
            dtype=dtype,
            device=device,
            progress=progress,
        )
    echo(str(done.path))
    if done.left_out:
        echo(
            f"{done.left_out:,} instructions were left out: with {max_tokens} tokens more they exceed the model's limit",
            err=True,
        )
    if done.with_input:
        echo(f"{done.with_input:,} records were left out: they have an input besides their instruction", err=True)
    made = f"{done.made:,} of {done.count:,} rollouts generated" if done.made else f"{done.count:,} rollouts were already there"
    echo(made if done.made else f"{made}: nothing was run", err=True)
