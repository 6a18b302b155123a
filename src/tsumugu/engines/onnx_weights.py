"""Matrices on their way into a graph: as they are, or as blocks of whole numbers that share a scale.

A matrix `[out, in]` is cut along its rows into groups of 32, 64 or 128 numbers. Each group keeps one scale and, for 4
bits, one zero point: `value = scale * (number - zero)`. GGUF's Q8_0 and Q4_0 blocks are such groups already and are
taken over number by number, with no second rounding.

Source: GGUF's block layouts: ggml-org/ggml, ggml-common.h; the search for the scale that loses least: the same idea as
in ggml-quants.c, over fewer candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import ConfigError, did_you_mean

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

QUANTIZATIONS = ("auto", "int8", "int4")
GROUPS = (32, 64, 128)
PIECE = 1 << 22
"""Numbers of a matrix that are quantised at a time, to keep the memory small."""


@dataclass(frozen=True)
class Scheme:
    """How the matrices of a model are kept.

    Attributes:
        bits: 32, 8 or 4.
        head_bits: of the matrix over the vocabulary, whose errors reach the output directly.
        group: numbers that share a scale; 0 chooses by the width of each matrix.
        as_found: take over a checkpoint's blocks of whatever number of bits.
        columns: 8 bits with one scale for each output instead of groups, multiplied in whole numbers throughout: much
            quicker for many tokens at once, as encoders read them, and a little less exact.
    """

    bits: int = 32
    head_bits: int = 32
    group: int = 0
    as_found: bool = False
    columns: bool = False

    @classmethod
    def parse(cls, quantize: str | None, group: int = 0, *, quantized_already: bool = False) -> Scheme:
        """From None, "int8", "int4", or "auto": as the checkpoint is, in 8 bits where its blocks are of another kind.

        Raises:
            ConfigError: another word, or another size of group.
        """
        if group not in (0, *GROUPS):
            raise ConfigError(f"groups of {group} are not known", where="group", mend="choose 32, 64 or 128")
        match quantize:
            case None:
                return cls()
            case "auto":
                return cls(8, 8, group, as_found=True) if quantized_already else cls()
            case "int8":
                return cls(8, 8, group)
            case "int4":
                return cls(4, 8, group)
        raise ConfigError(
            f"unknown quantisation {quantize!r}", where="quantize", mend=did_you_mean(quantize, QUANTIZATIONS)
        )

    def for_encoder(self) -> Scheme:
        """The same for a network that reads many tokens at once."""
        return replace(self, columns=self.bits == 8 and not self.group)

    def group_for(self, width: int, bits: int) -> int:
        """The size of the groups of a matrix with `width` columns: what was asked for, or less where that fills no row.

        Rows that end within a group of 8 bits lose more than rounding explains, and cannot be looked up.
        """
        most = self.group or (GROUPS[0] if bits == 4 else GROUPS[-1])
        return max([group for group in GROUPS if width % group == 0 and group <= most], default=GROUPS[0])

    def table_bits(self, width: int) -> int:
        """The bits of a matrix over the vocabulary: whole where no groups fill its rows."""
        return self.head_bits if width % GROUPS[0] == 0 else 32


@dataclass(frozen=True)
class Packed:
    """A quantised matrix as `MatMulNBits` wants it.

    Attributes:
        numbers: `[out, groups, group * bits / 8]`, 4-bit numbers two to a byte, the lower half first.
        scales: `[out, groups]`.
        zeros: `[out, ceil(groups * bits / 8)]`, packed as the numbers; None for the middle of their range.
    """

    bits: int
    group: int
    numbers: Bytes
    scales: Floats
    zeros: Bytes | None


def quantized(matrix: Floats, bits: int, group: int) -> Packed:
    """`matrix` `[out, in]` in groups along its rows; a last group that is not full is filled up with zeros."""
    rows, width = matrix.shape
    groups = -(-width // group)
    numbers = np.empty((rows, groups, group * bits // 8), np.uint8)
    scales = np.empty((rows, groups), np.float32)
    zeros = np.empty((rows, groups), np.uint8)
    step = max(1, PIECE // (groups * group))
    for start in range(0, rows, step):
        part = np.zeros((min(step, rows - start), groups * group), np.float32)
        part[:, :width] = matrix[start : start + step]
        blocks = part.reshape(len(part), groups, group)
        where = slice(start, start + len(part))
        if bits == 8:
            scales[where], found = _symmetric(blocks)
            numbers[where] = found
        else:
            scales[where], zeros[where], found = _asymmetric(blocks)
            numbers[where] = found[..., 0::2] | found[..., 1::2] << 4
    return Packed(bits, group, numbers, scales, None if bits == 8 else _nibbles(zeros))


def _symmetric(blocks: Floats) -> tuple[Floats, Bytes]:
    """Scales, and numbers 1 to 255 around 128."""
    scales = np.abs(blocks).max(-1) / np.float32(127)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    numbers = np.rint(blocks * inverse[..., None]) + 128
    return scales, numbers.astype(np.uint8)


SHRINK = np.linspace(1.0, 0.8, 9, dtype=np.float32)
"""Shares of a group's full range that are tried: cutting off its ends may cost less than coarser steps."""


