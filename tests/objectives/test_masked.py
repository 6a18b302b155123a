"""Masked modelling: what is chosen, how often, and what stands in its place; against plain loops and exact odds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.rows import LENGTH, Texts, binomial, epoch, random_texts

from tsumugu.core.errors import ConfigError, InputError
from tsumugu.corpus.chance import generators
from tsumugu.corpus.packing import KINDS
from tsumugu.corpus.rows import Piece
from tsumugu.objectives.base import IGNORE
from tsumugu.objectives.masked import MaskedConfig

PAD, MASK, CLS, SEP, UNK = 2, 3, 4, 5, 9
UNITS = ("token", "word", "span")

corpora = st.builds(random_texts, st.integers(0, 10**6), count=st.integers(1, 14), longest=st.integers(1, 60))


def frames(rows):
    """What the rows hold before anything is hidden, and which piece each place belongs to; by loops."""
    ids, owners = [], []
    for row in rows:
        line, owner = [CLS], [0]
        for number, piece in enumerate(row):
            line += [*piece.tokens[piece.start : piece.stop].tolist(), SEP]
            owner += [number] * (piece.stop - piece.start + 1)
        ids.append(line + [PAD] * (LENGTH - len(line)))
        owners.append(owner + [-1] * (LENGTH - len(owner)))
    return np.array(ids), np.array(owners)


@settings(deadline=None, max_examples=80)
@given(corpus=corpora, kind=st.sampled_from(KINDS), unit=st.sampled_from(UNITS), masked=st.booleans())
def test_what_is_asked_for_is_what_stood_there_and_the_rest_is_untouched(vocabulary, corpus, kind, unit, masked):
    config = MaskedConfig(unit=unit, probability=0.3, document_mask=masked)
    objective = config.build(vocabulary, LENGTH)
    rows, chance = epoch(objective, corpus, kind)
    batch = objective.batch(rows, chance)
    ids, owners = frames(rows)
    shown, targets = batch.inputs["input_ids"], batch.inputs["targets"]
    asked = targets != IGNORE
    assert np.array_equal(targets[asked], ids[asked])
    assert np.array_equal(shown[~asked], ids[~asked])
    assert not np.isin(ids[asked], vocabulary.special).any()
    assert set(shown[asked].tolist()) <= {MASK, *range(10, 64)}
    if masked:
        assert np.array_equal(batch.inputs["document_ids"], owners)
        assert set(batch.inputs) == {"input_ids", "targets", "document_ids"}
    else:
        assert np.array_equal(batch.inputs["attention_mask"], owners >= 0)
    assert batch.counts == {"token": asked.sum()}
    assert batch.bytes == vocabulary.token_bytes[ids[asked]].sum()
    assert (batch.tokens, batch.padding) == ((owners >= 0).sum(), (owners < 0).sum())
    assert all(each.dtype == np.int64 and each.shape == (len(rows), LENGTH) for each in batch.inputs.values())


@settings(deadline=None, max_examples=40)
@given(corpus=corpora, unit=st.sampled_from(["token", "word"]), masked=st.booleans())
def test_a_batch_is_what_plain_loops_give(vocabulary, corpus, unit, masked):
    config = MaskedConfig(unit=unit, probability=0.4, mask_share=0.5, random_share=0.3, document_mask=masked)
    objective = config.build(vocabulary, LENGTH)
    rows, chance = epoch(objective, corpus, "stream")
    batch = objective.batch(rows, chance)
    _, chance = epoch(objective, corpus, "stream")
    ids, owners = frames(rows)
    for row, generator in enumerate(chance):
        draws = generator.random((3, LENGTH))
        hidden = False
        for at in range(LENGTH):
            token = ids[row, at]
            special = token in vocabulary.special
            goes_on = (
                unit == "word"
                and at > 0
                and vocabulary.continues[token]
                and ids[row, at - 1] not in vocabulary.special
                and owners[row, at] == owners[row, at - 1]
            )
            if not goes_on:
                hidden = draws[0, at] < 0.4
            expected = token
            if hidden and not special:
                assert batch.inputs["targets"][row, at] == token
                if draws[1, at] < 0.5:
                    expected = MASK
                elif draws[1, at] < 0.8:
                    expected = 10 + int(draws[2, at] * 54)
            else:
                assert batch.inputs["targets"][row, at] == IGNORE
            assert batch.inputs["input_ids"][row, at] == expected


@settings(deadline=None, max_examples=40)
@given(corpus=corpora, unit=st.sampled_from(UNITS), static=st.booleans(), cuts=st.lists(st.integers(1, 4), max_size=8))
def test_how_a_step_is_cut_changes_nothing(vocabulary, corpus, unit, static, cuts):
    objective = MaskedConfig(unit=unit, static=static).build(vocabulary, LENGTH)
    rows, chance = epoch(objective, corpus, "stream")
    whole, at, parts = objective.batch(rows, chance), 0, []
    _, chance = epoch(objective, corpus, "stream")
    for cut in [*cuts, len(rows)]:
        if rows[at : at + cut]:
            parts.append(objective.batch(rows[at : at + cut], chance[at : at + cut]))
        at += cut
    for name in whole.inputs:
        assert np.array_equal(np.concatenate([part.inputs[name] for part in parts]), whole.inputs[name])


# --- odds


def draw(vocabulary, config, tokens, draws, *, seed=1):
    """Many batches of one text: what stood there, what is shown, what is chosen, without the frame."""
    objective = config.build(vocabulary, len(tokens) + 2)
    row = [Piece(0, np.array(tokens), 0, len(tokens))]
    batch = objective.batch([row] * draws, generators(seed, range(draws)))
    return batch.inputs["input_ids"][:, 1:-1], (batch.inputs["targets"] != IGNORE)[:, 1:-1]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_every_token_is_as_likely_to_be_chosen_wherever_it_stands(vocabulary, unit, probability):
    tokens, draws = np.random.default_rng(3).integers(10, 64, 37), 8000
    _, chosen = draw(vocabulary, MaskedConfig(unit=unit, probability=probability), tokens, draws)
    for place in range(len(tokens)):
        assert binomial(chosen[:, place].sum(), draws, probability), place
    if unit == "token":
        assert binomial(chosen.sum(), chosen.size, probability)


@pytest.mark.parametrize("unit", UNITS)
def test_of_the_chosen_some_are_masked_some_random_some_kept(vocabulary, unit):
    tokens, draws = np.full(40, 10), 4000  # every token a word of its own, as 10 % 3 is not 0
    config = MaskedConfig(unit=unit, probability=0.2, mask_share=0.7, random_share=0.2)
    shown, chosen = draw(vocabulary, config, tokens, draws)
    total, deviations = chosen.sum(), 5 if unit != "span" else 12  # a span is one draw for several tokens
    masked, kept = (shown[chosen] == MASK).sum(), (shown[chosen] == 10).sum()
    assert binomial(masked, total, 0.7, deviations=deviations)
    assert binomial(kept, total, 0.1 + 0.2 / 54, deviations=deviations)
    strange = shown[chosen & (shown != MASK) & (shown != 10)]
    counts = np.bincount(strange, minlength=64)
    assert counts[:10].sum() == 0
    assert all(binomial(count, len(strange), 1 / 53) for count in counts[11:])


@pytest.mark.parametrize("shares", [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_shares_at_their_limits(vocabulary, shares):
    tokens = np.arange(10, 50)
    config = MaskedConfig(probability=1.0, mask_share=shares[0], random_share=shares[1])
    shown, chosen = draw(vocabulary, config, tokens, 50)
    assert chosen.all()
    if shares[0]:
        assert (shown == MASK).all()
    elif shares[1]:
        assert binomial((shown == tokens).sum(), shown.size, 1 / 54)
    else:
        assert (shown == tokens).all()


def test_nothing_is_chosen_at_probability_zero(vocabulary):
    for unit in UNITS:
        _, chosen = draw(vocabulary, MaskedConfig(unit=unit, probability=0.0), np.arange(10, 50), 50)
        assert not chosen.any()


def test_all_is_chosen_at_probability_one(vocabulary):
    for unit in UNITS:
        _, chosen = draw(vocabulary, MaskedConfig(unit=unit, probability=1.0), np.arange(10, 50), 50)
        assert chosen.all()


# --- words and spans


@pytest.mark.parametrize("unit", ["word", "span"])
def test_words_are_chosen_whole(vocabulary, unit):
    tokens = np.array([10, 12, 15, 11, 13, 18, 21, 24, UNK, 27, 14, 30])  # 12, 15, 18… go on with a word
    words = [0, 0, 0, 1, 2, 2, 2, 2, None, 3, 4, 4]
    _, chosen = draw(vocabulary, MaskedConfig(unit=unit, probability=0.4), tokens, 500)
    assert not chosen[:, 8].any()
    for line in chosen:
        for word in range(5):
            assert len({bool(line[at]) for at, each in enumerate(words) if each == word}) == 1
    assert 0 < chosen[:, 0].sum() < 500


def test_a_word_does_not_reach_over_a_separator(vocabulary):
    objective = MaskedConfig(unit="word", probability=0.5).build(vocabulary, 5)
    row = [Piece(0, np.array([10]), 0, 1), Piece(1, np.array([12]), 0, 1)]
    batch = objective.batch([row] * 400, generators(1, range(400)))
    chosen = batch.inputs["targets"] != IGNORE
    assert binomial((chosen[:, 1] & chosen[:, 3]).sum(), 400, 0.25)


def runs(line):
    """The lengths of the stretches that are True, on a ring."""
    line = np.roll(line, -int(np.argmin(line)))
    edges = np.flatnonzero(np.diff(np.concatenate(([0], line.astype(int), [0]))))
    return (edges[1::2] - edges[::2]).tolist()


def test_spans_have_the_lengths_of_the_distribution(vocabulary):
    tokens, draws = np.full(400, 10), 3000
    config = MaskedConfig(unit="span", probability=0.05, span_mean=4.0, span_longest=6)
    _, chosen = draw(vocabulary, config, tokens, draws)
    assert set(chosen.sum(1).tolist()) == {20}  # as many as asked for, exactly
    lengths = np.bincount([each for line in chosen for each in runs(line)], minlength=30)
    odds = 0.75 ** np.arange(6)
    mean = (odds / odds.sum() * np.arange(1, 7)).sum()
    # The last span of a row is cut to fit, and a few spans touch: so this is near, not exact.
    assert abs((lengths * np.arange(len(lengths))).sum() / lengths.sum() - mean) < 0.2
    share = lengths[1:7] / lengths.sum()
    assert np.abs(share - odds / odds.sum()).max() < 0.04
    assert (np.diff(share) < 0).all()


def test_a_fraction_of_a_token_is_chosen_by_chance(vocabulary):
    draws = 6000
    _, chosen = draw(vocabulary, MaskedConfig(unit="span", probability=0.15), np.full(9, 10), draws)
    counts = np.bincount(chosen.sum(1))
    assert len(counts) == 3  # 1.35 tokens: one, or two
    assert counts[0] == 0
    assert binomial(counts[2], draws, 0.35)


def test_a_span_is_replaced_as_one(vocabulary):
    tokens = np.full(60, 10)
    config = MaskedConfig(unit="span", probability=0.1, mask_share=0.5, random_share=0.0, span_mean=8.0)
    shown, chosen = draw(vocabulary, config, tokens, 600)
    mixed = total = 0
    for line, which in zip(shown, chosen, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], which.astype(int), [0])))).tolist()
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            total += 1
            mixed += len(set((line[begin:end] == MASK).tolist())) > 1
    assert mixed < 0.05 * total  # those where two spans touch
    assert binomial((shown[chosen] == MASK).sum(), chosen.sum(), 0.5, deviations=15)


# --- static and dynamic


@pytest.mark.parametrize("unit", UNITS)
def test_static_masks_come_again_and_dynamic_ones_do_not(vocabulary, unit):
    corpus = random_texts(4, count=30)
    for static in (True, False):
        objective = MaskedConfig(unit=unit, static=static).build(vocabulary, LENGTH)
        seen = []
        for number in range(2):
            rows, chance = epoch(objective, corpus, "stream", number=number, move_cuts=False)
            batch = objective.batch(rows, chance)
            names = [[(piece.document, piece.start) for piece in row] for row in rows]
            seen.append(dict(zip(map(str, names), batch.inputs["targets"].tolist(), strict=True)))
        assert seen[0].keys() == seen[1].keys()
        assert (seen[0] == seen[1]) is static


def test_static_masks_differ_from_row_to_row(vocabulary):
    objective = MaskedConfig(static=True, probability=0.5).build(vocabulary, 30)
    rows = [[Piece(document, np.full(28, 10), 0, 28)] for document in range(20)]
    targets = objective.batch(rows, generators(0, range(20))).inputs["targets"]
    assert len({tuple(each) for each in targets.tolist()}) == 20


# --- tokenizers that lack something


def test_frames_fall_back_on_what_begins_and_ends_a_text(vocabulary):
    row = [Piece(0, np.array([20, 21]), 0, 2)]
    config = MaskedConfig(probability=0.0)
    for changes, expected in (
        ({"cls": None, "sep": None}, [0, 20, 21, 1, PAD]),
        ({"cls": None, "sep": None, "bos": None, "eos": None}, [20, 21, PAD, PAD, PAD]),
        ({"pad": None}, [CLS, 20, 21, SEP, MASK]),
    ):
        objective = config.build(dataclasses.replace(vocabulary, **changes), 5)
        batch = objective.batch([row], generators(0, [0]))
        assert batch.inputs["input_ids"].tolist() == [expected]
        assert objective.slots.per_row + objective.slots.per_piece == batch.tokens - 2


def test_what_cannot_be_is_refused(vocabulary):
    with pytest.raises(ConfigError, match=r"objective masked: the tokenizer has no mask token; give it one"):
        MaskedConfig().build(dataclasses.replace(vocabulary, mask=None), LENGTH)
    with pytest.raises(ConfigError, match=r"does not tell where a word begins; choose unit: token or span"):
        MaskedConfig(unit="word").build(dataclasses.replace(vocabulary, continues=None), LENGTH)
    with pytest.raises(ConfigError, match=r"random_share: mask_share and random_share are 1.1 of 1"):
        MaskedConfig(mask_share=0.8, random_share=0.3)
    with pytest.raises(InputError, match="a row of 12 tokens, longer than 5"):
        MaskedConfig().build(vocabulary, 5).batch([[Piece(0, np.full(10, 10), 0, 10)]], generators(0, [0]))


def test_spans_of_tokens_where_words_are_unknown(vocabulary):
    plain = dataclasses.replace(vocabulary, continues=None)
    _, chosen = draw(plain, MaskedConfig(unit="span", probability=0.25), np.arange(10, 50), 100)
    assert set(chosen.sum(1).tolist()) == {10}


def test_rows_without_pieces_hold_only_the_frame(vocabulary):
    for unit in UNITS:
        batch = MaskedConfig(unit=unit).build(vocabulary, 4).batch([[]], generators(0, [0]))
        assert batch.inputs["input_ids"].tolist() == [[CLS, PAD, PAD, PAD]]
        assert batch.counts == {"token": 0}


def test_texts_of_special_tokens_alone_ask_for_nothing(vocabulary):
    corpus = Texts([[UNK] * 9, [UNK]])
    for unit in UNITS:
        objective = MaskedConfig(unit=unit, probability=1.0).build(vocabulary, LENGTH)
        assert objective.batch(*epoch(objective, corpus, "stream")).counts == {"token": 0}
