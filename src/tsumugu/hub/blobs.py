"""Large files of the hub, fetched so that an interrupted download goes on where it stopped, in whichever process.

huggingface_hub goes on after a broken connection within one call, but throws away what an ended process had. Here the
bytes so far stay in ``blobs/<etag>.incomplete`` beside the finished blobs, a name that cleaners of that cache know. A
blob gets its final name only after its hash is right; huggingface_hub then finds it and adds the snapshot's link.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tsumugu.core.errors import HubError
from tsumugu.hub.progress import Progress

LARGE = 4 << 20
"""Smaller files are left to huggingface_hub: starting them again costs no more than asking for their hash."""
_PIECE = 1 << 20
_TRIES = 5


def fetch_large(repository: str, commit: str, files: Sequence[str], progress: Progress) -> None:
    """Bring the blobs of `files` into the hub's cache; those that are there are left alone.

    Raises:
        HubError: a blob is not what the hub announced.
        Exception: what the HTTP client raises, after several tries that brought nothing.
    """
    total = _Total(progress)
    with ThreadPoolExecutor(min(4, len(files) or 1)) as pool:
        jobs = [pool.submit(_fetch, repository, commit, name, total) for name in files]
        try:
            for job in jobs:
                job.result()
        finally:
            total.stopped.set()


class _Total:
    """The bytes of all blobs so far; `stopped` ends the other threads when one fails or the user interrupts."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._done, self._lock = progress, 0, threading.Lock()
        self.stopped = threading.Event()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._progress.done(self._done)


def _fetch(repository: str, commit: str, name: str, total: _Total) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.constants import HF_HUB_CACHE

    url = hf_hub_url(repository, name, revision=commit)
    metadata = get_hf_file_metadata(url)
    if metadata.size is None or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", metadata.etag or ""):
        return  # A mirror that gives no hash: left to huggingface_hub.
    folder, root = f"models--{repository.replace('/', '--')}", Path(HF_HUB_CACHE)
    path = root / folder / "blobs" / str(metadata.etag)
    # The lock is the one that huggingface_hub takes for this blob.
    _Blob(url, metadata.size, path, root / ".locks" / folder / f"{path.name}.lock").fetch(total)


@dataclass(frozen=True)
class _Blob:
    """A file of the hub: `size` in bytes, `path` in the cache, whose name is the hash."""

    url: str
    size: int
    path: Path
    lock: Path

    def fetch(self, total: _Total) -> None:
        from filelock import FileLock

        for each in (self.path, self.lock):
            each.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.lock):
            if self.path.exists():
                total.add(self.size)
                return
            partial = self.path.with_name(f"{self.path.name}.incomplete")
            with partial.open("ab") as file:
                if file.tell() > self.size:
                    file.truncate(0)
                total.add(file.tell())
                self._fill(file, total)
                file.flush()
                os.fsync(file.fileno())
            if total.stopped.is_set():
                return
            if self._hash(partial) != self.path.name:
                partial.unlink()
                raise HubError(f"what came from {self.url} is not what the hub announced", mend="pull it again")
            partial.rename(self.path)

    def _fill(self, file: BinaryIO, total: _Total) -> None:
        """Append until the file is whole, or `total` is stopped."""
        from huggingface_hub.errors import HfHubHTTPError

        # The HTTP client's own base class, which changes with the version of huggingface_hub.
        broken: tuple[type[Exception], ...] = HfHubHTTPError.__bases__
        tries = 0
        while file.tell() < self.size and not total.stopped.is_set():
            before = file.tell()
            problem: Exception | None = None
            try:
                self._append(file, total)
            except broken as error:
                if isinstance(error, OSError):  # An answer that refuses, or the disk.
                    raise
                problem = error
            tries = 0 if file.tell() > before else tries + 1
            if tries >= _TRIES:
                raise problem or HubError(f"{self.url} sends nothing", mend="try again later")
            total.stopped.wait(0.1 * 2**tries if tries else 0)

    def _append(self, file: BinaryIO, total: _Total) -> None:
        from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if start := file.tell():
            headers["Range"] = f"bytes={start}-"
        with get_session().stream(
            "GET", self.url, headers=headers, follow_redirects=True, timeout=HF_HUB_DOWNLOAD_TIMEOUT
        ) as response:
            hf_raise_for_status(response)
            if start and response.status_code != 206:  # The server sends the whole again.
                file.truncate(0)
                file.seek(0)
                total.add(-start)
            for piece in response.iter_bytes(_PIECE):
                if total.stopped.is_set():
                    return
                wanted = piece[: self.size - file.tell()]
                file.write(wanted)
                total.add(len(wanted))

    def _hash(self, path: Path) -> str:
        """SHA-256 of a large file, git's SHA-1 of an ordinary one, as the hub names its blobs."""
        digest = hashlib.sha256()
        if len(self.path.name) == 40:
            digest = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
        return digest.hexdigest()
