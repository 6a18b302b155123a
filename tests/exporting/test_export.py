"""Exported graphs against the models they were made from, in other runtimes, at shapes they were not traced with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import safetensors.flax
import torch
from tests.exporting.sweep import TOLERANCE, difference, feeds, in_jax, in_tensorflow, small

import tsumugu as tg
from tsumugu.cli import main
from tsumugu.core.errors import InputError
from tsumugu.core.registry import FAMILIES
from tsumugu.exporting.program import take_apart
from tsumugu.exporting.trace import trace
from tsumugu.exporting.write import export

ONNX = [(name, FAMILIES[name].heads[0]) for name in ("bert", "electra", "roberta", "gpt2", "llama", "gemma3", "t5")]
ONNX += [("bert", "sequence-classification")]
ALL = [(name, FAMILIES[name].heads[0]) for name in FAMILIES if name not in dict(ONNX)]
ALL += [("bert", "question-answering"), ("llama", "sequence-classification"), ("gemma3", "base"), ("t5", "base")]
ALL += [("roberta", "token-classification"), ("gpt2", "base"), ("electra", "base")]


@pytest.mark.parametrize(("name", "head"), ALL)
def test_torch_jax_and_tensorflow(name: str, head: str) -> None:
    model = small(name, head)
    traced = trace(model)
    graph = traced.program.module()
    assert difference(model, torch.no_grad()(lambda given: list(graph(*given.values())))) <= TOLERANCE
    program = take_apart(traced)
    for opened in (in_jax, in_tensorflow):
        assert difference(model, opened(program)) <= TOLERANCE, opened


def test_gradients_in_jax_from_files(tmp_path: Path) -> None:
    model = small("llama", "causal-lm")
    given = list(feeds(model))[-1]
    logits = model(**given).logits
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits * weights).sum().backward()
    arrays = {key: jnp.asarray(value.numpy(), "int32") for key, value in given.items()}

    def loss(params: dict[str, Any]) -> Any:
        return (read.call(params, **arrays)["logits"] * weights.numpy()).sum()

    folder = export(model, tmp_path / "out", "jax")
    read = jax.export.deserialize((folder / "model.jax").read_bytes())
    params = safetensors.flax.load_file(folder / "params.safetensors")
    found = jax.jit(jax.grad(loss))(params)
    wanted = {key: value.grad for key, value in model.named_parameters()}
    assert set(found) == set(wanted)
    for key, value in wanted.items():
        assert value is not None
        assert np.abs(np.asarray(found[key]) - value.numpy()).max() <= TOLERANCE * max(1, value.abs().max())
    long = jnp.ones((1, 65), "int32")
    with pytest.raises(ValueError, match="shapes"):
        read.call(dict(params), input_ids=long, attention_mask=long)


@pytest.mark.parametrize(("name", "head"), ONNX)
def test_onnx(name: str, head: str, tmp_path: Path) -> None:
    model = small(name, head)
    path = export(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path)
    outputs = [each.name for each in session.get_outputs()]
    assert outputs == model(**next(feeds(model))).keys()
    shapes = {each.name: each.shape for each in session.get_inputs()}
    assert shapes["input_ids"] == ["batch", "time"]
    assert difference(model, lambda given: session.run(None, {key: given[key].numpy() for key in shapes})) <= TOLERANCE


def test_a_decoder_writes_token_by_token(decoder_folder: Path, tmp_path: Path) -> None:
    folder = export(decoder_folder, tmp_path / "out", cache=True)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    model, tokenizer = tg.load_model(decoder_folder), tg.load_tokenizer(folder)
    ids = np.array([tokenizer.encode("the value of the")])
    wanted = tg.generate(model, ids, max_new_tokens=12, do_sample=False)
    names = [each.name for each in session.get_inputs()][1:]
    past = {name: np.zeros((1, 2, 0, 12), np.float32) for name in names}
    written, new = ids, ids
    for _ in range(wanted.shape[1] - ids.shape[1]):
        logits, *present = session.run(None, {"input_ids": new, **past})
        new = logits[:, -1].argmax(-1)[:, None]
        past = dict(zip(names, present, strict=True))
        written = np.concatenate([written, new], axis=1)
    assert written.tolist() == wanted.tolist()
    assert past[names[0]].shape[2] == written.shape[1] - 1


def test_a_folder_answers_texts(encoder_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert export(encoder_folder, folder) == folder
    assert {each.name for each in folder.iterdir()} >= {"model.onnx", "config.json", "tokenizer.json"}
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    texts = ["the value of an expression", "a class"]
    given = tg.load_tokenizer(folder)(texts, padding=True, return_tensors="np")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (found,) = session.run(None, dict(given))
    with torch.no_grad():
        wanted = tg.load_model(encoder_folder)(**given).logits.numpy()
    assert np.abs(found - wanted).max() <= TOLERANCE
    assert b"site-packages" not in (folder / "model.onnx").read_bytes()
    assert export(encoder_folder, folder, "torch-export", force=True) == folder  # beside what is there
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]
    # Without tsumugu, too.
    code = "import sys, torch; sys.modules['tsumugu'] = None; m = torch.export.load(sys.argv[1]).module(); "
    code += "i = torch.ones(1, 3, dtype=torch.int64); print(m(i, i, i)[0].shape)"
    command = [sys.executable, "-c", code, str(folder / "model.pt2")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "torch.Size([1, 3, 500])" in done.stdout, done.stderr


@pytest.mark.weights
def test_minilm_gives_the_same_vectors(minilm_path: Path, tmp_path: Path) -> None:
    import pydoc_data.topics

    texts = [text[:300] for text in list(pydoc_data.topics.topics.values())[:20]]
    folder = export(minilm_path, tmp_path / "minilm")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    model, tokenizer = tg.load_model(minilm_path), tg.load_tokenizer(folder)
    given = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
    with torch.no_grad():
        wanted = model(**given).last_hidden_state.numpy()
    found = session.run(["last_hidden_state"], dict(given))[0]
    assert np.abs(found - wanted).max() <= TOLERANCE


def test_what_cannot_be_is_said(encoder_folder: Path) -> None:
    with pytest.raises(InputError, match="only decoders"):
        export(encoder_folder, "x", cache=True)
    with pytest.raises(InputError, match="load it for torch"):
        export(object(), "x")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("x", "--to onx", "did you mean 'onnx'"),
        ("x.pt2", "", "ends in .onnx, not .pt2"),
        ("x", "--to jax --cache", "has no cache"),
        ("file", "--to torch-export", "is a file; name a folder"),
        ("folder.onnx", "", "is a folder; name a file"),
        ("there.onnx", "", "the file is there already; choose another, or pass --force"),
        ("full", "--to tf", "the folder is there already; choose another, or pass --force"),
        ("file/x", "", "is a file; name another folder"),
        ("x", "", "no/such"),
    ],
)
def test_a_wrong_call_is_one_line_before_a_model_is_looked_for(
    path: str, options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for each in ("file", "there.onnx", "full/other.txt"):
        (tmp_path / each).parent.mkdir(exist_ok=True)
        (tmp_path / each).write_text("")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(SystemExit) as left:
        main(["export", str(tmp_path / "no/such"), str(tmp_path / path), *options.split()])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert len(list(tmp_path.iterdir())) == 4


def test_the_command_line(encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["export", str(encoder_folder), str(tmp_path / "m.pt2"), "--to", "torch-export", "--task", "base"])
    assert left.value.code == 0
    assert str(tmp_path / "m.pt2") in capsys.readouterr().out
