"""Zip archives from strangers: everything is checked before the first byte is written.

Refused are: absolute paths, drives, ``..``, backslashes and control characters; two entries that are one file on some
file system; a file where another entry needs a folder; symbolic links and other special files; encryption; compression
other than stored and deflated; entries that overlap in the archive or shrink beyond reason (zip bombs); and a total
that does not fit on the disk. While unpacking, real sizes are held to the declared ones.

Source: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.4; Fifield, "A better zip bomb" (WOOT 2019) for overlapping entries.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from tsumugu.core.errors import HubError

MAX_ENTRIES = 20_000
MAX_RATIO = 250
"""Deflate reaches 1032:1 on runs of one byte. Weights reach 1.2:1, vocabularies 5:1, sparse JSON some dozens."""
SMALL = 1 << 20
"""Entries below this size may have any ratio."""
CHUNK = 1 << 20

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError)


class Sink(Protocol):
    """Where the bytes of an entry go: an open file, or what wraps one."""

    def write(self, piece: bytes, /) -> int: ...


class Archive:
    """A zip file whose table of contents has been checked.

    Args:
        path: the file.
        label: what messages call it.

    Raises:
        HubError: the file is not a whole zip archive, or one of its entries is refused; the message names the entry.
    """

    def __init__(self, path: Path, *, label: str) -> None:
        self.label = label
        try:
            self._zip = zipfile.ZipFile(path)
        except _BROKEN as error:
            raise HubError(f"not a whole zip archive ({error})", where=label, mend="pull it again") from None
        try:
            self.members = _checked(self._zip.infolist(), label)
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def size(self, name: str) -> int:
        """The declared size of the entry `name` in bytes."""
        return self.members[name].file_size

    def read(self, name: str, *, limit: int = 16 << 20) -> bytes:
        """The whole of a small entry.

        Raises:
            HubError: it is larger than `limit` or broken.
        """
        if self.size(name) > limit:
            raise HubError(f"{name} has {self.size(name):,} bytes, which is beyond reason", where=self.label)
        parts: list[bytes] = []
        self._stream(name, parts.append)
        return b"".join(parts)

    def copy(self, name: str, target: Sink, *, advance: Callable[[int], None] | None = None) -> str:
        """Write the entry to `target` and return its SHA-256 in hexadecimal; `advance` is told of each piece's size.

        Raises:
            HubError: the entry is cut short, longer than declared, or fails its checksum.
        """
        digest = hashlib.sha256()

        def take(piece: bytes) -> None:
            target.write(piece)
            digest.update(piece)
            if advance is not None:
                advance(len(piece))

        self._stream(name, take)
        return digest.hexdigest()

    def _stream(self, name: str, take: Callable[[bytes], object]) -> None:
        declared, total = self.size(name), 0
        try:
            with self._zip.open(self.members[name]) as source:
                while piece := source.read(CHUNK):
                    total += len(piece)
                    if total > declared:
                        break
                    take(piece)
        except _BROKEN as error:
            raise HubError(f"{name} is damaged ({error})", where=self.label, mend="pull it again") from None
        if total != declared:
            raise HubError(f"{name} does not have the {declared:,} bytes it declares", where=self.label)


def ensure_room(folder: Path, needed: int) -> None:
    """Raise `HubError` unless `needed` bytes fit on the disk that holds `folder`."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise HubError(
            f"{needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free",
            where=str(folder),
            mend="free some space, or set TSUMUGU_HOME to a roomier disk",
        )


def write_synced(path: Path, write: Callable[[BinaryIO], str]) -> str:
    """Create `path`, let `write` fill it, push it to the disk, and return what `write` returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        result = write(file)
        file.flush()
        os.fsync(file.fileno())
    return result


def _checked(entries: list[zipfile.ZipInfo], label: str) -> dict[str, zipfile.ZipInfo]:
    if len(entries) > MAX_ENTRIES:
        raise HubError(f"{len(entries):,} entries are beyond reason", where=label)
    members: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    files: set[str] = set()
    for entry in entries:
        _check_name(entry, label)
        _check_kind(entry, label)
        folded = entry.filename.rstrip("/").casefold()
        folders.update(folded[: match.start()] for match in re.finditer("/", folded))
        if entry.is_dir():
            folders.add(folded)
            continue
        if folded in files:
            raise HubError(f"{entry.filename!r} is in the archive twice", where=label)
        files.add(folded)
        members[entry.filename] = entry
    if clash := files & folders:
        raise HubError(f"{min(clash)!r} is both a file and a folder", where=label)
    _check_overlap(list(members.values()), label)
    return members


def _check_name(entry: zipfile.ZipInfo, label: str) -> None:
    # `orig_filename` is what the archive says; `filename` has lost everything after a NUL, and the backslashes.
    for name in {entry.orig_filename, entry.filename}:
        parts = name.removesuffix("/").split("/")
        if (
            name.startswith("/")
            or re.match(r"[A-Za-z]:", name)
            or re.search(r"[\\\x00-\x1f\x7f]", name)
            or any(part in {"", ".", ".."} for part in parts)
        ):
            raise HubError(f"the entry {name[:200]!r} would leave its folder", where=label, mend="do not trust it")
        if len(name) > 1024 or any(len(part.encode("utf-8", "replace")) > 255 for part in parts):
            raise HubError(f"the entry {name[:40]!r}… has a name beyond reason", where=label)


def _check_kind(entry: zipfile.ZipInfo, label: str) -> None:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        what = "a symbolic link" if kind == stat.S_IFLNK else "a special file"
        raise HubError(f"the entry {entry.filename!r} is {what}", where=label, mend="do not trust it")
    if entry.flag_bits & 0x1:
        raise HubError(f"the entry {entry.filename!r} is encrypted", where=label)
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise HubError(f"the entry {entry.filename!r} is compressed in an unusual way", where=label)
    if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
        raise HubError(f"the entry {entry.filename!r} lies about its size", where=label, mend="do not trust it")
    if entry.file_size > SMALL and entry.file_size > MAX_RATIO * entry.compress_size:
        raise HubError(
            f"the entry {entry.filename!r} would grow {entry.file_size // max(entry.compress_size, 1):,}-fold",
            where=label,
            mend="do not trust it",
        )


def _check_overlap(entries: list[zipfile.ZipInfo], label: str) -> None:
    end = 0
    for entry in sorted(entries, key=lambda each: each.header_offset):
        if entry.header_offset < end:
            raise HubError(f"the entry {entry.filename!r} overlaps another", where=label, mend="do not trust it")
        # 30 bytes of local header precede the name and the data (APPNOTE 4.3.7).
        end = entry.header_offset + 30 + len(entry.orig_filename) + entry.compress_size
