"""Linear maps in a graph: several matrices as one, whole or quantised, heads of the width that ONNX Runtime wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import nn

from tsumugu.engines.onnx_graph import Graph, Value
from tsumugu.engines.onnx_weights import Floats, Packed, Scheme, by_columns, quantized

HEAD_UNIT = 16
"""ONNX Runtime's attention wants heads of a multiple of this width; narrower ones are filled up with zeros."""


class Weights(Protocol):
    """Where matrices come from, by our names."""

    def read(self, name: str) -> Floats:
        """A parameter as float32."""
        ...

    def blocks(self, name: str) -> Packed | None:
        """A matrix as the checkpoint's own blocks, where these can be used number by number."""
        ...


@dataclass(frozen=True)
class Heads:
    """How one side of a matrix belongs to heads.

    `halves`: a head is two halves that are turned against each other (rotary), so that each half is filled up.
    """

    count: int
    width: int
    halves: bool = False

    @property
    def padded(self) -> int:
        """The width of a head in the graph."""
        return -(-self.width // HEAD_UNIT) * HEAD_UNIT

    def fill(self, matrix: Floats) -> Floats:
        """Rows `[heads * width, …]` -> `[heads * padded, …]`, zeros where there was nothing."""
        if self.padded == self.width:
            return matrix
        parts = 2 if self.halves else 1
        rest = matrix.shape[1:]
        filled = np.zeros((self.count, parts, self.padded // parts, *rest), np.float32)
        filled[:, :, : self.width // parts] = matrix.reshape(self.count, parts, self.width // parts, *rest)
        result: Floats = filled.reshape(self.count * self.padded, *rest)
        return result


@dataclass(frozen=True)
class Part:
    """One linear module of a map: its name, itself, and whose rows and columns it has."""

    name: str
    module: nn.Linear
    rows: Heads | None = None
    columns: Heads | None = None

    @property
    def plain(self) -> bool:
        """Whether the matrix is used as it stands in the checkpoint."""
        return all(each is None or each.padded == each.width for each in (self.rows, self.columns))

    def matrix(self, weights: Weights) -> Floats:
        """`[out, in]`, filled up."""
        matrix = weights.read(f"{self.name}.weight")
        matrix = matrix if self.rows is None else self.rows.fill(matrix)
        return matrix if self.columns is None else np.ascontiguousarray(self.columns.fill(matrix.T).T)

    def bias(self, weights: Weights) -> Floats:
        bias = weights.read(f"{self.name}.bias")
        return bias if self.rows is None else self.rows.fill(bias)


@dataclass(frozen=True)
class Linears:
    """Writes linear maps to a graph.

    Attributes:
        graph: what is written to.
        weights: where matrices come from.
        scheme: how they are kept.
    """

    graph: Graph
    weights: Weights
    scheme: Scheme

    def __call__(self, x: Value, *parts: Part, head: bool = False, grouped: bool = False) -> tuple[Value, Value | None]:
        """`x` `[…, in]` -> `[…, out]`, one part's rows below the other's; and a bias that is still to be added.

        Args:
            head: over the vocabulary: kept as the scheme says for that, and laid out as an embedding is.
            grouped: of numbers so uneven that one scale for all of them would lose too much.
        """
        key = "+".join((parts[0].name, *(part.name.split(".")[-1] for part in parts[1:])))
        bias = None
        if parts[0].module.bias is not None:
            bias = self.graph.constant(f"{key}.bias", np.concatenate([part.bias(self.weights) for part in parts]))
        bits = self.scheme.table_bits(parts[0].module.in_features) if head else self.scheme.bits
        if bits == 32:
            if head:
                return self.graph.fused("FusedMatMul", x, self.table(parts[0].name), transB=1), bias
            matrix = self.graph.constant(f"{key}.matrix", _stack([part.matrix(self.weights) for part in parts]).T)
            return self.graph.node("MatMul", x, matrix), bias
        if self.scheme.columns and not head and not grouped:
            whole, scale = by_columns(_stack([part.matrix(self.weights) for part in parts]))
            inputs = (self.graph.constant(f"{key}.numbers", whole), self.graph.constant(f"{key}.scales", scale))
            return self.graph.fused("DynamicQuantizeMatMul", x, *inputs, None, bias), None
        packed = self._packed(parts, bits)
        numbers, scales, *zeros = self._stored(key, packed)
        columns = parts[0].columns
        y = self.graph.fused(
            "MatMulNBits",
            x,
            numbers,
            scales,
            zeros[0] if zeros else None,
            None,
            bias,
            K=parts[0].module.in_features if columns is None else columns.count * columns.padded,
            N=len(packed.numbers),
            bits=packed.bits,
            block_size=packed.group,
            accuracy_level=4,
        )
        return y, None

    def table(self, name: str) -> Value:
        """A matrix `[rows, dim]` as the checkpoint has it."""
        return self.graph.constant(f"{name}.weight", self.weights.read(f"{name}.weight"))

    def look_up(self, ids: Value, name: str, module: nn.Embedding, *, shared: bool) -> Value:
        """The rows of an embedding, `ids` `[…]` -> `[…, dim]`; quantised where the head's matrix is the same."""
        bits = self.scheme.table_bits(module.embedding_dim)
        if not shared or bits == 32:
            return self.graph.node("Gather", self.table(name), ids, axis=0)
        whole = nn.Linear(module.embedding_dim, module.num_embeddings, bias=False, device="meta")
        packed = self._packed((Part(name, whole),), bits)
        _, scales, *_ = self._stored(name, packed)
        rows = packed.numbers.reshape(len(packed.numbers), -1)
        flat = self.graph.constant(f"{name}.rows", rows, stored_as=f"{name}.numbers")
        return self.graph.fused(
            "GatherBlockQuantized",
            flat,
            ids,
            scales,
            bits=packed.bits,
            block_size=packed.group,
            gather_axis=0,
            quantize_axis=1,
        )

    def _packed(self, parts: Sequence[Part], bits: int) -> Packed:
        own = [self.weights.blocks(f"{part.name}.weight") if part.plain else None for part in parts]
        found = [each for each in own if each is not None and (each.bits == bits or self.scheme.as_found)]
        if len(found) == len(parts) and len({each.bits for each in found}) == 1:
            numbers = np.concatenate([each.numbers for each in found])
            return Packed(found[0].bits, found[0].group, numbers, np.concatenate([each.scales for each in found]), None)
        group = self.scheme.group_for(parts[0].module.in_features, bits)
        return quantized(_stack([part.matrix(self.weights) for part in parts]), bits, group)

    def _stored(self, key: str, packed: Packed) -> list[Value]:
        values = [
            self.graph.constant(f"{key}.numbers", packed.numbers),
            self.graph.constant(f"{key}.scales", packed.scales),
        ]
        if packed.zeros is not None:
            values.append(self.graph.constant(f"{key}.zeros", packed.zeros))
        return values


def _stack(matrices: Sequence[Floats]) -> Floats:
    return matrices[0] if len(matrices) == 1 else np.concatenate(matrices)
