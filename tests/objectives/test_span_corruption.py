"""Span corruption: nothing is lost, the context is filled exactly, and every way to cut is as likely."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.rows import LENGTH, binomial, epoch, random_texts
from tests.training.models import tiny

from tsumugu.core.errors import ConfigError, InputError
from tsumugu.core.registry import OBJECTIVES
from tsumugu.corpus.chance import generators
from tsumugu.corpus.packing import KINDS
from tsumugu.corpus.rows import Piece
from tsumugu.objectives.base import IGNORE
from tsumugu.objectives.span_corruption import Denoiser, SpanCorruptionConfig, UL2Config, corrupt

EOS, PAD = 1, 2
SENTINELS = tuple(range(159, 63, -1))
MODES = {"[NLU]": 160, "[S2S]": 161, "[NLG]": 162}

corpora = st.builds(random_texts, st.integers(0, 10**6), count=st.integers(1, 14), longest=st.integers(1, 60))


@pytest.fixture(scope="module")
def wide(vocabulary):
    """The vocabulary with sentinels above it, as T5's are, and UL2's mode tokens."""
    bytes_of = np.concatenate((vocabulary.token_bytes, np.zeros(99, np.int32)))
    added = {**vocabulary.added, **MODES}
    return dataclasses.replace(vocabulary, size=163, token_bytes=bytes_of, sentinels=SENTINELS, added=added)


def restored(read, written):
    """The text behind what was read and what was written, and its spans; by loops. It checks the form as it goes."""
    read = [each for each in read if each not in MODES.values()]
    assert read.count(EOS) == written.count(EOS) == 1
    assert read[-1] == written[-1] == EOS
    spans, order = {}, []
    for token in written[:-1]:
        if token in SENTINELS:
            order.append(token)
            spans[token] = []
        else:
            spans[order[-1]].append(token)
    assert order == list(SENTINELS[: len(order)])
    assert [each for each in read if each in SENTINELS] == order
    text = []
    for token in read[:-1]:
        text += spans[token] if token in SENTINELS else [token]
    return text, list(spans.values())


def lines(batch):
    """What is read and written in each row, without padding."""
    read, real, written = (batch.inputs[key] for key in ("input_ids", "attention_mask", "targets"))
    for row in range(len(read)):
        assert np.array_equal(real[row], np.arange(read.shape[1]) < real[row].sum())
        assert (read[row][real[row] == 0] == PAD).all()
        asked = written[row] != IGNORE
        assert np.array_equal(asked, np.arange(len(asked)) < asked.sum())
        yield read[row][real[row] == 1].tolist(), written[row][asked].tolist()


def text_of(row):
    return [token for piece in row for token in piece.tokens[piece.start : piece.stop].tolist()]


def published_lengths(context, density, mean_span):
    """The raw length and the target's for a context, as T5's released code finds them (`random_spans_helper`)."""

    def lengths(tokens):
        noise = round(tokens * density)
        spans = round(noise / mean_span)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = context
    while lengths(tokens + 1)[0] <= context:
        tokens += 1
    return tokens, lengths(tokens)[1]


def test_lengths_are_the_published_ones():
    assert (Denoiser().raw_length(512), Denoiser().lengths(568)) == (568, (512, 114))
    for context in (64, 100, 128, 256, 511, 512, 1024):
        for density, mean in ((0.15, 3.0), (0.15, 8.0), (0.3, 3.0), (0.5, 3.0), (0.5, 8.0)):
            denoiser = Denoiser(density=density, mean_span=mean)
            raw = denoiser.raw_length(context)
            assert (raw, denoiser.lengths(raw)[1]) == published_lengths(context, density, mean)


@settings(deadline=None, max_examples=200)
@given(
    density=st.floats(0.01, 0.99),
    mean=st.none() | st.floats(1.0, 80.0),
    context=st.integers(4, 600),
    seed=st.integers(0, 10**6),
)
def test_a_full_row_fills_the_context_and_a_shorter_one_fits(density, mean, context, seed):
    denoiser = Denoiser(density=density, mean_span=mean)
    raw = denoiser.raw_length(context)
    # Where hardly anything stays between spans of one token, one token more may need two places more.
    crowded = mean is not None and density / mean > (1 - density) * 0.8
    assert context - crowded <= denoiser.lengths(raw)[0] <= context
    steps = denoiser.lengths(raw)[1]
    for tokens in {0, 1, 2, 3, raw // 2, raw - 1, raw}:
        hidden = denoiser.choose(tokens, np.random.default_rng(seed))
        noise, spans = denoiser.counts(tokens)
        assert (hidden.dtype, hidden.shape, hidden.sum()) == (bool, (tokens,), noise)
        assert np.count_nonzero(np.diff(hidden.astype(int), prepend=0) == 1) == spans
        assert denoiser.lengths(tokens)[0] <= context
        assert denoiser.lengths(tokens)[1] <= steps
        if tokens > 1:
            assert not hidden[0]
            assert hidden[-1]
            if mean is None:
                assert spans == 1


def test_every_way_to_cut_is_as_likely():
    """Seven tokens, three hidden in two spans: three ways to cut what stays by two to cut what goes."""
    denoiser = Denoiser(density=3 / 7, mean_span=1.5)
    trials = 6000
    random = np.random.default_rng(3)
    found = Counter(tuple(denoiser.choose(7, random).tolist()) for _ in range(trials))
    wanted = set()
    for stay in range(1, 4):
        for go in range(1, 3):
            wanted.add((False,) * stay + (True,) * go + (False,) * (4 - stay) + (True,) * (3 - go))
    assert found.keys() == wanted
    assert all(binomial(each, trials, 1 / 6) for each in found.values())


@settings(deadline=None, max_examples=80)
@given(corpus=corpora, kind=st.sampled_from(KINDS), name=st.sampled_from(["span-corruption", "ul2"]))
def test_what_is_read_and_written_together_is_the_text(wide, corpus, kind, name):
    objective = OBJECTIVES[name]().build(wide, LENGTH)
    rows, chance = epoch(objective, corpus, kind)
    batch = objective.batch(rows, chance)
    asked = size = 0
    for row, (read, written) in zip(rows, lines(batch), strict=True):
        text, spans = restored(read, written)
        assert text == text_of(row)
        assert all(spans)
        asked += len(written)
        size += sum(int(wide.token_bytes[token]) for span in spans for token in span)
    assert batch.counts == {"token": asked}
    assert batch.bytes == size
    assert batch.tokens == batch.inputs["attention_mask"].sum() + asked
    assert batch.tokens + batch.padding == batch.inputs["input_ids"].size + batch.inputs["targets"].size
    assert all(each.dtype == np.int64 for each in batch.inputs.values())


@pytest.mark.parametrize("context", [24, 64, 128])
@pytest.mark.parametrize("density", [0.15, 0.4])
def test_a_stream_leaves_no_padding(wide, context, density):
    objective = SpanCorruptionConfig(density=density).build(wide, context)
    tokens = np.random.default_rng(0).integers(10, 64, 3 * objective.length(context)).astype(np.uint16)
    edges = np.linspace(0, len(tokens), 4).astype(int).tolist()
    rows = [[Piece(0, tokens, start, stop)] for start, stop in pairwise(edges)]
    batch = objective.batch(rows, generators(0, range(3)))
    assert batch.padding == 0
    assert batch.inputs["input_ids"].shape == (3, context)
    assert batch.tokens == batch.inputs["input_ids"].size + batch.inputs["targets"].size


@settings(deadline=None, max_examples=30)
@given(corpus=corpora, name=st.sampled_from(["span-corruption", "ul2"]))
def test_a_row_depends_on_itself_and_its_generator_alone(wide, corpus, name):
    objective = OBJECTIVES[name]().build(wide, LENGTH)
    rows, chance = epoch(objective, corpus, "stream")
    whole = objective.batch(rows, chance)
    _, again = epoch(objective, corpus, "stream")
    for number, (row, generator) in enumerate(zip(rows, again, strict=True)):
        alone = objective.batch([row], [generator])
        assert all(np.array_equal(alone.inputs[key][0], whole.inputs[key][number]) for key in whole.inputs)
        assert alone.inputs.keys() == whole.inputs.keys()


@given(hidden=st.lists(st.booleans(), min_size=1, max_size=30))
def test_corruption_is_what_plain_loops_give(hidden):
    tokens, sentinels = np.arange(100, 100 + len(hidden)), np.arange(50, 20, -1)
    read, written, spans = [], [], 0
    for at, gone in enumerate(hidden):
        if gone and (at == 0 or not hidden[at - 1]):
            read.append(50 - spans)
            written.append(50 - spans)
            spans += 1
        (written if gone else read).append(100 + at)
    found = corrupt(tokens, np.array(hidden), sentinels)
    assert [each.tolist() for each in found] == [read, written]


def test_nothing_is_asked_of_what_is_too_short(wide):
    objective = SpanCorruptionConfig().build(wide, LENGTH)
    one = np.array([33], np.uint16)
    batch = objective.batch([[], [Piece(0, one, 0, 1)]], generators(0, range(2)))
    assert list(lines(batch)) == [([EOS], [EOS]), ([33, EOS], [EOS])]
    assert batch.bytes == 0


def kind_of(read, written, length):
    """Which of UL2's denoisers treated a row: by its density, its number of spans, and where they are."""
    text, spans = restored(read, written)
    assert len(text) == length
    return round(sum(map(len, spans)) / length, 2), len(spans)


