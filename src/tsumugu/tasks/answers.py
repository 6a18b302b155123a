"""Answers to rows as they are written or shown, and which row it is that cannot be answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tsumugu.core.errors import InputError

if TYPE_CHECKING:
    from tsumugu.tasks.base import Task

W = TypeVar("W")


class Alone:
    """A task in this process, with the face of `Workers`."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.kind, self.window = type(task), task.window

    def map(
        self, windows: Iterable[W], rows: Callable[[W], Sequence[Any]], options: dict[str, Any], **how: bool
    ) -> Iterator[tuple[W, list[Any]]]:
        """Each window with the `answers` to its rows."""
        for window in windows:
            yield window, answers(self.task, rows(window), options, **how)


def answers(
    task: Task, rows: Sequence[Any], options: dict[str, Any], *, lines: bool = False, patient: bool = False
) -> list[Any]:
    """What each row's result is: a mapping of columns, a list of lines, or the InputError that says why there is none.

    Args:
        task: what answers.
        rows: inputs of the task.
        options: of the call.
        lines: results as lines of a terminal, not as columns.
        patient: go on after a row that cannot be answered; else it is the last.
    """
    kind = type(task)
    show: Callable[[Any], Any] = (lambda result: list(kind.lines(result))) if lines else kind.record
    found: list[Any] = []
    spans = [(0, len(rows))]  # to do, the first of them last
    while spans:
        start, end = spans.pop()
        try:
            found += [show(result) for result in task.each(rows[start:end], **options)]
        except InputError as error:
            if end - start == 1:
                found.append(error)
                if not patient:
                    break
                continue
            middle = (start + end) // 2  # halves of halves, until the row is found
            spans += [(middle, end), (start, middle)]
    return found


def plain(value: Any) -> Any:
    """Lists in place of arrays and tensors: what JSON has no form for."""
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def packed(found: Sequence[Any]) -> str:
    """What `answers` gives as one line of JSON."""
    return json.dumps(
        [
            {"error": [each.what, each.where, each.mend]} if isinstance(each, InputError) else {"found": each}
            for each in found
        ],
        default=plain,
    )


def unpacked(line: str) -> list[Any]:
    """What was packed."""
    return [
        each["found"]
        if "found" in each
        else InputError(each["error"][0], where=each["error"][1], mend=each["error"][2])
        for each in json.loads(line)
    ]
