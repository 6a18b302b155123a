"""Labels: their order, which is that of a model's outputs, and how a value of the data becomes one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

from tsumugu.core.errors import InputError, did_you_mean


@dataclass(frozen=True)
class LabelSet(Sequence[str]):
    """Labels in a fixed order: the order of a model's outputs."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise InputError("a label is there twice", where="labels")

    @classmethod
    def infer(cls, labels: Iterable[str]) -> LabelSet:
        """The labels that occur, numbers by size and words by code point: the order of rows plays no part."""
        found = set(labels)
        numbers = all(each.removeprefix("-").isdecimal() for each in found)
        return cls(tuple(sorted(found, key=(lambda each: (int(each), each)) if numbers else None)))

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self.names[index]

    def __len__(self) -> int:
        return len(self.names)

    def index(self, value: str, start: int = 0, stop: int | None = None) -> int:
        """The place of a label.

        Raises:
            InputError: it is not among the labels; the nearest is named.
        """
        if value not in self.names:
            raise InputError(f"the label {value!r} is not among the {len(self)}", mend=did_you_mean(value, self.names))
        return self.names.index(value, start, len(self) if stop is None else stop)

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(self.names)}


def as_label(value: Any) -> str:
    """A label as text: whole numbers without a fraction, true and false in lower case."""
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
