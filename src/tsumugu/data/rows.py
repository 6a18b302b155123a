"""One row of data, and which of its columns holds the text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tsumugu.core.errors import InputError, nearest

TEXT_NAMES = ("text", "sentence", "content", "prompt", "body")

PAIRS = (("sentence1", "sentence2"), ("text1", "text2"), ("text_a", "text_b"), ("premise", "hypothesis"))
"""Names that two columns of texts usually have."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    Args:
        number: counts from 1; the line in text and JSON Lines (blank lines count), else the record.
        values: column name to value; CSV gives texts only.
        source: the file's name, for messages.
        unit: what `number` counts: "line" or "row".
    """

    number: int
    values: dict[str, Any]
    source: str = "input"
    unit: str = "row"

    @property
    def where(self) -> str:
        """The place of this row for a message: ``reviews.csv, row 12``."""
        return f"{self.source}, {self.unit} {self.number}"


def text_column(row_or_columns: Row | Mapping[str, Any] | Iterable[str], wanted: str | None = None) -> str:
    """The name of the column that holds the text.

    The wanted one; else the first of text, sentence, content, prompt, body (in any case); else the only column of
    texts. Of a row or a mapping, only columns whose value is a string are guessed.

    Raises:
        InputError: there is no such column, or it cannot be guessed; the message lists the columns.
    """
    where = row_or_columns.where if isinstance(row_or_columns, Row) else None
    columns: list[str]
    if isinstance(row_or_columns, Row | Mapping):
        values = row_or_columns.values if isinstance(row_or_columns, Row) else row_or_columns
        columns = list(values)
        guessed = [name for name in columns if isinstance(values[name], str)]
    else:
        columns = list(row_or_columns)
        guessed = columns
    if wanted is not None:
        require_columns([wanted], columns, where)
        return wanted
    lowered = {name.lower(): name for name in reversed(guessed)}
    for name in TEXT_NAMES:
        if name in guessed:
            return name
        if name in lowered:
            return lowered[name]
    if len(guessed) == 1:
        return guessed[0]
    said = "no column holds texts" if not guessed else "it is not clear which column holds the text"
    raise InputError(f"{said} (columns: {listed(columns)})", where=where, mend="name it with --text-column")


def text_of(row: Row, column: str) -> str:
    """The text that `row` has in `column`.

    Raises:
        InputError: the row has no such column, or what it holds is not a string.
    """
    if column not in row.values:
        require_columns([column], row.values, row.where)
    value = row.values[column]
    if not isinstance(value, str):
        found = "is empty (null)" if value is None else f"holds {_kind(value)}, not a text"
        raise InputError(found, where=f"{row.where}, column {column!r}")
    return value


def require_columns(wanted: Iterable[str], columns: Iterable[str], where: str | None) -> None:
    """Raise InputError, with the nearest name and the list of columns, when one of `wanted` is not there."""
    columns = list(columns)
    for name in wanted:
        if name not in columns:
            near = nearest(name, columns)
            mend = f"did you mean {near!r}?" if near is not None else None
            raise InputError(f"there is no column {name!r} (columns: {listed(columns)})", where=where, mend=mend)


def listed(columns: Iterable[str], *, limit: int = 20) -> str:
    """The names of the columns for a message."""
    names = [repr(each) for each in columns]
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "") if names else "none"


def _kind(value: object) -> str:
    """What a value is, in words of the file and not of Python."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return f"a value of type {type(value).__name__}"
