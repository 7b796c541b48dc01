"""The Hugging Face Hub's side of a download: a real HTTP server in a thread that serves folders as repositories."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c0ffee" * 6 + "beef"


class Hub(ThreadingHTTPServer):
    """Repositories by id, each with one commit that `main` and `v1` name. `requests` holds every path asked for."""

    def __init__(self, repos: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos, self.requests = repos, list[str]()
        self.refused: dict[str, tuple[int, str]] = {}
        """By repository: the status and X-Error-Code that its files are answered with."""
        self.halved: dict[str, bool] = {}
        """Repositories whose files are sent in half, and whether their Content-Length admits it."""
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def environment(self, home: Path, **settings: str) -> dict[str, str]:
        """That of a fresh process to which this is the Hub, with a cache of its own and no proxy between them."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
        return kept | {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "NO_PROXY": "*"} | settings


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[0] == "datasets":
            parts = parts[1:]
        if parts[0] == "api" and parts[1] in ("models", "datasets") and len(parts) >= 4:
            what, revision = parts[4:6] if len(parts) >= 6 else ("revision", "main")
            self._about("/".join(parts[2:4]), what, revision, "/".join(parts[6:]))
        elif len(parts) >= 5 and parts[2] == "resolve":
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._refuse(404, "EntryNotFound")

    do_HEAD = do_GET  # noqa: N815

    def _about(self, repo: str, what: str, revision: str, under: str) -> None:
        folder = self.server.repos.get(repo)
        if folder is None:
            self._refuse(401, "RepoNotFound")
        elif revision not in ("main", "v1", COMMIT):
            self._refuse(404, "RevisionNotFound")
        else:
            files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
            tree = _tree(folder, folder / under, "recursive=true" in self.path.lower())
            info = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
            self._answer(200, json.dumps(tree if what == "tree" else info).encode(), {"Content-Type": "application/json"})

    def _file(self, repo: str, revision: str, name: str) -> None:
        path = self.server.repos.get(repo, Path("/nowhere")) / name
        if repo in self.server.refused:
            self._refuse(*self.server.refused[repo])
        elif revision not in ("main", "v1", COMMIT) or not path.is_file():
            self._refuse(404, "EntryNotFound")
        else:
            body, headers = path.read_bytes(), {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": COMMIT}
            if self.command == "GET" and repo in self.server.halved:
                self.close_connection = True
                headers["Content-Length"] = str(len(body) // (2 if self.server.halved[repo] else 1))
                body = body[: len(body) // 2]
            whole, part = len(body), self.headers.get("Range", "").removeprefix("bytes=")
            if part and self.command == "GET":
                first, _, last = part.partition("-")
                body = body[int(first) : int(last or whole) + 1]
                headers["Content-Range"] = f"bytes {first}-{int(first) + len(body) - 1}/{whole}"
            self._answer(206 if "Content-Range" in headers else 200, body, headers)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b"", {"X-Error-Code": code} if code else {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _tree(root: Path, folder: Path, recursive: bool) -> list[dict[str, Any]]:
    """What lies in a folder, as the Hub tells it."""
    return [
        {"type": "file", "path": path.relative_to(root).as_posix(), "size": path.stat().st_size, "oid": _etag(path)}
        if path.is_file()
        else {"type": "directory", "path": path.relative_to(root).as_posix(), "oid": COMMIT}
        for path in sorted(folder.rglob("*") if recursive else folder.glob("*"))
    ]


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def serve(repos: dict[str, Path]) -> Iterator[Hub]:
    """A running server, shut down at the end."""
    hub = Hub(repos)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
