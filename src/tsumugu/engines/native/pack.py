"""Matrices in panels of 16 rows, as `matmul.h` reads them: whole, or rounded in groups of 32, 64 or 128 numbers.

A group keeps a 16-bit scale and, for 4 bits, a 16-bit least value: `value = scale * number + least`. GGUF's blocks of
Q8_0, Q4_0 and Q4_1 are such groups already and are taken over number by number.

Source: GGUF's block layouts: ggml-org/ggml, ggml-common.h; scale and least value fitted in turn with the numbers: the
idea of make_qkx2_quants in ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]
Bytes = NDArray[np.uint8]
Numbers = TypeVar("Numbers", bound=NDArray[Any])

LANES, GROUP = 16, 32
"""Rows of a panel; numbers that what they are multiplied with has a scale for, of which groups are made up."""
PIECE = 1 << 22
"""Numbers of a matrix that are rounded at a time, to keep the memory small."""
KINDS = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}
"""GGUF's blocks that are taken over, and the bytes of each."""


@dataclass(frozen=True)
class Groups:
    """Rows of rounded numbers.

    Attributes:
        bits: 8: numbers around 128; 4: around 8, or from the group's least value on.
        numbers: `[rows, groups, group]`.
        scales: `[rows, groups]`.
        mins: `[rows, groups]`, or None.
    """

    bits: int
    numbers: Bytes
    scales: Halves
    mins: Halves | None

    def values(self) -> Floats:
        """What the numbers stand for, `[rows, groups * group]`."""
        middle = 0 if self.mins is not None else 1 << self.bits - 1
        found = (self.numbers.astype(np.float32) - np.float32(middle)) * self.scales.astype(np.float32)[..., None]
        if self.mins is not None:
            found += self.mins.astype(np.float32)[..., None]
        return found.reshape(len(found), -1)

    def panels(self) -> tuple[Bytes, Halves, Halves | None]:
        """Numbers, scales and least values in the order of the kernels; rows that fill the last panel are zeros."""
        numbers, scales = filled(self.numbers), paneled(self.scales)
        panels, groups = len(numbers) // LANES, numbers[0].size // GROUP
        packed: NDArray[Any]
        if self.bits == 8:
            packed = numbers.reshape(panels, LANES, groups, 8, 4).transpose(0, 2, 3, 1, 4)
        else:
            halves = numbers.reshape(panels, LANES, groups, 4, 2, 4)
            packed = (halves[..., 0, :] | halves[..., 1, :] << 4).transpose(0, 2, 3, 1, 4)
        return np.ascontiguousarray(packed), scales, None if self.mins is None else paneled(self.mins)


def filled(rows: Numbers) -> Numbers:
    """Zero rows behind, up to whole panels."""
    short = -len(rows) % LANES
    found: Any = np.concatenate((rows, np.zeros((short, *rows.shape[1:]), rows.dtype)))
    return found


def paneled(rows: Numbers) -> Numbers:
    """`[rows, n]` -> `[panels, n, 16]`."""
    rows = filled(rows)
    found: Any = np.ascontiguousarray(rows.reshape(-1, LANES, rows.shape[1]).transpose(0, 2, 1))
    return found


def wide(matrix: Floats) -> Floats:
    """Zero columns behind, up to whole groups."""
    return np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % GROUP)))


def round_rows(matrix: Floats, bits: int, group: int = GROUP) -> Groups:
    """`matrix` `[rows, width]` in 8 or 4 bits; a group other than 32 fills the rows."""
    found = []
    step = max(1, PIECE // matrix.shape[1])
    for start in range(0, len(matrix), step):
        blocks = wide(matrix[start : start + step]).reshape(-1, -(-matrix.shape[1] // group), group)
        found.append(_around_zero(blocks) if bits == 8 else _fitted(blocks))
    return stacked(found)


def stacked(parts: Sequence[Groups]) -> Groups:
    """One's rows below the other's."""
    mins = [part.mins for part in parts if part.mins is not None]
    return Groups(
        parts[0].bits,
        np.concatenate([part.numbers for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(mins) if mins else None,
    )


def _around_zero(blocks: Floats) -> Groups:
    scales = (np.abs(blocks).max(-1) / np.float32(127)).astype(np.float16)
    inverse = _inverse(scales.astype(np.float32))
    numbers = np.clip(np.rint(blocks * inverse[..., None]), -127, 127) + 128
    return Groups(8, numbers.astype(np.uint8), scales, None)


SHARES = (1.0, 0.93, 0.86, 0.79)
"""Shares of a group's range that the search begins with: its ends may be worth less than finer steps."""
FITS = 3


def _fitted(blocks: Floats) -> Groups:
    """Scale and least value of each group fitted to its numbers, these chosen anew, and so on; the best is kept."""
    low, high = blocks.min(-1), blocks.max(-1)
    middle, reach = (low + high) / 2, (high - low) / 2
    best = np.full(low.shape, np.inf, np.float32)
    scales, mins = np.zeros(low.shape, np.float16), np.zeros(low.shape, np.float16)
    total, count = blocks.sum(-1), blocks.shape[-1]
    for share in SHARES:
        scale, least = reach * np.float32(2 * share / 15), middle - reach * np.float32(share)
        for _ in range(FITS):
            half, half_least = scale.astype(np.float16), least.astype(np.float16)
            numbers = _numbers(blocks, half, half_least)
            values = numbers * half.astype(np.float32)[..., None] + half_least.astype(np.float32)[..., None]
            loss = np.square(values - blocks).sum(-1)
            better = loss < best
            best = np.where(better, loss, best)
            scales, mins = np.where(better, half, scales), np.where(better, half_least, mins)
            ones, squares = numbers.sum(-1), np.square(numbers).sum(-1)
            spread = squares - ones * ones / count
            mixed = (numbers * blocks).sum(-1) - ones * total / count
            scale = np.where(spread > 0, mixed / np.where(spread > 0, spread, 1), scale).astype(np.float32)
            least = ((total - scale * ones) / count).astype(np.float32)
    return Groups(4, _numbers(blocks, scales, mins).astype(np.uint8), scales, mins)


def _numbers(blocks: Floats, scales: Halves, mins: Halves) -> Floats:
    shifted = blocks - mins.astype(np.float32)[..., None]
    found: Floats = np.clip(np.rint(shifted * _inverse(scales.astype(np.float32))[..., None]), 0, 15)
    return found


def _inverse(scales: Floats) -> Floats:
    return np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)


def from_gguf(kind: str, rows: Bytes) -> Groups:
    """GGUF's blocks `[rows, bytes]`.

    Q8_0: a 16-bit scale and 32 signed bytes. Q4_0 and Q4_1: a scale, for Q4_1 a least value, and 16 bytes with number i
    in the lower and number i + 16 in the upper half.
    """
    blocks = rows.reshape(len(rows), -1, KINDS[kind])
    head = 4 if kind == "Q4_1" else 2
    halves = np.ascontiguousarray(blocks[..., :head]).view(np.float16)
    scales, mins = halves[..., 0], halves[..., 1] if kind == "Q4_1" else None
    body = blocks[..., head:]
    if kind == "Q8_0":
        return Groups(8, body ^ np.uint8(128), scales, None)
    return Groups(4, np.concatenate((body & 15, body >> 4), axis=-1), scales, mins)
