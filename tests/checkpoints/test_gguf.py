"""GGUF: equal to the gguf package's own reading, and no file makes it crash, hang or allocate what is not there."""

from __future__ import annotations

import contextlib
import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsumugu.checkpoints.entries import PIECE
from tsumugu.checkpoints.gguf import DECODED, read_gguf
from tsumugu.core.errors import CheckpointError

QUANTISABLE = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
REQUIRED = ["F32", "F16", "BF16", *QUANTISABLE, "Q4_K", "Q5_K", "Q6_K"]
METADATA = {
    "a.uint8": (7, gguf.GGUFValueType.UINT8),
    "a.int8": (-7, gguf.GGUFValueType.INT8),
    "a.uint16": (65535, gguf.GGUFValueType.UINT16),
    "a.int16": (-300, gguf.GGUFValueType.INT16),
    "a.uint32": (4_000_000_000, gguf.GGUFValueType.UINT32),
    "a.int32": (-5, gguf.GGUFValueType.INT32),
    "a.float32": (0.5, gguf.GGUFValueType.FLOAT32),
    "a.bool": (True, gguf.GGUFValueType.BOOL),
    "a.string": ("紡ぐ 🧵", gguf.GGUFValueType.STRING),
    "a.uint64": (1 << 63, gguf.GGUFValueType.UINT64),
    "a.int64": (-(1 << 62), gguf.GGUFValueType.INT64),
    "a.float64": (1e300, gguf.GGUFValueType.FLOAT64),
}
ARRAYS: dict[str, list[Any]] = {
    "b.strings": ["a", "", "紡ぐ", "x" * 1000],
    "b.numbers": [1, -2, 3],
    "b.reals": [0.5, -1.5],
    "b.truths": [True, False, True],
}


