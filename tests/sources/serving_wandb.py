"""W&B's side of a download: a real HTTP server in a thread that answers the client's GraphQL and serves artifacts' files."""

import hashlib
import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

DIGEST = "0123456789abcdef0123456789abcdef"


class Server(ThreadingHTTPServer):
    """Artifacts by `entity/project/name:version`, all of version 3. `requests` holds every path asked for, `halved` what is
    sent in half."""

    def __init__(self, artifacts: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.artifacts, self.requests, self.halved = artifacts, list[str](), set[str]()
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/graphql":
            return self._answer(b"{}")
        asked = json.loads(body)
        return self._answer(json.dumps({"data": self._data(asked["query"], asked.get("variables") or {})}).encode())

    def _data(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "ArtifactMembershipByName" in query:
            return {"project": self._membership(variables["entity"], variables["project"], variables["name"])}
        if "currentManifest" in query:
            file = {"id": "f", "directUrl": f"{self.server.endpoint}/manifest/{variables['id']}"}
            return {"artifact": {"currentManifest": {"id": "m", "file": file}}}
        viewer = {"id": "u", "entity": "lab", "username": "u", "email": "", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer, "serverInfo": {"features": []}}

    def _membership(self, entity: str, project: str, name: str) -> dict[str, Any]:
        full = f"{entity}/{project}/{name}"
        if full not in self.server.artifacts:
            return {"artifactCollectionMembership": None}
        where = {"id": "p", "internalId": "p", "name": project, "entity": {"name": entity}}
        sequence = {"__typename": "ArtifactSequence", "name": name.partition(":")[0], "project": where}
        artifact = {
            "__typename": "Artifact",
            "id": full.encode().hex(),
            "artifactSequence": sequence,
            "artifactType": {"name": "model"},
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "state": "COMMITTED",
            "size": 1,
            "digest": DIGEST,
            "fileCount": 1,
            "createdAt": "2024-07-01T00:00:00",
            "versionIndex": 3,
        } | dict.fromkeys(("description", "metadata", "historyStep", "commitHash", "updatedAt"))
        common = {"id": "x", "versionIndex": 3, "createdAt": "2024-07-01T00:00:00", "aliases": []}
        membership = {"__typename": "ArtifactCollectionMembership", "artifactCollection": sequence, "artifact": artifact}
        return {"artifactCollectionMembership": membership | common}

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        _, kind, name, *_ = self.path.split("/")
        if kind == "manifest":
            return self._answer(json.dumps(self._manifest(self.server.artifacts[bytes.fromhex(name).decode()])).encode())
        wanted = self.path.partition("?")[0].split("/")
        for folder in self.server.artifacts.values():
            for path in folder.rglob("*"):
                if path.is_file() and hashlib.md5(path.read_bytes()).hexdigest() in wanted:
                    body = path.read_bytes()
                    return self._answer(body[: len(body) // 2] if path.name in self.server.halved else body)
        return self._answer(b"", 404)

    def _manifest(self, folder: Path) -> dict[str, Any]:
        contents = {
            path.relative_to(folder).as_posix(): {
                "digest": b64encode(hashlib.md5(path.read_bytes()).digest()).decode(),
                "size": path.stat().st_size,
            }
            for path in folder.rglob("*")
            if path.is_file()
        }
        policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {}}
        return {"version": 1, "contents": contents} | policy

    def _answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serve(artifacts: dict[str, Path]) -> Iterator[Server]:
    """A running server, shut down at the end."""
    server = Server(artifacts)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
