"""What a verb reads: texts of the command line, a file, or standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from cyclopts import Parameter

from tsumugu.cli.dash import DASH
from tsumugu.core.errors import InputError
from tsumugu.data.readers import count_rows, read_rows
from tsumugu.data.rows import Row, text_column, text_of

T = TypeVar("T")

Texts = Annotated[str, DASH, Parameter(name="text", help="Texts; - reads standard input.")]
InputPath = Annotated[
    Path | None,
    DASH,
    Parameter(("--input", "-i"), help="A .txt, .jsonl, .json, .csv, .tsv or .parquet file (also packed), or -."),
]
InputFormat = Annotated[str | None, Parameter(help="What the input is, whatever its name says: jsonl, csv.gz, …")]
TextColumn = Annotated[str | None, Parameter(help="The column with the text; two, with a comma, for pairs.")]
EncodingErrors = Annotated[Literal["strict", "replace"], Parameter(help="What to do with invalid UTF-8.")]


@dataclass(frozen=True)
class Inputs:
    """Rows to read, and how many there are where that is known."""

    rows: Iterator[Row]
    total: int | None


def read_inputs(
    texts: Sequence[str],
    path: Path | None,
    *,
    format: str | None = None,
    encoding_errors: Literal["strict", "replace"] = "strict",
) -> Inputs:
    """Rows from the command line (column `text`), from a file, or from standard input for `-` or nothing.

    Raises:
        InputError: both or neither are given, or the file cannot be read.
    """
    if texts and path is not None:
        raise InputError("both a text and --input are given", mend="choose one")
    if texts and list(texts) != ["-"]:
        return Inputs((Row(number, {"text": text}) for number, text in enumerate(texts, 1)), len(texts))
    source = Path("-") if path is None else path
    if str(source) == "-" and sys.stdin.isatty():
        raise InputError("there is no text", mend="give one, or --input FILE, or - for standard input")
    return Inputs(read_rows(source, format=format, encoding_errors=encoding_errors), count_rows(source, format=format))


def one_text(row: Row, column: str | None) -> str:
    """The text of a row, from the column named or found."""
    return text_of(row, text_column(row, column))


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
