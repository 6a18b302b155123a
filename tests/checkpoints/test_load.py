"""Which file is opened, what comes along, and what is not imported for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import tsumugu as tg
from tsumugu.checkpoints.load import open_checkpoint
from tsumugu.checkpoints.write import write_gguf
from tsumugu.core.errors import CheckpointError, InputError, UnknownNameError

ONES = {"w": torch.ones(2, 3)}


def test_folder_with_config(tmp_path: Path) -> None:
    safetensors.torch.save_file(ONES, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for path in (tmp_path, tmp_path / "model.safetensors"):
        checkpoint = open_checkpoint(path)
        assert checkpoint.path == path
        assert checkpoint.folder == tmp_path
        assert checkpoint.config == {"model_type": "bert"}
        assert checkpoint.metadata == {"format": "pt"}
        assert checkpoint.format == "safetensors"
        assert (checkpoint.tensors["w"].storage, checkpoint.tensors["w"].shape) == ("F32", (2, 3))


def test_preference(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.zeros(1))
    assert open_checkpoint(tmp_path).format == "npz"
    write_gguf(tmp_path / "a.gguf", {"general.architecture": "llama"}, ONES)
    assert open_checkpoint(tmp_path).format == "gguf"
    safetensors.torch.save_file(ONES, tmp_path / "other.safetensors")
    assert open_checkpoint(tmp_path).format == "safetensors"
    (tmp_path / "other.safetensors").unlink()
    torch.save(ONES, tmp_path / "pytorch_model.bin")
    assert open_checkpoint(tmp_path).format == "pytorch"
    safetensors.torch.save_file(ONES, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).format == "safetensors"


def test_gguf_file_has_its_own_config(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", {"general.architecture": "llama"}, ONES)
    (tmp_path / "config.json").write_text("{}")
    assert open_checkpoint(tmp_path / "a.gguf").config is None
    assert open_checkpoint(tmp_path / "a.gguf").metadata["general.architecture"] == "llama"


def test_a_part_of_a_split_model_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a-00001-of-00002.gguf", {"general.architecture": "llama", "split.count": 2}, ONES)
    with pytest.raises(CheckpointError, match="one part"):
        open_checkpoint(tmp_path)


def test_several_candidates_are_named(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        write_gguf(tmp_path / name, {"general.architecture": "llama"}, ONES)
    with pytest.raises(CheckpointError, match=r"a\.gguf, b\.gguf"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["absent", "absent.safetensors", "x.onnx", "x"])
def test_nothing_to_open(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").touch()
    (tmp_path / "x").touch()
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(tmp_path / name)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "gguf", "npz"])
def test_wrong_content_under_a_good_name(suffix: str, tmp_path: Path) -> None:
    for content in (b"", b"hello", bytes(5000), b"<!DOCTYPE html>" * 100):
        (tmp_path / f"model.{suffix}").write_bytes(content)
        with pytest.raises(CheckpointError, match=f"model.{suffix}"):
            open_checkpoint(tmp_path / f"model.{suffix}")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    safetensors.torch.save_file(ONES, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", "\xff", '{"a": 1, "a": 2}', "[" * 100_000])
def test_broken_config(content: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(ONES, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission_to_read(tmp_path: Path) -> None:
    safetensors.torch.save_file(ONES, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").chmod(0)
    with pytest.raises(CheckpointError, match="Permission denied"):
        open_checkpoint(tmp_path)


def test_many_threads_read_one_checkpoint(tmp_path: Path) -> None:
    tensors = {f"w{i}": torch.full((300, 1000), float(i)) for i in range(16)}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    entries = open_checkpoint(tmp_path).tensors
    found: dict[str, torch.Tensor] = {}

    def read(name: str) -> None:
        found[name] = entries[name].read(torch.float64)

    threads = [threading.Thread(target=read, args=(name,)) for name in tensors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[name], value.double()) for name, value in tensors.items())


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
@pytest.mark.parametrize("format", ["pt", "np", "jax", "tf"])
def test_tensors_of_every_framework_in_and_out(format: str, suffix: str, tmp_path: Path) -> None:
    values = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int32)}
    tg.save_tensors(
        {name: tg.convert_tensor(value, format) for name, value in values.items()}, tmp_path / f"x.{suffix}"
    )
    loaded = tg.load_tensors(tmp_path / f"x.{suffix}", format)
    for name, value in values.items():
        assert tg.core.tensors.format_of(loaded[name]) == format
        assert np.array_equal(np.asarray(loaded[name]), value.numpy())


def test_lists_go_in_and_bfloat16_stays(tmp_path: Path) -> None:
    tg.save_tensors({"a": [[1.5, 2], [3, 4]], "h": torch.ones(3).bfloat16()}, tmp_path / "x.safetensors")
    loaded = tg.load_tensors(str(tmp_path / "x.safetensors"))
    assert loaded["a"].tolist() == [[1.5, 2], [3, 4]]
    assert loaded["h"].dtype == torch.bfloat16


def test_what_cannot_be_saved_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bfloat16"):
        tg.save_tensors({"h": torch.ones(3).bfloat16()}, tmp_path / "x.npz")
    with pytest.raises(InputError, match="suffix"):
        tg.save_tensors(ONES, tmp_path / "x.bin")
    with pytest.raises(InputError, match="complex128"):
        tg.save_tensors({"c": torch.ones(3, dtype=torch.complex128)}, tmp_path / "x.safetensors")
    with pytest.raises(UnknownNameError, match="numpyy"):
        tg.load_tensors(tmp_path, "numpyy")
    assert not list(tmp_path.iterdir())


def word_level(folder: Path) -> Path:
    vocabulary = {"<unk>": 0, "spin": 1, "words": 2}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    whole: dict[str, Any] = {"version": "1.0", "model": model, "pre_tokenizer": {"type": "Whitespace"}}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    return folder


def test_tokenizer_of_a_folder(tmp_path: Path) -> None:
    assert tg.load_tokenizer(word_level(tmp_path)).encode("spin words") == [1, 2]


def test_tokenizer_of_a_folder_that_has_a_gguf_file_too(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", {"general.architecture": "llama"}, ONES)
    assert tg.load_tokenizer(word_level(tmp_path)).encode("words") == [2]


@pytest.mark.weights
def test_tokenizer_of_a_gguf_file_or_its_folder(smollm2_path: Path) -> None:
    ids = tg.load_tokenizer(smollm2_path).encode("To spin thread, to spin words.")
    assert tg.load_tokenizer(smollm2_path).decode(ids) == "To spin thread, to spin words."
    if smollm2_path.is_file():
        assert tg.load_tokenizer(smollm2_path.parent).encode("To spin thread, to spin words.") == ids


def test_a_tokenizer_and_raw_blocks_cost_no_torch(tmp_path: Path) -> None:
    word_level(tmp_path)
    write_gguf(tmp_path / "a.gguf", {"general.architecture": "llama"}, {"w": torch.ones(2, 32)}, "Q8_0")
    code = (
        "import sys, tsumugu, pathlib; from tsumugu.checkpoints.load import open_checkpoint;"
        f"tsumugu.load_tokenizer({str(tmp_path)!r});"
        f"entry = open_checkpoint(pathlib.Path({str(tmp_path / 'a.gguf')!r})).tensors['w'];"
        "assert entry.raw().shape == (2, 34) and entry.storage == 'Q8_0';"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
