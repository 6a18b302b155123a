"""A compiled decoder opened for the kernels: its weights mapped, its places made pointers, its threads started."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import CheckpointError
from tsumugu.engines.native.library import Cache, Layer, Matrix, Network, Norm, load_library

WEIGHTS = "weights.bin"

Array = NDArray[Any]


class Engine:
    """A network and the threads that run it.

    Args:
        folder: of the compiled model.
        record: what `write_network` gave.
        vocab: size of the vocabulary.
        threads: that work together.

    Raises:
        CheckpointError: the weights are not all there.
        ConfigError: the kernels cannot be had here.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any], *, vocab: int, threads: int) -> None:
        self.vocab = vocab
        self._library = load_library()
        with (folder / WEIGHTS).open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._map) != record["bytes"]:
            raise CheckpointError(
                f"{len(self._map)} bytes of weights where {record['bytes']} were written",
                where=str(folder),
                mend="remove the folder; it is compiled anew",
            )
        self._weights = np.frombuffer(self._map, np.uint8)
        self._layers = (Layer * len(record["layer"]))(*(self._struct(Layer, each) for each in record["layer"]))
        self.network = self._struct(Network, {**record, "layers": len(self._layers), "layer": self._layers})
        self._engine = self._library.tsumugu_open(ctypes.byref(self.network), threads)
        if not self._engine:
            raise MemoryError

    def run(self, cache: Cache, ids: Array, rows: Array, positions: Array, which: Array, logits: Array) -> None:
        """Read tokens, all `[tokens]`; `logits` `[wanted, rows of the head]` of those numbered `which` are filled."""
        done = self._library.tsumugu_run(
            self._engine,
            ctypes.byref(cache),
            len(ids),
            *(array.ctypes.data for array in (ids, rows, positions)),
            len(which),
            *(array.ctypes.data for array in (which, logits)),
            self.network.head.rows,
        )
        if not done:
            raise MemoryError

    def __del__(self) -> None:
        if getattr(self, "_engine", None):
            self._library.tsumugu_close(self._engine)

    def _struct(self, kind: type[Any], values: Mapping[str, Any] | None) -> Any:
        """A structure of the kernels; where a field is a pointer, a place in the file becomes one."""
        made = kind()
        if values is None:
            return made
        for name, field in kind._fields_:
            value = values.get(name)
            if field in (Norm, Matrix):
                setattr(made, name, self._struct(field, value))
            elif field is ctypes.c_void_p:
                setattr(made, name, None if value is None else self._weights.ctypes.data + value)
            elif value is not None:
                setattr(made, name, value)
        return made
