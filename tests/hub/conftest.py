"""Loopback servers: a package index (PEP 503) and enough of the Hugging Face Hub, both with faults to order."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


class Server:
    """An HTTP server on a free port of the loopback, and what it was asked for.

    `cut` maps a path to the number of bytes after which the connection breaks, once; `stall` likewise, but the
    connection then stays open and silent until `release` is set.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut: dict[str, int] = {}
        self.stall: dict[str, int] = {}
        self.release = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                server.requests.append((self.command, path, self.headers.get("Range")))
                status, headers, body = server.answer(path, self.headers.get("Authorization"))
                wanted = self.headers.get("Range")
                if wanted and status == 200:
                    start = server.start(wanted)
                    headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                    status, body = 206, body[start:]
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self._send(path, body)

            def _send(self, path: str, body: bytes) -> None:
                try:
                    if path in server.cut:
                        self.wfile.write(body[: server.cut.pop(path)])
                        self.close_connection = True
                    elif path in server.stall:
                        size = server.stall.pop(path)
                        self.wfile.write(body[:size])
                        self.wfile.flush()
                        server.release.wait(60)
                        self.wfile.write(body[size:])
                    else:
                        self.wfile.write(body)
                except OSError:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def answer(self, path: str, authorization: str | None) -> tuple[int, dict[str, str], bytes]:
        raise NotImplementedError

    def asked(self, method: str, path: str) -> int:
        return sum(each[:2] == (method, path) for each in self.requests)

    def ranges(self, path: str) -> list[str | None]:
        """The Range header of each GET of `path`."""
        return [each[2] for each in self.requests if each[:2] == ("GET", path)]

    @staticmethod
    def start(header: str | None) -> int:
        """The first byte that a Range header asks for."""
        return int((header or "bytes=0-").removeprefix("bytes=").split("-")[0])

    def close(self) -> None:
        self.release.set()
        self._http.shutdown()
        self._http.server_close()


class PackageIndex(Server):
    """A "simple repository" of the wheels in a folder. Source: PEP 503."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__()

    def answer(self, path: str, authorization: str | None) -> tuple[int, dict[str, str], bytes]:
        kind, _, name = path.strip("/").partition("/")
        if kind == "files" and (self.folder / name).is_file():
            return 200, {"Content-Type": "application/octet-stream"}, (self.folder / name).read_bytes()
        wheels = [each for each in self.folder.glob("*.whl") if each.name.split("-")[0].replace("_", "-") == name]
        if kind != "simple" or not wheels:
            return 404, {}, b"not found"
        links = "".join(f'<a href="/files/{each.name}">{each.name}</a><br>' for each in wheels)
        return 200, {"Content-Type": "text/html"}, f"<!DOCTYPE html><html><body>{links}</body></html>".encode()


class Hub(Server):
    """Repositories by name, each a history of commits: ``{"org/name": [{"config.json": b"…"}, …]}``, newest last.

    Source: Hugging Face Hub documentation, "Hub API endpoints" (model info, tree, resolve).
    """

    def __init__(self) -> None:
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.lies = False
        super().__init__()

    def commit(self, name: str, index: int = -1) -> str:
        history = self.repositories[name]
        return hashlib.sha1(f"{name} {index % len(history)}".encode()).hexdigest()

    def answer(self, path: str, authorization: str | None) -> tuple[int, dict[str, str], bytes]:
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        parts = parts[2:] if is_api else parts
        length = 2 if "/".join(parts[:2]) in self.repositories else 1
        name, rest = "/".join(parts[:length]), parts[length:]
        if name not in self.repositories or name in self.private:
            return 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}"
        revision = rest[1] if len(rest) > 1 else "main"
        found = [i for i in range(len(self.repositories[name])) if revision in {self.commit(name, i), f"v{i}"}]
        index = found[0] if found else -1
        if not found and revision != "main":
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}, b"{}"
        files, commit = self.repositories[name][index], self.commit(name, index)
        if is_api and rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": each, "size": len(data), "oid": _etag(data)} for each, data in files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
        if is_api:
            siblings = [{"rfilename": each, "size": len(data)} for each, data in files.items()]
            info = {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": [], "private": False}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        if name in self.gated:
            status = 403 if authorization else 401
            return status, {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to {name} is restricted"}, b""
        file = "/".join(rest[2:])
        if file not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b""
        headers = {"ETag": f'"{_etag(files[file])}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        return 200, headers, bytes(len(files[file])) if self.lies else files[file]


def _etag(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@pytest.fixture
def package_index(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    """pip's only index in this test: it serves the wheels on the `shelf`."""
    server = PackageIndex(shelf)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    yield server
    server.close()


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub of processes that this test starts."""
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield server
    server.close()
