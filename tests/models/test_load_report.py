"""What does not fit is told in full and refused; what belongs to another head is no fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models import references
from tests.models.conftest import Shelf

import tsumugu as tg
from tsumugu.core.errors import CheckpointError, ConfigError, TsumuguError


@pytest.fixture
def changed(shelf: Shelf, tmp_path: Path) -> Any:
    """A copy of a case's folder whose tensors or config were changed."""

    def change(case: str, head: str, tensors: Any = None, config: Any = None) -> Path:
        _, folder = shelf(case, head)
        content = load_file(folder / "model.safetensors")
        values = json.loads((folder / "config.json").read_text())
        for change, on in ((tensors, content), (config, values)):
            if change is not None:
                change(on)
        save_file({name: each.contiguous() for name, each in content.items()}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(values))
        return tmp_path

    return change


def test_missing_unused_and_misshapen_are_three_lists(changed: Any) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]
        del tensors["model.norm.weight"]
        tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2, 2)
        tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(4, 5)

    folder = changed("llama plain", "causal-lm", damage)
    with pytest.raises(CheckpointError) as caught:
        tg.load_model(folder)
    message = str(caught.value)
    assert "2 missing" in message
    assert "1 unused: model.layers.7.mlp.up_proj.weight" in message
    assert "1 of the wrong shape: decoder.layers.0.attention.query.weight is 4×5, not 32×32" in message
    assert "strict=False" in message
    model = tg.load_model(folder, strict=False)
    report = model.load_report
    assert report is not None
    assert set(report.missing) == {"decoder.layers.1.feed_forward.up.weight", "decoder.norm.weight"}
    assert report.unused == ("model.layers.7.mlp.up_proj.weight",)
    assert report.mismatched == (("decoder.layers.0.attention.query.weight", (4, 5), (32, 32)),)
    assert not report.fits


def test_not_strict_fills_what_is_missing(changed: Any, shelf: Shelf) -> None:
    whole = dict(tg.load_model(shelf("gpt2 plain", "causal-lm")[1]).named_parameters())

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("transformer.h.0.ln_1.weight", "transformer.h.0.ln_1.bias", "transformer.h.1.attn.c_attn.weight"):
            del tensors[name]

    model = tg.load_model(changed("gpt2 plain", "causal-lm", damage), strict=False)
    found = dict(model.named_parameters())
    parts = [f"decoder.layers.1.attention.{each}.weight" for each in ("query", "key", "value")]
    assert (found["decoder.layers.0.attention_norm.weight"] == 1).all()
    assert (found["decoder.layers.0.attention_norm.bias"] == 0).all()
    for name in parts:
        assert 0.01 < float(found[name].detach().std()) < 0.03
    fresh = {"decoder.layers.0.attention_norm.weight", "decoder.layers.0.attention_norm.bias", *parts}
    assert model.load_report is not None
    assert set(model.load_report.missing) == fresh
    assert all(torch.equal(each, whole[name]) for name, each in found.items() if name not in fresh)
    with torch.no_grad():
        assert model(torch.tensor([[5, 6]])).logits.isfinite().all()


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_fused_tensor_of_the_wrong_shape(changed: Any, part: str) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        name = f"transformer.h.0.attn.c_attn.{part}"
        tensors[name] = tensors[name][..., :-1]

    with pytest.raises(CheckpointError, match=r"3 of the wrong shape: decoder\.layers\.0\.attention\.query"):
        tg.load_model(changed("gpt2 plain", "causal-lm", damage))


@pytest.mark.parametrize(("case", "head"), [("gpt2 plain", "causal-lm"), ("llama plain", "causal-lm")])
def test_a_checkpoint_of_another_size(case: str, head: str, changed: Any) -> None:
    key = "n_embd" if case.startswith("gpt2") else "hidden_size"
    with pytest.raises(CheckpointError, match="of the wrong shape"):
        tg.load_model(changed(case, head, config=lambda config: config.update({key: 64})))


