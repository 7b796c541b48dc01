"""The golden numbers beside ours: what the test compares, and what docs/validation.md shows.

`python -m tests.golden.published GOLDEN MODEL.gguf` runs everything and prints the page's tables.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import write_jsonl
from tests.running import run_json

COLUMNS = {
    "clean_loss": "ce_clean",
    "sae_recons_loss": "ce_spliced",
    "sae_loss": "ce_spliced",
    "zero_abl_loss": "ce_zero",
    "n_outliers": "outliers",
    "n_activations": "tokens",
    "mse": "mse",
    "MSE": "mse",
    "l0": "l0",
    "L0": "l0",
    "explained_variance": "explained_variance_legacy",
    "EV_all_tokens_one_batch": "explained_variance_legacy",
    "ev": "explained_variance_legacy",
}
KL = {True: 0.682632, False: 3.191280}
"""Of sae_a on the SmolLM2 text with outliers left out and spliced: no published number, an independent computation."""


@dataclass(frozen=True)
class Compared:
    """One published number and ours."""

    cell: str
    column: str
    published: float
    ours: float

    @property
    def difference(self) -> float:
        """Relative; absolute where the published number is 0."""
        return abs(self.ours - self.published) / (abs(self.published) or 1.0)


def random_model(folder: Path, ignore_outliers: bool) -> Iterator[Compared]:
    """Rows, whole and masked, of a random Llama or Qwen2."""
    expected = json.loads((folder / "golden.json").read_text())
    rows = [{"tokens": tokens} for tokens in expected["tokens"]]
    masked = [row | {"mask": mask} for row, mask in zip(rows, expected["mask"], strict=True)]
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        records = run_json(
            *("--model", f"tiny={folder}", "--sae", f"base={folder}/sae_base", "--sae", f"chat={folder}/sae_chat"),
            *("--rows", f"pile={write_jsonl(root / 'pile.jsonl', rows)}"),
            *("--rows", f"masked={write_jsonl(root / 'masked.jsonl', masked)}"),
            *("--norm-scaling-factor", str(expected["norm_scaling_factor"]), "--batch-size", "3"),
            *("--outlier-threshold", str(expected["outlier_threshold"]) if ignore_outliers else "off"),
            out=root / "run",
        )
    for data, legacy in (("pile", "ce_recovered_legacy"), ("masked", "ce_recovered")):
        for row in expected[data]:
            if row["ignore_outliers"] is ignore_outliers:
                record = next(r for r in records if (r["sae"], r["data"]) == (row["sae"], data))
                yield from _compare(f"{folder.name} / {row['sae']} / {data}", row, record, legacy)


def smollm2(folder: Path, model: Path, ignore_outliers: bool) -> Iterator[Compared]:
    """The main job: the real model from its GGUF, two SAEs, text and chats, in one command."""
    expected = json.loads((folder / "golden.json").read_text())
    rows = [{"tokens": tokens} for tokens in json.loads((folder / "text_tokens.json").read_text())]
    chats = ("--chats", str(folder / "rollouts.jsonl"), "--chat-template", "qwen") if ignore_outliers else ()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        records = run_json(
            *("--model", f"smollm2={model}", "--sae", f"sae_a={folder}/sae_a", "--sae", f"sae_b={folder}/sae_b"),
            *("--rows", f"text={write_jsonl(root / 'text.jsonl', rows)}", *chats, "--batch-size", "4"),
            *("--norm-scaling-factor", str(expected["norm_scaling_factor"])),
            *("--outlier-threshold", "200" if ignore_outliers else "off"),
            out=root / "run",
        )
    text = {record["sae"]: record for record in records if record["data"] == "text"}
    for row in expected["pile"]:
        if row["ignore_outliers"] is ignore_outliers:
            yield from _compare(f"smollm2 / {row['sae']} / text", row, text[row["sae"]], "ce_recovered_legacy")
    yield Compared("smollm2 / sae_a / text", "kl", KL[ignore_outliers], text["sae_a"]["kl"])
    for row in expected["chat"] if ignore_outliers else ():
        kind = row["mask_type"]
        record = next(r for r in records if (r["sae"], r["token_kind"]) == (row["sae"], kind))
        yield from _compare(f"smollm2 / {row['sae']} / {kind}", row, record, "ce_recovered")


def _compare(cell: str, published: dict[str, Any], record: dict[str, Any], ce_recovered: str) -> Iterator[Compared]:
    for key, column in (COLUMNS | {"ce_rec": ce_recovered}).items():
        if key in published:
            yield Compared(cell, column, published[key], record[column])


def main(golden: Path, model: Path) -> None:
    """Print the tables."""
    for ignore in (True, False):
        sys.stdout.write(f"\n### Outliers {'left out' if ignore else 'spliced'}\n\n")
        sys.stdout.write("| cell | column | published | sae-transfer | difference |\n| --- | --- | --- | --- | --- |\n")
        both = [random_model(golden / name, ignore) for name in ("llama", "qwen2")]
        for compared in (*both[0], *both[1], *smollm2(golden / "smollm2", model, ignore)):
            numbers = f"{compared.published:.7g} | {compared.ours:.7g} | {compared.difference:.0e}"
            sys.stdout.write(f"| {compared.cell} | `{compared.column}` | {numbers} |\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
