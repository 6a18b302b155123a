"""Compiled models in the cache: found by content, whole or not there, made again only where something changed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st
from tests.engines.conftest import Build

import tsumugu as tg
from tsumugu.checkpoints.load import open_checkpoint
from tsumugu.core.errors import CheckpointError, InputError
from tsumugu.engines import onnx_store
from tsumugu.engines.onnx_compile import compile_model
from tsumugu.engines.onnx_store import Request
from tsumugu.engines.onnx_weights import dequantized, from_gguf, quantized
from tsumugu.text.tokenizer import Tokenizer


@pytest.fixture
def saved(build: Build, tmp_path: Path) -> Path:
    return tg.save_model(build("llama", num_kv_heads=2), tmp_path / "model")


def folders() -> list[str]:
    """What lies among compiled models, leftovers included."""
    return sorted(each.name for each in onnx_store.compiled().iterdir() if each.name != "known")


def test_a_checkpoint_is_compiled_once(cache: Path, saved: Path, tmp_path: Path) -> None:
    first = compile_model(Request(saved))
    made = (first / "graph.onnx").stat().st_mtime_ns
    assert compile_model(Request(saved)) == first
    copy = tmp_path / "copy"
    copy.mkdir()
    for each in saved.iterdir():
        (copy / each.name).write_bytes(each.read_bytes())
    assert compile_model(Request(copy)) == first, "the same content elsewhere"
    assert compile_model(Request(saved, "causal-lm")) == first, "the head it has anyway"
    assert (first / "graph.onnx").stat().st_mtime_ns == made
    assert compile_model(Request(saved, None, "int8")) != first


def test_a_changed_checkpoint_is_compiled_anew(cache: Path, saved: Path, build: Build) -> None:
    first = compile_model(Request(saved))
    assert onnx_store.find(Request(saved)) == first
    tg.save_model(build("llama", num_kv_heads=2, seed=1), saved)
    assert onnx_store.find(Request(saved)) is None
    assert compile_model(Request(saved)) != first
    assert len(folders()) == 2


def test_what_was_deleted_is_made_again(cache: Path, saved: Path) -> None:
    first = compile_model(Request(saved))
    for each in first.iterdir():
        each.unlink()
    assert onnx_store.find(Request(saved)) is None
    assert compile_model(Request(saved)) == first
    assert (first / onnx_store.RECORD).is_file()


def test_a_failure_leaves_nothing(cache: Path, saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        compile_model(Request(saved))
    assert not onnx_store.compiled().exists() or folders() == []


def test_what_lay_unused_for_longest_makes_room(
    cache: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = [tg.save_model(build("llama", seed=seed), tmp_path / str(seed)) for seed in range(4)]
    first, second = compile_model(Request(saved[0])), compile_model(Request(saved[1]))
    size = sum(each.stat().st_size for each in first.iterdir())
    for folder, seconds in ((first, 10), (second, 20)):
        os.utime(folder / onnx_store.RECORD, (seconds, seconds))
    assert onnx_store.find(Request(saved[0])) == first, "it is used now"
    monkeypatch.setenv(onnx_store.ROOM_VARIABLE, str(2.5 * size / 1e9))
    (second.parent / ".other.partial").mkdir()
    (second.parent / ".other.partial" / onnx_store.RECORD).write_bytes(b" " * 10 * size)
    third = compile_model(Request(saved[2]))
    assert folders() == [".other.partial", *sorted(each.name for each in (first, third))], "others' work is left alone"
    shutil.rmtree(second.parent / ".other.partial")
    assert onnx_store.find(Request(saved[1])) is None
    assert len(list((onnx_store.compiled() / "known").iterdir())) == 2, "notes go with what they name"
    monkeypatch.setenv(onnx_store.ROOM_VARIABLE, "0")
    assert folders() == sorted(each.name for each in (first, third)), "nothing goes before something comes"
    fourth = compile_model(Request(saved[3]))
    assert folders() == [fourth.name], "what is wanted now stays, however little room there is"
    assert compile_model(Request(saved[1])) == second, "it is made again"


@pytest.mark.parametrize("said", ["much", "nan", "inf", "-1"])
def test_room_is_a_number_of_gigabytes(said: str, cache: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(onnx_store.ROOM_VARIABLE, said)
    for engine in ("auto", "onnx"):  # nothing else computes in its stead
        with pytest.raises(InputError, match=f"{onnx_store.ROOM_VARIABLE}: '{said}' is no number of gigabytes; give"):
            tg.load_model(saved, engine=engine)
    assert not onnx_store.compiled().exists() or folders() == []


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_killed_at_work_it_is_made_whole_next_time(
    signal_number: int, cache: Path, build: Build, tmp_path: Path
) -> None:
    saved = tg.save_model(build("llama", hidden_size=512, num_layers=24, intermediate_size=2048), tmp_path / "model")
    program = "import sys, pathlib; from tsumugu.engines.onnx_compile import compile_model as c\n"
    program += "from tsumugu.engines.onnx_store import Request as R; c(R(pathlib.Path(sys.argv[1])))"
    child = subprocess.Popen([sys.executable, "-c", program, saved], stderr=subprocess.DEVNULL, env={**os.environ})
    while child.poll() is None and not list(onnx_store.compiled().glob(".*.partial/weights.bin")):
        time.sleep(0.001)
    child.send_signal(signal_number)
    assert child.wait(60) != 0, "it was done before it was killed"
    assert [each for each in folders() if not each.startswith(".")] == []
    folder = compile_model(Request(saved))
    assert folders() == [folder.name]
    texts = [[1, 2, 3]]
    assert tg.generate(tg.load_model(saved, engine="onnx"), texts) == tg.generate(tg.load_model(saved), texts)


BLOCKS = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).normal(size=(3, 96)).astype(np.float32))


@given(matrix=BLOCKS, kind=st.sampled_from(["Q8_0", "Q4_0"]))
def test_gguf_blocks_are_taken_over_number_by_number(matrix: np.ndarray, kind: str) -> None:
    blocks = quantize(matrix, GGMLQuantizationType[kind])
    assert np.array_equal(dequantized(from_gguf(kind, blocks), 96), dequantize(blocks, GGMLQuantizationType[kind]))


@given(matrix=BLOCKS, group=st.sampled_from([32, 64, 128]))
def test_rounding_errs_by_half_a_step_at_most(matrix: np.ndarray, group: int) -> None:
    eight = quantized(matrix, 8, group)
    step = np.repeat(eight.scales, group, axis=1)[:, :96]
    assert (np.abs(dequantized(eight, 96) - matrix) <= step * 0.501).all()
    four = quantized(matrix, 4, group)
    plain = (np.maximum(matrix.max(1), 0) - np.minimum(matrix.min(1), 0)) / 15
    worst = np.square(dequantized(four, 96) - matrix).mean(1) ** 0.5
    assert (worst <= plain * 0.6).all(), "no worse than one grid over a whole row"


def test_a_whole_zero_matrix_stays_zero() -> None:
    for bits in (4, 8):
        assert not dequantized(quantized(np.zeros((2, 64), np.float32), bits, 32), 64).any()


def test_a_gguf_file_keeps_its_numbers(cache: Path, build: Build, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Compiled from Q8_0 in 8 bits: every matrix is what the file says, rows in our order."""
    model = build("llama", num_kv_heads=2, head_dim=32, hidden_size=64, intermediate_size=96)
    tg.save_model(model, tmp_path / "model.gguf", tokenizer=tokenizer, storage="Q8_0")
    entries = open_checkpoint(tmp_path / "model.gguf").tensors
    numbers = from_gguf("Q8_0", entries["blk.1.ffn_down.weight"].raw()).numbers.tobytes()
    for quantize_as in ("auto", "int8"):
        folder = compile_model(Request(tmp_path / "model.gguf", None, quantize_as))
        assert numbers in (folder / "weights.bin").read_bytes()