def test_a_layer_too_few_and_too_many(changed: Any) -> None:
    with pytest.raises(CheckpointError, match="9 unused"):
        tg.load_model(changed("llama plain", "causal-lm", config=lambda each: each.update(num_hidden_layers=1)))
    with pytest.raises(CheckpointError, match="9 missing"):
        tg.load_model(changed("llama plain", "causal-lm", config=lambda each: each.update(num_hidden_layers=3)))


@pytest.mark.parametrize(
    ("case", "head", "task", "unneeded"),
    [
        ("bert plain", "pretraining", "base", 7),
        ("bert plain", "pretraining", "feature-extraction", 7),
        ("bert plain", "pretraining", "masked-lm", 4),
        ("bert plain", "sequence-classification", "base", 2),
        ("gpt2 untied", "causal-lm", "base", 1),
        ("llama plain", "causal-lm", "base", 1),
        ("mistral window", "sequence-classification", "base", 1),
        ("gemma3_text plain", "sequence-classification", "base", 1),
    ],
)
def test_tensors_of_other_heads_are_no_fault(case: str, head: str, task: str, unneeded: int, shelf: Shelf) -> None:
    theirs, folder = shelf(case, head)
    model = tg.load_model(folder, task=task)
    assert model.load_report is not None
    assert model.load_report.fits
    assert len(model.load_report.other_heads) == unneeded
    trunk = theirs.base_model
    with torch.no_grad():
        given = references.inputs(theirs.config)
        found = model(**given, output_hidden_states=True).hidden_states[-1]
        assert float((found - trunk(**given).last_hidden_state).abs().max()) <= 1e-5


@pytest.mark.parametrize(
    ("case", "task"), [("bert plain", "token-classification"), ("gpt2 plain", "sequence-classification")]
)
def test_a_head_that_is_not_there_is_missing(case: str, task: str, shelf: Shelf) -> None:
    _, folder = shelf(case, "masked-lm" if case.startswith("bert") else "causal-lm")
    with pytest.raises(CheckpointError, match=r"missing: head\.classifier\.weight"):
        tg.load_model(folder, task=task)
    model = tg.load_model(folder, task=task, strict=False)
    assert model.head_name == task


@pytest.mark.parametrize(("case", "head"), [("bert plain", "base"), ("gpt2 plain", "base"), ("llama plain", "base")])
@pytest.mark.parametrize("direction", ["with the prefix", "without"])
def test_trunks_load_with_and_without_their_prefix(
    case: str, head: str, direction: str, changed: Any, shelf: Shelf
) -> None:
    prefix = {"bert": "bert.", "gpt2": "transformer.", "llama": "model."}[case.split()[0]]

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        renamed = {prefix + name.removeprefix(prefix): each for name, each in tensors.items()}
        if direction == "without":
            renamed = {name.removeprefix(prefix): each for name, each in tensors.items()}
        tensors.clear()
        tensors.update(renamed)

    found = tg.load_model(changed(case, head, rename))
    wanted = dict(tg.load_model(shelf(case, head)[1]).named_parameters())
    assert all(torch.equal(each, wanted[name]) for name, each in found.named_parameters())


def test_older_names_and_tensors_without_information(changed: Any) -> None:
    """LayerNorm's gamma and beta, stored position ids, causal masks and rotary frequencies."""

    def age(tensors: dict[str, torch.Tensor]) -> None:
        for name in [each for each in tensors if "LayerNorm" in each]:
            older = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[older] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = torch.arange(24)[None]

    model = tg.load_model(changed("bert plain", "masked-lm", age))
    assert model.load_report is not None
    assert model.load_report.fits
    assert model.load_report.other_heads == ()


def test_masks_and_frequencies_that_were_stored(changed: Any) -> None:
    def masks(tensors: dict[str, torch.Tensor]) -> None:
        for layer in range(2):
            tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 24, 24).tril()
            tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)

    assert tg.load_model(changed("gpt2 plain", "causal-lm", masks)).load_report.fits  # type: ignore[union-attr]

    def frequencies(tensors: dict[str, torch.Tensor]) -> None:
        for layer in range(2):
            tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    assert tg.load_model(changed("llama plain", "causal-lm", frequencies)).load_report.fits  # type: ignore[union-attr]


