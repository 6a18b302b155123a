"""Writing: equal when read back by others, whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from tsumugu.checkpoints.load import open_checkpoint
from tsumugu.checkpoints.write import write_gguf, write_npz, write_safetensors, write_safetensors_folder
from tsumugu.core.errors import CheckpointError, InputError

SMALL = {f"layer.{i}.weight": torch.randn(8, 8) for i in range(6)}  # 256 bytes each
LARGE = {"w": torch.ones(512, 1024)}


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {name: entry.read() for name, entry in open_checkpoint(folder).tensors.items()}


def equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folder_read_by_the_package(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    write_safetensors_folder(
        folder, SMALL, {"model_type": "x"}, extra_files={"tokenizer.json": "{}", "1_Pooling/a.json": b"\0"}
    )
    assert (folder / "1_Pooling" / "a.json").read_bytes() == b"\0"
    assert names(folder) == ["1_Pooling", "config.json", "model.safetensors", "tokenizer.json"]
    assert equal(safetensors.torch.load_file(folder / "model.safetensors"), SMALL)
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert json.loads((folder / "config.json").read_text()) == {"model_type": "x"}
    assert names(tmp_path / "new") == ["model"]


def test_shards(tmp_path: Path) -> None:
    write_safetensors_folder(tmp_path / "m", SMALL, {}, max_shard_bytes=600)
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert names(tmp_path / "m") == ["config.json", *shards, "model.safetensors.index.json"]
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 6 * 256}
    assert index["weight_map"] == {name: shards[i // 2] for i, name in enumerate(SMALL)}
    assert equal(read(tmp_path / "m"), SMALL)


def test_a_tensor_above_the_limit_has_a_shard_of_its_own(tmp_path: Path) -> None:
    write_safetensors_folder(
        tmp_path, {"a": torch.ones(2), "b": torch.ones(100), "c": torch.ones(2)}, {}, max_shard_bytes=50
    )
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert equal(read(tmp_path), {"a": torch.ones(2), "b": torch.ones(100), "c": torch.ones(2)})


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_safetensors_folder(tmp_path / "m", SMALL, {})
        write_npz(tmp_path / "x.npz", {"a": np.ones(3)})
        write_gguf(tmp_path / "x.gguf", {"general.architecture": "llama"}, SMALL)
    finally:
        os.umask(before)
    for path in (
        tmp_path / "m" / "model.safetensors",
        tmp_path / "m" / "config.json",
        tmp_path / "x.npz",
        tmp_path / "x.gguf",
    ):
        assert oct(path.stat().st_mode & 0o777) == oct(0o640)


def test_tensors_in_any_order_of_memory(tmp_path: Path) -> None:
    base = torch.randn(6, 8)
    tensors = {
        "base": base,
        "again": base,
        "transposed": base.T,
        "chunk": base.chunk(2)[1],
        "every other": base[::2, ::2],
        "expanded": torch.ones(1, 4).expand(3, 4),
        "conjugated": torch.randn(3, dtype=torch.complex64).conj(),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors)
    assert equal(safetensors.torch.load_file(tmp_path / "x.safetensors"), {k: v.detach() for k, v in tensors.items()})


def test_mapped_tensors_can_be_written_over_their_own_file(tmp_path: Path) -> None:
    write_safetensors_folder(tmp_path / "m", SMALL, {})
    write_safetensors_folder(tmp_path / "m", read(tmp_path / "m"), {})
    assert equal(read(tmp_path / "m"), SMALL)


LAYOUTS = {"whole": 10_000, "shards": 600, "small shards": 300}


@pytest.mark.parametrize("before", LAYOUTS)
@pytest.mark.parametrize("after", LAYOUTS)
def test_an_existing_folder_is_brought_up_to_date(before: str, after: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    write_safetensors_folder(folder, SMALL, {"n": 1}, max_shard_bytes=LAYOUTS[before])
    (folder / "README.md").write_text("mine")
    (folder / "runs").mkdir()
    (folder / "runs" / "events").write_text("mine")
    changed = {name: tensor + 1 for name, tensor in SMALL.items()}
    for _ in range(2):
        write_safetensors_folder(folder, changed, {"n": 2}, max_shard_bytes=LAYOUTS[after])
        assert equal(read(folder), changed)
        assert open_checkpoint(folder).config == {"n": 2}
        count = -(-6 * 256 // LAYOUTS[after] // 1) if after == "whole" else {"shards": 3, "small shards": 6}[after]
        assert len(list(folder.glob("*.safetensors"))) == count
        assert (folder / "model.safetensors.index.json").exists() == (count > 1)
        assert (folder / "README.md").read_text() == (folder / "runs" / "events").read_text() == "mine"
        assert not list(folder.glob(".*"))


@pytest.mark.parametrize("name", ["../evil", "a/../../b", "/etc/x", "config.json", "model.safetensors", "", ".."])
def test_names_of_extra_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="extra file"):
        write_safetensors_folder(tmp_path / "m", SMALL, {}, extra_files={name: "x"})
    assert not (tmp_path / "m").exists()


def test_types_without_a_place(tmp_path: Path) -> None:
    for value in (torch.ones(3, dtype=torch.complex128), torch.ones(3).to_sparse()):
        with pytest.raises(InputError, match="'x'"):
            write_safetensors_folder(tmp_path / "m", {"x": value}, {})
    with pytest.raises(InputError, match="float128"):
        write_npz(tmp_path / "x.npz", {"x": np.ones(3, "f16"), "y": np.ones(3)})
    assert not list(tmp_path.iterdir())


WRITERS: dict[str, Callable[[Path], Any]] = {
    "folder": lambda folder: write_safetensors_folder(folder / "m", LARGE, {}),
    "shards": lambda folder: write_safetensors_folder(folder / "m", SMALL | LARGE, {}, max_shard_bytes=600),
    "safetensors": lambda folder: write_safetensors(folder / "x.safetensors", LARGE),
    "npz": lambda folder: write_npz(folder / "x.npz", {"w": LARGE["w"].numpy()}),
    "gguf": lambda folder: write_gguf(folder / "x.gguf", {"general.architecture": "llama"}, LARGE),
    "gguf metadata": lambda folder: write_gguf(
        folder / "x.gguf", {"general.architecture": "x", "k": "v" * 2_000_000}, SMALL
    ),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_full_disk(write: Callable[[Path], Any], full: Path) -> None:
    with pytest.raises(CheckpointError, match="make room on the disk"):
        write(full)
    assert not list(full.iterdir())


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_no_permission(write: Callable[[Path], Any], unwritable: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Read-only|Permission"):
        write(unwritable)
    assert not list(unwritable.iterdir())


def test_full_disk_leaves_the_old_folder_as_it_was(full: Path) -> None:
    write_safetensors_folder(full / "m", SMALL, {"n": 1})
    before = {path.name: path.read_bytes() for path in (full / "m").iterdir()}
    with pytest.raises(CheckpointError, match="make room on the disk"):
        write_safetensors_folder(full / "m", LARGE, {"n": 2})
    assert {path.name: path.read_bytes() for path in (full / "m").iterdir()} == before


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("mine")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_safetensors_folder(tmp_path / "m", SMALL, {})
    assert names(tmp_path) == ["m"]


KILLED = """
import json, os, shutil, signal, sys
from pathlib import Path
import torch
from tsumugu.checkpoints.load import open_checkpoint
from tsumugu.checkpoints.write import write_safetensors_folder

