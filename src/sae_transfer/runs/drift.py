"""drift.json: what a `drift` table was asked, from what, on what, by which command, and its records. One file in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from sae_transfer.errors import UserError
from sae_transfer.rows import Drift, Norms
from sae_transfer.runs.directory import write_atomically
from sae_transfer.runs.manifest import DataTokens, Session, Skipped, Source
from sae_transfer.specs import DriftSpec

FILE = "drift.json"
SCHEMA_VERSION = 1


class DriftManifest(BaseModel):
    """The whole of drift.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    spec: DriftSpec
    sources: dict[str, Source]
    """By `model:NAME`, `adapter:NAME`, `data:NAME`, and `chat_template` where that is a file."""
    data: dict[str, DataTokens]
    seeds: dict[str, int]
    norms: tuple[Norms, ...]
    """Norms, outlier threshold and scaling factor of every model at every hook point."""
    d_model: int
    skipped: tuple[Skipped, ...]
    session: Session
    drift: tuple[Drift, ...]


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Make the folder if need be; one that was made here and got no drift.json is removed again.

    Raises: UserError E-RUN where it holds something else, E-PATH where it can't be made.
    """
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError("E-RUN", f"{folder} is a file", "give a new folder with -o") from None
    except OSError as error:
        raise UserError("E-PATH", f"{folder} can't be made ({error.strerror})", "give another folder with -o") from None
    ours = (FILE, f".{FILE}.")  # the second: what a kill while writing left
    if not all(entry.name.startswith(ours) for entry in folder.iterdir()):
        raise UserError("E-RUN", f"{folder} holds something else than {FILE}", "give a new folder with -o")
    try:
        yield folder
    finally:
        if not (folder / FILE).exists():
            with suppress(OSError):
                for path in made:
                    path.rmdir()


def read(folder: Path) -> DriftManifest | None:
    """What was written there; None where there is nothing. Raises UserError E-RUN where it is damaged or of another schema."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        manifest = DriftManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        at = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its text"
        raise UserError("E-RUN", f"{path} is damaged at {at}", "give another folder with -o") from None
    if manifest.schema_version != SCHEMA_VERSION:
        what = f"{path} has schema {manifest.schema_version}, this version reads {SCHEMA_VERSION}"
        raise UserError("E-RUN", what, "give another folder with -o")
    return manifest


def write(folder: Path, manifest: DriftManifest) -> None:
    """Write drift.json beside its place and rename it."""
    text = manifest.model_dump_json(indent=1) + "\n"

    def fill(beside: Path) -> None:
        beside.write_text(text, encoding="utf-8")

    write_atomically(folder / FILE, fill)
