"""The result of `drift` as an object."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sae_transfer.rows import DRIFT_COLUMNS, Drift
from sae_transfer.runs.drift import DriftManifest

Record = dict[str, Any]


class Drifts:
    """How far models moved: records, table, forecasts. `path` is its folder, None where it has none."""

    def __init__(self, manifest: DriftManifest, path: Path | None) -> None:
        self.manifest = manifest
        self.path = path

    def records(self) -> list[Record]:
        """One record a model, data set, token kind and hook point."""
        return [asdict(entry) for entry in self.manifest.drift]
