"""Reading GGUF: llama.cpp's file of metadata and (quantised) tensors.

The `gguf` package decodes the blocks. Its reader is not used: it trusts the counts and offsets of the file, and spends
seconds on a vocabulary. Every length is checked here against what is left of the file before anything is allocated.

Source: GGUF specification, ggml-org/ggml docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import struct
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tsumugu.checkpoints.entries import STORAGES, Storage, TensorEntry
from tsumugu.checkpoints.source import DAMAGED, Region, SourceFile, Uint8
from tsumugu.core.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
METADATA_LIMIT = 1 << 27
"""Bytes of metadata that are believed. The largest vocabularies take a tenth of it."""
MAX_DIMENSIONS = 4
MAX_ENTRIES, MAX_TENSORS, MAX_ELEMENTS = 100_000, 200_000, 1 << 60
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
DECODED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
"""Quantised types that can be read; a tensor of another type can be listed, and reading it names the type."""


def read_gguf(path: Path) -> tuple[dict[str, TensorEntry], dict[str, Any]]:
    """The tensors and the metadata of a GGUF file.

    Raises:
        CheckpointError: the file is cut short, damaged, lies about itself, or is of another version or byte order.
    """
    file = SourceFile(path)
    if file.size < 24 or file.read(0, 4) != MAGIC:
        raise CheckpointError("is not a GGUF file, or is cut short", where=str(path), mend=DAMAGED)
    header = _Header(file)
    try:
        tensor_count, entry_count = header.begin()
        metadata = header.metadata(entry_count)
        return header.tensors(tensor_count, metadata), metadata
    finally:
        header.close()


class _Header:
    """A cursor over the header: nothing is taken that the file does not have."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self.data = file.mapped(METADATA_LIMIT)
        self.end = len(self.data)
        self.position = 4

    def close(self) -> None:
        self.data.close()

    def fail(self, what: str, mend: str | None = DAMAGED) -> CheckpointError:
        return CheckpointError(what, where=str(self.file.path), mend=mend)

    def need(self, count: int) -> int:
        """Move `count` bytes on; gives where they begin."""
        start = self.position
        if count > self.end - start:
            cut = self.end == self.file.size
            raise self.fail("the header is cut short or lies" if cut else f"more than {self.end} bytes of metadata")
        self.position = start + count
        return start

    def unpack(self, code: str) -> Any:
        return struct.unpack_from(code, self.data, self.need(struct.calcsize(code)))[0]

    def text(self) -> str:
        length = self.unpack("<Q")
        start = self.need(length)
        try:
            return str(self.data[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"text at byte {start} is not UTF-8") from error

    def begin(self) -> tuple[int, int]:
        """Version and counts."""
        version = self.unpack("<I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            what = "is in big-endian byte order" if swapped in VERSIONS else f"is GGUF version {version}"
            raise self.fail(f"{what}; versions 2 and 3 in little-endian order can be read", mend=None)
        return self.unpack("<Q"), self.unpack("<Q")

    def metadata(self, count: int) -> dict[str, Any]:
        if count > MAX_ENTRIES:
            raise self.fail(f"claims {count} metadata entries")
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.text()
            if key in found:
                raise self.fail(f"metadata key {key!r} stands twice")
            found[key] = self.value(self.unpack("<I"))
        return found

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            kind, count = self.unpack("<I"), self.unpack("<Q")
            return self.strings(count) if kind == STRING else self.numbers(kind, count)
        return self.unpack("<" + self.code(kind))

    def code(self, kind: int) -> str:
        try:
            return SCALARS[kind]
        except KeyError:
            raise self.fail(f"metadata type {kind} is not known (nested arrays are not supported)") from None

    def numbers(self, kind: int, count: int) -> list[Any]:
        code = self.code(kind)
        start = self.need(count * struct.calcsize("<" + code))
        values = np.frombuffer(self.data, "<" + np.dtype(code).str[1:], count, start)
        return list(values.tolist())

    def strings(self, count: int) -> list[str]:
        """An array of strings; written out because a vocabulary has a hundred thousand of them."""
        if count * 8 > self.end - self.position:
            self.need(count * 8)
        data, position, end = self.data, self.position, self.end
        unpack = struct.Struct("<Q").unpack_from
        found: list[bytes] = []
        for _ in range(count):
            begin = position + 8
            if begin > end or (position := begin + unpack(data, position)[0]) > end:
                raise self.fail("the header is cut short or lies")
            found.append(data[begin:position])
        self.position = position
        try:
            return [str(text, "utf-8") for text in found]
        except UnicodeDecodeError as error:
            raise self.fail("an array of text is not UTF-8") from error

    def tensors(self, count: int, metadata: dict[str, Any]) -> dict[str, TensorEntry]:
        """The tensors, after their places have been checked against the file's size and each other."""
        if count > MAX_TENSORS:
            raise self.fail(f"claims {count} tensors")
        infos = [self.info() for _ in range(count)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self.fail(f"general.alignment is {alignment!r}, not a power of two")
        start = -(-self.position // alignment) * alignment
        found: dict[str, TensorEntry] = {}
        taken = start
        for name, shape, kind, offset in sorted(infos, key=lambda info: info[3]):
            where = f"{self.file.path}: {name}"
            form = storage_of(kind)
            if form is None:
                raise CheckpointError(f"type {kind} is not known", where=where)
            row = shape[-1] if shape else 1
            if row % form.unit:
                raise CheckpointError(f"rows of {row} do not fill {form.name} blocks", where=where, mend=DAMAGED)
            first, length = start + offset, form.nbytes(prod(shape))
            if first + length > self.file.size:
                raise CheckpointError("lies beyond the end of the file", where=where, mend=DAMAGED)
            if offset % alignment or first < taken:
                raise CheckpointError("overlaps another tensor or is not aligned", where=where, mend=DAMAGED)
            if name in found:
                raise CheckpointError("stands twice", where=where, mend=DAMAGED)
            taken = first + length
            data = Region(self.file, first, length)
            found[name] = TensorEntry(name, shape, form, data, origin=str(self.file.path))
        return {info[0]: found[info[0]] for info in infos}

    def info(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape in torch order, type and offset of the next tensor."""
        name, dimensions = self.text(), self.unpack("<I")
        if dimensions > MAX_DIMENSIONS:
            raise self.fail(f"tensor {name!r} claims {dimensions} dimensions")
        sizes = [self.unpack("<Q") for _ in range(dimensions)]
        if prod(sizes) > MAX_ELEMENTS or max(sizes, default=0) > MAX_ELEMENTS:
            raise self.fail(f"tensor {name!r} claims the shape {sizes}")
        return name, tuple(reversed(sizes)), self.unpack("<I"), self.unpack("<Q")


@cache
def storage_of(kind: int) -> Storage | None:
    """The type that GGUF numbers `kind`; None for an unknown one."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block = GGMLQuantizationType(kind)
        unit, size = GGML_QUANT_SIZES[block]
    except (ValueError, KeyError):
        return None
    if block.name in STORAGES:
        return STORAGES[block.name]
    decode = partial(_decode, kind) if block.name in DECODED else None
    return Storage(block.name, "float32", size, unit, decode)


def _decode(kind: int, blocks: Uint8) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Float32 `[n * unit]` of blocks `[n * size]`, by the package that defines them."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    # As one row: the package would go through many short rows in a Python loop. Damaged scales may be infinite.
    with np.errstate(all="ignore"):
        values: np.ndarray[Any, np.dtype[np.float32]] = dequantize(blocks[np.newaxis], GGMLQuantizationType(kind))
    return values.reshape(-1)
