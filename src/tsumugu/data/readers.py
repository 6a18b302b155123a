"""Read the rows of a text, JSON, CSV or Parquet file one at a time, in bounded memory.

The files are untrusted: nothing in them is executed, lengths are bounded, and what is broken is an InputError that
names the file and the line or row.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from tsumugu.core.errors import InputError
from tsumugu.data.json_stream import json_objects, parse_object
from tsumugu.data.rows import Row, require_columns, text_column, text_of
from tsumugu.data.sources import LONGEST_ROW, EncodingErrors, Source, find_source, lines, opened

__all__ = ["Row", "count_rows", "read_rows", "text_column", "text_of"]

OnError = Callable[[InputError], None]

_LONGEST_FIELD = 32 << 20  # characters; the csv module holds four bytes for each
_COUNTED = 1 << 30  # bytes; larger files are not read twice to know how many rows they have


def read_rows(
    path: str | Path,
    *,
    format: str | None = None,
    columns: Sequence[str] | None = None,
    encoding_errors: EncodingErrors = "strict",
    on_error: OnError | None = None,
) -> Iterator[Row]:
    r"""The rows of a file, one at a time.

    The file is checked at once and read when the rows are asked for. By suffix: ``.txt`` (one text a line, under the
    name ``text``; only ``\n`` and ``\r\n`` end a line, an empty line is an empty text), ``.jsonl`` and ``.ndjson``
    (an object a line), ``.json`` (an array of objects, or objects one after another), ``.csv`` and ``.tsv`` (with a
    header), ``.parquet``; all but the last also packed as ``.gz``, ``.bz2``, ``.xz`` or ``.zst``.

    Args:
        path: a file, or ``-`` for standard input, which holds a text a line unless `format` says otherwise.
        format: overrules the suffix, such as ``jsonl`` or ``csv.gz``.
        columns: the columns to keep, in this order; all when left out.
        encoding_errors: "replace" puts U+FFFD where bytes are not UTF-8; "surrogateescape" keeps such bytes as lone
            surrogates, for callers that look at every text.
        on_error: called with what is wrong with a line of JSON Lines or a record of CSV that can be passed over, which
            then is; raised when left out.

    Raises:
        InputError: the file or one of its rows cannot be used; the place and the mend are named.
    """
    source = find_source(path, format, encoding_errors)
    if source.format.rows == "parquet":
        from tsumugu.data.parquet import parquet_rows

        return parquet_rows(source, columns)
    rows = _rows(source, on_error)
    return rows if columns is None else _kept(rows, list(columns))


def count_rows(path: str | Path, *, format: str | None = None) -> int | None:
    """How many rows a file has, where that is cheap to know: for progress bars, not for trust.

    Parquet says it in its footer. The lines of a plain text, JSON Lines or CSV file below 1 GiB are counted. None for
    all else: standard input, packed files, ``.json``.

    Raises:
        InputError: as `read_rows` does for files that are not there or of no known format.
    """
    source = find_source(path, format)
    if source.format.rows == "parquet":
        from tsumugu.data.parquet import parquet_count

        return parquet_count(source)
    if source.path is None or source.format.compression is not None or source.format.rows == "json":
        return None
    if not source.path.is_file() or source.path.stat().st_size > _COUNTED:
        return None
    with opened(source) as stream:
        if source.format.rows == "txt":
            return sum(1 for _ in _raw_lines(stream))
        if source.format.rows == "jsonl":
            return sum(1 for line in _raw_lines(stream) if not line.isspace())
        return _count_records(stream)


def _raw_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines for counting; a longer one comes in pieces, and the reader will refuse it anyway."""
    while line := stream.readline(LONGEST_ROW):
        yield line


def _count_records(stream: BinaryIO) -> int:
    """Records of a CSV file: a line end inside quotes, after an odd number of them, ends none. The header is none."""
    records, inside = 0, False
    for line in _raw_lines(stream):
        blank = not inside and line in (b"\n", b"\r\n")
        inside ^= bool(line.count(b'"') & 1)
        records += not inside and not blank
    return max(records - 1, 0)


def _kept(rows: Iterator[Row], columns: list[str]) -> Iterator[Row]:
    for row in rows:
        try:
            values = {name: row.values[name] for name in columns}
        except KeyError:
            require_columns(columns, row.values, row.where)
            raise
        yield Row(row.number, values, row.source, row.unit)


