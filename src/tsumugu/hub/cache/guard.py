# ruff: noqa: PTH101, PTH110, PTH116, PTH117, PTH118, PTH208
"""The only hands that change a cache: every path is walked from the root's own descriptor, and no link is followed.

Where the system has no calls relative to a folder descriptor (Windows), the real path of the parent folder must lie
below the real path of the root instead.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from tsumugu.core.errors import InputError
from tsumugu.hub.cache.layout import LOCKS, OWN, STORE, TAG, TRASH, parse_folder
from tsumugu.hub.cache.scan import is_store

HAS_DESCRIPTORS = {os.open, os.rename, os.unlink, os.rmdir, os.stat, os.mkdir} <= os.supports_dir_fd
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def check_root(root: str | Path, cache: str = "hub") -> str:
    """The real path of a cache's root. Raises InputError for `/`, a home folder or one above it, or no cache at all."""
    given = Path(root).expanduser()
    real = Path(os.path.realpath(given))
    if not real.exists():
        raise InputError("there is no cache here", where=str(given), mend="tsumugu cache where lists the ones in use")
    if not real.is_dir():
        raise InputError("is a file, and a cache is a folder", where=str(given))
    home = Path(os.path.realpath(Path.home()))
    if real == Path(real.anchor) or real == home or real in home.parents:
        raise InputError("is not a folder to clean: it holds far more than a cache", where=str(given))
    if cache == "hub" and not _looks_like_hub(real):
        raise InputError(
            "does not look like a Hugging Face cache",
            where=str(given),
            mend="give the folder that holds models--… and datasets--… folders",
        )
    return str(real)


def _looks_like_hub(root: Path) -> bool:
    try:
        names = os.listdir(root)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(root)) from None
    known = {LOCKS, TAG, OWN}
    return not names or is_store(str(root / STORE)) or any(each in known or parse_folder(each) for each in names)


class Guard:
    """An open root. All paths are relative to it, ``/``-separated, and may not hold ``..`` or an empty part."""

    def __init__(self, root: str, cache: str = "hub") -> None:
        self.root = root
        self._is_hub = cache == "hub"
        self.fd = os.open(root, _FOLDER) if HAS_DESCRIPTORS else -1
        self._device = os.stat(root).st_dev

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int | None, str]]:
        """The descriptor of the folder that holds `path`, and the last part of it."""
        *folders, name = path.split("/")
        if not name or any(part in ("", ".", "..") for part in [*folders, name]) or os.path.isabs(path):
            raise InputError("is no path inside the cache", where=path)
        if not HAS_DESCRIPTORS:
            parent = os.path.join(self.root, *folders)
            real = os.path.realpath(parent)
            if os.path.normcase(real) != os.path.normcase(os.path.normpath(parent)):
                raise InputError("leads out of its own folder by a link", where=path)
            yield None, os.path.join(parent, name)
            return
        handle = os.dup(self.fd)
        try:
            for part in folders:
                inner = os.open(part, _FOLDER, dir_fd=handle)
                os.close(handle)
                handle = inner
            yield handle, name
        finally:
            os.close(handle)

    def lstat(self, path: str) -> os.stat_result:
        with self._parent(path) as (handle, name):
            return os.stat(name, dir_fd=handle, follow_symlinks=False)

    def exists(self, path: str) -> bool:
        try:
            self.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def names(self, path: str) -> list[str]:
        """The names in a folder; none when there is no such folder."""
        try:
            with self._parent(path) as (handle, name):
                if handle is None:
                    return os.listdir(name)
                inner = os.open(name, _FOLDER, dir_fd=handle)
                try:
                    return os.listdir(inner)
                finally:
                    os.close(inner)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, path: str, limit: int = 4096) -> bytes:
        with self._parent(path) as (handle, name):
            file = os.open(name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0), dir_fd=handle)
            try:
                return os.read(file, limit)
            finally:
                os.close(file)

    def rename(self, source: str, target: str) -> None:
        """Move within the cache, at once or not at all."""
        with self._parent(source) as (at, name), self._parent(target) as (to, new):
            os.rename(name, new, src_dir_fd=at, dst_dir_fd=to)

    def restore(self, source: str, target: str) -> bool:
        """Move back from the trash unless something new stands there; whether it was moved."""
        if self.exists(target):
            return False
        self.rename(source, target)
        return True

    def unlink(self, path: str) -> None:
        with self._parent(path) as (handle, name):
            os.unlink(name, dir_fd=handle)

    def rmdir(self, path: str) -> None:
        with self._parent(path) as (handle, name):
            os.rmdir(name, dir_fd=handle)

    def make_folders(self, path: str) -> None:
        parts = path.split("/")
        for end in range(1, len(parts) + 1):
            with self._parent("/".join(parts[:end])) as (handle, name), suppress(FileExistsError):
                os.mkdir(name, dir_fd=handle)

    def own(self) -> str:
        """Our folder. In ``.locks`` of a hub cache, unless that is a link or lies on another disk."""
        if not self._is_hub:
            return OWN
        try:
            locks = self.lstat(LOCKS)
        except FileNotFoundError:
            return f"{LOCKS}/{OWN}"
        return f"{LOCKS}/{OWN}" if stat.S_ISDIR(locks.st_mode) and locks.st_dev == self._device else OWN

    def remove(self, path: str) -> list[str]:
        """Remove a file or a whole tree, which must lie in our trash; what could not be removed.

        No depth is too deep: the folders of a folder are moved up beside it before it goes. A folder that forbids it is
        made writable first, which is ours to do with what was thrown away.
        """
        if f"/{TRASH}/" not in f"/{path}/":
            raise InputError("only the trash is emptied", where=path)
        try:
            if not stat.S_ISDIR(self.lstat(path).st_mode):
                self.unlink(path)
                return []
        except FileNotFoundError:
            return []
        except OSError as error:
            return [f"{path}: {error.strerror or error}"]
        upper, number = path.rpartition("/")[0], 0
        waiting, failed = [path], list[str]()
        while waiting:
            folder = waiting.pop()
            try:
                self._open_up(folder)
                for name in self.names(folder):
                    inner = f"{folder}/{name}"
                    if not stat.S_ISDIR(self.lstat(inner).st_mode):
                        self.unlink(inner)
                        continue
                    self._open_up(inner)
                    number += 1
                    lifted = f"{upper}/~{number}"
                    while self.exists(lifted):
                        number += 1
                        lifted = f"{upper}/~{number}"
                    self.rename(inner, lifted)
                    waiting.append(lifted)
                self.rmdir(folder)
            except OSError as error:
                failed.append(f"{folder}: {error.strerror or error}")
        return failed

    def _open_up(self, folder: str) -> None:
        mode = stat.S_IMODE(self.lstat(folder).st_mode)
        if mode & stat.S_IRWXU == stat.S_IRWXU or sys.platform == "win32":
            return
        with self._parent(folder) as (handle, name):
            inner = os.open(name, getattr(os, "O_PATH", os.O_RDONLY) | os.O_NOFOLLOW, dir_fd=handle)
            try:
                # /proc names the very folder that was opened; a plain chmod could be led elsewhere by a link.
                at = f"/proc/self/fd/{inner}"
                if os.path.exists(at):
                    os.chmod(at, mode | stat.S_IRWXU)
                else:
                    os.fchmod(inner, mode | stat.S_IRWXU)
            finally:
                os.close(inner)
