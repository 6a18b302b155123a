"""Pairs of texts: what follows what, what does not, and that nothing else gives it away."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.rows import LENGTH, Texts, binomial, epoch
from tests.training.models import tiny

from tsumugu.core.errors import ConfigError, InputError
from tsumugu.core.registry import OBJECTIVES
from tsumugu.corpus.chance import generators
from tsumugu.corpus.rows import Piece
from tsumugu.objectives.base import IGNORE
from tsumugu.objectives.sentence_pair import NextSentenceConfig, SentenceOrderConfig

PAD, CLS, SEP = 2, 4, 5
NAMES = ("next-sentence", "sentence-order")


def telling_texts(seed, *, count=9, longest=60):
    """Up to nine documents, each of ids of its own (10 to 15, 16 to 21…), so that a text tells where it is from."""
    chance = np.random.default_rng(seed)
    lengths = chance.integers(1, longest + 1, count)
    return Texts([chance.integers(10 + 6 * each, 16 + 6 * each, lengths[each]) for each in range(count)])


corpora = st.builds(telling_texts, st.integers(0, 10**6), count=st.integers(1, 9), longest=st.integers(1, 60))


def pair_of(batch, row):
    """A and B of a row as lists, hidden tokens put back; it checks the form as it goes."""
    read, real, targets, types = (
        batch.inputs[key][row].tolist() for key in ("input_ids", "attention_mask", "targets", "token_type_ids")
    )
    text = [each if target == IGNORE else target for each, target in zip(read, targets, strict=True)]
    end = sum(real)
    assert real == [1] * end + [0] * (len(real) - end)
    assert text[0] == CLS
    assert all(each == PAD for each in text[end:])
    seps = [at for at, token in enumerate(text) if token == SEP]
    assert not seps or seps[-1] == end - 1
    if len(seps) == 2:
        assert types == [int(seps[0] < at <= seps[1]) for at in range(len(types))]
        return text[1 : seps[0]], text[seps[0] + 1 : end - 1]
    assert types == [0] * len(types)
    return text[1 : max(end - 1, 1)], None


def text_of(piece):
    return piece.tokens[piece.start : piece.stop].tolist()


def document_of(text):
    (found,) = {(token - 10) // 6 for token in text}
    return found


def holds(text, part):
    return any(text[at : at + len(part)] == part for at in range(len(text)))


@settings(deadline=None, max_examples=100)
@given(corpus=corpora, name=st.sampled_from(NAMES), size=st.integers(1, 8), seed=st.integers(0, 99))
def test_pairs_are_what_their_targets_say(vocabulary, corpus, name, size, seed):
    objective = OBJECTIVES[name]().build(vocabulary, LENGTH)
    rows, chance = epoch(objective, corpus, "single", seed=seed)
    for at in range(0, len(rows), size):
        some = rows[at : at + size]
        batch = objective.batch(some, chance[at : at + size])
        targets = batch.inputs["pair_targets"]
        for row, target in enumerate(targets):
            (piece,) = some[row]
            first, second = pair_of(batch, row)
            if second is None:
                assert (target, first) == (IGNORE, text_of(piece))
                assert len(first) == 1
            elif target == 0:
                assert first + second == text_of(piece)
            elif name == "sentence-order":
                assert second + first == text_of(piece)
            else:
                assert text_of(piece)[: len(first)] == first
                assert len(first) < piece.stop - piece.start
                assert document_of(second) != piece.document
                others = [text_of(each) for (each,) in some if each.document == document_of(second)]
                assert any(holds(each, second) for each in others)
        assert batch.counts == {
            "token": np.count_nonzero(batch.inputs["targets"] != IGNORE),
            "pair": np.count_nonzero(targets != IGNORE),
        }
        assert batch.tokens == batch.inputs["attention_mask"].sum()
        assert batch.tokens + batch.padding == batch.inputs["input_ids"].size
        assert all(each.dtype == np.int64 for each in batch.inputs.values())
        assert batch.inputs["input_ids"].shape == (len(some), LENGTH)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("changed", [0.0, 0.3, 0.5, 1.0])
def test_as_many_pairs_are_changed_as_asked(vocabulary, name, changed):
    objective = OBJECTIVES[name](changed=changed).build(vocabulary, LENGTH)
    corpus = telling_texts(1)
    rows = [[Piece(each, corpus.document(each), 0, 20)] for each in range(9) if corpus.lengths[each] >= 20] * 200
    batch = objective.batch(rows, generators(2, range(len(rows))))
    assert batch.counts["pair"] == len(rows)
    assert binomial(batch.inputs["pair_targets"].sum(), len(rows), changed)


def test_neither_length_nor_place_gives_a_foreign_text_away(vocabulary):
    """Where documents are as long as rows, changed pairs are as long as true ones, and cut at words as they are."""
    objective = NextSentenceConfig().build(vocabulary, LENGTH)
    width = LENGTH - 3
    chance = np.random.default_rng(0)
    documents = [chance.integers(10, 64, 4 * width).astype(np.uint16) for _ in range(40)]
    rows = [[Piece(at, each, width, 2 * width)] for at, each in enumerate(documents)]
    batch = objective.batch(rows, generators(3, range(len(rows))))
    assert batch.padding == 0
    assert 8 < batch.inputs["pair_targets"].sum() < 32
    for row in range(len(rows)):
        _, second = pair_of(batch, row)
        assert not vocabulary.continues[second[0]]


def test_no_text_is_foreign_in_its_own_document(vocabulary):
    """Rows cut from one document give no foreign text, however they are shuffled; with one more document, all do."""
    objective = NextSentenceConfig(changed=1.0).build(vocabulary, LENGTH)
    tokens = np.random.default_rng(0).integers(10, 60, 200).astype(np.uint16)
    rows = [[Piece(7, tokens, at, at + 20)] for at in range(0, 200, 20)]
    batch = objective.batch(rows, generators(0, range(10)))
    assert batch.inputs["pair_targets"].tolist() == [0] * 10
    rows.append([Piece(8, np.full(30, 63, np.uint16), 0, 20)])
    batch = objective.batch(rows, generators(0, range(11)))
    assert batch.inputs["pair_targets"].tolist() == [1] * 11
    for row in range(10):
        assert set(pair_of(batch, row)[1]) == {63}
    assert 63 not in pair_of(batch, 10)[1]


def test_the_same_numbers_give_the_same_batch(vocabulary):
    corpus = telling_texts(3)
    for name in NAMES:
        objective = OBJECTIVES[name]().build(vocabulary, LENGTH)
        made = [objective.batch(*epoch(objective, corpus, "single")) for _ in range(2)]
        assert all(np.array_equal(made[0].inputs[key], made[1].inputs[key]) for key in made[0].inputs)


def test_swapped_rows_stand_alone(vocabulary):
    objective = SentenceOrderConfig().build(vocabulary, LENGTH)
    rows, chance = epoch(objective, telling_texts(5), "single")
    whole = objective.batch(rows, chance)
    _, again = epoch(objective, telling_texts(5), "single")
    for number, (row, generator) in enumerate(zip(rows, again, strict=True)):
        alone = objective.batch([row], [generator])
        assert all(np.array_equal(alone.inputs[key][0], whole.inputs[key][number]) for key in whole.inputs)


def test_hidden_tokens_are_as_many_as_asked(vocabulary):
    objective = NextSentenceConfig(probability=0.3, mask_share=1.0, random_share=0.0).build(vocabulary, LENGTH)
    tokens = np.random.default_rng(0).integers(10, 64, 21).astype(np.uint16)
    batch = objective.batch([[Piece(0, tokens, 0, 21)]] * 200, generators(0, range(200)))
    hidden = batch.inputs["targets"] != IGNORE
    assert binomial(hidden.sum(), 200 * 21, 0.3)
    assert (batch.inputs["input_ids"][hidden] == 3).all()
    assert batch.bytes == vocabulary.token_bytes[batch.inputs["targets"][hidden]].sum()


def test_what_cannot_work_is_refused(vocabulary):
    objective = NextSentenceConfig().build(vocabulary, LENGTH)
    tokens = np.full(30, 20, np.uint16)
    with pytest.raises(InputError, match=r"a row of 2 pieces.*packing: single"):
        objective.batch([[Piece(0, tokens, 0, 5), Piece(1, tokens, 0, 5)]], generators(0, [0]))
    bare = dataclasses.replace(vocabulary, cls=None, bos=None)
    for name in NAMES:
        with pytest.raises(ConfigError, match=f"objective {name}: .*cls_token"):
            OBJECTIVES[name]().build(bare, LENGTH)
        with pytest.raises(ConfigError, match="must see one another"):
            OBJECTIVES[name](document_mask=True)
        assert OBJECTIVES[name].packing == "single"
        assert OBJECTIVES[name]().for_packing("single").build(vocabulary, LENGTH).head == "pretraining"


def test_both_losses_are_sums(vocabulary):
    """In a real model, with a row that makes no pair."""
    objective = NextSentenceConfig().build(vocabulary, LENGTH)
    corpus = Texts([[11], *telling_texts(6).documents])
    batch = objective.batch(*epoch(objective, corpus, "single"))
    assert batch.counts["pair"] < len(batch.inputs["pair_targets"])
    inputs = {key: torch.from_numpy(each) for key, each in batch.inputs.items()}
    model = tiny("bert", objective.head, torch.float64, vocab_size=vocabulary.size, max_positions=LENGTH).eval()
    losses = objective.losses(model, inputs)
    labels, pairs = inputs.pop("targets"), inputs.pop("pair_targets")
    token = model(**inputs, labels=labels).loss.item()
    both = model(**inputs, labels=labels, next_sentence_label=pairs).loss.item()
    assert losses.keys() == batch.counts.keys() == objective.weights.keys()
    assert losses["token"].item() == pytest.approx(token * batch.counts["token"], rel=1e-6)
    assert losses["pair"].item() == pytest.approx((both - token) * batch.counts["pair"], rel=1e-6)
    (losses["token"] + losses["pair"]).backward()
    unused = {name for name, each in model.named_parameters() if each.grad is None}
    assert not unused
