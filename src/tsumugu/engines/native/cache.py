"""Keys and values of texts that are being continued: floats, or 8 bits with a scale for each token and head."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsumugu.engines.native.library import Cache, Network
from tsumugu.engines.prefixes import Kept

UNIT = 16
"""Places come in panels of so many."""

Array = NDArray[Any]


class KeysAndValues:
    """Room for some texts, in the order of the kernels.

    Args:
        network: whose they are.
        rows: texts.
        capacity: tokens of each.
        bits: 32 or 8.
    """

    def __init__(self, network: Network, *, rows: int, capacity: int, bits: int) -> None:
        layers, heads, dim = network.layers, network.kv_heads, network.head_dim
        panels = -(-capacity // UNIT)
        self.rows, shape = rows, (layers, rows, heads)
        kind: Any = np.float32 if bits == 32 else np.int8
        key = (dim, UNIT) if bits == 32 else (dim // 4, UNIT, 4)
        # Panels are the axis behind the heads everywhere but in values, where they are the next.
        self._arrays: list[Array] = [
            np.zeros((*shape, panels, *key), kind),
            np.zeros((*shape, dim // UNIT, panels, UNIT, UNIT), kind),
        ]
        if bits == 8:
            self._arrays += [np.zeros((*shape, panels, UNIT), np.float32) for _ in range(2)]
        pointers = [array.ctypes.data for array in self._arrays] + [None] * (4 - len(self._arrays))
        self.pointers = Cache(*pointers, rows, panels * UNIT, bits)

    def take(self, row: int, tokens: int) -> Kept:
        """A copy of the first tokens of a text: keys, values and their scales, `[layers, kv_heads, …]`."""
        return tuple(part[:, row].copy() for part in self._begin(tokens))

    def put(self, row: int, kept: Kept, tokens: int) -> None:
        """The same back again, or less of it."""
        for number, (part, given) in enumerate(zip(self._begin(tokens), kept, strict=True)):
            part[:, row] = given[_first(number, tokens, 2)]

    def reorder(self, rows: NDArray[np.int64], tokens: int) -> None:
        """Go on with `rows` in that order, of which `tokens` are filled at most."""
        for part in self._begin(tokens):
            for layer in part:
                layer[: len(rows)] = layer[rows]

    def take_over(self, other: KeysAndValues) -> None:
        """What lies in another of fewer rows."""
        for mine, theirs in zip(self._arrays, other._arrays, strict=True):
            mine[:, : other.rows] = theirs

    def _begin(self, tokens: int) -> list[Array]:
        return [array[_first(number, tokens, 3)] for number, array in enumerate(self._arrays)]


def _first(number: int, tokens: int, axes: int) -> tuple[slice, ...]:
    """The panels of the first tokens in the array of that number, which has so many axes up to the heads."""
    return (*(slice(None),) * (axes + (number == 1)), slice(-(-tokens // UNIT)))
