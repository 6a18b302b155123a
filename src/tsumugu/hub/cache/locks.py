# ruff: noqa: PTH115
"""Is somebody downloading into a repo, or reading a file of it? Then it is left alone."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tsumugu.core.errors import HubError
from tsumugu.hub.cache.layout import INCOMPLETE_SUFFIX, LOCK_SUFFIXES, LOCKS

FRESH = 600.0
"""Seconds for which an incomplete download counts as still at work, whether its lock is held or not."""


def is_held(path: str) -> bool:
    """Whether another process holds a lock file. One that cannot be tried counts as held; a link is no lock."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        with FileLock(path, blocking=False):
            return False
    except FileNotFoundError:
        return False
    except (Timeout, OSError, NotImplementedError):
        return True


@contextmanager
def hold(paths: Iterable[str]) -> Iterator[str | None]:
    """Hold lock files together without waiting. Yields None when all are ours, else the first that is not."""
    with ExitStack() as stack:
        busy = None
        for path in paths:
            try:
                stack.enter_context(FileLock(path, blocking=False, mode=0o664))
            except (Timeout, OSError, NotImplementedError):
                busy = path
                break
        yield busy


@contextmanager
def alone(root: str, own: str) -> Iterator[None]:
    """Only one tsumugu changes a cache at a time. Raises HubError when another does."""
    path = f"{root}/{own}/lock"
    with hold([path]) as busy:
        if busy is not None:
            raise HubError("another tsumugu is changing this cache", where=root, mend="wait until it is done")
        yield


def why_busy(root: str, folder: str, cache: str = "hub") -> str | None:
    """Why a repo, or an entry of another cache, must be left alone; or None."""
    if cache != "hub":
        locks = [f"{root}/locks/{folder.rpartition('/')[2]}.lock"] if cache == "tsumugu" else _files(root, (".lock",))
        return "is being written (a lock is held)" if any(is_held(each) for each in locks) else None
    for lock in _files(f"{root}/{LOCKS}/{folder}", LOCK_SUFFIXES):
        if is_held(lock):
            return "is being downloaded (a lock is held)"
    now = time.time()
    for part in _files(f"{root}/{folder}/blobs", (INCOMPLETE_SUFFIX,)):
        try:
            age = now - os.lstat(part).st_mtime
        except OSError:
            continue
        if age < FRESH:
            return f"is being downloaded (written to {max(0, int(age))} s ago)"
    return None


def _files(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.name.endswith(suffixes)]
    except OSError:
        return []


def files_in_use(root: str) -> dict[str, int]:
    """Files below `root` that a process has open or mapped, with its id. Linux only, and only processes one may see."""
    found: dict[str, int] = {}
    inside = f"{root}/"
    for process in Path("/proc").glob("[0-9]*"):
        pid = int(process.name)
        try:
            for handle in os.scandir(process / "fd"):
                target = os.readlink(handle.path)
                if target.startswith(inside):
                    found.setdefault(target, pid)
            for line in (process / "maps").read_bytes().splitlines():
                at = line.find(b" /")
                if at > 0 and line[at + 1 :].startswith(os.fsencode(inside)):
                    found.setdefault(os.fsdecode(line[at + 1 :]), pid)
        except OSError:
            continue
    return found