def test_ul2_mixes_its_denoisers_by_their_shares_and_tells_the_mode(wide):
    shares = (1.0, 2.0, 3.0)
    denoisers = (
        Denoiser(mode="R", mean_span=3.0, density=0.15, share=shares[0]),
        Denoiser(mode="S", mean_span=None, density=0.25, share=shares[1]),
        Denoiser(mode="X", mean_span=4.0, density=0.5, share=shares[2]),
        Denoiser(mode="X", mean_span=64.0, density=0.9, share=0.0),
    )
    objective = UL2Config(denoisers=denoisers).build(wide, 40)
    length = objective.length(40)
    assert length == min(each.raw_length(39) for each in denoisers[:3])
    tokens = np.random.default_rng(0).integers(10, 64, length).astype(np.uint16)
    trials = 1200
    batch = objective.batch([[Piece(0, tokens, 0, length)]] * trials, generators(1, range(trials)))
    found = Counter()
    for read, written in lines(batch):
        (mode,) = (key for key, index in MODES.items() if index == read[0])
        kind = kind_of(read, written, length)
        each = denoisers[list(MODES).index(mode)]
        hidden, spans = each.counts(length)
        assert kind == (round(hidden / length, 2), spans)
        if mode == "[S2S]":
            assert read[1:-1] == [*tokens[: length - hidden].tolist(), SENTINELS[0]]
        found[mode] += 1
    for mode, share in zip(MODES, shares, strict=True):
        assert binomial(found[mode], trials, share / sum(shares))


