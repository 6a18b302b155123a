"""Megatron: published shapes, its names and orders of rows both ways, GPT-2's very numbers from the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.blocks import loops
from tests.models import loops as networks
from tests.models import references

import tsumugu as tg
from tsumugu.checkpoints.keymap import MegatronHeads
from tsumugu.core.errors import CheckpointError, ConfigError, UnknownNameError
from tsumugu.core.registry import FAMILIES
from tsumugu.models import gpt2
from tsumugu.models.megatron import MegatronConfig, padded_vocab_size

TABLE = {
    # name: layers, width, heads, context, and the number of parameters as it was published
    "345m": (24, 1024, 16, 1024, 355e6),
    "1.2b": (40, 1536, 16, 1024, 1.2e9),
    "2.5b": (54, 1920, 20, 1024, 2.5e9),
    "4.2b": (64, 2304, 24, 1024, 4.2e9),
    "8.3b": (72, 3072, 24, 1024, 8.3e9),
    "1.7b": (24, 2304, 24, 2048, 1.7e9),
    "3.6b": (30, 3072, 32, 2048, 3.6e9),
    "7.5b": (36, 4096, 32, 2048, 7.5e9),
    "18.4b": (40, 6144, 48, 2048, 18.4e9),
    "39.1b": (48, 8192, 64, 2048, 39.1e9),
    "76.1b": (60, 10240, 80, 2048, 76.1e9),
    "145.6b": (80, 12288, 96, 2048, 145.6e9),
    "310.1b": (96, 16384, 128, 2048, 310.1e9),
    "530b": (105, 20480, 128, 2048, 529.6e9),
    "1008b": (128, 25600, 160, 2048, 1008.0e9),
}
TINY = {"vocab_size": 64, "hidden_size": 12, "num_layers": 2, "num_heads": 3, "max_positions": 24}
VERSIONS = (0, 1, 2, 3)


def built(head: str = "causal-lm", **values: Any) -> Any:
    model = FAMILIES["megatron"].build(MegatronConfig(**{**TINY, **values}), head).eval()
    references.spread(model, seed=3)
    return model


@pytest.mark.parametrize("name", TABLE)
def test_published_shapes(name: str) -> None:
    layers, width, heads, context, published = TABLE[name]
    config = MegatronConfig.preset(name)
    assert config.num_heads == heads
    with torch.device("meta"):
        model = FAMILIES["megatron"].build(config, "causal-lm")
    assert {each.device.type for each in model.parameters()} == {"meta"}
    theirs = model.keymap.to_theirs(dict(model.named_parameters()))
    shapes = {key.removeprefix("language_model."): tuple(each.shape) for key, each in theirs.items()}
    assert shapes.pop("embedding.word_embeddings.weight") == (51200, width)
    assert shapes.pop("embedding.position_embeddings.weight") == (context, width)
    per_layer = {
        "input_layernorm.weight": (width,),
        "input_layernorm.bias": (width,),
        "self_attention.query_key_value.weight": (3 * width, width),
        "self_attention.query_key_value.bias": (3 * width,),
        "self_attention.dense.weight": (width, width),
        "self_attention.dense.bias": (width,),
        "post_attention_layernorm.weight": (width,),
        "post_attention_layernorm.bias": (width,),
        "mlp.dense_h_to_4h.weight": (4 * width, width),
        "mlp.dense_h_to_4h.bias": (4 * width,),
        "mlp.dense_4h_to_h.weight": (width, 4 * width),
        "mlp.dense_4h_to_h.bias": (width,),
    }
    assert shapes.pop("encoder.final_layernorm.weight") == shapes.pop("encoder.final_layernorm.bias") == (width,)
    assert shapes == {f"encoder.layers.{i}.{key}": shape for i in range(layers) for key, shape in per_layer.items()}
    # Narayanan et al. 2021, equation 2, and what it leaves out: the last norm.
    formula = 12 * layers * width**2 + 13 * layers * width + (51200 + context) * width + 2 * width
    assert model.num_parameters() == formula
    assert formula == pytest.approx(published, rel=0.03 if published < 2e9 else 0.015 if published < 1e10 else 0.003)


def test_names_of_presets() -> None:
    assert MegatronConfig.preset("Megatron-530B") == MegatronConfig.preset("529.6b")
    assert MegatronConfig.preset("345m") == MegatronConfig()
    with pytest.raises(UnknownNameError, match="did you mean '530b'"):
        MegatronConfig.preset("535b")


def test_padding_of_the_vocabulary() -> None:
    assert padded_vocab_size(50257) == 50304
    assert padded_vocab_size(50257, tensor_parallel=8) == 51200
    assert padded_vocab_size(51200, tensor_parallel=8) == 51200
    assert padded_vocab_size(1, tensor_parallel=2, divisible_by=64) == 128


def row(version: int, part: int, head: int, dimension: int, *, heads: int, head_dim: int) -> int:
    """Where Megatron keeps a row of query (0), key (1) or value (2)."""
    if version == 0:
        return part * heads * head_dim + head * head_dim + dimension
    if version == 1:
        return head * head_dim * 3 + dimension * 3 + part
    return head * 3 * head_dim + part * head_dim + dimension


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 4), (3, 4), (4, 1), (5, 2)])
@pytest.mark.parametrize("width", [None, 7])
def test_rows_one_by_one(version: int, heads: int, head_dim: int, width: int | None) -> None:
    rows = 3 * heads * head_dim
    fused = torch.randn(rows, *([] if width is None else [width]))
    operation = MegatronHeads(heads, version)
    parts = operation.forward([fused])
    assert len(parts) == 3
    for part, tensor in enumerate(parts):
        assert tensor.shape == (rows // 3, *fused.shape[1:])
        for head in range(heads):
            for dimension in range(head_dim):
                where = row(version, part, head, dimension, heads=heads, head_dim=head_dim)
                assert torch.equal(tensor[head * head_dim + dimension], fused[where])
    (again,) = operation.backward(parts)
    assert torch.equal(again, fused)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
def test_round_trip_both_ways(version: int, tied: bool) -> None:
    model = built(checkpoint_version=version, tie_embeddings=tied)
    ours = {name: each.detach() for name, each in model.named_parameters()}
    theirs = model.keymap.to_theirs(ours)
    again = model.keymap.to_ours(theirs)
    assert again.keys() == ours.keys()
    assert all(torch.equal(each, ours[name]) for name, each in again.items())
    back = model.keymap.to_theirs(again)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(each, theirs[name]) for name, each in back.items())
    stack, attention = ("encoder", "self_attention") if version == 3 else ("transformer", "attention")
    assert f"language_model.{stack}.layers.1.{attention}.query_key_value.weight" in theirs
    assert ("language_model.output_layer.weight" in theirs) is not tied


def nested(tensors: dict[str, torch.Tensor], version: float | None) -> dict[str, Any]:
    """A checkpoint as Megatron saves one: sections in sections, names of layers as they are."""
    language: dict[str, Any] = {"embedding": {}}
    for name, each in tensors.items():
        section, _, rest = name.removeprefix("language_model.").partition(".")
        if section == "embedding":
            kind, _, leaf = rest.partition(".")
            language["embedding"].setdefault(kind, {})[leaf] = each
        else:
            language.setdefault(section, {})[rest] = each
    stated = {} if version is None else {"checkpoint_version": version}
    optimizer = {"param_groups": [{"lr": 0.1}], "state": {"step": torch.tensor(3.0)}}
    return {"iteration": 7, **stated, "model": {"language_model": language}, "optimizer": optimizer}


@pytest.mark.parametrize("newer_names", [True, False])
@pytest.mark.parametrize("version", [None, 0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("legacy", [True, False])
def test_megatrons_own_files(version: float | None, newer_names: bool, legacy: bool, tmp_path: Path) -> None:
    """The version in the file counts, whatever config.json says of it, and either spelling is read."""
    model = built(checkpoint_version=int(version or 0))
    theirs = model.keymap.to_theirs({name: each.detach() for name, each in model.named_parameters()})
    old, new = ("transformer.", ".attention."), ("encoder.", ".self_attention.")
    before, after = (old, new) if newer_names else (new, old)
    for one, other in zip(before, after, strict=True):
        theirs = {name.replace(one, other): each for name, each in theirs.items()}
    path = tmp_path / "model_optim_rng.pt"
    torch.save(nested(theirs, version), path, _use_new_zipfile_serialization=not legacy)
    values = FAMILIES["megatron"].to_hub(model.config, "causal-lm")
    if version is None:
        del values["checkpoint_version"]
    else:
        values["checkpoint_version"] = 0
    (tmp_path / "config.json").write_text(json.dumps(values))
    again = tg.load_model(path)
    assert again.config == model.config
    wanted = dict(model.named_parameters())
    assert all(torch.equal(each, wanted[name]) for name, each in again.named_parameters())


@pytest.mark.parametrize("head", ["causal-lm", "base"])
@pytest.mark.parametrize("version", VERSIONS)
def test_saved_and_loaded(version: int, head: str, tmp_path: Path) -> None:
    model = built(head, checkpoint_version=version)
    tg.save_model(model, tmp_path)
    prefix = "language_model." if head == "causal-lm" else ""
    assert f"{prefix}embedding.word_embeddings.weight" in load_file(tmp_path / "model.safetensors")
    again = tg.load_model(tmp_path)
    assert (again.config, again.head_name, again.family.name) == (model.config, head, "megatron")
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_pipelines_copy_of_the_table_and_masks_that_were_stored(tmp_path: Path) -> None:
    model = built()
    theirs = model.keymap.to_theirs({name: each.detach() for name, each in model.named_parameters()})
    theirs["word_embeddings_for_head.weight"] = theirs["language_model.embedding.word_embeddings.weight"]
    theirs["language_model.encoder.layers.0.self_attention.masked_bias"] = torch.tensor(-1e4)
    torch.save({"model": theirs, "checkpoint_version": 3.0}, tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES["megatron"].to_hub(model.config, "causal-lm")))
    report = tg.load_model(tmp_path / "model.pt").load_report
    assert report is not None
    assert report.fits


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", ["gpt2 plain", "gpt2 inner width", "gpt2 gelu"])
def test_gpt2s_numbers_from_gpt2s_weights(case: str, version: int) -> None:
    """Through Megatron's names and rows and back again, the network is the reference library's GPT-2."""
    theirs = references.reference(case, "causal-lm")
    twin = gpt2.from_hub(json.loads(theirs.config.to_json_string()))
    tensors = gpt2.keymap(twin, "causal-lm").to_ours(theirs.state_dict())
    config = MegatronConfig(
        vocab_size=twin.vocab_size,
        hidden_size=twin.hidden_size,
        num_layers=twin.num_layers,
        num_heads=twin.num_heads,
        intermediate_size=twin.intermediate_size,
        max_positions=twin.max_positions,
        activation=twin.activation,
        checkpoint_version=version,
    )
    ours = FAMILIES["megatron"].build(config, "causal-lm").eval()
    written = ours.keymap.to_theirs(tensors)
    ours.load_state_dict(ours.keymap.to_ours(written), strict=False)
    ours.tie()
    plain = FAMILIES["gpt2"].build(twin, "causal-lm").eval()
    plain.load_state_dict(tensors, strict=False)
    plain.tie()
    given = references.inputs(theirs.config, padding="right")
    with torch.no_grad():
        found = ours(**given, output_hidden_states=True)
        wanted = theirs(**given, output_hidden_states=True)
        assert torch.equal(found.logits, plain(**given).logits)
    assert references.compare(found, wanted, given["attention_mask"]) <= 1e-5


def test_forward_as_loops_have_it() -> None:
    model = loops.randomised(built())
    ids = [[5, 6, 7, 8], [60, 61, 62, 63]]
    wanted = networks.gpt2(ids, loops.parameters(model), model.config, [None, None])
    with torch.no_grad():
        assert loops.difference(model(ids).logits, wanted) <= loops.TOLERANCE


def test_it_writes() -> None:
    model = built()
    (text,) = tg.generate(model, [[5, 6]], max_new_tokens=6, eos_token_id=None)
    ids = [5, 6]
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(model([ids]).logits[0, -1].argmax()))
    assert text == ids


def test_what_is_refused(tmp_path: Path) -> None:
    values = FAMILIES["megatron"].to_hub(MegatronConfig(**TINY), "causal-lm")
    for version in (4, 2.5, "3", True, None):
        with pytest.raises(ConfigError, match="no version of a Megatron checkpoint"):
            FAMILIES["megatron"].from_hub({**values, "checkpoint_version": "none" if version is None else version})
    (tmp_path / "config.json").write_text(json.dumps(values))
    torch.save({"model": {"language_model": {"embedding": {}}}}, tmp_path / "empty.pt")
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        tg.load_model(tmp_path / "empty.pt")
