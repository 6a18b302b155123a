"""What a verb reads: texts of the command line, a file, or standard input."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Parameter

from tsumugu.cli.dash import DASH
from tsumugu.core.errors import InputError
from tsumugu.data.formats import is_row_file
from tsumugu.data.readers import OnError, count_rows, read_rows
from tsumugu.data.rows import Row, require_columns, text_column, text_of
from tsumugu.data.sources import LONGEST_ROW, find_source, opened, pieces
from tsumugu.data.sources import EncodingErrors as Errors

if TYPE_CHECKING:
    from tsumugu.tasks.base import Task

T = TypeVar("T")

Texts = Annotated[str, DASH, Parameter(name="text", help="Texts; - reads standard input.")]
InputPath = Annotated[
    Path | None,
    DASH,
    Parameter(
        ("--input", "-i"),
        help="A .txt, .jsonl, .json, .csv, .tsv or .parquet file (also packed), a folder, a 'pattern', or -.",
    ),
]
InputFormat = Annotated[str | None, Parameter(help="What the input is, whatever its name says: jsonl, csv.gz, …")]
TextColumn = Annotated[str | None, Parameter(help="The column with the text; two, with a comma, for pairs.")]
EncodingErrors = Annotated[Literal["strict", "replace"], Parameter(help="What to do with invalid UTF-8.")]


@dataclass(frozen=True)
class Inputs:
    """Rows to read, how many there are where that is known, and the files that a folder or a pattern stands for."""

    rows: Iterator[Row]
    total: int | None
    files: tuple[Path, ...] = ()


def read_inputs(
    texts: Sequence[str],
    path: Path | None,
    *,
    format: str | None = None,
    encoding_errors: Literal["strict", "replace"] = "strict",
    whole: bool = False,
    on_error: OnError | None = None,
) -> Inputs:
    """Rows from the command line (column `text`), from files, or from standard input for `-` or nothing.

    Args:
        texts: of the command line.
        path: a file; a folder, for the files of rows below it; a pattern, for the files that it fits.
        format: overrules the suffixes.
        encoding_errors: replace what is not UTF-8, or refuse it.
        whole: each file is one text, whatever its suffix says.
        on_error: called with what is wrong with a row that can be passed over; bytes that are not UTF-8 then become
            lone surrogates.

    Raises:
        InputError: both or neither are given, or a file cannot be read.
    """
    if texts and path is not None:
        mend = "choose one; put a pattern in quotes" if _is_there(texts[0]) else "choose one"
        raise InputError("both a text and --input are given", mend=mend)
    if texts and list(texts) != ["-"]:
        require_texts(texts)
        return Inputs((Row(number, {"text": text}) for number, text in enumerate(texts, 1)), len(texts))
    source = Path("-") if path is None else path
    if str(source) == "-" and sys.stdin.isatty():
        raise InputError("there is no text", mend="give one, or --input FILE, or - for standard input")
    errors: Errors = "surrogateescape" if on_error is not None and encoding_errors == "strict" else encoding_errors
    files, several = [source], source.is_dir() or (not source.exists() and glob.has_magic(str(source)))
    if several:
        from tsumugu.corpus.inputs import find_sources

        files = [each.path for each in find_sources([source]) if each.path is not None]
    found = tuple(files) if several else ()
    if whole:
        rows = (Row(number, {"text": _whole(each, errors)}, str(each), "file") for number, each in enumerate(files, 1))
        return Inputs(rows, len(files), found)
    counts = [count_rows(each, format=format) for each in files]
    read = (read_rows(each, format=format, encoding_errors=errors, on_error=on_error) for each in files)
    total = None if None in counts else sum(each or 0 for each in counts)
    return Inputs(chain.from_iterable(read), total, found)


def require_texts(texts: Sequence[str], *, mend: str = "texts are read as they stand; --input reads files") -> None:
    """Refuse names of files and folders where texts are asked for: an answer about a name helps nobody.

    Raises:
        InputError: one ends as a file of rows or a folder does, or a file of this name is there.
    """
    for each in texts:
        word = each.split() == [each]
        there = word and (bool(Path(each).suffix) or "/" in each) and _is_there(each)
        if there or (word and (is_row_file(each) or each.endswith("/"))):
            said = "this is the name of a file, not a text" if there else "this looks like a file that is not there"
            raise InputError(said, where=each, mend=mend)


def _is_there(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long for a name, a NUL
        return False


def _whole(path: Path, errors: Errors) -> str:
    """A file as one text."""
    source = find_source(path, "txt", errors)
    text, size = [], 0
    with opened(source) as stream:
        for piece in pieces(source, stream):
            text.append(piece)
            size += len(piece)
            if size > LONGEST_ROW:
                raise InputError(f"longer than {LONGEST_ROW >> 20} MiB", where=source.name, mend="read it by lines")
    return "".join(text)


def one_text(row: Row, column: str | None) -> str:
    """The text of a row, from the column named or found."""
    return text_of(row, text_column(row, column))


def one_label(row: Row, column: str) -> str:
    """The label of a row, from the column named.

    Raises:
        InputError: there is no such column.
    """
    require_columns([column], row.values, row.where)
    return str(row.values[column])


class TextReader:
    """Inputs of a task out of rows. The column that held the text of a file's first row holds those of all.

    Args:
        kind: the task.
        column: the column with the text; found when left out.
    """

    def __init__(self, kind: type[Task], column: str | None) -> None:
        self.kind, self.column = kind, column
        self._found: tuple[str, str] | None = None  # the file, its column

    def __call__(self, row: Row) -> Any:
        known = self._found[1] if self._found is not None and self._found[0] == row.source else None
        given = self.kind.read(row, self.column or known)
        if self.column is None and known is None and isinstance(given, str):
            found = [name for name in (text_column(row),) if row.values[name] == given]
            self._found = (row.source, found[0]) if found else None
        return given


def in_batches(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """The rows in lists of `size`; those before a row that cannot be read still come, then its error."""
    batch: list[T] = []
    problem: InputError | None = None
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == size:
                yield batch
                batch = []
    except InputError as error:
        problem = error
    if batch:
        yield batch
    if problem is not None:
        raise problem