steps = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}
old = {f"w{i}": torch.full((8, 8), float(i)) for i in range(6)}
new = {name: tensor + 100 for name, tensor in old.items()}

def write(folder, tensors, limit, number):
    extra = {"t.json": str(number), "more/t.json": str(number)}
    write_safetensors_folder(folder, tensors, {"n": number}, max_shard_bytes=limit, extra_files=extra)

def killed_at(step, folder, limit):
    left = step
    def hear(event, arguments):
        nonlocal left
        if event in steps:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    child = os.fork()
    if child == 0:
        sys.addaudithook(hear)
        write(folder, new, limit, 2)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0

def outcomes(place, before, after):
    for step in range(200):
        folder = place / str(step)
        if before:
            write(folder, old, before, 1)
            (folder / "mine").write_text("mine")
        if not killed_at(step, folder, after):
            return
        if before or folder.exists():
            found = {name: entry.read() for name, entry in open_checkpoint(folder).tensors.items()}
            states = {"old": old, "new": new}.items()
            which = [n for n, state in states if all(torch.equal(found[k], v) for k, v in state.items())]
            assert found.keys() == old.keys() and len(which) == 1, (step, sorted(os.listdir(folder)))
            assert not before or (folder / "mine").read_text() == "mine"
            yield which[0]
        else:
            yield "nothing"
        write(folder, new, after, 2)  # and the next attempt goes well
        found = {name: entry.read() for name, entry in open_checkpoint(folder).tensors.items()}
        assert all(torch.equal(found[name], tensor) for name, tensor in new.items())

for before, after in json.loads(sys.argv[2]):
    print(json.dumps(list(outcomes(Path(sys.argv[1]) / f"{before}-{after}", before, after))))
"""
CHANGES = [(0, 600), (9999, 9999), (9999, 600), (600, 9999), (600, 600)]
"""Largest shards before and after, in bytes; 0: there was no folder."""


@pytest.mark.slow
def test_killed_at_every_step(tmp_path: Path) -> None:
    """Real processes, really killed before each rename and removal: the old weights, then the new, never neither."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, tmp_path, json.dumps(CHANGES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    for (before, _), line in zip(CHANGES, done.stdout.splitlines(), strict=True):
        first, outcomes = "old" if before else "nothing", json.loads(line)
        assert outcomes.count(first) >= 2
        assert outcomes == sorted(outcomes, key=[first, "new"].index)


# --- the reference library


@pytest.fixture(scope="module")
def reference() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("limit", [1 << 30, 20_000])
def test_the_reference_library_loads_what_we_write(limit: int, reference: Any, tmp_path: Path) -> None:
    config = {**reference.config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    for _ in range(2):  # the second time shards have names of their own
        write_safetensors_folder(tmp_path, reference.state_dict(), config, max_shard_bytes=limit)
    theirs, report = type(reference).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert equal(theirs.state_dict(), reference.state_dict())


@pytest.mark.parametrize("limit", ["1GB", "20KB"])
def test_we_load_what_the_reference_library_writes(limit: str, reference: Any, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path, max_shard_size=limit)
    assert equal(read(tmp_path), reference.state_dict())
    config = open_checkpoint(tmp_path).config
    assert config is not None
    assert config["hidden_size"] == 32