def _asymmetric(blocks: Floats) -> tuple[Floats, Bytes, Bytes]:
    """Scales, zero points and numbers 0 to 15 that together lose least, in squares."""
    low = np.minimum(blocks.min(-1), 0)
    high = np.maximum(blocks.max(-1), 0)
    best = np.full(low.shape, np.inf, np.float32)
    scales, zeros = np.zeros_like(low), np.zeros_like(low)
    for share in SHRINK:
        scale = (high - low) * (share / np.float32(15))
        safe = np.where(scale > 0, scale, np.float32(1))
        zero = np.clip(np.rint(-low * share / safe), 0, 15)
        numbers = np.clip(np.rint(blocks / safe[..., None] + zero[..., None]), 0, 15)
        loss = np.square((numbers - zero[..., None]) * safe[..., None] - blocks).sum(-1)
        better = loss < best
        best = np.where(better, loss, best)
        scales, zeros = np.where(better, safe, scales), np.where(better, zero, zeros)
    chosen = np.clip(np.rint(blocks / scales[..., None] + zeros[..., None]), 0, 15)
    return scales, zeros.astype(np.uint8), chosen.astype(np.uint8)


def _nibbles(zeros: Bytes) -> Bytes:
    """Numbers below 16, `[rows, groups]`, two to a byte."""
    even = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
    return (even[:, 0::2] | even[:, 1::2] << 4).astype(np.uint8)


SEVEN_BITS = 63
"""The largest number of `by_columns`: products of two neighbours with 8-bit activations then fit into 16 bits, which
processors without instructions for more would cut off."""


def by_columns(matrix: Floats) -> tuple[NDArray[np.int8], Floats]:
    """`matrix` `[out, in]` as `[in, out]` whole numbers around 0, and the scale of each output, `[out]`."""
    scales = np.abs(matrix).max(1) / np.float32(SEVEN_BITS)
    numbers = np.rint(matrix / np.where(scales > 0, scales, 1)[:, None])
    return np.ascontiguousarray(numbers.T.astype(np.int8)), scales


def from_gguf(kind: str, blocks: Bytes) -> Packed:
    """GGUF's Q8_0 or Q4_0 blocks `[out, bytes of a row]`, number by number.

    A Q8_0 block is a 16-bit scale and 32 signed bytes; a Q4_0 block a 16-bit scale and 16 bytes with number i in the
    lower and number i + 16 in the upper half.
    """
    rows = len(blocks)
    blocks = blocks.reshape(rows, -1, 34 if kind == "Q8_0" else 18)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0].astype(np.float32)
    if kind == "Q8_0":
        return Packed(8, 32, blocks[..., 2:] ^ np.uint8(128), scales, None)
    low, high = blocks[..., 2:] & 15, blocks[..., 2:] >> 4
    numbers = np.concatenate((low, high), axis=-1)
    return Packed(4, 32, numbers[..., 0::2] | numbers[..., 1::2] << 4, scales, None)


def dequantized(packed: Packed, width: int) -> Floats:
    """What the numbers stand for, `[out, width]`."""
    numbers: NDArray[Any] = packed.numbers
    middle: NDArray[Any] = np.full(packed.scales.shape, 1 << packed.bits - 1)
    if packed.bits == 4:
        numbers = np.stack((packed.numbers & 15, packed.numbers >> 4), axis=-1).reshape(
            *packed.scales.shape, packed.group
        )
        if packed.zeros is not None:
            middle = np.stack((packed.zeros & 15, packed.zeros >> 4), axis=-1).reshape(len(numbers), -1)
            middle = middle[:, : numbers.shape[1]]
    values = (numbers.astype(np.float32) - middle[..., None].astype(np.float32)) * packed.scales[..., None]
    result: Floats = values.reshape(len(values), -1)[:, :width]
    return result
