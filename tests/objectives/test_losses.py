"""What objectives sum with real models: packed as alone, over a whole corpus, over what is asked for and no more."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.objectives.rows import LENGTH, epoch, random_texts

from tsumugu.core.registry import FAMILIES
from tsumugu.corpus.chance import generators
from tsumugu.corpus.rows import Piece
from tsumugu.objectives.base import IGNORE
from tsumugu.objectives.causal import CausalConfig, PrefixLMConfig
from tsumugu.objectives.fill_in_the_middle import FillInTheMiddleConfig
from tsumugu.objectives.masked import MaskedConfig

START, END = 0, 1
SIZES = {"vocab_size": 64, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24}


def model(family, head, **changes):
    """A small model in float64 with weights of some spread."""
    config = FAMILIES[family].config_class(**{**SIZES, "max_positions": 64, **changes})
    built = FAMILIES[family].build(config, head).double().eval()
    chance = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for each in built.parameters():
            each.copy_(torch.randn(each.shape, generator=chance, dtype=torch.float64) * 0.3 + (each.dim() == 1))
    return built


DECODERS = {
    "llama": {"num_kv_heads": 1, "bos_token_id": 0, "eos_token_id": 1},
    "gpt2": {},
    "gpt3": {"band": 4},
}


def sums(objective, built, batch):
    """The losses of a batch and how many terms each sums."""
    inputs = {name: torch.from_numpy(values) for name, values in batch.inputs.items()}
    losses = objective.losses(built, inputs)
    assert losses.keys() == batch.counts.keys() == objective.weights.keys()
    return losses["token"], batch.counts["token"]


def surprise(built, read, asked):
    """- log p of each of `asked` after `read`, from the model's logits."""
    with torch.no_grad():
        logits = built(torch.tensor([read])).logits[0]
    return -torch.log_softmax(logits, -1)[torch.arange(len(asked)), torch.tensor(asked)]


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("kind", ["best-fit", "single"])
def test_bits_per_byte_are_those_of_the_documents_one_by_one(vocabulary, family, kind):
    built = model(family, "causal-lm", **DECODERS[family])
    corpus = random_texts(3, count=20, longest=LENGTH - 1)
    expected = 0.0
    for document in corpus.documents:
        ids = document.tolist()
        expected += float(surprise(built, [START, *ids], [*ids, END]).sum())
    objective = CausalConfig().for_packing("best-fit").build(vocabulary, LENGTH)
    rows, chance = epoch(objective, corpus, kind)
    total = count = size = 0
    for at in range(0, len(rows), 3):
        batch = objective.batch(rows[at : at + 3], chance[at : at + 3])
        loss, asked = sums(objective, built, batch)
        total, count, size = total + loss.item(), count + asked, size + batch.bytes
    assert count == corpus.lengths.sum() + len(corpus.lengths)
    assert size == corpus.document_bytes.sum()
    bits = expected / math.log(2) / corpus.document_bytes.sum()
    assert total / math.log(2) / size == pytest.approx(bits, rel=1e-10)


def test_a_stream_without_masks_is_one_long_text(vocabulary):
    built = model("llama", "causal-lm", **DECODERS["llama"])
    objective = CausalConfig().build(vocabulary, LENGTH)
    rows, chance = epoch(objective, random_texts(3), "stream", shuffle=False)
    loss, _ = sums(objective, built, objective.batch(rows[:1], chance[:1]))
    text = [token for piece in rows[0] for token in [START, *piece.tokens.tolist(), END][piece.start : piece.stop]]
    asked = [token for piece in rows[0] for token in [*piece.tokens.tolist(), END][piece.start : piece.stop]]
    assert loss.item() == pytest.approx(float(surprise(built, text, asked).sum()), rel=1e-10)


