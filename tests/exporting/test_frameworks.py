"""One tuned classifier from files alone: torch, ONNX Runtime, JAX and TensorFlow give one answer to each text.

`TSUMUGU_TEXTS=500` asks for more of them.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
import onnxruntime
import pytest
import safetensors.flax
import tensorflow as tf
import torch
from tests.tuning.samples import BAD, GOOD, THINGS, base, sentiment, write

import tsumugu as tg
from tsumugu.cli import main
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.exporting.jax import to_jax
from tsumugu.exporting.program import Program, Step, take_apart
from tsumugu.exporting.tensorflow import to_tensorflow
from tsumugu.exporting.trace import trace
from tsumugu.exporting.write import export

TEXTS = int(os.environ.get("TSUMUGU_TEXTS", "40"))
TOLERANCE = 1e-4
Answer = Callable[[list[str]], np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT that tells good from bad."""
    folder = tmp_path_factory.mktemp("tuned")
    path = str(write(folder / "train.jsonl", sentiment()))
    values = {
        "task": "sentiment-analysis",
        "model": {"source": str(base(folder / "base"))},
        "data": {"source": path, "validation": path, "test": path},
        "train": {"epochs": 6, "batch": 8, "lr": 5e-3},
    }
    tg.finetune(values, folder / "run", quiet=True)
    return folder / "run"


def in_onnx(folder: Path) -> Answer:
    session, tokenizer = onnxruntime.InferenceSession(folder / "model.onnx"), tg.load_tokenizer(folder)
    return lambda texts: session.run(None, dict(tokenizer(texts, padding=True, return_tensors="np")))[0]


def in_jax(folder: Path) -> Answer:
    read = jax.export.deserialize((folder / "model.jax").read_bytes())
    params, tokenizer = safetensors.flax.load_file(folder / "params.safetensors"), tg.load_tokenizer(folder)

    def answer(texts: list[str]) -> np.ndarray[Any, Any]:
        given = tokenizer(texts, padding=True, return_tensors="np")
        arrays = {key: value.astype("int32") for key, value in given.items()}
        return np.asarray(read.call(params, **arrays)["logits"])

    return answer


def in_tensorflow(folder: Path) -> Answer:
    loaded, tokenizer = tf.saved_model.load(str(folder)), tg.load_tokenizer(folder)

    def answer(texts: list[str]) -> np.ndarray[Any, Any]:
        given = tokenizer(texts, padding=True, return_tensors="tf")
        return np.asarray(loaded.signatures["serving_default"](**given)["logits"])

    return answer


def test_a_tuned_classifier_answers_the_same_everywhere(tuned: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    words = [*GOOD, *BAD, *THINGS, "the", "was", "indeed"]
    texts = [" ".join(chance.choices(words, k=chance.randint(1, 20))) for _ in range(TEXTS)]
    model, tokenizer = tg.load_model(tuned), tg.load_tokenizer(tuned)
    with torch.no_grad():
        wanted = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.numpy()
    assert set(wanted.argmax(-1)) == {0, 1}
    stale = write(tmp_path / "tf" / "variables" / "stale", [])  # a folder that is written again
    for to, opened in (("onnx", in_onnx), ("jax", in_jax), ("tf", in_tensorflow)):
        answer = opened(export(tuned, tmp_path / to, to, force=True))
        found = np.concatenate([answer(texts[:7]), answer(texts[7:])])
        difference, same = np.abs(found - wanted).max(), (found.argmax(-1) == wanted.argmax(-1)).sum()
        print(f"{to}: {same} of {TEXTS} labels are the same, scores differ by {difference:.1e} at most")
        assert difference <= TOLERANCE, to
        assert same == TEXTS, to
    assert not stale.exists()
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]


@pytest.fixture(scope="module")
def program(tuned: Path) -> Program:
    return take_apart(trace(tg.load_model(tuned)))


def test_functions_without_files(tuned: Path, program: Program) -> None:
    function, params = to_jax(program)
    ids = np.array([[2, 9, 8, 3]])
    short = jax.jit(function)(params, ids)["logits"]
    long = function(params, ids, np.ones_like(ids), token_type_ids=np.zeros_like(ids))["logits"]
    assert np.abs(short - long).max() <= 1e-6
    for named, message in (({"ids": ids}, "no input"), ({"input_ids": ids}, "twice"), ({}, "missing")):
        with pytest.raises(InputError, match=message):
            function(params, *([ids] if named else []), **named)
    long = np.ones((1, program.longest + 1), np.int64)
    with pytest.raises(InputError, match="are more than the"):
        function(params, long)
    module = to_tensorflow(program)
    with tf.GradientTape() as tape:
        answer = module.serving(ids, np.ones_like(ids), np.zeros_like(ids))["logits"]
        loss = tf.reduce_sum(answer[:, 0])
    assert np.abs(answer - np.asarray(short)).max() <= TOLERANCE
    slopes = tape.gradient(loss, module.params)
    with pytest.raises(tf.errors.InvalidArgumentError, match="are more than the"):
        module.serving(long, long, long)
    others = jax.jit(jax.grad(lambda params: function(params, ids)["logits"][:, 0].sum()))(params)
    model = tg.load_model(tuned)
    model(torch.from_numpy(ids)).logits[:, 0].sum().backward()
    for name, value in model.named_parameters():
        assert value.grad is not None
        for slope in (tf.convert_to_tensor(slopes[name]), others[name]):
            assert np.abs(slope - value.grad.numpy()).max() <= TOLERANCE, name


def test_what_cannot_be_is_one_line(
    tuned: Path, program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, message in (({"to": "jax", "path": tmp_path / "x.onnx"}, "is a folder"), ({"to": "onnx"}, "path")):
        with pytest.raises(InputError, match=message):
            export(tuned, **options)
    strange = Program(**{**vars(program), "steps": (Step("x", "aten.erfinv", (), {}, None), *program.steps)})
    for build in (to_jax, to_tensorflow):
        with pytest.raises(ConfigError, match=r"aten\.erfinv"):
            build(strange)
    for to, package in (("jax", "jax"), ("tf", "tensorflow")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(SystemExit) as left:
            main(["export", "no/such-model", str(tmp_path / "out"), "--to", to])
        assert left.value.code == 2
        said = capsys.readouterr().err.strip()
        assert f"tsumugu[{to}]" in said
        assert "Traceback" not in said
    assert not list(tmp_path.iterdir())
