"""safetensors: equal to the package's own reading, zero-copy, and untrusting of headers and indexes."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsumugu.checkpoints.load import open_checkpoint
from tsumugu.checkpoints.safetensors import read_safetensors
from tsumugu.core.errors import CheckpointError

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.bool, torch.complex64),
]


def read_all(path: Path) -> dict[str, torch.Tensor]:
    return {name: entry.read() for name, entry in read_safetensors(path)[0].items()}


def refused(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        read_all(path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {
        "odd": torch.ones(3, dtype=torch.int8),  # what follows may lie at an odd byte
        "values": (torch.arange(60).reshape(3, 4, 5) % 2).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.empty(0, 3, dtype=dtype),
    }
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    entries, metadata = read_safetensors(tmp_path / "x.safetensors")
    assert metadata == {"format": "pt"}
    assert set(entries) == set(tensors)
    for name, expected in tensors.items():
        found = entries[name].read()
        assert found.dtype == entries[name].dtype == expected.dtype
        assert found.shape == entries[name].shape == expected.shape
        assert bytes(found.reshape(-1).view(torch.uint8).tolist()) == bytes(
            expected.reshape(-1).view(torch.uint8).tolist()
        )
        assert entries[name].raw().nbytes == expected.nbytes


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(0, 40), max_size=4).map(tuple),
    pair=st.tuples(*[st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])] * 2),
    seed=st.integers(0, 1000),
)
def test_conversion_equals_torch(
    tmp_path: Path, shape: tuple[int, ...], pair: tuple[torch.dtype, torch.dtype], seed: int
) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(pair[0])
    safetensors.torch.save_file({"x": values}, tmp_path / "x.safetensors")
    assert torch.equal(read_safetensors(tmp_path / "x.safetensors")[0]["x"].read(pair[1]), values.to(pair[1]))


def test_views_share_one_mapping_and_the_file_never_changes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"x": torch.arange(100_000.0), "y": torch.ones(3)}, path)
    before = path.read_bytes()
    entry = read_safetensors(path)[0]["x"]
    first, second = entry.read(), entry.read()
    assert first.data_ptr() == second.data_ptr()
    first[5] = -1
    assert second[5] == -1
    assert path.read_bytes() == before


def test_a_tensor_outlives_its_checkpoint_and_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"x": torch.arange(100_000.0)}, path)
    tensor = read_safetensors(path)[0]["x"].read()
    path.unlink()
    assert torch.equal(tensor, torch.arange(100_000.0))


def test_a_file_that_is_replaced_meanwhile_is_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"x": torch.arange(100_000.0)}, path)
    entry = read_safetensors(path)[0]["x"]
    safetensors.torch.save_file({"x": torch.zeros(100_000)}, path)  # by a new file under the old name
    assert torch.equal(entry.read(torch.float64), torch.arange(100_000.0).double())


def test_a_file_that_is_cut_meanwhile_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"x": torch.arange(100_000.0)}, path)
    entry = read_safetensors(path)[0]["x"]
    os.truncate(path, 1000)
    with pytest.raises(CheckpointError, match="ends early"):
        entry.read(torch.float64)


def test_odd_truth_values_are_truth_values(tmp_path: Path) -> None:
    content = header({"x": {"dtype": "BOOL", "shape": [4], "data_offsets": [0, 4]}}) + b"\x00\x01\x07\xff"
    (tmp_path / "x.safetensors").write_bytes(content)
    found = read_all(tmp_path / "x.safetensors")["x"]
    assert found.tolist() == [False, True, True, True]
    assert (found | torch.zeros(4, dtype=torch.bool)).view(torch.uint8).tolist() == [0, 1, 1, 1]


# --- headers that lie


def header(fields: Any, length: int | None = None) -> bytes:
    data = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(data) if length is None else length) + data


def tensor(shape: list[Any], first: Any, last: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


LIES = {
    "nothing": b"",
    "seven bytes": bytes(7),
    "header beyond the end": header({"x": tensor([4], 0, 16)}, 10_000) + bytes(16),
    "header without end": header({"x": tensor([4], 0, 16)}, (1 << 64) - 1) + bytes(16),
    "header of 200 MB": header({"x": tensor([4], 0, 16)}, 200_000_000) + bytes(16),
    "header of nothing": header(b"") + bytes(16),
    "not JSON": header(b"{this is not json}") + bytes(16),
    "not UTF-8": header(b'{"\xff": 1}') + bytes(16),
    "a list": header([1, 2]) + bytes(16),
    "deep JSON": header(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}") + bytes(16),
    "name twice": header(
        b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"x":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}'
    )
    + bytes(16),
    "data cut short": header({"x": tensor([4], 0, 16)}) + bytes(15),
    "data left over": header({"x": tensor([4], 0, 16)}) + bytes(17),
    "gap": header({"x": tensor([2], 0, 8), "y": tensor([1], 12, 16)}) + bytes(16),
    "overlap": header({"x": tensor([4], 0, 16), "y": tensor([4], 0, 16)}) + bytes(16),
    "offsets swapped": header({"x": tensor([4], 16, 0)}) + bytes(16),
    "negative offset": header({"x": tensor([4], -16, 0)}) + bytes(16),
    "shape too large": header({"x": tensor([5], 0, 16)}) + bytes(16),
    "negative dimension": header({"x": tensor([-2, -2], 0, 16)}) + bytes(16),
    "product that overflows": header({"x": tensor([1 << 32, 1 << 32], 0, 16)}) + bytes(16),
    "product beyond JSON": header({"x": tensor([1 << 70], 0, 16)}) + bytes(16),
    "real shape": header({"x": tensor([4.0], 0, 16)}) + bytes(16),
    "unknown type": header({"x": tensor([4], 0, 16, "F33")}) + bytes(16),
    "no type": header({"x": {"shape": [4], "data_offsets": [0, 16]}}) + bytes(16),
    "metadata of numbers": header({"__metadata__": {"a": 1}, "x": tensor([4], 0, 16)}) + bytes(16),
    "metadata of another shape": header({"__metadata__": [1], "x": tensor([4], 0, 16)}) + bytes(16),
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES.keys())
def test_lies(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "lie.safetensors").write_bytes(content)
    refused(tmp_path / "lie.safetensors", "lie.safetensors")


def test_the_honest_header_made_by_hand_reads(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(header({"x": tensor([2, 2], 0, 16)}) + np.arange(4, dtype="<f4").tobytes())
    assert read_all(tmp_path / "x.safetensors")["x"].tolist() == [[0, 1], [2, 3]]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("safetensors") / "sound.safetensors"
    safetensors.torch.save_file({"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.int64)}, path)
    return path


def test_cut_short_anywhere(sound: Path, tmp_path: Path) -> None:
    content = sound.read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut.safetensors").write_bytes(content[:length])
        refused(tmp_path / "cut.safetensors", "cut.safetensors")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(sound.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "x.safetensors").write_bytes(content)
    with contextlib.suppress(CheckpointError):
        assert sum(tensor.nbytes for tensor in read_all(tmp_path / "x.safetensors").values()) <= len(content)


# --- shards


def shard(folder: Path, name: str, **tensors: torch.Tensor) -> None:
    safetensors.torch.save_file(tensors, folder / name)


def index(folder: Path, names: Any, **more: Any) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names, **more}))
    return folder


def test_shards(tmp_path: Path) -> None:
    shard(tmp_path, "one.safetensors", a=torch.ones(2), twice=torch.ones(1))
    shard(tmp_path, "two.safetensors", b=torch.zeros(3), twice=torch.zeros(1), unlisted=torch.ones(4))
    index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors", "twice": "two.safetensors"})
    tensors = open_checkpoint(tmp_path).tensors
    assert set(tensors) == {"a", "b", "twice", "unlisted"}
    assert tensors["twice"].read().tolist() == [0]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../outside.safetensors",
            "a/../../outside.safetensors",
            "/etc/passwd",
            "..",
            "",
            ".",
            "a\0b",
            "C:\\x",
            "C:x",
        ),
        *("..\\outside.safetensors", "\\\\server\\share\\x", "//server/x"),
    ],
)
def test_shard_names_that_leave_the_folder(name: str, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    shard(tmp_path, "outside.safetensors", a=torch.ones(2))
    with pytest.raises(CheckpointError, match="leaves the folder"):
        open_checkpoint(index(inner, {"a": name}))


def test_shards_may_be_links_as_in_the_hubs_cache(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    shard(tmp_path / "blobs", "123", a=torch.ones(2))
    (tmp_path / "snapshot" / "one.safetensors").symlink_to("../blobs/123")
    checkpoint = open_checkpoint(index(tmp_path / "snapshot", {"a": "one.safetensors"}))
    assert checkpoint.tensors["a"].read().tolist() == [1, 1]


def test_absent_shards_are_named(tmp_path: Path) -> None:
    shard(tmp_path, "one.safetensors", a=torch.ones(2))
    index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors", "c": "three.safetensors"})
    with pytest.raises(CheckpointError, match=r"2 of 3 shards are absent: three\.safetensors, two\.safetensors"):
        open_checkpoint(tmp_path)


def test_absent_tensors_are_named(tmp_path: Path) -> None:
    shard(tmp_path, "one.safetensors", a=torch.ones(2))
    with pytest.raises(CheckpointError, match="lost"):
        open_checkpoint(index(tmp_path, {"a": "one.safetensors", "lost": "one.safetensors"}))


def test_two_unlisted_tensors_of_one_name(tmp_path: Path) -> None:
    shard(tmp_path, "one.safetensors", a=torch.ones(2), x=torch.ones(1))
    shard(tmp_path, "two.safetensors", b=torch.ones(2), x=torch.zeros(1))
    with pytest.raises(CheckpointError, match="'x' is in two shards"):
        open_checkpoint(index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"}))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 3}}',
        "{",
        "[" * 50_000,
        '{"a":1,"a":2}',
    ],
)
def test_broken_index(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="index"):
        open_checkpoint(tmp_path)


def test_a_shard_that_is_an_index_of_itself(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="index"):
        open_checkpoint(index(tmp_path, {"a": "model.safetensors.index.json"}))
