"""Causal and prefix modelling against plain loops; fill-in-the-middle put back together; bytes counted exactly."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import TEXTS
from tests.objectives.rows import LENGTH, binomial, epoch, random_texts

from tsumugu.core.errors import ConfigError, InputError
from tsumugu.corpus.chance import generators
from tsumugu.corpus.packing import KINDS
from tsumugu.corpus.rows import Piece
from tsumugu.corpus.shards import Corpus, write_corpus
from tsumugu.objectives.base import IGNORE
from tsumugu.objectives.causal import CausalConfig, PrefixLMConfig
from tsumugu.objectives.fill_in_the_middle import FillInTheMiddleConfig
from tsumugu.objectives.vocabulary import vocabulary_of

START, END, PAD = 0, 1, 2
PREFIX, MIDDLE, SUFFIX = 6, 7, 8

corpora = st.builds(random_texts, st.integers(0, 10**6), count=st.integers(1, 14), longest=st.integers(1, 60))


def by_loops(rows, *, masked):
    """What a causal batch holds, one token after another."""
    batch = {"input_ids": [], "targets": [], "document_ids": [], "position_ids": []}
    for row in rows:
        lines = {name: [] for name in batch}
        for number, piece in enumerate(row):
            whole = [START, *piece.tokens.tolist(), END]
            for slot in range(piece.start, piece.stop):
                lines["input_ids"].append(whole[slot])
                lines["targets"].append(whole[slot + 1])
                lines["document_ids"].append(number)
                lines["position_ids"].append(slot - piece.start)
        for name, filler in zip(batch, (PAD, IGNORE, -1, 0), strict=True):
            batch[name].append(lines[name] + [filler] * (LENGTH - len(lines[name])))
    return batch if masked else {name: batch[name] for name in ("input_ids", "targets")}


@settings(deadline=None, max_examples=60)
@given(corpus=corpora, kind=st.sampled_from(KINDS), masked=st.booleans())
def test_a_batch_is_what_plain_loops_give(vocabulary, corpus, kind, masked):
    objective = CausalConfig(document_mask=masked).build(vocabulary, LENGTH)
    rows, chance = epoch(objective, corpus, kind)
    batch = objective.batch(rows, chance)
    expected = by_loops(rows, masked=masked)
    assert set(batch.inputs) == set(expected)
    for name, values in expected.items():
        found = batch.inputs[name]
        assert found.shape == (len(rows), LENGTH)
        assert found.dtype == np.int64
        if name == "document_ids":  # any numbers will do that tell pieces of a row apart
            alike = found[:, :, None] == found[:, None, :]
            wanted = np.array(values)
            assert np.array_equal(alike, wanted[:, :, None] == wanted[:, None, :])
        else:
            assert found.tolist() == values
    assert batch.counts == {"token": sum(piece.stop - piece.start for row in rows for piece in row)}
    assert batch.tokens == batch.counts["token"]
    assert batch.tokens + batch.padding == len(rows) * LENGTH


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=30)
@given(corpus=corpora, number=st.integers(0, 3))
def test_an_epoch_asks_for_every_token_once_and_counts_every_byte(vocabulary, kind, corpus, number):
    objective = CausalConfig().build(vocabulary, LENGTH)
    rows, chance = epoch(objective, corpus, kind, number=number)
    batches = [objective.batch([row], [each]) for row, each in zip(rows, chance, strict=True)]
    asked = Counter(token for each in batches for token in each.inputs["targets"].ravel().tolist() if token != IGNORE)
    assert asked == Counter([*np.concatenate(corpus.documents).tolist(), *[END] * len(corpus.documents)])
    assert sum(each.bytes for each in batches) == corpus.document_bytes.sum()
    assert sum(each.counts["token"] for each in batches) == (corpus.lengths + 1).sum()


@settings(deadline=None, max_examples=30)
@given(corpus=corpora, cuts=st.lists(st.integers(1, 4), max_size=8), name=st.sampled_from(["plain", "prefix", "fill"]))
def test_how_a_step_is_cut_changes_nothing(vocabulary, corpus, cuts, name):
    kind = {"plain": CausalConfig, "prefix": PrefixLMConfig, "fill": FillInTheMiddleConfig}[name]
    objective = kind(document_mask=False).build(vocabulary, LENGTH)
    rows, chance = epoch(objective, corpus, "best-fit")
    whole, at, parts = objective.batch(rows, chance), 0, []
    _, chance = epoch(objective, corpus, "best-fit")
    for cut in [*cuts, len(rows)]:
        if rows[at : at + cut]:
            parts.append(objective.batch(rows[at : at + cut], chance[at : at + cut]))
        at += cut
    for each in whole.inputs:
        assert np.array_equal(np.concatenate([part.inputs[each] for part in parts]), whole.inputs[each])
    for each in ("tokens", "padding", "bytes"):
        assert sum(getattr(part, each) for part in parts) == getattr(whole, each)
    assert sum(part.counts["token"] for part in parts) == whole.counts["token"]


def test_bytes_of_pieces_are_those_of_their_tokens_but_the_last_has_the_rest(vocabulary):
    objective = CausalConfig().build(vocabulary, 4)
    tokens = np.array([10, 11, 12, 13, 14], np.uint16)  # 4, 5, 6, 7, 1 bytes by the vocabulary
    first, last = Piece(0, tokens, 0, 4, size=30), Piece(0, tokens, 4, 6, size=30)
    sizes = [objective.batch([[piece]], generators(0, [0])).bytes for piece in (first, last)]
    assert sizes == [22, 8]
    uncounted = [objective.batch([[piece._replace(size=None)]], generators(0, [0])).bytes for piece in (first, last)]
    assert uncounted == [22, 1]


def test_a_text_begins_with_its_end_where_there_is_no_beginning(vocabulary):
    objective = CausalConfig().build(dataclasses.replace(vocabulary, bos=None, pad=None), 6)
    batch = objective.batch([[Piece(0, np.array([20, 21], np.uint16), 0, 3)]], generators(0, [0]))
    assert batch.inputs["input_ids"].tolist() == [[END, 20, 21, END, END, END]]
    assert batch.inputs["targets"].tolist() == [[20, 21, END, IGNORE, IGNORE, IGNORE]]


def test_rows_without_pieces_are_padding(vocabulary):
    for config in (CausalConfig(document_mask=True), PrefixLMConfig(), FillInTheMiddleConfig()):
        batch = config.build(vocabulary, 5).batch([[], []], generators(0, [0, 1]))
        assert batch.counts == {"token": 0}
        assert (batch.padding, batch.tokens, batch.bytes) == (10, 0, 0)
        assert (batch.inputs["targets"] == IGNORE).all()


def test_rows_that_do_not_fit_are_refused_not_spilled(vocabulary):
    objective = CausalConfig().build(vocabulary, 4)
    with pytest.raises(InputError, match="a row of 5 pairs, longer than 4"):
        objective.batch([[Piece(0, np.arange(10, 20), 0, 5)], []], generators(0, [0, 1]))


def test_without_an_end_there_is_no_causal_modelling(vocabulary):
    with pytest.raises(
        ConfigError, match=r"objective causal: the tokenizer has no token that ends a text; give it one"
    ):
        CausalConfig().build(dataclasses.replace(vocabulary, eos=None), LENGTH)


def test_a_document_mask_goes_with_best_fit():
    assert CausalConfig().for_packing("best-fit").document_mask is True
    assert CausalConfig().for_packing("stream").document_mask is False
    assert CausalConfig(document_mask=False).for_packing("best-fit").document_mask is False
    assert FillInTheMiddleConfig.from_dict({"rate": 1}).for_packing("best-fit").document_mask is True


# --- prefix LM


@settings(deadline=None, max_examples=60)
@given(corpus=corpora, kind=st.sampled_from(KINDS), masked=st.booleans())
def test_a_prefix_is_read_and_not_asked_for(vocabulary, corpus, kind, masked):
    objective = PrefixLMConfig(document_mask=masked).build(vocabulary, LENGTH)
    rows, chance = epoch(objective, corpus, kind)
    batch = objective.batch(rows, chance)
    plain = by_loops(rows, masked=True)
    assert batch.inputs["input_ids"].tolist() == plain["input_ids"]
    asked = 0
    for row, prefix, targets, whole in zip(
        rows, batch.inputs["prefix"].tolist(), batch.inputs["targets"].tolist(), plain["targets"], strict=True
    ):
        pairs = [piece.stop - piece.start for piece in row]
        at = 0
        for unit in pairs if masked else [sum(pairs)]:
            end = sum(prefix[at : at + unit])
            assert 1 <= end <= max(unit - 1, 1)
            assert prefix[at : at + unit] == [True] * end + [False] * (unit - end)
            assert targets[at : at + unit] == [IGNORE] * (end - 1) + whole[at + end - 1 : at + unit]
            asked += unit - end + 1
            at += unit
        assert not any(prefix[at:])
        assert targets[at:] == [IGNORE] * (LENGTH - at)
    assert batch.counts == {"token": asked}
    ids = batch.inputs["targets"]
    assert batch.bytes == vocabulary.token_bytes[ids[ids != IGNORE]].sum()


def test_every_end_of_a_prefix_is_as_likely(vocabulary):
    objective = PrefixLMConfig().build(vocabulary, 9)
    row = [Piece(0, np.arange(10, 18), 0, 9)]
    draws = 4000
    batch = objective.batch([row] * draws, generators(1, range(draws)))
    ends = np.bincount(batch.inputs["prefix"].sum(1), minlength=10)
    assert ends[[0, 9]].tolist() == [0, 0]
    assert all(binomial(count, draws, 1 / 8) for count in ends[1:9])


# --- fill in the middle


def put_back(ids):
    """The text of a sequence, and the lengths of prefix and middle where it tells them; marks left out.

    PSM with an empty prefix looks like SPM, which does not tell where its prefix ends.
    """
    if PREFIX not in ids:
        return ids, "plain"
    assert ids[0] == PREFIX
    suffix, middle = ids.index(SUFFIX), ids.index(MIDDLE)
    if suffix == 1:
        return ids[middle + 1 :] + ids[2:middle], "suffix first"
    return ids[1:suffix] + ids[middle + 1 :] + ids[suffix + 1 : middle], (suffix - 1, len(ids) - middle - 1)


@settings(deadline=None, max_examples=80)
@given(corpus=corpora, kind=st.sampled_from(KINDS), masked=st.booleans(), rate=st.sampled_from([0.0, 0.5, 1.0]))
def test_a_text_filled_in_is_whole_again_when_put_back(vocabulary, corpus, kind, masked, rate):
    objective = FillInTheMiddleConfig(rate=rate, document_mask=masked).build(vocabulary, LENGTH)
    rows, chance = epoch(objective, corpus, kind)
    batch = objective.batch(rows, chance)
    for number, row in enumerate(rows):
        read, asked = batch.inputs["input_ids"][number].tolist(), batch.inputs["targets"][number].tolist()
        at = 0
        for piece in row:
            text = piece.tokens[piece.start : piece.stop].tolist()
            ended = piece.stop > len(piece.tokens)
            before = START if piece.start == 0 else int(piece.tokens[piece.start - 1])
            filled = asked[at] == PREFIX
            assert not (filled and rate == 0)
            assert filled or rate < 1 or not text
            pairs = len(text) + 4 if filled else piece.stop - piece.start
            sequence = [*read[at : at + pairs], asked[at + pairs - 1]]
            assert sequence[1:] == asked[at : at + pairs]  # what is asked for here is read next
            assert sequence[0] == before
            body = sequence[1:-1] if filled or ended else sequence[1:]
            assert sequence[-1] == END if filled or ended else True
            assert put_back(body)[0] == text
            if masked:
                assert batch.inputs["position_ids"][number, at : at + pairs].tolist() == list(range(pairs))
                assert len(set(batch.inputs["document_ids"][number, at : at + pairs].tolist())) == 1
            at += pairs
        assert at <= LENGTH
        assert set(asked[at:]) <= {IGNORE}
    assert batch.bytes == corpus.document_bytes.sum()


def test_shares_and_cuts_are_as_said(vocabulary):
    draws, n = 6000, 5
    objective = FillInTheMiddleConfig(rate=0.6, spm_rate=0.3).build(vocabulary, 12)
    row = [Piece(0, np.arange(10, 10 + n), 0, n + 1)]
    batch = objective.batch([row] * draws, generators(2, range(draws)))
    found = Counter(
        put_back([each for each in ids if each not in (IGNORE, END)])[1] for ids in batch.inputs["targets"].tolist()
    )
    assert binomial(found.pop("plain"), draws, 0.4)
    # Two cuts, each at one of n + 1 places: a pair of different places comes twice as often as one place twice.
    empty = 1 - (n / (n + 1)) ** 2
    assert binomial(found.pop("suffix first"), draws, 0.6 * (0.3 + 0.7 * empty))
    assert len(found) == n * (n + 1) // 2
    for (prefix, middle), count in found.items():
        assert binomial(count, draws, 0.6 * 0.7 * (1 if middle == 0 else 2) / (n + 1) ** 2), (prefix, middle)


def test_fill_in_the_middle_needs_its_tokens(vocabulary):
    without = dataclasses.replace(vocabulary, added={"<s>": 0})
    with pytest.raises(
        ConfigError, match=r"has no tokens <fim_prefix>, <fim_middle>, <fim_suffix>; train it with these"
    ):
        FillInTheMiddleConfig().build(without, LENGTH)
    with pytest.raises(ConfigError, match=r"has no tokens <a>, <b>"):
        FillInTheMiddleConfig(tokens=("<a>", "<fim_middle>", "<b>")).build(vocabulary, LENGTH)
    named = FillInTheMiddleConfig(rate=1.0, spm_rate=0.0, tokens=("<s>", "<pad>", "<mask>")).build(vocabulary, LENGTH)
    ids = named.batch([[Piece(0, np.array([20]), 0, 2)]], generators(0, [0])).inputs["targets"][0]
    assert sorted(ids[ids != IGNORE].tolist()) == [0, END, 2, 3, 20]


def test_other_spellings_of_the_marks_are_known(vocabulary):
    for names in (("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"), ("▁<PRE>", "▁<MID>", "▁<SUF>")):
        added = dict(zip(names, (30, 31, 32), strict=True))
        objective = FillInTheMiddleConfig(rate=1.0).build(dataclasses.replace(vocabulary, added=added), LENGTH)
        ids = objective.batch([[Piece(0, np.array([20]), 0, 2)]], generators(0, [0])).inputs["targets"]
        assert {30, 31, 32} <= set(ids.ravel().tolist())


# --- a prepared corpus


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["byte_level", "word_pieces"])
def test_bits_per_byte_count_the_bytes_of_a_real_corpus(request, tmp_path, name, kind):
    tokenizer = request.getfixturevalue(name)
    documents = [(tokenizer.encode(text, add_special_tokens=False), len(text.encode())) for text in TEXTS]
    corpus = write_corpus(tmp_path / "corpus", documents, tokenizer, shard_tokens=300)
    told = sum(int(corpus.token_bytes[ids].sum()) for ids, _ in documents)
    assert (told == corpus.bytes) is (name == "byte_level")  # word pieces drop spaces, and write in small letters
    objective = CausalConfig().for_packing(kind).build(vocabulary_of(tokenizer, corpus.token_bytes), LENGTH)
    for number in range(2):
        rows, chance = epoch(objective, Corpus.open(corpus.path), kind, number=number)
        batch = objective.batch(rows, chance)
        assert batch.bytes == corpus.bytes
        assert batch.counts["token"] == corpus.tokens + corpus.documents
    corpus.verify()  # the plan of packing, which lies in its folder, makes it no other
    assert (corpus.path / "packing").exists() is (kind == "best-fit")
