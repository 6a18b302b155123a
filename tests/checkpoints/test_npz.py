"""numpy's .npz: plain arrays read equal, everything else is refused before it is unpacked."""

from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tsumugu.checkpoints.archive import READ_LIMIT
from tsumugu.checkpoints.numpy import read_npz
from tsumugu.core.errors import CheckpointError

SAVERS = pytest.mark.parametrize("save", [np.savez, np.savez_compressed])


def read_all(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {name: entry.read().numpy() for name, entry in read_npz(path)[0].items()}


def refused(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        read_all(path)


KINDS = st.sampled_from(["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", "c8", "c16"])


@SAVERS
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(array=hnp.arrays(KINDS.map(np.dtype), hnp.array_shapes(min_dims=0, min_side=0)), by_columns=st.booleans())
def test_equal_to_numpys_own_reading(save: Any, array: Any, by_columns: bool, tmp_path: Path) -> None:
    array = np.asfortranarray(array) if by_columns else array
    save(tmp_path / "x.npz", **{"a/b.weight": array, "other": np.ones(3, "i1")})
    found = read_all(tmp_path / "x.npz")
    assert set(found) == {"a/b.weight", "other"}
    assert found["a/b.weight"].shape == array.shape
    assert found["a/b.weight"].dtype == array.dtype
    assert np.ascontiguousarray(found["a/b.weight"]).tobytes() == np.ascontiguousarray(array).tobytes()


@SAVERS
def test_conversion(save: Any, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(300, 700)).astype("f4")
    save(tmp_path / "x.npz", rows=array, columns=np.asfortranarray(array))
    for entry in read_npz(tmp_path / "x.npz")[0].values():
        assert torch.equal(entry.read(torch.float64), torch.from_numpy(array).double())
        assert torch.equal(entry.read(torch.bfloat16), torch.from_numpy(array).bfloat16())


def test_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.array([{"a": 1}], dtype=object))
    refused(tmp_path / "x.npz", "pickled objects")


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros(3, ml_dtypes.bfloat16), "bfloat16"),
        (np.zeros(3, ">f4"), "big-endian"),
        (np.zeros(3, "U5"), "str160"),
        (np.zeros(3, "M8[s]"), "datetime64"),
        (np.zeros(3, [("a", "f4"), ("b", "i4")]), "record|type"),
        (np.zeros(3, "f16"), "float128"),
    ],
)
def test_types_without_a_counterpart(array: Any, match: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=array)
    refused(tmp_path / "x.npz", match)


def entry(header: bytes, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + data


def fields(shape: str, dtype: str = "'<f4'", order: str = "False") -> bytes:
    return f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()


LIES = {
    "empty": b"",
    "no array": b"hello",
    "header cut short": entry(fields("(4,)"))[:30],
    "shape larger than the data": entry(fields("(5,)"), bytes(16)),
    "shape smaller than the data": entry(fields("(3,)"), bytes(16)),
    "shape beyond all memory": entry(fields("(1 << 40,)"), bytes(16)),
    "huge shape": entry(fields("(99999999999999999999,)"), bytes(16)),
    "product that overflows": entry(fields("(4294967296, 4294967296)"), bytes(0)),
    "negative shape": entry(fields("(-2, -2)"), bytes(16)),
    "shape of truth values": entry(fields("(True, True)"), bytes(4)),
    "real shape": entry(fields("(4.0,)"), bytes(16)),
    "code for a header": entry(b"__import__('os').system('true')\n", bytes(16)),
    "code for a type": entry(fields("(4,)", "__import__('os')"), bytes(16)),
    "deep header": entry(b"(" * 9000 + b")" * 1000, bytes(16)),
    "unknown version": entry(fields("(4,)"), bytes(16), b"\x09\0"),
}


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "packed"])
@pytest.mark.parametrize("content", LIES.values(), ids=LIES.keys())
def test_lies(content: bytes, packed: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", packed) as archive:
        archive.writestr("a.npy", content)
    refused(tmp_path / "x.npz", "x.npz")


def test_bomb(tmp_path: Path) -> None:
    content = entry(fields(f"({300 << 18},)")) + bytes(300 << 20)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a.npy", content)
    refused(tmp_path / "x.npz", "zip bomb")


def test_entry_that_unpacks_to_more_than_it_says(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", entry(fields("(4096,)"), bytes(16384)))
    size = len(entry(fields("(4096,)"), bytes(16384)))
    short = len(entry(fields("(0004,)"), bytes(16)))
    lie = buffer.getvalue().replace(size.to_bytes(4, "little"), short.to_bytes(4, "little"))
    (tmp_path / "x.npz").write_bytes(lie)
    refused(tmp_path / "x.npz", "x.npz")


def test_a_directory_of_entries_without_end(tmp_path: Path) -> None:
    """The end record claims a directory that zipfile would read in one go."""
    size = READ_LIMIT + 1
    end = b"PK\5\6" + bytes(4) + b"\xff\xff\xff\xff" + size.to_bytes(4, "little") + bytes(4) + bytes(2)
    with (tmp_path / "x.npz").open("wb") as file:
        file.truncate(size)
        file.seek(0, 2)
        file.write(end)
    refused(tmp_path / "x.npz", "bytes at once")


def test_encrypted(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[data.find(b"PK\1\2") + 8] |= 1
    (tmp_path / "x.npz").write_bytes(data)
    refused(tmp_path / "x.npz", "encrypted")


@SAVERS
@pytest.mark.parametrize("flag", [1, 32, 64])
def test_flags_that_no_array_has(save: Any, tmp_path: Path, flag: int) -> None:
    """Encrypted or patched data, as the directory has it or the entry's own header."""
    save(tmp_path / "good.npz", a=np.ones(3))
    for mark, place in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        data = bytearray((tmp_path / "good.npz").read_bytes())
        data[data.find(mark) + place] |= flag
        (tmp_path / "x.npz").write_bytes(data)
        with contextlib.suppress(CheckpointError):
            assert np.array_equal(read_all(tmp_path / "x.npz")["a"], np.ones(3))


@SAVERS
def test_cut_short_anywhere(save: Any, tmp_path: Path) -> None:
    save(tmp_path / "good.npz", a=np.arange(12.0), b=np.ones((2, 2), "f2"))
    content = (tmp_path / "good.npz").read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut.npz").write_bytes(content[:length])
        refused(tmp_path / "cut.npz", "cut.npz")


@SAVERS
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes(save: Any, tmp_path: Path, data: st.DataObject) -> None:
    """A change is noticed, or is in a part that says nothing about the arrays: never other numbers."""
    arrays = {"a": np.arange(12.0), "b": np.ones((2, 2), "f2")}
    save(tmp_path / "good.npz", **arrays)
    content = bytearray((tmp_path / "good.npz").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "x.npz").write_bytes(content)
    with contextlib.suppress(CheckpointError):
        for found in read_all(tmp_path / "x.npz").values():
            assert any(np.array_equal(found, array) for array in arrays.values())
