"""GGUF both ways: what is written is read back bit by bit, and files that lie are told so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engines.conftest import Build

import tsumugu as tg
from tsumugu.blocks.positions import LinearScaling, Llama3Scaling
from tsumugu.checkpoints.keymap import InMemory
from tsumugu.core.errors import CheckpointError, TsumuguError
from tsumugu.models import gemma3
from tsumugu.models.llama import gguf_config, gguf_metadata
from tsumugu.text.tokenizer import Tokenizer

SHAPES: list[dict[str, Any]] = [
    {},
    {"num_kv_heads": 2},
    {"num_kv_heads": 1, "head_dim": 16},
    {"tie_embeddings": True},
    {"attention_bias": True, "feed_forward_bias": True, "num_kv_heads": 2},
    {"rope_theta": 500000.0, "norm_eps": 1e-5},
    {"rope_scaling": LinearScaling(factor=4.0)},
    {"rope_scaling": Llama3Scaling(factor=32.0), "rope_theta": 500000.0, "head_dim": 64},
]


@pytest.mark.parametrize("values", SHAPES, ids=str)
def test_there_and_back(values: dict[str, Any], build: Build, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = build("llama", eos_token_id=259, bos_token_id=259, **values)
    tg.save_model(model, tmp_path / "model.gguf", tokenizer=tokenizer)
    again = tg.load_model(tmp_path / "model.gguf")
    assert again.load_report is not None
    assert again.load_report.fits
    wanted, found = model.config.to_dict(), again.config.to_dict()
    for key in wanted.keys() - {"initializer_range", "labels", "pad_token_id", "norm_eps"}:
        assert found[key] == wanted[key], key
    assert found["norm_eps"] == pytest.approx(wanted["norm_eps"], rel=1e-6), "GGUF keeps it in float32"
    weights = dict(again.named_parameters())
    assert all(torch.equal(each, weights[name]) for name, each in model.named_parameters())
    ids = torch.tensor([[5, 9, 2, 77, 31]])
    with torch.no_grad():
        assert float((model(ids).logits - again(ids).logits).abs().max()) <= 1e-5
    assert again.end_tokens == (259,)
    text = tokenizer.encode("the hand, and then")
    assert tg.load_tokenizer(tmp_path / "model.gguf").encode("the hand, and then") == text


GEMMA: dict[str, Any] = {"head_dim": 16, "query_scale": 16.0, "num_layers": 7, "window": 4}
GEMMA_SHAPES: list[dict[str, Any]] = [
    {},
    {"num_kv_heads": 2},
    {"num_kv_heads": 4, "tie_embeddings": False},
    {"rope_scaling": LinearScaling(factor=8.0), "local_rope_theta": 500.0},
    {"logit_softcap": 2.0},
]


@pytest.mark.parametrize("values", GEMMA_SHAPES, ids=str)
def test_gemma_there_and_back(values: dict[str, Any], build: Build, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = build("gemma3", eos_token_id=259, bos_token_id=259, **GEMMA | values)
    with torch.no_grad():
        for name, each in model.named_parameters():
            # As norms are learnt: around 0, and what GGUF keeps, one more, gives back every bit.
            each.copy_((each - 1).bfloat16() if name.endswith("norm.weight") else each)
    tg.save_model(model, tmp_path / "model.gguf", tokenizer=tokenizer)
    again = tg.load_model(tmp_path / "model.gguf")
    assert again.load_report is not None
    assert again.load_report.fits
    wanted, found = model.config.to_dict(), again.config.to_dict()
    for key in wanted.keys() - {"initializer_range", "labels", "pad_token_id", "norm_eps"}:
        assert found[key] == wanted[key], key
    weights = dict(again.named_parameters())
    assert all(torch.equal(each, weights[name]) for name, each in model.named_parameters())
    ids = torch.tensor([[5, 9, 2, 77, 31, 8, 9, 10]])
    with torch.no_grad():
        assert float((model(ids).logits - again(ids).logits).abs().max()) <= 1e-5


def test_half_precision(build: Build, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = build("llama")
    tg.save_model(model, tmp_path / "model.gguf", tokenizer=tokenizer, storage="F16")
    again = dict(tg.load_model(tmp_path / "model.gguf").named_parameters())
    for name, each in model.named_parameters():
        wanted = each.half().float() if each.dim() == 2 else each
        assert torch.equal(again[name], wanted), name


def test_what_gguf_cannot_hold(build: Build, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no GGUF form"):
        tg.save_model(build("gpt2"), tmp_path / "model.gguf", tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match="no GGUF form"):
        tg.save_model(build("llama", "base"), tmp_path / "model.gguf", tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match="tokenizer"):
        tg.save_model(build("llama"), tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match="window"):
        tg.save_model(build("llama", window=4), tmp_path / "model.gguf", tokenizer=tokenizer)
    for values in ({"query_scale": 3.0}, {"full_layers": (True,) * 7}, {"attention_bias": True}):
        with pytest.raises(CheckpointError, match="no place in GGUF's gemma3 architecture"):
            tg.save_model(build("gemma3", **GEMMA | values), tmp_path / "model.gguf", tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())


def test_a_head_that_the_file_lacks_is_missing(build: Build, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tg.save_model(build("llama", tie_embeddings=True), tmp_path / "model.gguf", tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match=r"1 missing: head\.classifier\.weight"):
        tg.load_model(tmp_path / "model.gguf", task="sequence-classification")
    assert tg.load_model(tmp_path / "model.gguf", task="base").load_report.fits  # type: ignore[union-attr]


LIES: list[tuple[dict[str, Any], str]] = [
    ({"llama.attention.head_count": 0}, "too small"),
    ({"llama.attention.head_count": "four"}, "expected int"),
    ({"llama.attention.head_count_kv": 3}, "do not divide"),
    ({"llama.attention.key_length": 7}, "odd"),
    ({"llama.attention.key_length": -8}, "too small"),
    ({"llama.embedding_length": None}, "lacks llama.embedding_length"),
    ({"llama.block_count": -1}, "too small"),
    ({"llama.rope.freq_base": float("nan")}, "not a finite number"),
    ({"llama.rope.scaling.type": "yarn"}, "'yarn' is not known"),
    ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": "two"}, "expected float"),
    ({"llama.expert_count": 8}, "mixtures of experts"),
    ({"tokenizer.ggml.eos_token_id": "end"}, "expected int"),
]


@pytest.mark.parametrize(("lies", "message"), LIES, ids=str)
def test_metadata_that_lies(lies: dict[str, Any], message: str, build: Build) -> None:
    model = build("llama")
    metadata = {**gguf_metadata(model.config), **lies}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    with pytest.raises(TsumuguError, match=message):
        gguf_config(metadata, {"token_embd.weight": InMemory(torch.zeros(260, 32))})


GEMMA_LIES: list[tuple[dict[str, Any], str]] = [
    ({"gemma3.attention.head_count": "four"}, "expected int"),
    ({"gemma3.attention.key_length": None}, "lacks gemma3.attention.key_length"),
    ({"gemma3.attention.sliding_window": 0}, "too small"),
    ({"gemma3.attention.sliding_window_pattern": 0}, "expected a number"),
    ({"gemma3.rope.scaling.type": "yarn"}, "'yarn' is not known"),
    ({"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": "two"}, "expected float"),
]


@pytest.mark.parametrize(("lies", "message"), GEMMA_LIES, ids=str)
def test_gemma_metadata_that_lies(lies: dict[str, Any], message: str, build: Build) -> None:
    metadata = {**gemma3.gguf_metadata(build("gemma3", **GEMMA).config), **lies}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    with pytest.raises(TsumuguError, match=message):
        gemma3.gguf_config(metadata, {"token_embd.weight": InMemory(torch.zeros(260, 32))})
    with pytest.raises(CheckpointError, match="no tensor token_embd"):
        gemma3.gguf_config(metadata, {})


@pytest.mark.parametrize(
    "divisors", [torch.ones(3), torch.ones(16), torch.full((4,), float("nan")), torch.zeros(4)], ids=str
)
def test_rotary_divisors_that_lie(divisors: torch.Tensor, build: Build) -> None:
    tensors = {"token_embd.weight": InMemory(torch.zeros(260, 32)), "rope_freqs.weight": InMemory(divisors)}
    with pytest.raises(TsumuguError):
        gguf_config(gguf_metadata(build("llama").config), tensors)
