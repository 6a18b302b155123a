"""Rows in windows that are answered together: read ahead a little, what cannot be read told, what is done passed over.

Windows are counted from the first row of the input, so that a run that goes on computes the same rows together as one
that was never stopped, and writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from tsumugu.core.errors import InputError
from tsumugu.data.rows import Row


@dataclass(frozen=True)
class Problem:
    """A row that has no result, and why. Of a row that could not even be read there are no values."""

    error: InputError
    row: Row | None = None

    def record(self) -> dict[str, Any]:
        """As a report of bad rows has it."""
        values = None if self.row is None else {name: _writable(each) for name, each in self.row.values.items()}
        where = self.error.where or (None if self.row is None else self.row.where)
        return {"where": where, "error": self.error.what, "mend": self.error.mend, "row": values}


@dataclass(frozen=True)
class Window:
    """Rows that are answered together.

    Attributes:
        rows: as they were read.
        inputs: the same as the task takes them.
        problems: what could not be read before the last of them.
        done: rows of the input up to here.
        digest: of all those.
        whole: no row that could not be read cut it short.
    """

    rows: list[Row]
    inputs: list[Any]
    problems: list[Problem]
    done: int
    digest: str
    whole: bool


def windows(
    rows: Iterator[Row],
    read: Callable[[Row], Any],
    size: int,
    *,
    problems: list[Problem] | None = None,
    done: int = 0,
    digest: str = "",
) -> Iterator[Window]:
    """The rows in windows. Those before a row that cannot be read still come, then its error.

    Args:
        rows: of the input, from the first on.
        read: makes a row an input of the task.
        size: rows of a window.
        problems: where what cannot be read is told, by whoever reads too; then it is passed over.
        done: rows that were done before.
        digest: of those.

    Raises:
        InputError: a row cannot be read, or the rows that were done before were others.
    """
    seen, count = blake2b(digest_size=16), 0
    held: list[tuple[Row, Any]] = []
    broken: InputError | None = None

    def window() -> Window:
        told = list(problems or ())
        if problems is not None:
            problems.clear()
        mine, given = [row for row, _ in held], [each for _, each in held]
        held.clear()
        return Window(mine, given, told, count, seen.hexdigest(), broken is None)

    try:
        for row in rows:
            try:
                if problems is not None:
                    _check_unicode(row)
                given = read(row)
            except InputError as error:
                if problems is None:
                    raise
                problems.append(Problem(error, row))
                continue
            seen.update(repr(row.values).encode("utf-8", "surrogatepass"))
            count += 1
            if count == done:
                if seen.hexdigest() != digest:
                    raise _others(done)
                if problems is not None:
                    problems.clear()  # they were told before
            elif count > done:
                held.append((row, given))
                if len(held) == size:
                    yield window()
    except InputError as error:
        broken = error
    if broken is None and count < done:
        raise _others(done)
    if held or problems:
        yield window()
    if broken is not None:
        raise broken


def _others(done: int) -> InputError:
    said = f"its first {done:,} rows are not those that the unfinished run read"
    return InputError(said, where="input", mend="give the same input, or begin anew: --restart")


def _check_unicode(row: Row) -> None:
    for name, value in row.values.items():
        if isinstance(value, str) and not _is_unicode(value):
            raise InputError("is not UTF-8", where=f"{row.where}, column {name!r}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _writable(value: Any) -> Any:
    """A value as a report holds it: what is no Unicode as escapes."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
