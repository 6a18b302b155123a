"""The documents of a source, one at a time and in bounded memory.

A row of JSON Lines, CSV or Parquet is a document. Of plain text, a whole file is one unless a line or a paragraph is
asked for. Nothing longer than 128 MiB is taken for one document.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from tsumugu.core.errors import InputError
from tsumugu.corpus.inputs import TextSource
from tsumugu.data.hub_datasets import DATASET, open_dataset
from tsumugu.data.readers import read_rows
from tsumugu.data.rows import Row, text_column, text_of
from tsumugu.data.sources import LONGEST_ROW, EncodingErrors, Source, find_source, lines, opened, pieces

Division = Literal["auto", "file", "paragraph", "line"]
DIVISIONS: tuple[Division, ...] = ("auto", "file", "paragraph", "line")


class Document(NamedTuple):
    """A text, and where it stands."""

    text: str
    where: str


@dataclass(frozen=True)
class Reading:
    """How sources are read.

    Attributes:
        division: what a document is in plain text: the "file" ("auto" too), a "paragraph" (blank lines divide them),
            a "line".
        column: the column with the text; found by its name when left out.
        format: overrules the suffixes, such as "jsonl" or "txt.gz".
        encoding_errors: "replace" puts U+FFFD where bytes are not UTF-8.
    """

    division: Division = "auto"
    column: str | None = None
    format: str | None = None
    encoding_errors: EncodingErrors = "strict"


def read_documents(source: TextSource, reading: Reading, *, spool: Path | None = None) -> Iterator[Document]:
    """The documents of one source; an empty file is one empty document.

    Args:
        spool: a file with what standard input held.

    Raises:
        InputError: the source cannot be read or is broken; the file and the place in it are named.
        MissingExtraError: a dataset is asked for, and the library is not installed.
    """
    if source.path is None and source.name.startswith(DATASET):
        return _dataset(source.name, reading)
    if source.path is not None and source.path.is_file() and source.path.stat().st_size == 0:
        return iter([Document("", source.name)])
    found = find_source("-" if source.path is None else source.path, reading.format, reading.encoding_errors)
    if source.path is None and spool is not None:
        found = Source("standard input", spool, found.format, found.errors)
    if found.format.rows != "parquet" and _is_empty(found):
        return iter([Document("", found.name)])
    if found.format.rows == "txt":
        return _plain(found, reading.division)
    return _rows(found, reading)


def _is_empty(source: Source) -> bool:
    """Whether nothing is in it, once it is unpacked."""
    with opened(source) as stream:
        return not stream.read(1)


def _plain(source: Source, division: Division) -> Iterator[Document]:
    with opened(source) as stream:
        if division == "line":
            for number, line in enumerate(lines(source, stream), start=1):
                yield Document(line.removesuffix("\n").removesuffix("\r"), source.line(number))
        elif division == "paragraph":
            yield from _paragraphs(source, lines(source, stream))
        else:
            yield Document(_whole(source, pieces(source, stream)), source.name)


def _whole(source: Source, parts: Iterator[str]) -> str:
    found, size = [], 0
    for part in parts:
        found.append(part)
        size += len(part.encode())
        if size > LONGEST_ROW:
            raise _too_long(source.name, "a document")
    return "".join(found)


def _paragraphs(source: Source, rows: Iterator[str]) -> Iterator[Document]:
    held: list[str] = []
    size = first = 0
    for number, line in enumerate(rows, start=1):
        if not line.isspace():
            first = first if held else number
            held.append(line)
            size += len(line)
            if size > LONGEST_ROW:
                raise _too_long(source.line(first), "a paragraph")
        elif held:
            yield Document("".join(held).rstrip("\r\n"), source.line(first))
            held, size = [], 0
    if held:
        yield Document("".join(held).rstrip("\r\n"), source.line(first))


def _too_long(where: str, what: str) -> InputError:
    mend = "let each paragraph or line be a document (--document; in a recipe data.document)"
    return InputError(f"{what} is longer than {LONGEST_ROW >> 20} MiB", where=where, mend=mend)


def _rows(source: Source, reading: Reading) -> Iterator[Document]:
    path: str | Path = "-" if source.path is None else source.path
    column = reading.column
    if column is None and source.format.rows == "parquet":  # reads the one column, not all
        first = next(iter(read_rows(path, format=reading.format, encoding_errors=source.errors)), None)
        column = None if first is None else text_column(first)
    columns = [column] if column is not None and source.format.rows == "parquet" else None
    format = ".".join(each for each in (source.format.rows, source.format.compression) if each)
    for row in read_rows(path, format=format, columns=columns, encoding_errors=source.errors):
        column = column or text_column(row)
        yield Document(_text(row, column), row.where)


def _text(row: Row, column: str) -> str:
    """The text of a row; none (null) is an empty one."""
    return "" if column in row.values and row.values[column] is None else text_of(row, column)


def _dataset(name: str, reading: Reading) -> Iterator[Document]:
    """The rows of ``hf:NAME[:SPLIT]``: a dataset on disk or on the hub, streamed. The split is "train" by default."""
    column = reading.column
    for row in open_dataset(name):
        column = column or text_column(row)
        yield Document(_text(row, column), row.where)
