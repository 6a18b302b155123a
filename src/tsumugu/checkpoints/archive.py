"""Zip archives that hold tensors (.npz, PyTorch's .bin), opened without trusting what they say of themselves.

Nothing is ever extracted to disk, and nothing is read before the places of all entries are known to lie in the file,
one behind the other.

Source: PKWARE .ZIP File Format Specification (APPNOTE), sections 4.3.7 and 4.3.12.
"""

from __future__ import annotations

import io
import itertools
from pathlib import PurePosixPath
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np

from tsumugu.checkpoints.source import DAMAGED, PackedEntry, Region, Seal, SourceFile
from tsumugu.core.errors import CheckpointError

READ_LIMIT = 1 << 24
"""Bytes that zipfile may ask for at once: its directory of entries is read in one go, at 50 bytes an entry."""
BOMB_SIZE, BOMB_RATIO = 1 << 28, 200
"""An entry may unpack to more than this only when it shrank by less than this."""
LOCAL_HEADER, ENCRYPTED = 30, 1


class _Stream(io.RawIOBase):
    """A `SourceFile` as the seekable stream that zipfile wants, with a limit to what one call may allocate."""

    def __init__(self, file: SourceFile) -> None:
        self._file, self._position = file, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._file.size)[whence]
        if self._position < 0:
            raise OSError("a position before the start of the file")
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(self._file.size - self._position, 0)
        size = left if size is None or size < 0 else min(size, left)
        if size > READ_LIMIT:
            raise BadZipFile(f"{size} bytes at once")
        found = self._file.read(self._position, size)
        self._position += size
        return found


class Archive:
    """The entries of a zip archive, by name.

    Raises:
        CheckpointError: the archive is damaged, or holds entries that overlap, stand twice, are encrypted, leave the
            archive by their names, or unpack to vastly more than they take.
    """

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        try:
            self._zip = ZipFile(_Stream(file))
        except (BadZipFile, OSError, ValueError, NotImplementedError, IndexError) as error:
            raise self._fail(f"is not a whole zip archive ({error})") from error
        infos = sorted(self._zip.infolist(), key=lambda info: info.header_offset)
        self.entries: dict[str, ZipInfo] = {}
        self._limits: dict[str, int] = {}
        for info, following in itertools.zip_longest(infos, infos[1:]):
            self._check(info)
            limit = following.header_offset if following else file.size
            if info.header_offset < 0 or info.header_offset + LOCAL_HEADER + info.compress_size > limit:
                raise self._fail(f"entry {info.filename!r} overlaps another or the end of the file")
            self.entries[info.filename] = info
            self._limits[info.filename] = limit

    def _check(self, info: ZipInfo) -> None:
        name = info.filename
        path = PurePosixPath(name.replace("\\", "/"))
        if name in self.entries:
            raise self._fail(f"entry {name!r} stands twice")
        if path.is_absolute() or ".." in path.parts:
            raise self._fail(f"entry {name!r} leaves the archive", mend=None)
        if info.flag_bits & ENCRYPTED or info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            raise self._fail(f"entry {name!r} is encrypted or packed in a way that is not supported", mend=None)
        if info.compress_type == ZIP_STORED and info.compress_size != info.file_size:
            raise self._fail(f"entry {name!r} gives two sizes")
        if info.file_size > max(BOMB_SIZE, BOMB_RATIO * info.compress_size):
            raise self._fail(f"entry {name!r} would unpack to {info.file_size} bytes, a zip bomb", mend=None)

    def _fail(self, what: str, mend: str | None = DAMAGED) -> CheckpointError:
        return CheckpointError(what, where=str(self.file.path), mend=mend)

    def where(self, name: str) -> str:
        """An entry, for messages."""
        return f"{self.file.path}: {name}"

    def stored(self, name: str) -> Region:
        """The bytes of an entry that is not compressed, under its checksum."""
        info = self.entries[name]
        if info.compress_type != ZIP_STORED:
            raise self._fail(f"entry {name!r} is compressed", mend="save it again without compression")
        header = self.file.read(info.header_offset, LOCAL_HEADER)
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = info.header_offset + LOCAL_HEADER + lengths
        if header[:4] != b"PK\3\4" or start + info.file_size > self._limits[name]:
            raise self._fail(f"entry {name!r} is not where the archive says")
        seal = Seal(self.file, start, info.file_size, info.CRC, self.where(name))
        return Region(self.file, start, info.file_size, seal)

    def behind(self, name: str, skip: int) -> Region | PackedEntry:
        """The bytes of an entry that follow its first `skip`."""
        info = self.entries[name]
        if info.compress_type == ZIP_STORED:
            whole = self.stored(name)
            return Region(self.file, whole.offset + skip, whole.length - skip, whole.seal)
        return PackedEntry(self._zip, info, skip, info.file_size - skip, self.where(name))

    def head(self, name: str, size: int) -> bytes:
        """At most `size` bytes from the start of an entry."""
        found: np.ndarray[Any, Any] = next(self.behind(name, 0).pieces(size), np.empty(0, np.uint8))
        return found.tobytes()
