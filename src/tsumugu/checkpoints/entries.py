"""What a checkpoint holds: named tensors that are read when they are asked for.

Opening a checkpoint reads headers only. `TensorEntry.read` then gives a view of the mapped file when the type on disk
is the wanted one, or converts in small pieces into the result. Either way the peak memory of reading everything is the
size of the result and a few megabytes. torch is imported when a tensor is first read as one, not before: metadata and
raw blocks cost no torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tsumugu.checkpoints.source import ByteSource, Uint8
from tsumugu.core.errors import CheckpointError

if TYPE_CHECKING:
    import torch

PIECE = 1 << 17
"""Bytes on disk that are converted at a time: small enough for the second-level cache, where numpy is quickest."""
GRAIN = 1 << 15
"""Elements that torch copies without waking its threads, whose meeting costs more than the work on a busy machine."""


@dataclass(frozen=True)
class Storage:
    """A type on disk: `unit` elements lie in `size` bytes.

    Attributes:
        name: the word that safetensors or GGUF has for it.
        torch_name: the torch type that reading gives.
        decode: for quantised blocks, bytes `[n * size]` to float32 `[n * unit]`.
    """

    name: str
    torch_name: str
    size: int
    unit: int = 1
    decode: Callable[[Uint8], np.ndarray[Any, np.dtype[np.float32]]] | None = None

    def nbytes(self, elements: int) -> int:
        """Bytes that `elements` take; they must fill whole blocks."""
        return elements // self.unit * self.size


STORAGES = {
    name: Storage(name, torch_name, size)
    for name, torch_name, size in (
        ("F64", "float64", 8),
        ("F32", "float32", 4),
        ("F16", "float16", 2),
        ("BF16", "bfloat16", 2),
        ("F8_E4M3", "float8_e4m3fn", 1),
        ("F8_E5M2", "float8_e5m2", 1),
        ("F8_E8M0", "float8_e8m0fnu", 1),
        ("I64", "int64", 8),
        ("I32", "int32", 4),
        ("I16", "int16", 2),
        ("I8", "int8", 1),
        ("U64", "uint64", 8),
        ("U32", "uint32", 4),
        ("U16", "uint16", 2),
        ("U8", "uint8", 1),
        ("BOOL", "bool", 1),
        ("C64", "complex64", 8),
        ("C128", "complex128", 16),
    )
}
"""Plain types, by the words safetensors has for them (C128 is ours: only PyTorch and numpy files hold it)."""


@dataclass(frozen=True, eq=False)
class TensorEntry:
    """One tensor of a checkpoint, not yet read.

    Attributes:
        name: as the file has it.
        shape: in torch order, rows first, for GGUF too.
        form: the type on disk.
        data: its bytes.
        strides: in elements, where the file does not hold the tensor row by row; None where it does.
        origin: the file, for messages.
    """

    name: str
    shape: tuple[int, ...]
    form: Storage
    data: ByteSource
    strides: tuple[int, ...] | None = None
    origin: str = ""

    @property
    def storage(self) -> str:
        """The type on disk, such as "F32", "BF16" or "Q4_1"."""
        return self.form.name

    @property
    def dtype(self) -> torch.dtype:
        """The type that `read()` gives by default."""
        import torch

        found = getattr(torch, self.form.torch_name, None)
        if not isinstance(found, torch.dtype):
            raise CheckpointError(
                f"type {self.storage} cannot be read as a torch tensor", where=f"{self.origin}: {self.name}"
            )
        return found

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)

    def read(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor: a view of the mapped file when no conversion is needed, else converted piece by piece.

        A view may be written to; the file does not change.

        Args:
            dtype: the wanted type; by default the one on disk, float32 for quantised blocks.

        Raises:
            CheckpointError: the bytes are damaged, or the type has no torch counterpart.
        """
        import torch

        if self.form.decode is None and self.form.unit > 1:
            raise CheckpointError(
                f"blocks of type {self.storage} cannot be read",
                where=f"{self.origin}: {self.name}",
                mend="quantise the model to a common type, such as Q8_0 or Q4_K",
            )
        own = self.dtype
        wanted = own if dtype is None else dtype
        flat = self._view(own) if wanted == own else None
        if flat is None:
            flat = torch.empty(self.data.length // self.form.size * self.form.unit, dtype=wanted)
            start = 0
            for piece in self._decoded(own):
                for first in range(0, piece.numel(), GRAIN):
                    part = piece[first : first + GRAIN]
                    flat[start : start + part.numel()].copy_(part)
                    start += part.numel()
        if self.strides is None:
            return flat.view(self.shape)
        return flat.as_strided(self.shape, self.strides)

    def raw(self) -> Uint8:
        """The bytes as they lie on disk, `[..., bytes of a row]`: for GGUF, the quantised blocks themselves.

        A view of the mapped file where there is one. A tensor without dimensions gives `[bytes]`.

        Raises:
            CheckpointError: the file does not hold the tensor row by row.
        """
        if self.strides is not None:
            raise CheckpointError("is not stored row by row", where=f"{self.origin}: {self.name}")
        view = self.data.mapped()
        if view is None:
            flat = np.concatenate([piece.copy() for piece in self.data.pieces(PIECE)] or [np.empty(0, np.uint8)])
        else:
            flat = np.frombuffer(view, np.uint8)
        if not self.shape:
            return flat
        return flat.reshape(*self.shape[:-1], self.form.nbytes(self.shape[-1]))

    def _view(self, own: torch.dtype) -> torch.Tensor | None:
        """All elements as one dimension over the mapping, where the bytes may be used as they are."""
        import torch

        if self.form.decode is not None or own == torch.bool or self.data.length == 0:
            return None
        view = self.data.mapped()
        if view is None or np.frombuffer(view, np.uint8).ctypes.data % self.form.size:
            return None
        return torch.frombuffer(view, dtype=own)

    def _decoded(self, own: torch.dtype) -> Iterator[torch.Tensor]:
        import torch

        for piece in self.data.pieces(max(PIECE // self.form.size, 1) * self.form.size):
            if self.form.decode is not None:
                yield torch.from_numpy(self.form.decode(piece))
            elif own == torch.bool:
                # A byte other than 0 and 1 would be a truth value that torch does not know.
                yield torch.from_numpy(piece != 0)
            else:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="The given buffer is not writable")
                    yield torch.frombuffer(piece, dtype=own)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint whose headers are read and checked, and whose tensors are not read yet.

    Attributes:
        path: what was opened, a folder or a file.
        format: how the weights are stored.
        tensors: by the names in the file.
        config: `config.json` as found beside the weights, or None.
        metadata: GGUF key-values, safetensors' own text metadata, or what a PyTorch file holds beside its tensors.
    """

    path: Path
    format: Literal["safetensors", "pytorch", "gguf", "npz"]
    tensors: Mapping[str, TensorEntry]
    config: dict[str, Any] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder that holds the weights."""
        return self.path if self.path.is_dir() else self.path.parent
