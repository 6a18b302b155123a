"""A small Hugging Face Hub on loopback: enough of its HTTP interface for huggingface_hub to fill a cache for real.

Source of the interface: huggingface_hub 2.4, ``hf_api.py`` (``repo_info``, ``list_repo_tree``) and ``file_download.py``
(headers of ``/resolve``).
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
LFS_FROM = 1000
"""Files of this size and more are named by their SHA-256, as in large-file storage; others by their git id."""


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def etag_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if len(data) >= LFS_FROM else git_id(data)


def commit_of(kind: str, name: str, revision: int) -> str:
    return hashlib.sha1(f"{kind}/{name}/{revision}".encode()).hexdigest()


@dataclass
class Hub:
    """Repos by type and name; each has its revisions by commit, and refs. `delay` slows every file down, in seconds."""

    repos: dict[tuple[str, str], dict[str, Files]] = field(default_factory=dict)
    refs: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    delay: float = 0.0
    url: str = ""

    def push(self, name: str, files: Files, *, kind: str = "model", ref: str = "main") -> str:
        revisions = self.repos.setdefault((kind, name), {})
        commit = commit_of(kind, name, len(revisions))
        revisions[commit] = files
        self.refs.setdefault((kind, name), {})[ref] = commit
        return commit

    def commit(self, kind: str, name: str, revision: str) -> str | None:
        if revision in self.repos.get((kind, name), {}):
            return revision
        return self.refs.get((kind, name), {}).get(revision)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *arguments: object) -> None:
        return

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            if self.hub.delay and len(body) >= LFS_FROM:
                half = len(body) // 2
                self.wfile.write(body[:half])
                self.wfile.flush()
                time.sleep(self.hub.delay)
                body = body[half:]
            self.wfile.write(body)

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def missing(self, what: str, commit: str | None = None) -> None:
        self.send(404, b"", {"X-Error-Code": what} | ({"X-Repo-Commit": commit} if commit else {}))

    def answer(self) -> None:
        path = urlsplit(self.path).path
        api = re.fullmatch(r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?", path)
        file = re.fullmatch(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if api:
            self.answer_api(api[1], unquote(api[2]), api[3], unquote(api[4] or "main"))
        elif file:
            self.answer_file(file[1] or "model", unquote(file[2]), unquote(file[3]), unquote(file[4]))
        else:
            self.missing("RepoNotFound")

    def answer_api(self, kind: str, name: str, what: str | None, revision: str) -> None:
        commit = self.hub.commit(kind, name, revision)
        if commit is None:
            self.missing("RepoNotFound" if (kind, name) not in self.hub.repos else "RevisionNotFound")
            return
        files = self.hub.repos[kind, name][commit]
        if what == "tree":
            listing = []
            for path, data in files.items():
                entry = {"type": "file", "path": path, "size": len(data), "oid": git_id(data)}
                if len(data) >= LFS_FROM:
                    entry["lfs"] = {"oid": etag_of(data), "size": len(data), "pointerSize": 130}
                listing.append(entry)
            self.send_json(listing)
        else:
            siblings = [{"rfilename": path} for path in files]
            self.send_json({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "private": False})

    def answer_file(self, kind: str, name: str, revision: str, path: str) -> None:
        commit = self.hub.commit(kind, name, revision)
        if commit is None:
            self.missing("RevisionNotFound")
            return
        data = self.hub.repos[kind, name][commit].get(path)
        if data is None:
            self.missing("EntryNotFound", commit)
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag_of(data)}"', "Accept-Ranges": "bytes"}
        if len(data) >= LFS_FROM:
            headers |= {"X-Linked-Etag": f'"{etag_of(data)}"', "X-Linked-Size": str(len(data))}
        self.send(200, data, headers)


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