def test_without_mode_tokens_ul2_writes_none(wide, vocabulary):
    plain = dataclasses.replace(wide, added=vocabulary.added)
    objective = UL2Config().build(plain, LENGTH)
    corpus = random_texts(4)
    rows, chance = epoch(objective, corpus, "stream")
    batch = objective.batch(rows, chance)
    assert not np.isin(batch.inputs["input_ids"], list(MODES.values())).any()
    assert [restored(*each)[0] for each in lines(batch)] == [text_of(row) for row in rows]
    assert objective.length(LENGTH) > UL2Config().build(wide, LENGTH).length(LENGTH)


def test_the_published_mixture():
    """The seven denoisers of UL2's table 1, each as often."""
    found = {(each.mode, each.mean_span, each.density, each.share) for each in UL2Config().denoisers}
    assert found == {
        ("R", 3.0, 0.15, 1.0),
        ("R", 8.0, 0.15, 1.0),
        ("S", None, 0.25, 1.0),
        ("X", 3.0, 0.5, 1.0),
        ("X", 8.0, 0.5, 1.0),
        ("X", 64.0, 0.15, 1.0),
        ("X", 64.0, 0.5, 1.0),
    }
    again = UL2Config.from_dict(UL2Config().to_dict())
    assert again == UL2Config()


def test_what_cannot_work_is_refused(wide, vocabulary):
    for name in ("span-corruption", "ul2"):
        with pytest.raises(ConfigError, match=f"objective {name}: .* the tokenizer has none.*t5 layout"):
            OBJECTIVES[name]().build(vocabulary, LENGTH)
    few = dataclasses.replace(wide, sentinels=SENTINELS[:27])
    assert SpanCorruptionConfig().build(few, 480).length(480) == 532
    with pytest.raises(ConfigError, match="in a context of 512 ask for 28 sentinels, and the tokenizer has 27"):
        SpanCorruptionConfig().build(few, 512)
    with pytest.raises(ConfigError, match="no token that ends a text"):
        SpanCorruptionConfig().build(dataclasses.replace(wide, eos=None), LENGTH)
    with pytest.raises(ConfigError, match="no room"):
        SpanCorruptionConfig().build(wide, 2)
    with pytest.raises(ConfigError, match="too large"):
        SpanCorruptionConfig(density=1.0)
    with pytest.raises(ConfigError, match="no denoiser has a share"):
        UL2Config(denoisers=())
    with pytest.raises(ConfigError, match=r"denoisers\[0\].mode"):
        UL2Config.from_dict({"denoisers": [{"mode": "Q"}]})
    objective = SpanCorruptionConfig().build(wide, LENGTH)
    tokens = np.full(99, 20, np.uint16)
    with pytest.raises(InputError, match="99 tokens, longer than 26"):
        objective.batch([[Piece(0, tokens, 0, 99)]], generators(0, [0]))


def test_the_loss_is_the_sum_over_what_is_written(wide):
    """In a real model; also where what is written is shorter than the batch is wide."""
    objective = UL2Config().build(wide, LENGTH)
    batch = objective.batch(*epoch(objective, random_texts(2), "single"))
    inputs = {key: torch.from_numpy(each) for key, each in batch.inputs.items()}
    model = tiny(
        "t5", objective.head, torch.float64, vocab_size=wide.size, pad_token_id=PAD, decoder_start_token_id=PAD
    )
    losses = objective.losses(model.eval(), inputs)
    labels = inputs.pop("targets")
    mean = model(**inputs, labels=labels).loss
    assert losses.keys() == batch.counts.keys() == objective.weights.keys()
    assert losses["token"].item() == pytest.approx(mean.item() * batch.counts["token"], rel=1e-9)
    losses["token"].backward()
    assert all(each.grad is not None for each in model.parameters())