def test_gradients_flow_and_padding_has_no_share(vocabulary):
    built = model("llama", "causal-lm", **DECODERS["llama"])
    for config in (CausalConfig(document_mask=True), PrefixLMConfig(document_mask=True), FillInTheMiddleConfig()):
        objective = config.build(vocabulary, LENGTH)
        rows, chance = epoch(objective, random_texts(5), "best-fit")
        batch = objective.batch(rows, chance)
        assert batch.padding > 0
        loss, _ = sums(objective, built, batch)
        built.zero_grad()
        loss.backward()
        assert all(torch.isfinite(each.grad).all() for each in built.parameters() if each.grad is not None)
        padding = torch.from_numpy(batch.inputs["targets"] == IGNORE) & (
            torch.from_numpy(batch.inputs["input_ids"]) == 2
        )
        changed = dict(batch.inputs, input_ids=np.where(padding.numpy(), 33, batch.inputs["input_ids"]))
        again, _ = sums(objective, built, batch.__class__(changed, *list(vars(batch).values())[1:]))
        assert again.item() == pytest.approx(loss.item(), rel=1e-12)


# --- prefix


@pytest.mark.parametrize("family", DECODERS)
def test_packed_prefixes_are_as_alone(vocabulary, family):
    built = model(family, "causal-lm", **DECODERS[family])
    objective = PrefixLMConfig(document_mask=True).build(vocabulary, LENGTH)
    texts = [np.arange(10, 18), np.arange(30, 35), np.arange(50, 56)]
    pieces = [Piece(number, text, 0, len(text) + 1) for number, text in enumerate(texts)]
    batch = objective.batch([pieces], generators(3, [0]))
    packed, _ = sums(objective, built, batch)
    alone = 0.0
    for number, text in enumerate(texts):
        here = batch.inputs["document_ids"][0] == number
        n = len(text) + 1
        padded = [
            np.concatenate((batch.inputs[name][:, here], np.full((1, LENGTH - n), filler)), 1)
            for name, filler in (("input_ids", 2), ("targets", IGNORE), ("prefix", False))
        ]
        one = dict(zip(("input_ids", "targets", "prefix"), padded, strict=True))
        inputs = {name: torch.from_numpy(values) for name, values in one.items()}
        inputs["prefix"] = inputs["prefix"].bool()
        alone += objective.losses(built, inputs)["token"].item()
    assert packed.item() == pytest.approx(alone, rel=1e-10)


# --- masked


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("masked", [True, False])
def test_hidden_tokens_sum_to_what_their_logits_say(vocabulary, family, masked):
    changes = {"pad_token_id": 2, "max_positions": 40} if family == "roberta" else {}
    built = model(family, "masked-lm", **changes)
    objective = MaskedConfig(document_mask=masked, probability=0.3).build(vocabulary, LENGTH)
    rows, chance = epoch(objective, random_texts(6), "best-fit")
    batch = objective.batch(rows, chance)
    assert batch.padding > 0
    loss, asked = sums(objective, built, batch)
    inputs = {name: torch.from_numpy(values) for name, values in batch.inputs.items() if name != "targets"}
    with torch.no_grad():
        logits = built(**inputs).logits
    targets = torch.from_numpy(batch.inputs["targets"])
    chosen = targets != IGNORE
    expected = -torch.log_softmax(logits[chosen], -1).gather(1, targets[chosen][:, None]).sum()
    assert asked == chosen.sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    loss.backward()
    assert all(torch.isfinite(each.grad).all() for each in built.parameters() if each.grad is not None)


def test_documents_in_one_row_do_not_see_one_another_under_a_mask(vocabulary):
    built = model("bert", "masked-lm")
    objective = MaskedConfig(document_mask=True, probability=0.5).build(vocabulary, LENGTH)
    first = Piece(0, np.arange(10, 18), 0, 8)

    def loss(other):
        batch = objective.batch([[first, Piece(1, other, 0, 8)]], generators(3, [0]))
        batch.inputs["targets"][0, 10:] = IGNORE  # only what is asked of the first
        return sums(objective, built, batch)[0].item()

    assert loss(np.arange(30, 38)) == loss(np.arange(50, 58))