def _rows(source: Source, on_error: OnError | None = None) -> Iterator[Row]:
    with opened(source) as stream:
        match source.format.rows:
            case "txt":
                yield from _text_rows(source, stream)
            case "jsonl":
                yield from _json_line_rows(source, stream, on_error)
            case "json":
                yield from _json_rows(source, stream)
            case _:
                yield from _csv_rows(source, stream, on_error)


def _text_rows(source: Source, stream: BinaryIO) -> Iterator[Row]:
    for number, line in enumerate(lines(source, stream), start=1):
        text = line[:-1] if line.endswith("\n") else line
        yield Row(number, {"text": text.removesuffix("\r")}, source.name, "line")


def _json_line_rows(source: Source, stream: BinaryIO, on_error: OnError | None) -> Iterator[Row]:
    for number, line in enumerate(lines(source, stream), start=1):
        if line.isspace():
            continue
        try:
            values = parse_object(line, source, source.line(number))
        except InputError as error:
            _pass_over(error, on_error)
        else:
            yield Row(number, values, source.name, "line")


def _json_rows(source: Source, stream: BinaryIO) -> Iterator[Row]:
    for number, values in enumerate(json_objects(source, stream), start=1):
        yield Row(number, values, source.name)


def _pass_over(error: InputError, on_error: OnError | None) -> None:
    if on_error is None:
        raise error
    on_error(error)


def _csv_rows(source: Source, stream: BinaryIO, on_error: OnError | None) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))  # one for the process; never made smaller
    delimiter = "\t" if source.format.rows == "tsv" else ","
    physical = _CsvLines(source, stream)
    reader = csv.reader(physical, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number, first_line = 0, 1
    try:
        for fields in reader:
            physical.taken = 0
            if header is None and fields:
                header = _checked_header(fields, source, delimiter)
            elif header is not None and fields:
                number += 1
                if len(fields) == len(header):
                    yield Row(number, dict(zip(header, fields, strict=True)), source.name)
                else:
                    said = f"{len(fields)} fields, but the header has {len(header)}"
                    mend = f"put fields that hold {'a tab' if delimiter == chr(9) else 'a comma'} in double quotes"
                    where = f"{source.row(number)} (line {first_line})"
                    _pass_over(InputError(said, where=where, mend=mend), on_error)
            first_line = reader.line_num + 1
    except csv.Error as error:
        where = f"{source.row(number + 1)} (line {first_line})" if header else source.line(first_line)
        raise InputError(_csv_reason(error), where=where) from error
    if header is None:
        raise InputError("there is no header", where=source.name)


class _CsvLines:
    """The lines for the csv module; a lone carriage return also ends one. Stops a record without end."""

    def __init__(self, source: Source, stream: BinaryIO) -> None:
        self.taken = 0  # characters since the last record
        self._source = source
        self._lines = self._split(lines(source, stream))

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.taken += len(line)
        if self.taken > LONGEST_ROW:
            raise csv.Error(f"a record is longer than {LONGEST_ROW >> 20} MiB; is a double quote not closed?")
        return line

    @staticmethod
    def _split(whole: Iterator[str]) -> Iterator[str]:
        for line in whole:
            if "\r" in line[:-2]:
                yield from io.StringIO(line, newline="")
            else:
                yield line


def _checked_header(fields: list[str], source: Source, delimiter: str) -> list[str]:
    twice = next((name for at, name in enumerate(fields) if name in fields[:at]), None)
    if twice is not None:
        raise InputError(f"two columns have the name {twice!r}", where=f"{source.name}, header")
    other = re.search(r"[;\t,|]", fields[0]) if len(fields) == 1 else None
    if other is not None and other[0] != delimiter:
        raise InputError(
            f"the header is one column, {fields[0]!r}, that looks divided by {other[0]!r}",
            where=f"{source.name}, header",
            mend=f"divide the columns by {delimiter!r}",
        )
    return fields


def _csv_reason(error: csv.Error) -> str:
    said = str(error)
    if "unexpected end of data" in said:
        return "a double quote is opened and never closed"
    if "field larger" in said:
        return f"a field is longer than {_LONGEST_FIELD} characters; is a double quote not closed?"
    if "expected after" in said:
        return "text follows a closing double quote; write a double quote inside a field twice"
    return said
