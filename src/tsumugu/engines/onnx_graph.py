"""A graph for ONNX Runtime while it is being written: nodes go to a list, weights straight to a file beside it.

Weights never gather in memory: each is appended to one file as it comes, and the graph keeps where it lies, so that
ONNX Runtime maps the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tsumugu.engines.onnx_store import GRAPH, WEIGHTS

OPSET, IR_VERSION = 21, 10
ALIGNMENT = 4096
"""Where weights may begin in their file: at pages, which can be mapped by themselves."""
SMALL = 1024
"""Bytes of a constant that are kept in the graph itself."""

Value = ir.Value
Array = np.ndarray[Any, Any]


class WeightFile:
    """Weights behind one another in `weights.bin`; graphs that lie side by side share it.

    Args:
        folder: where it is written.
        progress: called with the bytes of each weight that was written.
    """

    def __init__(self, folder: Path, progress: Callable[[int], None] | None) -> None:
        self.progress = progress
        self._file = (folder / WEIGHTS).open("wb")
        self._places: dict[str, tuple[int, int]] = {}

    def store(self, name: str, array: Array) -> tuple[int, int]:
        """Where a weight begins and how long it is, in bytes; a name is written once."""
        if name not in self._places:
            self._file.write(bytes(-self._file.tell() % ALIGNMENT))
            self._places[name] = (self._file.tell(), array.nbytes)
            self._file.write(array.data.cast("B") if array.ndim else array.tobytes())
            if self.progress is not None:
                self.progress(array.nbytes)
        return self._places[name]

    def close(self) -> None:
        self._file.close()


class Graph:
    """Nodes, inputs, outputs and weights of one graph.

    Args:
        folder: where `finish` leaves `graph.onnx` and `weights.bin`.
        progress: called with the bytes of each weight that was written.
    """

    def __init__(self, folder: Path, *, progress: Callable[[int], None] | None = None) -> None:
        self.folder, self.name = folder, GRAPH
        self.weights = WeightFile(folder, progress)
        self._clear()

    def beside(self, name: str) -> Graph:
        """Another graph in the folder, as `name`, with the same file of weights."""
        other = copy(self)
        other.name = name
        other._clear()
        return other

    def _clear(self) -> None:
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.nodes: list[ir.Node] = []
        self.constants: dict[str, Value] = {}

    def input(self, name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> Value:
        """What is handed in at each run; named dimensions may change from run to run."""
        value = _value(name, dtype, shape)
        self.inputs.append(value)
        return value

    def output(self, name: str, value: Value, dtype: type[np.generic], shape: Sequence[int | str]) -> None:
        """Give `value` out as `name`."""
        value.name = name
        value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype))), ir.Shape(shape)
        self.outputs.append(value)

    def node(self, kind: str, *inputs: Value | None, domain: str = "", **attributes: Any) -> Value:
        """The only result of an operation."""
        return self.split(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def fused(self, kind: str, *inputs: Value | None, **attributes: Any) -> Value:
        """The only result of one of ONNX Runtime's own operations."""
        return self.node(kind, *inputs, domain="com.microsoft", **attributes)

    def split(
        self, kind: str, *inputs: Value | None, outputs: int, domain: str = "", **attributes: Any
    ) -> Sequence[Value]:
        """Several results of an operation; those that nothing reads stay unnamed and cost nothing."""
        node = ir.node(kind, list(inputs), attributes, domain=domain, num_outputs=outputs, name=f"n{len(self.nodes)}")
        for index, value in enumerate(node.outputs):
            value.name = f"v{len(self.nodes)}_{index}"
        self.nodes.append(node)
        return node.outputs

    def constant(self, name: str, array: Array, *, stored_as: str | None = None) -> Value:
        """A weight or a small constant; the same name gives the same value, whatever the array.

        Args:
            name: of the value.
            array: what it holds.
            stored_as: the name of a weight that has the same bytes in another shape, and that is not stored again.
        """
        if name in self.constants:
            return self.constants[name]
        array = np.asarray(array, order="C")
        value = _value(name, array.dtype.type, array.shape)
        if array.nbytes <= SMALL:
            value.const_value = ir.tensor(array, name=name)
        else:
            offset, length = self.weights.store(stored_as or name, array)
            dtype, shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
            value.const_value = ir.ExternalTensor(WEIGHTS, offset, length, dtype, shape=shape, name=name)
        self.constants[name] = value
        return value

    def finish(self) -> None:
        """Write the graph."""
        for node in self.nodes:
            for value in node.outputs:
                if not value.uses() and not value.is_graph_output() and value not in self.outputs:
                    value.name = ""
        graph = ir.Graph(
            self.inputs,
            self.outputs,
            nodes=self.nodes,
            initializers=[each for each in self.constants.values() if each.uses()],
            opset_imports={"": OPSET, "com.microsoft": 1},
            name="tsumugu",
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="tsumugu")
        proto = ir.to_proto(model)
        (self.folder / self.name).write_bytes(proto.SerializeToString(deterministic=True))

    def close(self) -> None:
        """No more weights come."""
        self.weights.close()


def _value(name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype))))
