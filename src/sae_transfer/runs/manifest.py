"""run.json: what was asked, from what, on what, by which command, and what was calibrated. Versioned; read before any part."""

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sae_transfer.errors import UserError
from sae_transfer.rows import SCHEMA_VERSION, Calibration, Drift
from sae_transfer.specs import EvaluateSpec


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Part):
    """Where one model, SAE or data set came from."""

    path: str
    revision: str | None = None
    """Commit on the Hub; None for local files."""
    files: dict[str, str] = {}
    """sha256 of each local file."""
    about: dict[str, Any] = {}
    """What its config says of it: width, depth, architecture, hook point, normalisation."""


class Session(_Part):
    """One start of the command: a run that was killed and resumed has several."""

    command: list[str]
    started: datetime
    finished: datetime | None = None
    seconds: dict[str, float] = {}
    versions: dict[str, str]
    hardware: dict[str, str] = {}


class Part(_Part):
    """One finished unit of work: a file of rows, and files of the same name in the folders of other tables."""

    unit: str
    file: str
    sha256: str
    rows: int
    beside: dict[str, str] = {}
    """sha256 of the unit's file in each other table's folder; a table without rows has none."""


class DataTokens(_Part):
    """What one data set became."""

    documents: int
    rows: int
    tokens: int
    left_out: int = 0
    """Chats longer than the context size."""
    token_kinds: tuple[str, ...]
    batched: bool
    """Whether the legacy CE recovered is a mean over batches of token rows: text, and rows without a mask."""
    tokenizer: str | None = None
    """NAME of the model whose tokenizer was used; None for rows of ids."""
    context_size: int | None = None
    """Tokens of a packed row, or of the longest chat that is kept."""
    bos: int | None = None
    """Id at the start of packed rows and between documents; None where there is none."""
    sha256: str | None = None
    """Hash of the token rows; None in a run that was begun before it was kept."""


class Skipped(_Part):
    """A model that can't read a data set, and why: its cells are empty."""

    model: str
    data: str
    reason: str


class Manifest(_Part):
    """The whole of run.json."""

    schema_version: int = SCHEMA_VERSION
    status: Literal["running", "done"] = "running"
    spec: EvaluateSpec
    sources: dict[str, Source]
    """By `model:NAME`, `adapter:NAME`, `sae:NAME`, `data:NAME`, and `chat_template` where that is a file."""
    data: dict[str, DataTokens]
    seeds: dict[str, int] = {}
    calibration: Calibration
    calibration_hash: str
    outliers: str
    """sha256 of the file that names the outliers."""
    skipped: tuple[Skipped, ...] = ()
    drift: tuple[Drift, ...] = ()
    """How far other models lie from each SAE's own model at its hook point, on the first positions of each data set."""
    sessions: tuple[Session, ...]
    parts: tuple[Part, ...] = ()

    @property
    def done(self) -> frozenset[str]:
        """Keys of the finished units."""
        return frozenset(part.unit for part in self.parts)


def now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def parse(text: str, where: str) -> Manifest:
    """A manifest from JSON. Raises UserError E-RUN for another schema version or a damaged file."""
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"]) or "its text"
        raise UserError("E-RUN", f"{where} is damaged at {at}: {first['msg']}", "start a new run") from None
    if manifest.schema_version != SCHEMA_VERSION:
        raise UserError(
            "E-RUN",
            f"{where} has schema {manifest.schema_version}, this version reads {SCHEMA_VERSION}",
            "run it again",
        )
    if set(manifest.data) != {data.name for data in manifest.spec.data}:
        raise UserError("E-RUN", f"{where} is damaged at data: not those of its spec", "start a new run")
    skipped = {(entry.model, entry.data) for entry in manifest.skipped}
    reading = [m.name for m in manifest.spec.models if any((m.name, data) not in skipped for data in manifest.data)]
    scaled = {(scale.model, scale.sae) for scale in manifest.calibration.scales}
    if not scaled >= {(model, sae.name) for model in reading for sae in manifest.spec.saes}:
        raise UserError("E-RUN", f"{where} is damaged at calibration: not that of its models and SAEs", "start a new run")
    if not manifest.sessions:
        raise UserError("E-RUN", f"{where} is damaged at sessions: there is none", "start a new run")
    if manifest.calibration.hash != manifest.calibration_hash:
        raise UserError("E-RUN", f"{where}: the calibration is not the one that was written", "start a new run")
    return manifest
