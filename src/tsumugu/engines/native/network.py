"""A compiled decoder opened for the kernels: its weights mapped, its places made pointers, its threads started."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import CheckpointError
from tsumugu.engines.native.library import Cache, Layer, Matrix, Network, load_library

WEIGHTS = "weights.bin"
SMALL = 8_000_000
"""Bytes of weights up to which one thread is done before others have begun."""

Array = NDArray[Any]


class Engine:
    """A network and the threads that run it.

    Args:
        folder: of the compiled model.
        record: what `write_network` gave.
        vocab: size of the vocabulary.
        threads: that work together.
        cache_bits: of keys and values that are kept, 32 or 8.

    Raises:
        CheckpointError: the weights are not all there.
        ConfigError: the kernels cannot be had here.
    """

    def __init__(
        self, folder: Path, record: Mapping[str, Any], *, vocab: int, threads: int, cache_bits: int = 32
    ) -> None:
        self.vocab, self.cache_bits = vocab, cache_bits
        self._alone = threading.Lock()
        self._library = load_library()
        self._weights = read_weights(folder / WEIGHTS, record["bytes"])
        start = self._weights.ctypes.data
        self._layers = (Layer * len(record["layer"]))(*(structure(Layer, each, start) for each in record["layer"]))
        self.network = structure(Network, {**record, "layers": len(self._layers), "layer": self._layers}, start)
        threads = threads if len(self._weights) > SMALL else 1
        self._engine = self._library.tsumugu_open(ctypes.byref(self.network), threads)
        if not self._engine:
            raise MemoryError

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrices that a token is multiplied with."""
        return int(sum(m.rows * m.width * (m.bits / 8 + _scales(m) * 2 / (32 << m.shift)) for m in self._matrices()))

    @property
    def products(self) -> int:
        """Multiplications and additions of a token."""
        return sum(2 * each.rows * each.width for each in self._matrices())

    def _matrices(self) -> list[Matrix]:
        found = [self.network.head]
        for layer in self._layers:
            found += [layer.packed, layer.output, layer.up, layer.down]
        return found

    def run(self, cache: Cache, ids: Array, rows: Array, positions: Array, which: Array, logits: Array) -> None:
        """Read tokens, all `[tokens]`; `logits` `[wanted, rows of the head]` of those numbered `which` are filled."""
        with self._alone:
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


def _scales(matrix: Matrix) -> int:
    """How many numbers of 16 bits a group has besides its own."""
    return 0 if matrix.bits == 32 else 2 if matrix.mins else 1


def structure(kind: type[Any], values: Mapping[str, Any] | None, start: int) -> Any:
    """A structure of the kernels; where a field is a pointer, a place in the weights, which begin at `start`, becomes
    one."""
    made = kind()
    if values is None:
        return made
    for name, field in kind._fields_:
        value = values.get(name)
        if isinstance(field, type) and issubclass(field, ctypes.Structure):
            setattr(made, name, structure(field, value, start))
        elif field is ctypes.c_void_p:
            setattr(made, name, None if value is None else start + value)
        elif value is not None:
            setattr(made, name, value)
    return made


def read_weights(path: Path, expected: int) -> NDArray[np.uint8]:
    """A file in memory of large pages, which is read a tenth more quickly; mapped where little memory is free.

    Raises:
        CheckpointError: it has not the expected number of bytes.
    """
    size = path.stat().st_size
    if size != expected:
        raise CheckpointError(
            f"{size} bytes of weights where {expected} were written",
            where=str(path.parent),
            mend="remove the folder; it is compiled anew",
        )
    if size > free_memory() // 2:
        return np.memmap(path, np.uint8, "r")
    found = np.empty(size, np.uint8)
    with path.open("rb", buffering=0) as file:
        place = 0
        while count := file.readinto(found[place:].data):
            place += count
    return found[:place]


def free_memory() -> int:
    """Bytes that can be had without swapping; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 0
