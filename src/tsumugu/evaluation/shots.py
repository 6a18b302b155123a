"""Which examples of training a prompted task shows: few, and of every label in turn."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain, zip_longest
from typing import Any

from tsumugu.core.errors import InputError
from tsumugu.data.labelled.examples import Examples


def pick(train: Examples, count: int) -> Examples:
    """The first `count` examples, of classes one of each label in turn.

    Raises:
        InputError: there are not so many.
    """
    if not 0 <= count <= len(train):
        raise InputError(f"{count} of {len(train)} examples cannot be shown", where="shots")
    if train.kind not in ("text-classification", "pair-classification"):
        return train[:count]
    by_label: dict[str, list[Any]] = defaultdict(list)
    for row in train:
        by_label[row.label].append(row)
    turns = chain.from_iterable(zip_longest(*(by_label[label] for label in sorted(by_label))))
    return Examples(train.kind, tuple([row for row in turns if row is not None][:count]), train.labels)
