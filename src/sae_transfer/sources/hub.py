"""A Hugging Face Hub id -> a folder in the Hub's own cache and the commit it was read at."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from posixpath import join, normpath

from huggingface_hub import HfApi, file_exists, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: that of httpx or httpx2, by its version
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sae_transfer.errors import UserError

MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
NOT_MODEL_FILES = ["consolidated*", "original/*", "onnx/*", "*/*"]


def download(repo: str, revision: str | None) -> tuple[Path, str]:
    """The folder of a model or adapter repository (no pickled weights) and its commit.

    Raises: UserError E-HUB where the repository, its revision or the network can't be had.
    """
    with one_line(repo, revision):
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=MODEL_FILES, ignore_patterns=NOT_MODEL_FILES))
    return folder, folder.name


def download_folder(repo: str, folder: str, files: Collection[str], revision: str | None) -> tuple[Path, str]:
    """One folder of a repository, with those of `files` (paths from there) that it has, and the commit.

    Raises: UserError E-HUB.
    """
    below = [normpath(join(folder, file)) for file in files]
    with one_line(repo, revision):
        root = Path(snapshot_download(repo, revision=revision, allow_patterns=[escape(path) for path in below]))
    return root / folder, root.name


def holds(repo: str, path: str, revision: str) -> bool:
    """Whether a repository has a file. Raises UserError E-HUB."""
    with one_line(repo, revision):
        return file_exists(repo, path, revision=revision)


def data_commit(repo: str, revision: str | None) -> str:
    """The commit of a data set. Raises UserError E-HUB."""
    with one_line(repo, revision):
        try:
            commit = HfApi().dataset_info(repo, revision=revision).sha
        except HfHubHTTPError:
            raise
        except HTTPError as error:  # no answer at all
            raise OfflineModeIsEnabled(str(error)) from None
    assert commit is not None
    return commit


@contextmanager
def one_line(repo: str, revision: str | None) -> Iterator[None]:
    """What the Hub's client raises, as a UserError."""
    at = f"{repo}@{revision}" if revision else repo
    try:
        yield
    except GatedRepoError:
        raise UserError("E-HUB", f"{at} is gated", "accept its terms on the Hub, then run: hf auth login") from None
    except RevisionNotFoundError:
        raise UserError("E-HUB", f"{repo} has no revision {revision!r}", "check the branch, tag or commit") from None
    except RepositoryNotFoundError:
        raise UserError("E-HUB", f"{at} is not on the Hub, or is private", "check the name, or run: hf auth login") from None
    except HFValidationError as error:
        raise UserError("E-HUB", f"{at} is no Hub id ({error})", "give org/name, or a path that begins with ./") from None
    except (HTTPError, OSError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
        if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled):
            raise UserError("E-HUB", f"{at} is not in the cache and the Hub can't be reached", "check the network") from None
        line = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise UserError("E-HUB", f"{at} could not be downloaded ({line})", "try again later") from None
