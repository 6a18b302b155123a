"""What is T5's own: the text that is written, its mask and labels, what is read once, tables that are one or two."""

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
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.core.registry import FAMILIES
from tsumugu.models.base import Output
from tsumugu.models.t5 import T5Config
from tsumugu.training.initialization import initialize

TOLERANCE = 1e-5
CASES = ("t5 plain", "t5 v1.1 untied", "umt5 three layers")


@torch.no_grad()
def worst(ours: Any, theirs: Any, **given: torch.Tensor) -> float:
    return references.compare(
        ours(**given, output_hidden_states=True), theirs(**given, output_hidden_states=True), given["attention_mask"]
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_padding_on_either_side_of_what_is_written(case: str, side: str, shelf: Shelf) -> None:
    """A query of padding on the left sees nothing; it is no one's business what it gives, but never NaN."""
    theirs, folder = shelf(case, "seq2seq-lm")
    ours = tg.load_model(folder)
    written = references.answers(theirs.config, "base", {})["decoder_input_ids"]
    where, lengths = torch.arange(references.STEPS)[None], torch.tensor([[8], [5], [2]])
    real = where < lengths if side == "right" else where >= references.STEPS - lengths
    given = references.inputs(theirs.config, padding="right")
    more = {"decoder_input_ids": written.masked_fill(~real, references.PAD), "decoder_attention_mask": real.long()}
    with torch.no_grad():
        found, wanted = ours(**given, **more).logits, theirs(**given, **more).logits
    assert found.isfinite().all()
    assert float((found - wanted)[real].abs().max()) <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_labels_beside_what_was_written(case: str, shelf: Shelf) -> None:
    theirs, folder = shelf(case, "seq2seq-lm")
    given = references.inputs(theirs.config, padding="left")
    given |= references.answers(theirs.config, "seq2seq-lm", given) | references.answers(theirs.config, "base", {})
    assert worst(tg.load_model(folder), theirs, **given) <= TOLERANCE


def test_labels_are_shifted_right(shelf: Shelf) -> None:
    ours = tg.load_model(shelf("t5 plain", "seq2seq-lm")[1])
    shifted = ours.shifted(torch.tensor([[5, -100, 7, 8], [-100, -100, 9, -100]]))
    assert shifted.tolist() == [[1, 5, references.PAD, 7], [1, references.PAD, references.PAD, 9]]


@pytest.mark.parametrize("case", CASES)
def test_lengths(case: str, shelf: Shelf) -> None:
    """From one token to distances far past the last bucket."""
    theirs, folder = shelf(case, "seq2seq-lm")
    ours = tg.load_model(folder)
    for time, steps in ((1, 1), (2, 70), (150, 3)):
        generator = torch.Generator().manual_seed(time)
        ids = torch.randint(4, 99, (2, time), generator=generator)
        written = torch.randint(4, 99, (2, steps), generator=generator)
        assert worst(ours, theirs, input_ids=ids, attention_mask=ids, decoder_input_ids=written) <= TOLERANCE


@pytest.mark.parametrize("form", ["output", "of the encoder alone", "states", "tuple", "numpy"])
def test_what_was_read_serves_again(form: str, shelf: Shelf) -> None:
    theirs, folder = shelf("t5 plain", "seq2seq-lm")
    ours = tg.load_model(folder)
    given = references.inputs(theirs.config, padding="right")
    written = references.answers(theirs.config, "base", {})
    with torch.no_grad():
        first = ours(**given, **written)
        states = first.encoder_last_hidden_state
        alone = tg.load_model(folder, task="encoder")(**given)
        assert torch.equal(alone.last_hidden_state, states)
        read = {
            "output": first,
            "of the encoder alone": alone,
            "states": states,
            "tuple": (states,),
            "numpy": states.numpy(),
        }[form]
        again = ours(attention_mask=given["attention_mask"], encoder_outputs=read, **written)
    assert isinstance(again, Output)
    assert torch.equal(again.logits, first.logits)


def test_what_is_refused(shelf: Shelf) -> None:
    ours = tg.load_model(shelf("t5 plain", "seq2seq-lm")[1])
    with pytest.raises(InputError, match="nothing to read"):
        ours(decoder_input_ids=[[1]])
    with pytest.raises(InputError, match=r"nothing to write.*decoder_input_ids or labels"):
        ours([[5, 6]])
    with pytest.raises(InputError, match="token id 99 is outside"):
        ours([[5]], decoder_input_ids=[[99]])
    with pytest.raises(InputError, match=r"expected \[batch, time, dim\]"):
        ours(encoder_outputs=torch.zeros(2, 3), decoder_input_ids=[[1]])


def changed(folder: Path, target: Path, tensors: Any, **config: Any) -> Path:
    """A copy of a checkpoint whose tensors and config.json were changed."""
    content = load_file(folder / "model.safetensors")
    tensors(content)
    save_file({name: each.clone() for name, each in content.items()}, target / "model.safetensors")
    values = json.loads((folder / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps({key: each for key, each in values.items() if each is not None}))
    return target


def test_all_names_of_one_table(shelf: Shelf, tmp_path: Path) -> None:
    """Older files hold it four times, and a bias of cross-attention that was never used."""
    _, folder = shelf("t5 plain", "seq2seq-lm")

    def older(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors["shared.weight"]
        tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(8, 4)

    found = tg.load_model(changed(folder, tmp_path, older))
    assert found.config.tie_embeddings
    wanted = dict(tg.load_model(folder).named_parameters())
    assert all(torch.equal(each, wanted[name]) for name, each in found.named_parameters())


def test_a_table_under_the_encoders_name_alone(shelf: Shelf, tmp_path: Path) -> None:
    _, folder = shelf("t5 plain", "seq2seq-lm")

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")

    found = tg.load_model(changed(folder, tmp_path, rename))
    assert torch.equal(found.embeddings.token.weight, tg.load_model(folder).embeddings.token.weight)


@pytest.mark.parametrize("config", [{"tie_word_embeddings": False, "scale_decoder_outputs": None}, {}], ids=str)
def test_version_1_1_by_its_own_config_and_by_a_newer_one(config: dict[str, Any], shelf: Shelf, tmp_path: Path) -> None:
    """Published files say that the tables are two; newer tools' copies say that they are one, and scale nothing."""
    theirs, folder = shelf("t5 v1.1 untied", "seq2seq-lm")
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    ours = tg.load_model(changed(folder, tmp_path, lambda tensors: None, **config))
    assert not ours.config.tie_embeddings
    assert not ours.config.scale_outputs
    given = references.inputs(theirs.config, padding="right")
    assert worst(ours, theirs, **given, **references.answers(theirs.config, "seq2seq-lm", given)) <= TOLERANCE


@pytest.mark.parametrize("task", ["base", "encoder"])
def test_parts_of_a_whole_checkpoint(task: str, shelf: Shelf) -> None:
    theirs, folder = shelf("t5 v1.1 untied", "seq2seq-lm")
    ours = tg.load_model(folder, task=task)
    assert ours.load_report.fits  # type: ignore[union-attr]
    given = references.inputs(theirs.config, padding="right")
    with torch.no_grad():
        wanted = theirs.encoder(**given).last_hidden_state
        more = {} if task == "encoder" else {"decoder_input_ids": [[1]] * references.BATCH}
        found = ours(**given, **more)
    states = found.last_hidden_state if task == "encoder" else found.encoder_last_hidden_state
    real = given["attention_mask"].bool()
    assert float((states - wanted)[real].abs().max()) <= TOLERANCE


def test_generation_settings_are_saved(shelf: Shelf, tmp_path: Path) -> None:
    theirs, folder = shelf("t5 plain", "seq2seq-lm")
    tg.save_model(tg.load_model(folder), tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved == {"eos_token_id": [2], "pad_token_id": references.PAD, "decoder_start_token_id": 1}
    again = type(theirs).from_pretrained(tmp_path)
    assert again.generation_config.decoder_start_token_id == 1


@pytest.mark.parametrize("head", ["seq2seq-lm", "encoder"])
@pytest.mark.parametrize("case", ["t5 plain", "t5 v1.1 untied"])
def test_fresh_weights_spread_as_the_reference_librarys(case: str, head: str) -> None:
    """Every matrix by what it reads, but for an output table; measured on matrices large enough to measure."""
    wide = {"d_model": 96, "d_kv": 24, "d_ff": 160, "vocab_size": 300, "relative_attention_num_buckets": 32}
    options = references.CASES[case].to_dict() | wide | {"relative_attention_max_distance": 128}
    config = type(references.CASES[case]).from_dict(options)
    torch.manual_seed(0)
    theirs = references.heads(case)[head](config)
    family = FAMILIES["t5"]
    ours = family.build(family.from_hub(json.loads(config.to_json_string())), head)
    initialize(ours, seed=0)
    wanted = ours.keymap.to_ours(theirs.state_dict())
    for name, each in ours.named_parameters():
        if name == "head.weight":  # there as wide as the embeddings, in the authors' code as a matrix that reads states
            assert float(each.detach().std()) == pytest.approx(96**-0.5, rel=0.05)
        elif each.dim() > 1:
            assert float(each.detach().std() / wanted[name].std()) == pytest.approx(1.0, rel=0.25), name
        else:
            assert torch.equal(each, wanted[name])


def test_gradients_reach_every_weight(shelf: Shelf) -> None:
    theirs, folder = shelf("umt5 three layers", "seq2seq-lm")
    ours = tg.load_model(folder)
    given = references.inputs(theirs.config, padding="right")
    given |= references.answers(theirs.config, "seq2seq-lm", given)
    ours(**given).loss.backward()
    theirs.zero_grad()
    theirs(**given).loss.backward()
    wanted = ours.keymap.to_ours({name: each.grad for name, each in theirs.named_parameters()})
    for name, each in ours.named_parameters():
        assert each.grad is not None
        assert float((each.grad - wanted[name]).abs().max()) <= TOLERANCE, name


@torch.no_grad()
def test_every_dropout_acts_while_training() -> None:
    """At 1.0 nothing but the residual path of nothing is left: whatever is read and written, logits are 0."""
    config = T5Config(vocab_size=50, hidden_size=16, num_layers=1, num_heads=2, head_dim=8, dropout=1.0)
    model = FAMILIES["t5"].build(config, "seq2seq-lm").train()
    assert float(model([[5, 6]], labels=[[7, 8]]).logits.abs().max()) == 0.0
    assert float(model.eval()([[5, 6]], labels=[[7, 8]]).logits.abs().max()) > 0.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"feed_forward_proj": "gated-swish-relu"}, "is not an activation, nor gated-"),
        ({"feed_forward_proj": "double-relu"}, "is not an activation, nor gated-"),
        ({"feed_forward_proj": "rellu"}, "did you mean 'relu'"),
        ({"num_heads": 0}, "too small"),
        ({"relative_attention_max_distance": 4, "relative_attention_num_buckets": 32}, "32 buckets reach 16"),
        ({"decoder_start_token_id": 40000}, "outside the vocabulary"),
    ],
    ids=str,
)
def test_configs_that_are_not_known(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FAMILIES["t5"].from_hub({"model_type": "t5", **values})


def test_a_gate_with_exact_gelu_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose gelu_new"):
        T5Config(activation="gelu", gated=True)
