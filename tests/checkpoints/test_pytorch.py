"""PyTorch's own files: what torch.save writes reads back equal, and broken archives say so."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsumugu.checkpoints.entries import TensorEntry
from tsumugu.checkpoints.load import open_checkpoint
from tsumugu.checkpoints.pytorch import read_pytorch
from tsumugu.core.errors import CheckpointError

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.bool, torch.complex64, torch.complex128),
]
KINDS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(value: Any, path: Path, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def same(entry: TensorEntry, expected: torch.Tensor) -> None:
    found = entry.read()
    assert found.dtype == entry.dtype == expected.dtype
    assert found.shape == entry.shape == expected.shape
    assert torch.equal(found.contiguous().view(torch.uint8), expected.detach().contiguous().view(torch.uint8))


@KINDS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type(dtype: torch.dtype, zipped: bool, tmp_path: Path) -> None:
    values = (torch.arange(60).reshape(3, 4, 5) % 2).to(dtype)
    entries, _ = read_pytorch(save({"a": values, "b": values.clone()}, tmp_path / "model.bin", zipped))
    same(entries["a"], values)
    same(entries["b"], values)


@KINDS
def test_every_layout(zipped: bool, tmp_path: Path) -> None:
    base = torch.randn(8, 6)
    with_attribute = torch.ones(3)
    with_attribute.note = "kept by torch, of no use here"  # type: ignore[attr-defined]
    state = {
        "transposed": base.T,
        "columns": base[:, 1::2],
        "rows": base[2:5],
        "last": base[7, 5],
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(4)),
        "buffer": torch.nn.Buffer(torch.randn(4)),
        "with attribute": with_attribute,
    }
    entries, _ = read_pytorch(save(state, tmp_path / "model.bin", zipped))
    for name, expected in state.items():
        found = entries[name]
        assert torch.equal(found.read(), expected)
        assert torch.equal(found.read(torch.float64), expected.double())
        assert torch.equal(found.read(torch.bfloat16), expected.bfloat16())


@KINDS
def test_module_state(zipped: bool, tmp_path: Path) -> None:
    model = torch.nn.TransformerEncoderLayer(16, 2, 32)
    entries, _ = read_pytorch(save(model.state_dict(), tmp_path / "model.pth", zipped))
    assert list(entries) == list(model.state_dict())
    for name, expected in model.state_dict().items():
        same(entries[name], expected)


@KINDS
@pytest.mark.parametrize("key", [None, "model"])
def test_nested_dictionaries(key: str | None, zipped: bool, tmp_path: Path) -> None:
    """Names are joined by dots; a dictionary that holds itself is no trap, and a deep one ends."""
    loop: dict[str, Any] = {"weight": torch.ones(2)}
    loop["again"] = loop
    deep: dict[str, Any] = {"weight": torch.zeros(1)}
    for _ in range(40):
        deep = {"down": deep}
    tree = {"first": {"layers.0.weight": torch.arange(3.0), "inner": {"bias": torch.zeros(4)}, 5: 1}, "loop": loop}
    state = {**tree, "deep": deep}
    entries, beside = read_pytorch(save({"step": 7, key: state} if key else state, tmp_path / "model.pt", zipped))
    assert set(entries) == {"first.layers.0.weight", "first.inner.bias", "loop.weight"}
    same(entries["first.layers.0.weight"], torch.arange(3.0))
    assert beside == ({"step": 7} if key else {})


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_state_dict_inside_a_training_checkpoint(key: str, tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    whole = {"epoch": 3, key: model.state_dict(), "optimizer": optimizer.state_dict(), "name": "small"}
    entries, beside = read_pytorch(save(whole, tmp_path / "last.pt"))
    assert set(entries) == {"weight", "bias"}
    assert beside == {"epoch": 3, "name": "small"}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(protocol: int, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt", pickle_protocol=protocol)
    same(read_pytorch(tmp_path / "a.pt")[0]["a"], torch.ones(2))


def test_tied_tensors_share_memory_and_the_file_never_changes(tmp_path: Path) -> None:
    tied = torch.randn(1000)
    path = save({"a": tied, "b": tied[10:]}, tmp_path / "model.bin")
    before = path.read_bytes()
    entries, _ = read_pytorch(path)
    a, b = entries["a"].read(), entries["b"].read()
    b.fill_(7)
    assert torch.equal(a[10:], b)
    assert path.read_bytes() == before


def test_sharded(tmp_path: Path) -> None:
    save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    save({"b": torch.zeros(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    names = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "pytorch"
    same(checkpoint.tensors["a"], torch.ones(2))
    same(checkpoint.tensors["b"], torch.zeros(3))


def read_all(path: Path) -> None:
    for entry in read_pytorch(path)[0].values():
        entry.read()


def refused(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        read_all(path)


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, bytes]:
    path = save({"a": torch.arange(12.0)}, tmp_path / "good.pt")
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def rezip(path: Path, parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def test_entries_that_leave_the_archive(parts: dict[str, bytes], tmp_path: Path) -> None:
    for name in ("../evil", "good/../../evil", "/etc/evil", "good\\..\\..\\evil"):
        refused(rezip(tmp_path / "bad.pt", {**parts, name: b"x"}), "leaves the archive")


def test_storage_shorter_or_longer_than_said(parts: dict[str, bytes], tmp_path: Path) -> None:
    for data in (b"", bytes(47), bytes(49), bytes(96)):
        refused(rezip(tmp_path / "bad.pt", {**parts, "good/data/0": data}), "another size")


def test_absent_storage(parts: dict[str, bytes], tmp_path: Path) -> None:
    del parts["good/data/0"]
    refused(rezip(tmp_path / "bad.pt", parts), "not in the file")


def test_compressed_storage(parts: dict[str, bytes], tmp_path: Path) -> None:
    refused(rezip(tmp_path / "bad.pt", parts, zipfile.ZIP_DEFLATED), "compressed")


def test_bomb(parts: dict[str, bytes], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
        with archive.open("good/data/1", "w", force_zip64=True) as stream:
            for _ in range(300):
                stream.write(bytes(1 << 20))
    refused(tmp_path / "bad.pt", "zip bomb")


def test_two_pickles_and_none(parts: dict[str, bytes], tmp_path: Path) -> None:
    refused(rezip(tmp_path / "bad.pt", {**parts, "other/data.pkl": b"N."}), "torch.save")
    refused(rezip(tmp_path / "bad.pt", {"good/version": b"3"}), "torch.save")


def test_big_endian(parts: dict[str, bytes], tmp_path: Path) -> None:
    refused(rezip(tmp_path / "bad.pt", {**parts, "good/byteorder": b"big"}), "big-endian")


def test_entry_that_stands_twice(parts: dict[str, bytes], tmp_path: Path) -> None:
    path = rezip(tmp_path / "bad.pt", parts)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("good/data/0", bytes(48))
    refused(path, "stands twice")


def test_overlapping_entries(parts: dict[str, bytes], tmp_path: Path) -> None:
    """Two names in the directory for one stretch of the file, as in a bomb whose entries overlap."""
    path = rezip(tmp_path / "bad.pt", parts)
    data = bytearray(path.read_bytes())
    position, offsets = data.find(b"PK\1\2"), []
    while position >= 0:
        offsets.append(position + 42)
        position = data.find(b"PK\1\2", position + 4)
    data[offsets[1] : offsets[1] + 4] = data[offsets[0] : offsets[0] + 4]
    path.write_bytes(data)
    refused(path, "overlaps|not whole|not where")


def test_damaged_storage_is_noticed(parts: dict[str, bytes], tmp_path: Path) -> None:
    path = rezip(tmp_path / "bad.pt", parts)
    data = bytearray(path.read_bytes())
    data[data.find(struct.pack("<f", 11.0))] ^= 1
    path.write_bytes(data)
    refused(path, "checksum")


@KINDS
def test_cut_short_anywhere(zipped: bool, tmp_path: Path) -> None:
    good = save({"a": torch.arange(12.0), "b": torch.ones(3)}, tmp_path / "good.pt", zipped).read_bytes()
    path = tmp_path / "cut.pt"
    for length in range(len(good)):
        path.write_bytes(good[:length])
        refused(path, "cut.pt")


@KINDS
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes(zipped: bool, tmp_path: Path, data: st.DataObject) -> None:
    """Whatever is changed, the file reads as tensors or gives the one clear error."""
    good = save({"a": torch.arange(12.0), "b": torch.ones(3, dtype=torch.int64)}, tmp_path / "good.pt", zipped)
    broken = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "broken.pt").write_bytes(broken)
    try:
        entries, _ = read_pytorch(tmp_path / "broken.pt")
        for entry in entries.values():
            assert entry.read().numel() <= 100
    except CheckpointError:
        pass


def test_other_files(tmp_path: Path) -> None:
    for content in (b"", b"\x80", b"PK\3\4", b"GGUF" * 100, b"not a model", bytes(5000)):
        (tmp_path / "model.bin").write_bytes(content)
        refused(tmp_path / "model.bin", "model.bin")


def test_whole_modules(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    refused(tmp_path / "module.pt", "torch.nn.modules.linear.Linear")
