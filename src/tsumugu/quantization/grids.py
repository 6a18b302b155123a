"""The grids that weights are rounded to: GGUF's blocks of 32 numbers with one scale, and a least value in Q4_1.

A number stands for `scale * number + least`. Scale and least value are kept in 16 bits, and chosen in 16 bits, so that
what is written is what was reckoned with.

Source: block layouts: ggml-org/ggml, ggml-common.h; scale and least value fitted in turn with the numbers, weighted:
the idea of make_qkx2_quants in ggml-quants.c.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tsumugu.core.errors import InputError

BLOCK = 32
SHARES = (1.0, 0.93, 0.86, 0.79)
"""Shares of a block's range that the search begins with: its ends may be worth less than finer steps."""
FITS = 3
PIECE = 1 << 20
"""Blocks that are fitted at a time, to keep the memory small."""


@dataclass(frozen=True)
class Grid:
    """A type of GGUF's blocks.

    Attributes:
        kind: its name.
        bits: of a number.
        low, high: the least and the largest number.
        least: whether a block has a least value.
    """

    kind: str
    bits: int
    low: int
    high: int
    least: bool = False


GRIDS = {
    each.kind: each for each in (Grid("Q8_0", 8, -127, 127), Grid("Q4_0", 4, -8, 7), Grid("Q4_1", 4, 0, 15, least=True))
}


@dataclass(frozen=True)
class Rounded:
    """A matrix on a grid.

    Attributes:
        grid: which.
        numbers: int8 `[out, in]`.
        scales: float16 `[out, in / 32]`.
        mins: float16 `[out, in / 32]`; zeros where the grid has no least values.
    """

    grid: Grid
    numbers: Tensor
    scales: Tensor
    mins: Tensor

    def values(self) -> Tensor:
        """What the numbers stand for, float32 `[out, in]`."""
        blocks = in_blocks(self.numbers.float())
        return (blocks * self.scales.float()[..., None] + self.mins.float()[..., None]).flatten(1)

    def blocks(self) -> Tensor:
        """The bytes of GGUF's blocks, uint8 `[out, bytes of a row]`."""
        numbers = in_blocks(self.numbers)
        small = numbers if self.grid.bits == 8 else numbers - self.grid.low
        body = small.numpy().view(np.uint8)
        if self.grid.bits == 4:
            body = np.bitwise_or(body[..., :16], body[..., 16:] << 4)
        halves = (self.scales, self.mins) if self.grid.least else (self.scales,)
        head = [each.numpy()[..., None].view(np.uint8) for each in halves]
        return torch.from_numpy(np.concatenate((*head, body), axis=-1)).flatten(1)

    def rows(self, counts: list[int]) -> list[Rounded]:
        """Cut into matrices of so many rows."""
        parts = [torch.split(each, counts) for each in (self.numbers, self.scales, self.mins)]
        return [Rounded(self.grid, *each) for each in zip(*parts, strict=True)]


def in_blocks(matrix: Tensor) -> Tensor:
    """`[out, in]` -> `[out, in / 32, 32]`."""
    return matrix.reshape(len(matrix), -1, BLOCK)


def nearest(matrix: Tensor, grid: Grid, importance: Tensor | None = None) -> Rounded:
    """`matrix` `[out, in]`, each number by itself to the nearest of its block's grid.

    Args:
        importance: of each column, `[in]`, in the choice of the grids.

    Raises:
        InputError: rows do not fill blocks, or 16 bits cannot hold a scale.
    """
    scales, mins = fitted(matrix, grid, importance)
    blocks = in_blocks(matrix)
    numbers = torch.empty(blocks.shape, dtype=torch.int8)
    step = max(1, PIECE // blocks.shape[1])
    for at in range(0, len(matrix), step):
        part = slice(at, at + step)
        numbers[part] = _numbers(blocks[part], scales[part].float(), mins[part].float(), grid).to(torch.int8)
    return Rounded(grid, numbers.flatten(1), scales, mins)


def fitted(matrix: Tensor, grid: Grid, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scales and least values, float16 `[out, in / 32]`, that lose least where each number goes to the nearest.

    Arguments and errors are those of `nearest`.
    """
    rows, width = matrix.shape
    if width % BLOCK:
        raise InputError(f"rows of {width} do not fill blocks of {BLOCK}", where=grid.kind)
    weight = torch.ones(width) if importance is None else importance.float()
    found = []
    step = max(1, PIECE // (width // BLOCK))
    for at in range(0, rows, step):
        part = in_blocks(matrix[at : at + step].float())
        found.append(_fit(part, in_blocks(weight[None]).expand_as(part), grid))
    scales, mins = (torch.cat(each) for each in zip(*found, strict=True))
    return scales, mins


def _fit(blocks: Tensor, weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    best = torch.full(blocks.shape[:-1], torch.inf)
    scales, mins = (torch.zeros(blocks.shape[:-1], dtype=torch.float16) for _ in range(2))
    for scale, least in _beginnings(blocks, grid):
        for _ in range(FITS):
            half, half_least = scale.half(), least.half()
            numbers = _numbers(blocks, half.float(), half_least.float(), grid)
            off = numbers * half.float()[..., None] + half_least.float()[..., None] - blocks
            loss = (weight * off.square()).sum(-1)
            better = loss < best
            best = torch.where(better, loss, best)
            scales, mins = torch.where(better, half, scales), torch.where(better, half_least, mins)
            scale, least = _regressed(blocks, numbers, weight, grid, scale, least)
    if not bool(best.isfinite().all()):
        raise InputError(f"there are values that {grid.kind} cannot hold", where="weights")
    return scales, mins


def _beginnings(blocks: Tensor, grid: Grid) -> list[tuple[Tensor, Tensor]]:
    """Scales and least values to begin the search with."""
    low, high = blocks.aminmax(dim=-1)
    if grid.least:
        middle, reach = (low + high) / 2, (high - low) / 2
        return [(reach * (2 * share / grid.high), middle - reach * share) for share in SHARES]
    none = torch.zeros_like(low)
    if grid.bits == 8:
        return [(torch.maximum(-low, high) / grid.high, none)]
    far = torch.where(-low > high, low, high)  # at one end of the grid, which has a number more on one side
    return [(far * share / end, none) for end in (grid.low, grid.high) for share in SHARES]


def _numbers(blocks: Tensor, scales: Tensor, mins: Tensor, grid: Grid) -> Tensor:
    inverse = torch.where(scales == 0, 0, 1 / scales)
    return ((blocks - mins[..., None]) * inverse[..., None]).round_().clamp_(grid.low, grid.high)


def _regressed(
    blocks: Tensor, numbers: Tensor, weight: Tensor, grid: Grid, scale: Tensor, least: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale and least value by weighted least squares for given numbers; as they were where these say nothing."""
    weighted = weight * numbers
    squares, mixed = (weighted * numbers).sum(-1), (weighted * blocks).sum(-1)
    if not grid.least:
        return torch.where(squares > 0, mixed / squares, scale), least
    total, ones, values = weight.sum(-1), weighted.sum(-1), (weight * blocks).sum(-1)
    spread = squares * total - ones.square()
    solvable = spread > 1e-6 * squares * total
    scale = torch.where(solvable, (mixed * total - ones * values) / spread, scale)
    return scale, torch.where(total > 0, (values - scale * ones) / total, least)