def write(path: Path, tensors: dict[str, tuple[np.ndarray[Any, Any], str]], alignment: int | None = None) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, (value, kind) in METADATA.items():
        writer.add_key_value(key, value, kind)
    for key, values in ARRAYS.items():
        writer.add_array(key, values)
    for name, (blocks, kind) in tensors.items():
        writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks(kind: str, *shape: int) -> np.ndarray[Any, Any]:
    """Random numbers of a type: quantised where the package can, else any bytes, which are legal blocks too."""
    generator = np.random.default_rng(7)
    if kind in ("F32", "F16", "BF16", *QUANTISABLE):
        values = generator.normal(size=shape).astype(np.float32)
        return gguf.quantize(values, GGMLQuantizationType[kind])
    unit, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return generator.integers(0, 256, (*shape[:-1], shape[-1] // unit * size), dtype=np.uint8)


def bits(values: np.ndarray[Any, Any]) -> bytes:
    return np.ascontiguousarray(values).tobytes()


@pytest.mark.parametrize("kind", sorted({*REQUIRED, *DECODED}))
def test_every_type_equals_the_package(kind: str, tmp_path: Path) -> None:
    shapes = {"small": (4, 256), "three": (2, 3, 256), "row": (512,), "pieces": (3 * PIECE // 256, 256)}
    tensors = {name: (blocks(kind, *shape), kind) for name, shape in shapes.items()}
    entries, _ = read_gguf(write(tmp_path / "x.gguf", tensors))
    for name, shape in shapes.items():
        entry = entries[name]
        assert (entry.shape, entry.storage) == (shape, kind)
        stored = np.ascontiguousarray(tensors[name][0])
        with np.errstate(all="ignore"):
            expected = gguf.dequantize(stored, GGMLQuantizationType[kind]).reshape(shape)
        found = entry.read(torch.float32)
        assert found.dtype == torch.float32
        assert found.shape == shape
        assert bits(found.numpy()) == bits(expected)
        raw = entry.raw()
        assert raw.shape[:-1] == shape[:-1]
        assert bits(raw) == bits(stored)
        assert entry.dtype == {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)
        half = torch.from_numpy(expected).to(torch.bfloat16)
        assert torch.equal(entry.read(torch.bfloat16).view(torch.int16), half.view(torch.int16))


def test_metadata_equals_the_package(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", {"w": (blocks("F32", 4, 8), "F32")})
    _, metadata = read_gguf(path)
    fields = gguf.GGUFReader(path).fields
    expected = {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}
    assert metadata == expected
    assert metadata == {
        "general.architecture": "llama",
        **{key: value for key, (value, _) in METADATA.items()},
        **ARRAYS,
    }


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment(alignment: int, tmp_path: Path) -> None:
    tensors = {name: (blocks("F32", 3, 5) + index, "F32") for index, name in enumerate("abc")}
    entries, metadata = read_gguf(write(tmp_path / "x.gguf", tensors, alignment))
    assert metadata["general.alignment"] == alignment
    for name, (expected, _) in tensors.items():
        assert bits(entries[name].read().numpy()) == bits(expected)


def test_type_that_cannot_be_read_is_named_and_the_rest_reads(tmp_path: Path) -> None:
    tensors = {"odd": (blocks("IQ2_XXS", 2, 256), "IQ2_XXS"), "good": (blocks("Q8_0", 2, 256), "Q8_0")}
    entries, _ = read_gguf(write(tmp_path / "x.gguf", tensors))
    assert entries["good"].read().shape == (2, 256)
    with pytest.raises(CheckpointError, match="IQ2_XXS"):
        entries["odd"].read()


def test_reading_never_changes_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", {"w": (blocks("F32", 64, 64), "F32")})
    before = path.read_bytes()
    read_gguf(path)[0]["w"].read().zero_()
    assert path.read_bytes() == before


def read_all(path: Path) -> None:
    for entry in read_gguf(path)[0].values():
        entry.read()


def refused(path: Path, match: str) -> None:
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=match):
        read_all(path)
    assert time.monotonic() - start < 5


# --- files made by hand, to lie


def text(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def info(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0, dimensions: int | None = None) -> bytes:
    count = len(shape) if dimensions is None else dimensions
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


def by_hand(
    *,
    keys: tuple[bytes, ...] = (),
    infos: tuple[bytes, ...] = (),
    magic: bytes = b"GGUF",
    version: int = 3,
    tensors: int | None = None,
    entries: int | None = None,
    data: int = 4096,
) -> bytes:
    counts = len(infos) if tensors is None else tensors, len(keys) if entries is None else entries
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(infos)
    return head + bytes(-len(head) % 32) + bytes(data)


HUGE = (1 << 64) - 1
LIES = {
    "magic": (by_hand(magic=b"GGML"), "not a GGUF"),
    "version 1": (by_hand(version=1), "version 1"),
    "version 99": (by_hand(version=99), "version 99"),
    "big-endian": (by_hand(version=3 << 24), "big-endian"),
    "tensors without end": (by_hand(tensors=HUGE), "claims"),
    "many tensors": (by_hand(tensors=150_000, data=64), "cut short"),
    "entries without end": (by_hand(entries=HUGE), "claims"),
    "many entries": (by_hand(entries=90_000, data=64), "twice"),
    "long key": (by_hand(keys=(struct.pack("<Q", HUGE) + b"x",)), "cut short"),
    "long text": (by_hand(keys=(key("a", 8, struct.pack("<Q", 1 << 40)),)), "cut short"),
    "long array": (by_hand(keys=(key("a", 9, struct.pack("<IQ", 4, 1 << 61)),)), "cut short"),
    "long array of texts": (by_hand(keys=(key("a", 9, struct.pack("<IQ", 8, 1 << 40)),)), "cut short"),
    "long text in an array": (by_hand(keys=(key("a", 9, struct.pack("<IQQ", 8, 1, HUGE)),)), "cut short"),
    "array of arrays": (by_hand(keys=(key("a", 9, struct.pack("<IQ", 9, 1)),)), "nested"),
    "unknown type of value": (by_hand(keys=(key("a", 77, b""),)), "type 77"),
    "unknown type in an array": (by_hand(keys=(key("a", 9, struct.pack("<IQ", 77, 1)),)), "type 77"),
    "key twice": (by_hand(keys=(key("a", 4, bytes(4)),) * 2), "twice"),
    "key not UTF-8": (by_hand(keys=(text(b"\xff\xfe") + struct.pack("<II", 4, 1),)), "UTF-8"),
    "text not UTF-8": (by_hand(keys=(key("a", 8, text(b"\xff\xfe")),)), "UTF-8"),
    "texts not UTF-8": (by_hand(keys=(key("a", 9, struct.pack("<IQ", 8, 1) + text(b"\xc3")),)), "UTF-8"),
    "alignment zero": (by_hand(keys=(key("general.alignment", 4, struct.pack("<I", 0)),)), "power of two"),
    "alignment three": (by_hand(keys=(key("general.alignment", 4, struct.pack("<I", 3)),)), "power of two"),
    "alignment text": (by_hand(keys=(key("general.alignment", 8, text("32")),)), "power of two"),
    "alignment huge": (
        by_hand(keys=(key("general.alignment", 4, struct.pack("<I", 1 << 31)),), infos=(info("w", (4,)),)),
        "beyond the end",
    ),
    "tensor twice": (by_hand(infos=(info("w", (4,)), info("w", (4,), offset=32))), "twice"),
    "tensors overlap": (by_hand(infos=(info("a", (64,)), info("b", (4,), offset=32))), "overlaps"),
    "tensor not aligned": (by_hand(infos=(info("w", (4,), offset=4),)), "aligned"),
    "offset outside": (by_hand(infos=(info("w", (4,), offset=1 << 20),)), "beyond the end"),
    "offset that overflows": (by_hand(infos=(info("w", (4,), offset=HUGE - 31),)), "beyond the end"),
    "tensor too large": (by_hand(infos=(info("w", (1 << 20,)),)), "beyond the end"),
    "product that overflows": (by_hand(infos=(info("w", (1 << 32, 1 << 32)),)), "claims the shape"),
    "hidden by a zero": (by_hand(infos=(info("w", (1 << 63, 0)),)), "claims the shape"),
    "five dimensions": (by_hand(infos=(info("w", (1,) * 5),)), "5 dimensions"),
    "dimensions without end": (by_hand(infos=(info("w", (1,), dimensions=1 << 31),)), "dimensions"),
    "unknown type": (by_hand(infos=(info("w", (32,), kind=200),)), "type 200"),
    "removed type": (by_hand(infos=(info("w", (32,), kind=4),)), "type 4"),
    "half a block": (by_hand(infos=(info("w", (33,), kind=8),)), "blocks"),
    "quantised number": (by_hand(infos=(info("w", (), kind=8),)), "blocks"),
}


@pytest.mark.parametrize(("content", "match"), LIES.values(), ids=LIES.keys())
def test_lies(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    refused(tmp_path / "x.gguf", match)


def test_the_honest_file_made_by_hand_reads(tmp_path: Path) -> None:
    content = by_hand(
        keys=(key("a", 4, struct.pack("<I", 9)),),
        infos=(info("w", (3, 2)), info("q", (32, 2), 8, 32), info("one", (), 0, 128), info("none", (0, 4), 0, 160)),
    )
    (tmp_path / "x.gguf").write_bytes(content)
    entries, metadata = read_gguf(tmp_path / "x.gguf")
    assert metadata == {"a": 9}
    shapes = {name: tuple(entry.read().shape) for name, entry in entries.items()}
    assert shapes == {"w": (2, 3), "q": (2, 32), "one": (), "none": (4, 0)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = {kind: (blocks(kind, 2, 256), kind) for kind in REQUIRED}
    return write(tmp_path_factory.mktemp("gguf") / "sound.gguf", tensors)


def test_cut_short_anywhere(sound: Path, tmp_path: Path) -> None:
    content = sound.read_bytes()
    header = read_gguf(sound)[0]["F32"].data.offset  # type: ignore[attr-defined]
    path = tmp_path / "cut.gguf"
    for length in [*range(header + 64), *range(header + 64, len(content) - 32, 97)]:
        path.write_bytes(content[:length])
        refused(path, "cut.gguf")


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Whatever is changed in the header, the file reads or gives the one clear error."""
    content = bytearray(sound.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, 3000))
        content[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "changed.gguf"
    path.write_bytes(content)
    try:
        entries, metadata = read_gguf(path)
        assert len(repr(metadata)) < 100_000
        for entry in entries.values():
            assert entry.read().numel() <= 8 * len(content)
    except CheckpointError:
        pass


@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=400))
def test_any_bytes_behind_the_magic(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.gguf"
    path.write_bytes(b"GGUF\3\0\0\0" + content)
    with contextlib.suppress(CheckpointError):
        read_all(path)


@pytest.mark.weights
def test_real_weights_open_at_once_and_equal_the_package(smollm2_path: Path) -> None:
    path = smollm2_path if smollm2_path.is_file() else next(smollm2_path.glob("*.gguf"))
    read_gguf(path)  # once, for imports
    start = time.process_time()
    entries, metadata = read_gguf(path)
    assert time.process_time() - start < 0.3
    reader = gguf.GGUFReader(path)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF."):
            assert metadata[name] == field.contents()
    assert [tensor.name for tensor in reader.tensors] == list(entries)
    for tensor in reader.tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(entries[tensor.name].read().numpy(), expected)
