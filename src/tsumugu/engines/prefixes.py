"""Keys and values of texts that were read before: a text that begins alike is read from there on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOM = 256 << 20
"""Bytes that are kept at most; what was used longest ago goes first."""
LEAST = 32
"""Tokens below which reading again is as quick."""

Kept = tuple[NDArray[Any], ...]
"""Keys and values of one text, in the order of an engine."""


class Prefixes:
    """The texts that were kept.

    Args:
        room: bytes at most.
    """

    def __init__(self, room: int = ROOM) -> None:
        self.room = room
        self._kept: OrderedDict[tuple[int, ...], Kept] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return sum(array.nbytes for kept in self._kept.values() for array in kept)

    def find(self, text: Sequence[int]) -> tuple[int, Kept | None]:
        """How many of a text's first tokens are known, and the keys and values that hold them."""
        best, found = 0, None
        for kept in self._kept:
            same = common(kept, text)
            if same > best:
                best, found = same, kept
        if found is None or best < LEAST:
            return 0, None
        self._kept.move_to_end(found)
        return best, self._kept[found]

    def keep(self, text: Sequence[int], arrays: Kept) -> None:
        """Keep a text, in place of those that are its beginnings."""
        for kept in [kept for kept in self._kept if common(kept, text) == len(kept)]:
            del self._kept[kept]
        self._kept[tuple(text)] = arrays
        while self._kept and self.size > self.room:
            self._kept.popitem(last=False)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    length = min(len(one), len(other))
    different = np.flatnonzero(np.asarray(one[:length]) != np.asarray(other[:length]))
    return int(different[0]) if len(different) else length
