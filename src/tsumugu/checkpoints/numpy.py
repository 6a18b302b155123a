"""Reading .npz: a zip archive of numpy arrays. Arrays of objects are pickles, and are refused.

Source: numpy.lib.format, "Format Version 1.0" to "3.0".
"""

from __future__ import annotations

import io
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from tsumugu.checkpoints.archive import Archive
from tsumugu.checkpoints.entries import STORAGES, Storage, TensorEntry
from tsumugu.checkpoints.source import DAMAGED, SourceFile
from tsumugu.core.errors import CheckpointError

HEADER_LIMIT = 1 << 14
"""Bytes of an array's header that are believed; numpy writes about a hundred."""


def read_npz(path: Path) -> tuple[dict[str, TensorEntry], dict[str, Any]]:
    """The arrays of an .npz file; it holds no metadata.

    Raises:
        CheckpointError: the file is damaged or lies about itself, or an array is not of plain numbers.
    """
    archive = Archive(SourceFile(path))
    return {name.removesuffix(".npy"): _entry(archive, name) for name in archive.entries}, {}


def _entry(archive: Archive, name: str) -> TensorEntry:
    where = archive.where(name)
    stream = io.BytesIO(archive.head(name, HEADER_LIMIT))
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, by_columns, dtype = np.lib.format.read_array_header_2_0(stream)
    except (ValueError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"is not a numpy array ({error})", where=where, mend=DAMAGED) from error
    form = _storage(dtype, where)
    if any(type(size) is not int or size < 0 for size in shape):
        raise CheckpointError(f"claims the shape {shape}", where=where, mend=DAMAGED)
    data = archive.behind(name, stream.tell())
    if data.length != form.nbytes(prod(shape)):
        raise CheckpointError("its size and its shape do not agree", where=where, mend=DAMAGED)
    strides = tuple(prod(shape[:axis]) for axis in range(len(shape))) if by_columns and len(shape) > 1 else None
    return TensorEntry(
        name.removesuffix(".npy"), shape, form, data, strides if data.length else None, str(archive.file.path)
    )


def _storage(dtype: np.dtype[Any], where: str) -> Storage:
    if dtype.hasobject:
        raise CheckpointError("is an array of pickled objects, which could run anything", where=where)
    if dtype.kind == "V":
        raise CheckpointError(
            f"numbers of {dtype.itemsize} bytes whose type .npz does not record (bfloat16?)",
            where=where,
            mend="save it as .safetensors, or as float32",
        )
    if dtype.byteorder == ">":
        raise CheckpointError("is in big-endian byte order", where=where, mend="save it in little-endian order")
    for form in STORAGES.values():
        if form.torch_name == dtype.name:
            return form
    raise CheckpointError(f"type {dtype.name} is not supported", where=where)
