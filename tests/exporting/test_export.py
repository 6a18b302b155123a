"""Exported graphs against the models they were made from, in other runtimes, at shapes they were not traced with."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
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

import tsumugu as tg
from tsumugu.cli import main
from tsumugu.core.errors import InputError, UnknownNameError
from tsumugu.core.registry import FAMILIES
from tsumugu.exporting.jax import to_jax
from tsumugu.exporting.program import take_apart
from tsumugu.exporting.tensorflow import to_tensorflow
from tsumugu.exporting.trace import trace
from tsumugu.exporting.write import export
from tsumugu.models.base import Model

SIZES = {"vocab_size": 99, "hidden_size": 32, "num_heads": 4, "intermediate_size": 48, "max_positions": 64}
SIZES |= {"num_kv_heads": 2, "head_dim": 8, "num_layers": 1, "num_decoder_layers": 1}
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are slower on many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(name: str, head: str) -> Model:
    family = FAMILIES[name]
    known = {each.name for each in dataclasses.fields(family.config_class)}
    sizes = SIZES | ({"num_layers": 2} if name in ("gpt3", "gemma3") else {})
    config = family.config_class.from_dict({key: value for key, value in sizes.items() if key in known})
    model = family.build(config, head).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in model.parameters():
            each.copy_(0.2 * torch.randn(each.shape, generator=generator))
    return model


def feeds(model: Model) -> Iterator[dict[str, torch.Tensor]]:
    """Inputs of one token, and of several rows, filled up at the right and at the left, and one row all padding."""
    generator = torch.Generator().manual_seed(1)
    for rows, time in ((1, 1), (3, 11), (2, 7)):
        ids = torch.randint(5, 90, (rows, time), generator=generator)
        real = torch.ones_like(ids)
        real[rows // 2, slice(0, 3) if time == 7 else slice(1 + time // 2, None)] = 0
        real[2:] = 0
        given = {"input_ids": ids, "attention_mask": real}
        if getattr(model.config, "num_segments", 1) > 1:
            given["token_type_ids"] = torch.randint(0, 2, ids.shape, generator=generator)
        if model.head_name in ("seq2seq-lm",) or (model.family.name == "t5" and model.head_name == "base"):
            given["decoder_input_ids"] = torch.randint(5, 90, (rows, 1 + time // 3), generator=generator)
        yield given


def check(model: Model, run: Callable[[dict[str, torch.Tensor]], list[Any]]) -> None:
    """Equal outputs, also at padding, where they mean nothing."""
    for given in feeds(model):
        with torch.no_grad():
            wanted = model(**given).to_tuple()
        found = run(given)
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert np.abs(np.asarray(one) - other.numpy()).max() <= TOLERANCE


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
    with torch.no_grad():
        check(model, lambda given: list(graph(*given.values())))
    program = take_apart(traced)
    function, params = to_jax(program)
    jitted = jax.jit(function)

    def in_jax(given: dict[str, torch.Tensor]) -> list[Any]:
        found = jitted(params, **{key: value.numpy() for key, value in given.items()})
        return [found[key] for key in function.outputs]

    check(model, in_jax)
    serving = to_tensorflow(program).serving

    def in_tensorflow(given: dict[str, torch.Tensor]) -> list[Any]:
        found = serving(*(value.numpy() for value in given.values()))
        return [found[key] for key in program.outputs]

    check(model, in_tensorflow)


@pytest.mark.parametrize(("name", "head"), [("bert", "sequence-classification"), ("llama", "causal-lm")])
def test_gradients_in_jax(name: str, head: str, tmp_path: Path) -> None:
    model = small(name, head)
    given = list(feeds(model))[-1]
    logits = model(**given).logits
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits * weights).sum().backward()
    arrays = {key: jnp.asarray(value.numpy(), "int32") for key, value in given.items()}

    def loss(params: dict[str, Any]) -> Any:
        return (read.call(params, **arrays)["logits"] * weights.numpy()).sum()

    folder = export(model, tmp_path / "out", "jax")
    read = jax.export.deserialize((folder / "model.jax").read_bytes())
    found = jax.jit(jax.grad(loss))(safetensors.flax.load_file(folder / "params.safetensors"))
    wanted = {key: value.grad for key, value in model.named_parameters()}
    assert set(found) == set(wanted)
    for key, value in wanted.items():
        assert value is not None
        assert np.abs(np.asarray(found[key]) - value.numpy()).max() <= TOLERANCE * max(1, value.abs().max())


@pytest.mark.parametrize(("name", "head"), ONNX)
def test_onnx(name: str, head: str, tmp_path: Path) -> None:
    model = small(name, head)
    path = export(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path)
    outputs = [each.name for each in session.get_outputs()]
    assert outputs == model(**next(feeds(model))).keys()
    shapes = {each.name: each.shape for each in session.get_inputs()}
    assert shapes["input_ids"] == ["batch", "time"]
    check(model, lambda given: session.run(None, {key: given[key].numpy() for key in shapes}))


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
    assert export(encoder_folder, folder, "torch-export") == folder  # again, beside what is there
    assert (folder / "model.pt2").is_file()
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]


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


def test_what_cannot_be_is_said(encoder_folder: Path, decoder_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'onnx'"):
        export(encoder_folder, tmp_path / "x", "onx")
    with pytest.raises(InputError, match="cache"):
        export(encoder_folder, tmp_path / "x", cache=True)
    with pytest.raises(InputError, match=r"ends in \.onnx"):
        export(encoder_folder, tmp_path / "x.pt2")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        export(decoder_folder, tmp_path / "file", "torch-export")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_the_command_line(encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["export", str(encoder_folder), str(tmp_path / "m.pt2"), "--to", "torch-export", "--task", "base"])
    assert left.value.code == 0
    assert str(tmp_path / "m.pt2") in capsys.readouterr().out


def test_a_graph_needs_no_tsumugu(encoder_folder: Path, tmp_path: Path) -> None:
    path = export(encoder_folder, tmp_path / "m.pt2", "torch-export")
    code = "import sys, torch; sys.modules['tsumugu'] = None; m = torch.export.load(sys.argv[1]).module(); "
    code += "i = torch.ones(1, 3, dtype=torch.int64); print(m(i, i, i)[0].shape)"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert "torch.Size([1, 3, 500])" in done.stdout, done.stderr