def test_a_bias_of_the_masked_head_under_either_name(changed: Any, shelf: Shelf) -> None:
    """Untied, the decoder's own bias counts; old files have only the other name."""
    wanted = tg.load_model(shelf("bert untied", "masked-lm")[1]).get_parameter("head.decoder.bias")

    def only_own(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["cls.predictions.bias"]

    def only_other(tensors: dict[str, torch.Tensor]) -> None:
        tensors["cls.predictions.bias"] = tensors.pop("cls.predictions.decoder.bias")

    for rename in (only_own, only_other):
        found = tg.load_model(changed("bert untied", "masked-lm", rename)).get_parameter("head.decoder.bias")
        assert torch.equal(found, wanted)


CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    ("llama plain", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rotary scaling 'yarn' is not known"),
    ("llama plain", {"rope_parameters": {"rope_type": "linear"}}, "linear scaling lacks 'factor'"),
    ("llama plain", {"rope_scaling": "linear"}, "expected an object"),
    ("llama plain", {"num_key_value_heads": 3}, "3 do not divide 4 heads"),
    ("llama plain", {"num_attention_heads": 0}, "too small"),
    ("llama plain", {"hidden_act": "sillu"}, "did you mean 'silu'"),
    ("llama plain", {"head_dim": 7}, "7 is odd"),
    ("llama plain", {"hidden_size": "wide"}, "expected int"),
    ("llama plain", {"architectures": ["LlamaForQuestionAnswering"]}, "choose with task="),
    ("llama plain", {"model_type": "lama"}, "did you mean 'llama'"),
    ("llama plain", {"model_type": None}, "there is no model_type"),
    ("gemma3_text plain", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is not known"),
    ("gemma3_text plain", {"use_bidirectional_attention": True}, "use_bidirectional_attention is not known"),
    ("gemma3_text plain", {"layer_types": ["full_attention"] * 2}, "2 kinds for 3 layers"),
    ("gemma3_text plain", {"layer_types": ["full_attention", "chunked", "chunked"]}, "for each layer"),
    ("gemma3_text plain", {"layer_types": None, "sliding_window_pattern": 0}, "expected a number of layers"),
    ("gemma3_text plain", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "'yarn' is not known"),
    ("gemma3_text plain", {"head_dim": 7}, "7 is odd"),
    ("bert plain", {"position_embedding_type": "relative_key"}, "only absolute positions"),
    ("bert plain", {"is_decoder": True}, "decoder"),
    ("bert plain", {"id2label": {"0": "a", "2": "b"}}, "without a gap"),
    ("bert plain", {"id2label": {"first": "a"}}, "ids must be numbers"),
    ("bert plain", {"id2label": None, "num_labels": "many"}, "expected a number of labels"),
    ("bert plain", {"num_attention_heads": 5}, "5 heads do not divide a width of 32"),
    ("gpt2 plain", {"add_cross_attention": True}, "cross-attention"),
    ("gpt2 plain", {"n_layer": -1}, "too small"),
]


@pytest.mark.parametrize(("case", "values", "message"), CONFIGS, ids=str)
def test_configs_that_are_not_known(case: str, values: dict[str, Any], message: str, changed: Any) -> None:
    head = references.RICHEST[case.split()[0]]
    with pytest.raises(TsumuguError, match=message):
        tg.load_model(changed(case, head, config=lambda each: each.update(values)))


def test_unknown_dtype_and_task(shelf: Shelf) -> None:
    _, folder = shelf("llama plain", "causal-lm")
    with pytest.raises(ConfigError, match="did you mean 'float16'"):
        tg.load_model(folder, dtype="flaot16")
    with pytest.raises(ConfigError, match="no head 'fill-mask'"):
        tg.load_model(folder, task="fill-mask")
