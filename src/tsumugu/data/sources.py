"""A file, or standard input, as bytes, lines and pieces of text, with every failure as one clear error.

Nothing is read further than asked for, and no line may be longer than `LONGEST_ROW`: a file of any size, or a
compressed file that unpacks to one, is read in bounded memory.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast, get_args

from tsumugu.core.errors import InputError
from tsumugu.data.formats import FileFormat, file_format

LONGEST_ROW = 128 << 20  # bytes
_PIECE = 1 << 20  # bytes read at once where there are no lines
_UTF8_MARK = codecs.BOM_UTF8
_OTHER_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}

EncodingErrors = Literal["strict", "replace", "surrogateescape"]


@dataclass(frozen=True, slots=True)
class Source:
    """What rows are read from: checked to be there, not yet open."""

    name: str
    path: Path | None  # None: standard input
    format: FileFormat
    errors: EncodingErrors = "strict"

    def line(self, number: int) -> str:
        """The place of a line for a message."""
        return f"{self.name}, line {number}"

    def row(self, number: int) -> str:
        """The place of a record for a message."""
        return f"{self.name}, row {number}"


def find_source(path: str | Path, wanted: str | None = None, errors: EncodingErrors = "strict") -> Source:
    """Check that `path` can be read, and as what. ``-`` is standard input.

    Raises:
        InputError: it is missing, a folder, unreadable, empty, or of no known format.
    """
    if errors not in get_args(EncodingErrors):
        raise InputError(f"unknown encoding errors {errors!r}", mend="known: strict, replace")
    if str(path) == "-":
        form = file_format(None, wanted, default="txt")
        if form.rows == "parquet":
            raise InputError("Parquet cannot be read from standard input", mend="save it to a file first")
        return Source("standard input", None, form, errors)
    if not str(path):
        raise InputError("the name of the file is empty")
    path, name = Path(path), str(path)
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else _reason(error)
        raise InputError(reason, where=name) from error
    if stat.S_ISDIR(found.st_mode):
        raise InputError("this is a folder, not a file", where=name, mend="name one of the files in it")
    regular = stat.S_ISREG(found.st_mode)
    form = file_format(name, wanted, default=None if regular else "txt")
    if regular and found.st_size == 0:
        raise InputError("the file is empty", where=name)
    if not os.access(path, os.R_OK):
        raise InputError("the file may not be read (permission denied)", where=name)
    return Source(name, path, form, errors)


@contextlib.contextmanager
def opened(source: Source) -> Iterator[BinaryIO]:
    """The bytes of `source`, unpacked. What goes wrong while they are read becomes an InputError."""
    with said_clearly(source), contextlib.ExitStack() as stack:
        if source.path is None:
            if sys.stdin is None:
                raise InputError("standard input is closed", mend="pass a file with --input")
            plain: BinaryIO = sys.stdin.buffer
        else:
            plain = stack.enter_context(source.path.open("rb"))
        yield _unpacked(plain, source.format.compression, stack)


@contextlib.contextmanager
def said_clearly(source: Source) -> Iterator[None]:
    """Turn what the system and the decompressors say into an InputError."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise _broken(source, error) from error
    except OSError as error:
        if error.errno is None:  # gzip, bz2 and zstd speak of broken data so
            raise _broken(source, error) from error
        raise InputError(f"cannot be read: {_reason(error)}", where=source.name) from error


def _unpacked(plain: BinaryIO, compression: str | None, stack: contextlib.ExitStack) -> BinaryIO:
    if compression is None:
        return plain
    if compression == "gz":
        return cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=plain, mode="rb")))
    if compression == "bz2":
        return cast(BinaryIO, stack.enter_context(bz2.BZ2File(plain, "rb")))
    if compression == "xz":
        return cast(BinaryIO, stack.enter_context(lzma.LZMAFile(plain, "rb")))
    import pyarrow as pa

    return cast(BinaryIO, stack.enter_context(io.BufferedReader(pa.CompressedInputStream(plain, "zstd"))))


def lines(source: Source, stream: BinaryIO) -> Iterator[str]:
    r"""The lines of `stream`, each with its line end. Only ``\n`` ends a line; a byte order mark is dropped.

    Raises:
        InputError: a line is not UTF-8 (unless `source` replaces), or longer than `LONGEST_ROW`.
    """
    offset = number = 0
    while raw := stream.readline(LONGEST_ROW + 1):
        number += 1
        if len(raw) > LONGEST_ROW:
            raise _too_long(source.line(number))
        body = raw if number > 1 else _without_mark(source, raw)
        try:
            yield body.decode("utf-8", source.errors)
        except UnicodeDecodeError as error:
            start = offset + len(raw) - len(body) + error.start
            raise _not_utf8(source, number, body[error.start], start) from error
        offset += len(raw)
    if number == 0:
        raise InputError("there is nothing in it", where=source.name)


def pieces(source: Source, stream: BinaryIO) -> Iterator[str]:
    """The text of `stream` in pieces of about 1 MiB, for formats that lines do not divide. Raises as `lines` does."""
    carry, offset, line = b"", 0, 1
    first = True
    while True:
        raw = stream.read(_PIECE)
        data = carry + raw
        if first:
            body = _without_mark(source, data)
            offset, data, first = len(data) - len(body), body, False
            if not raw:
                raise InputError("there is nothing in it", where=source.name)
        try:
            text, used = codecs.utf_8_decode(data, source.errors, not raw)
        except UnicodeDecodeError as error:
            line += data.count(b"\n", 0, error.start)
            raise _not_utf8(source, line, data[error.start], offset + error.start) from error
        carry, offset, line = data[used:], offset + used, line + data.count(b"\n", 0, used)
        if text:
            yield text
        if not raw:
            return


def _without_mark(source: Source, data: bytes) -> bytes:
    for mark, name in _OTHER_MARKS.items():
        if data.startswith(mark):
            raise InputError(f"the text is {name}, not UTF-8", where=source.name, mend="save it as UTF-8")
    return data.removeprefix(_UTF8_MARK)


def _not_utf8(source: Source, line: int, byte: int, offset: int) -> InputError:
    of = "" if source.format.compression is None else " of the unpacked text"
    return InputError(
        f"byte 0x{byte:02x} at offset {offset}{of} is not UTF-8",
        where=source.line(line),
        mend="save the file as UTF-8, or pass --encoding-errors replace",
    )


def _too_long(where: str) -> InputError:
    return InputError(f"longer than {LONGEST_ROW >> 20} MiB", where=where, mend="split it into several rows")


def _broken(source: Source, error: Exception) -> InputError:
    cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
    what = "the compressed data ends too early" if cut else f"the compressed data is broken ({error})"
    return InputError(what, where=source.name, mend="copy or download the file again")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
