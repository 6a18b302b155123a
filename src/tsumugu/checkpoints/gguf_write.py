"""Writing GGUF files that llama.cpp loads.

Source: GGUF specification, ggml-org/ggml docs/gguf.md, version 3; block type Q8_0 as the gguf package quantises it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, LlamaFileType

from tsumugu.checkpoints.atomic import new_file
from tsumugu.core.errors import InputError

Storage = Literal["F32", "F16", "Q8_0"]
FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
    "Q4_1": LlamaFileType.MOSTLY_Q4_1,
}
LARGEST_F16 = 65504.0
ARCHITECTURE = "general.architecture"
OURS = (ARCHITECTURE, "general.file_type", "general.alignment")
"""Keys that follow from how the file is written."""


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    storage: Storage = "F32",
    blocks: Mapping[str, str] | None = None,
) -> None:
    """Write one GGUF file, whole or not at all.

    Tensors of one dimension stay float32, as llama.cpp expects of norms and biases. With Q8_0, rows that do not fill
    blocks of 32 are stored as F16. Whole numbers in the metadata become uint32 and real ones float32 where they fit,
    the types that llama.cpp asks for; arrays of whole numbers int32. Empty arrays are left out.

    Args:
        metadata: GGUF key-values; `general.architecture` must be among them.
        tensors: by their GGUF names, in torch order.
        storage: of matrices.
        blocks: tensors that are bytes of GGUF blocks already, uint8 `[..., bytes of a row]`, and their type; the file
            calls itself by the first of these.

    Raises:
        InputError: metadata or tensors that GGUF cannot hold.
        CheckpointError: the file cannot be written.
    """
    if storage not in get_args(Storage):
        raise InputError(f"cannot write GGUF type {storage!r}", mend=f"one of {', '.join(get_args(Storage))}")
    architecture = metadata.get(ARCHITECTURE)
    if not isinstance(architecture, str) or not architecture:
        raise InputError("GGUF metadata needs an architecture", where=ARCHITECTURE)
    done = blocks or {}
    kinds = {
        name: GGMLQuantizationType[done[name]] if name in done else _kind(name, tensor, storage)
        for name, tensor in tensors.items()
    }
    with new_file(path) as partial:
        writer = gguf.GGUFWriter(partial, architecture)
        try:
            rest = {key: value for key, value in metadata.items() if key not in OURS}
            for key, value in rest.items():
                _add(writer, key, value)
            writer.add_file_type(FILE_TYPES[next(iter(done.values()), storage)])
            if (done or storage == "Q8_0") and "general.quantization_version" not in rest:
                writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            for name, kind in kinds.items():
                *rest_of_shape, width = tensors[name].shape
                unit, size = GGML_QUANT_SIZES[kind]
                shape = (*rest_of_shape, width // size * unit if name in done else width)
                length = prod(shape) // unit * size
                writer.add_tensor_info(name, shape, np.dtype(np.float32), length, raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, kind in kinds.items():
                given = tensors[name]
                writer.write_tensor_data(given.numpy() if name in done else _blocks(name, given, kind))
        finally:
            writer.close()


def _kind(name: str, tensor: torch.Tensor, storage: Storage) -> GGMLQuantizationType:
    if not tensor.dtype.is_floating_point:
        raise InputError(f"tensor {name!r} is of type {tensor.dtype}; GGUF weights are real numbers")
    if not 1 <= tensor.ndim <= 4 or tensor.numel() == 0:
        raise InputError(f"tensor {name!r} has the shape {list(tensor.shape)}; GGUF holds one to four dimensions")
    if tensor.ndim == 1:
        return GGMLQuantizationType.F32
    kind = GGMLQuantizationType[storage]
    return kind if tensor.shape[-1] % GGML_QUANT_SIZES[kind][0] == 0 else GGMLQuantizationType.F16


def _blocks(name: str, tensor: torch.Tensor, kind: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """The bytes of one tensor; what the type cannot hold is an error, not an infinity."""
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    if kind is not GGMLQuantizationType.F32:
        low, high = values.aminmax()
        largest = max(-low.item(), high.item())
        if not largest <= LARGEST_F16 * (127 if kind is GGMLQuantizationType.Q8_0 else 1):
            raise InputError(f"tensor {name!r} has values that {kind.name} cannot hold", mend="write F32")
    blocks: np.ndarray[Any, Any] = gguf.quantize(values.numpy(), kind)
    return blocks


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a key-value under the type that its Python type stands for."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        if value:
            writer.add_key_value(key, list(value), GGUFValueType.ARRAY, sub_type=_type(key, value, in_array=True))
    else:
        writer.add_key_value(key, value, _type(key, [value]))


def _type(key: str, values: list[Any] | tuple[Any, ...], *, in_array: bool = False) -> GGUFValueType:
    """The GGUF type that holds all values."""
    if all(isinstance(value, str) for value in values):
        return GGUFValueType.STRING
    if all(isinstance(value, bool) for value in values):
        return GGUFValueType.BOOL
    if all(type(value) is int for value in values):
        low, high = min(values), max(values)
        order = [GGUFValueType.UINT32, GGUFValueType.INT32, GGUFValueType.UINT64, GGUFValueType.INT64]
        ranges = dict(zip(order, [(0, 1 << 32), (-1 << 31, 1 << 31), (0, 1 << 64), (-1 << 63, 1 << 63)], strict=True))
        for kind in [GGUFValueType.INT32, *order] if in_array else order:
            if ranges[kind][0] <= low and high < ranges[kind][1]:
                return kind
    elif all(type(value) in (int, float) for value in values):
        return GGUFValueType.FLOAT32
    raise InputError(f"GGUF metadata cannot hold {type(values[0]).__name__} here", where=key)
