"""Count what lies below a folder, once, the way ``du`` does; the ground that every scan stands on."""

from __future__ import annotations

import gc
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tsumugu.hub.cache.records import CacheScan, HardLink, Kind, Leftover, Part, Repo


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """No collection of cycles meanwhile: a scan makes many records and no cycle, and a collection visits them all.

    Freezing and unfreezing then hands the records to the oldest generation, so that not even the next one visits them.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on and gc.get_freeze_count() == 0:
            gc.freeze()
            gc.unfreeze()
        if was_on:
            gc.enable()


class Walk:
    """One pass over a cache: what each kind adds up to, which hard links were met, what could not be read.

    `size` is the payload of sound repos that keep all of it themselves; `mixed` are the repos that may not.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.counts = dict.fromkeys(Kind, 0)
        self.sizes = dict.fromkeys(Kind, 0)
        self.unreadable: list[str] = []
        self.hard: list[HardLink] = []
        self.size = 0
        self.mixed: list[Repo] = []
        self._met: set[tuple[int, int]] = set()
        self._started = time.perf_counter()

    def finish(self, cache: str, repos: Sequence[Repo], leftovers: Sequence[Leftover], size: int) -> CacheScan:
        parts = tuple(Part(kind, self.counts[kind], self.sizes[kind]) for kind in Kind if self.counts[kind])
        return CacheScan(
            cache=cache,
            root=self.root,
            repos=tuple(repos),
            leftovers=tuple(leftovers),
            parts=parts,
            size=size,
            disk=sum(part.disk for part in parts),
            unreadable=tuple(self.unreadable),
            seconds=time.perf_counter() - self._started,
        )

    def add(self, kind: Kind, found: os.stat_result) -> int:
        """Count one file, link or folder; its bytes, or none (and a line in `hard`) when it has several hard links."""
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            return self.add_inode(kind, (found.st_dev, found.st_ino), found.st_nlink, found.st_size)
        self.counts[kind] += 1
        self.sizes[kind] += found.st_size
        return found.st_size

    def add_inode(self, kind: Kind, inode: tuple[int, int], links: int, size: int) -> int:
        """Count a file that may have several hard links; its bytes, or none when it has."""
        self.counts[kind] += 1
        if links > 1:
            self.hard.append((inode, links, size))
            if inode in self._met:
                return 0
            self._met.add(inode)
            self.sizes[kind] += size
            return 0
        self.sizes[kind] += size
        return size

    def add_many(self, kind: Kind, count: int, size: int) -> None:
        """Count things already looked at, none of them a hard link."""
        self.counts[kind] += count
        self.sizes[kind] += size

    def entries(self, path: str) -> list[os.DirEntry[str]]:
        """The entries of a folder; none, and a note, when it cannot be read."""
        try:
            with os.scandir(path) as found:
                return list(found)
        except FileNotFoundError:
            return []
        except OSError as error:
            self.unreadable.append(f"{path}: {error.strerror or error}")
            return []

    def stream(self, path: str) -> Iterator[os.DirEntry[str]]:
        """As `entries`, but one at a time: for folders that may hold a million."""
        try:
            with os.scandir(path) as found:
                yield from found
        except FileNotFoundError:
            return
        except OSError as error:
            self.unreadable.append(f"{path}: {error.strerror or error}")

    def look(self, entry: os.DirEntry[str]) -> os.stat_result | None:
        """``lstat`` of an entry; None when it went away meanwhile or may not be looked at."""
        try:
            return entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.unreadable.append(f"{entry.path}: {error.strerror or error}")
            return None

    def is_folder(self, entry: os.DirEntry[str]) -> bool:
        """Whether an entry is a folder or a link that leads to one."""
        try:
            return entry.is_dir()
        except OSError:
            return False

    def tree(self, path: str, kind: Kind, *, folders: Kind | None = None) -> int:
        """Count everything below a folder, not the folder itself; its bytes without `hard`. Follows no link."""
        total, waiting = 0, [path]
        while waiting:
            for entry in self.stream(waiting.pop()):
                found = self.look(entry)
                if found is None:
                    continue
                if stat.S_ISDIR(found.st_mode):
                    waiting.append(entry.path)
                    total += self.add(folders or kind, found)
                else:
                    total += self.add(kind, found)
        return total


def leftover(kind: Kind, path: str, found: os.stat_result, *, folder: str = "", disk: int | None = None) -> Leftover:
    """The record of a file that belongs to no revision; `disk` where it differs from the file's own length."""
    return Leftover(
        kind=kind,
        path=path,
        disk=found.st_size if disk is None else disk,
        modified=found.st_mtime,
        folder=folder,
        links=1 if stat.S_ISDIR(found.st_mode) else found.st_nlink,
        inode=(found.st_dev, found.st_ino),
    )
