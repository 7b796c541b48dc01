"""A W&B artifact -> a folder of a cache, under the version and digest that it was read at."""

import os
import re
import tempfile
from collections.abc import Collection
from pathlib import Path

from sae_transfer.errors import UserError

ARTIFACT = re.compile(r"([\w.\-]+)/([\w.\-]+)/([\w.\-]+):([\w.\-]+)")

PATIENCE = {"x_graphql_retry_max": 2, "x_graphql_retry_wait_min_seconds": 1.0, "x_graphql_retry_wait_max_seconds": 2.0}
"""Without these the client tries for hours where there is no network."""


def download(name: str, files: Collection[str]) -> tuple[Path, str]:
    """The folder of `entity/project/artifact:version` with those of `files` that it has, and its version and digest.

    A numbered version never changes, so one that is in the cache is not asked for again.

    Raises: UserError E-WANDB where the artifact, the login or the network can't be had; never a prompt.
    """
    match = ARTIFACT.fullmatch(name)
    if match is None:
        raise UserError("E-WANDB", f"wandb:{name} is no artifact", "give wandb:entity/project/artifact:version")
    *parts, version = match.groups()
    shelf = cache().joinpath(*parts)
    found = sorted(shelf.glob(f"{version}-*")) if re.fullmatch(r"v\d+", version) else []
    return (found[0], found[0].name) if found else _fetched(name, files, shelf)


def cache() -> Path:
    """Where artifacts lie: the user's cache folder, or what XDG_CACHE_HOME says."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae-transfer" / "wandb"


def _fetched(name: str, files: Collection[str], shelf: Path) -> tuple[Path, str]:
    """Downloaded beside its place in the cache, then renamed: what has its name is whole."""
    import wandb  # takes most of a second to import, which only who asks for an artifact shall wait
    from wandb.sdk.lib import wbauth

    try:
        settings = wandb.setup(settings=wandb.Settings(silent=True, **PATIENCE)).settings
        if wbauth.authenticate_session(host=settings.base_url, source="sae-transfer", prompt=False) is None:
            raise UserError("E-WANDB", f"wandb:{name} needs a login", "run: wandb login")
        artifact = wandb.Api().artifact(name)
        revision = re.sub(r"[^\w.\-]", "_", f"{artifact.version}-{artifact.digest}")
        folder = shelf / revision
        if not folder.exists():
            shelf.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=shelf, prefix=".part-") as part:
                for path, entry in artifact.manifest.entries.items():
                    if path in files and entry.ref is None:  # what lies elsewhere has no checksum here
                        got = Path(artifact.get_entry(path).download(root=part, skip_cache=True))
                        if entry.size is not None and got.stat().st_size != entry.size:
                            raise OSError(f"{path} arrived in part")
                Path(part).rename(folder)
    except (wandb.errors.Error, OSError, ValueError, RuntimeError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            "E-WANDB", f"wandb:{name} could not be had ({line})", "check the name, the login and the network"
        ) from None
    return folder, revision
