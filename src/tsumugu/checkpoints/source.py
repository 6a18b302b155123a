"""Bytes of a checkpoint: regions of a mapped file, and entries of a compressed archive.

Two ways to the same bytes. A *mapping* is a private, copy-on-write view: nothing is read until it is touched, and a
tensor on it may be written to without the file ever changing. *Pieces* are read one after the other into one small
buffer, so that a conversion needs its result and a few hundred kilobytes, never a resident copy of the file as well.
"""

from __future__ import annotations

import mmap
import stat
import threading
import weakref
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np

from tsumugu.core.errors import CheckpointError

Uint8 = np.ndarray[Any, np.dtype[np.uint8]]

DAMAGED = "fetch or copy the file again"


class SourceFile:
    """A regular file held open, so that replacing it on disk cannot mix two files' bytes.

    Raises:
        CheckpointError: `path` is not a regular file (a pipe or a device could block for ever).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise CheckpointError("not a regular file", where=str(path))
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error.strerror}", where=str(path)) from error
        weakref.finalize(self, self._file.close)
        self.size = self._file.seek(0, 2)
        self._lock = threading.Lock()

    def read_into(self, buffer: Uint8, offset: int) -> None:
        """Fill `buffer` from `offset`; a file that was cut short meanwhile is an error, not a crash."""
        view = buffer.data
        with self._lock:
            self._file.seek(offset)
            while len(view):
                count = self._file.readinto(view)
                if not count:
                    raise CheckpointError("the file ends early", where=str(self.path), mend=DAMAGED)
                view = view[count:]

    def read(self, offset: int, length: int) -> bytes:
        buffer = np.empty(length, np.uint8)
        self.read_into(buffer, offset)
        return buffer.tobytes()

    def mapped(self, limit: int) -> mmap.mmap:
        """The first `limit` bytes, or all, for reading only; the caller closes it."""
        return mmap.mmap(self._file.fileno(), min(self.size, limit), access=mmap.ACCESS_READ)

    @cached_property
    def mapping(self) -> mmap.mmap:
        """The whole file, private and copy-on-write."""
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)


class ByteSource(Protocol):
    """Where the bytes of one tensor come from."""

    @property
    def length(self) -> int: ...

    def pieces(self, size: int) -> Iterator[Uint8]:
        """The bytes in order, `size` at a time; each piece is valid until the next is asked for."""

    def mapped(self) -> memoryview | None:
        """All bytes without a copy, or None where the file does not hold them as they are."""


@dataclass
class Seal:
    """A checksum over a stretch of a file, checked once, when a tensor in it is first read."""

    file: SourceFile
    offset: int
    length: int
    crc: int
    where: str
    _sound: bool = field(default=False, init=False)

    def check(self) -> None:
        if self._sound:
            return
        crc = 0
        for piece in Region(self.file, self.offset, self.length).pieces(1 << 18):
            crc = zlib.crc32(piece.data, crc)
        if crc != self.crc:
            raise CheckpointError("the checksum does not fit the data", where=self.where, mend=DAMAGED)
        self._sound = True


@dataclass(frozen=True)
class Region:
    """A stretch of a file that holds a tensor's bytes as they are."""

    file: SourceFile
    offset: int
    length: int
    seal: Seal | None = None

    def pieces(self, size: int) -> Iterator[Uint8]:
        if self.seal is not None:
            self.seal.check()
        buffer = np.empty(min(size, self.length), np.uint8)
        for start in range(0, self.length, size):
            piece = buffer[: min(size, self.length - start)]
            self.file.read_into(piece, self.offset + start)
            yield piece

    def mapped(self) -> memoryview | None:
        if self.seal is not None:
            self.seal.check()
        return memoryview(self.file.mapping)[self.offset : self.offset + self.length]


@dataclass(frozen=True)
class PackedEntry:
    """A compressed entry of a zip archive, behind `skip` bytes of its own header."""

    archive: ZipFile
    info: ZipInfo
    skip: int
    length: int
    where: str

    def pieces(self, size: int) -> Iterator[Uint8]:
        try:
            with self.archive.open(self.info) as stream:
                stream.read(self.skip)
                left = self.length
                while left:
                    piece = stream.read(min(size, left))
                    if len(piece) < min(size, left):
                        raise CheckpointError("the entry ends early", where=self.where, mend=DAMAGED)
                    left -= len(piece)
                    yield np.frombuffer(piece, np.uint8)
                if stream.read(1):
                    raise CheckpointError("the entry is longer than its array", where=self.where, mend=DAMAGED)
        except (BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
            raise CheckpointError(f"the entry cannot be unpacked ({error})", where=self.where, mend=DAMAGED) from error

    def mapped(self) -> memoryview | None:
        return None
