"""The loader: every row once an epoch, any row at once, the same whoever asks; permutations and generators."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsumugu.core.errors import ConfigError
from tsumugu.corpus.chance import Permutation, generators, mix
from tsumugu.corpus.loader import Loader, Mixture
from tsumugu.corpus.packing import KINDS
from tsumugu.corpus.rows import SlotRule


class Texts:
    """Documents of given lengths, in memory."""

    path = None

    def __init__(self, lengths):
        self.lengths = np.array(lengths, np.int64)
        self.document_bytes = 3 * self.lengths
        self._ends = np.concatenate(([0], np.cumsum(self.lengths)))
        self._tokens = np.arange(self._ends[-1]).astype(np.uint16)

    def document(self, index):
        return self._tokens[self._ends[index] : self._ends[index + 1]]


def texts(seed, documents=40, longest=50):
    return Texts(np.random.default_rng(seed).integers(0, longest, documents))


def loader(corpus, packing="stream", *, seed=3, length=16, slots=None, **options):
    return Loader(corpus, packing, length=length, slots=slots or SlotRule(per_document=1), seed=seed, **options)


def plain(rows):
    """Rows without arrays, to be compared."""
    return [[(each.document, each.start, each.stop) for each in row] for row in rows]


# --- permutations


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 100, 255, 256, 257, 1000, 65537])
def test_a_permutation_takes_every_place_once(size):
    for key in range(4):
        assert np.array_equal(np.sort(Permutation(size, key)(np.arange(size))), np.arange(size))


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 2000), key=st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=3), data=st.data())
def test_a_permutation_is_one_asked_whole_or_in_parts(size, key, data):
    permutation = Permutation(size, *key)
    whole = permutation(np.arange(size))
    assert np.array_equal(np.sort(whole), np.arange(size))
    index = data.draw(st.integers(0, size - 1))
    assert permutation(index) == whole[index]
    assert permutation(np.array([[index, 0]])).tolist() == [[whole[index], whole[0]]]


def test_a_huge_permutation_needs_no_memory():
    size = 10**15 + 37
    some = Permutation(size, 1)(np.arange(5000))
    assert len(set(some.tolist())) == 5000
    assert some.min() >= 0
    assert some.max() < size
    assert abs(some.mean() / size - 0.5) < 0.03


@pytest.mark.parametrize("size", [3, 10, 37])
def test_each_place_is_as_likely_as_the_others(size):
    draws = 4000
    counts = np.zeros((size, size))
    for key in range(draws):
        counts[np.arange(size), Permutation(size, 17, key)(np.arange(size))] += 1
    expected = draws / size
    # One chi-square for each index; 6 deviations is far in the tail.
    chi = ((counts - expected) ** 2 / expected).sum(1)
    assert (chi < (size - 1) + 6 * np.sqrt(2 * (size - 1)) + 6).all()


def test_neighbours_do_not_stay_neighbours():
    size = 20_000
    order = Permutation(size, 9)(np.arange(size))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03
    assert np.count_nonzero(np.abs(np.diff(order)) == 1) < 10
    other = Permutation(size, 10)(np.arange(size))
    assert np.count_nonzero(order == other) < 10


# --- generators


def test_generators_are_functions_of_their_numbers():
    first = [each.random(8).tolist() for each in generators(7, [0, 5, 2**40])]
    again = [each.random(8).tolist() for each in generators(7, [2**40, 0, 5])]
    assert [first[2], first[0], first[1]] == again
    streams = [tuple(each) for each in first]
    streams += [tuple(each.random(8).tolist()) for each in generators(8, [0, 5, 2**40])]
    streams += [tuple(each.random(8).tolist()) for each in generators(7, [0, 5, 2**40], purpose=1)]
    assert len(set(streams)) == 9


def test_generators_are_philox_under_that_key():
    (own,) = generators(7, [5], purpose=2)
    other = np.random.Generator(np.random.Philox(key=np.array([mix(7, 2), 5], np.uint64)))
    assert np.array_equal(own.integers(0, 1 << 60, 20), other.integers(0, 1 << 60, 20))


def test_generators_are_quickly_made():
    best = min(_timed(lambda: generators(7, range(64))) for _ in range(20))
    assert best / 64 < 50e-6  # 3 to 4 µs on a quiet machine


def _timed(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


# --- rows


@pytest.mark.parametrize("kind", KINDS)
def test_every_epoch_has_every_slot_once_in_an_order_of_its_own(kind):
    corpus = texts(1)
    rows = loader(corpus, kind)
    orders = []
    for epoch in range(3):
        found = plain(rows.rows(epoch * rows.rows_per_epoch, rows.rows_per_epoch))
        slots = Counter((piece[0], slot) for row in found for piece in row for slot in range(*piece[1:]))
        assert slots == {(i, slot): 1 for i, n in enumerate(corpus.lengths) for slot in range(n + 1)}
        orders.append(found)
    assert orders[0] != orders[1] != orders[2]
    if kind != "stream":  # the rows are the same ones
        assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])


def test_cuts_of_a_stream_stay_when_told_so():
    rows = loader(texts(1), move_cuts=False)
    per = rows.rows_per_epoch
    assert sorted(plain(rows.rows(0, per))) == sorted(plain(rows.rows(per, per)))
    moving = loader(texts(1))
    assert sorted(plain(moving.rows(0, per))) != sorted(plain(moving.rows(per, per)))


def test_unshuffled_rows_come_in_the_order_of_the_corpus():
    corpus = texts(2)
    rows = loader(corpus, shuffle=False)
    per = rows.rows_per_epoch
    found = [(document, slot) for row in plain(rows.rows(0, per)) for document, *ends in row for slot in range(*ends)]
    assert found == [(i, slot) for i, n in enumerate(corpus.lengths) for slot in range(n + 1)]
    assert plain(rows.rows(per, per)) == plain(rows.rows(0, per))


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from(KINDS), first=st.integers(0, 10**12), counts=st.lists(st.integers(0, 40), max_size=6))
def test_rows_are_the_same_in_whatever_portions_they_are_asked(kind, first, counts):
    corpus = texts(3, documents=9, longest=200)
    parts, at = [], first
    for count in counts:
        parts += plain(loader(corpus, kind).rows(at, count))
        at += count
    assert parts == plain(loader(corpus, kind).rows(first, at - first))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_together_read_what_one_reads(ranks):
    corpus, batch = texts(4), 6
    alone = plain(loader(corpus, "best-fit").rows(0, 10 * batch))
    each = [loader(corpus, "best-fit") for _ in range(ranks)]
    share = batch // ranks
    together = [
        row
        for step in range(10)
        for rank in range(ranks)
        for row in each[rank].rows(step * batch + rank * share, share)
    ]
    assert plain(together) == alone


def test_pieces_bring_the_documents_tokens_and_bytes():
    corpus = texts(5)
    for row in loader(corpus).rows(0, 30):
        for piece in row:
            assert np.array_equal(piece.tokens, corpus.document(piece.document))
            assert piece.size == 3 * corpus.lengths[piece.document]


def test_the_order_is_the_same_in_other_processes_and_versions():
    shown = "print(Permutation(1000, 3, 1)(np.arange(5)).tolist(), generators(1, [2])[0].bit_generator.random_raw(2))"
    code = f"import numpy as np; from tsumugu.corpus.chance import Permutation, generators; {shown}"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert (
        seen == "[487, 129, 126, 437, 609] [4420015024269955447 8310558396715814763]"
    )  # a run of yesterday must go on as it began


def test_the_corpus_room_loads_no_torch():
    code = "import sys, tsumugu.corpus.loader, tsumugu.corpus.plan; print('torch' in sys.modules)"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert seen.strip() == "False"


@pytest.mark.parametrize("kind", KINDS)
def test_rows_cost_far_less_than_a_step(kind):
    lengths = np.random.default_rng(6).lognormal(5.0, 1.0, 20_000).astype(np.int64) + 1
    rows = loader(Texts(lengths), kind, length=256)
    rows.rows(0, 16)
    best = min(_timed(lambda at=at: rows.rows(16 * at, 16)) for at in range(60))
    assert best < 2e-3  # 0.06 ms on a quiet machine


# --- mixtures


@settings(deadline=None, max_examples=60)
@given(
    weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=5),
    first=st.integers(0, 10**10),
    count=st.integers(1, 300),
)
def test_a_mixture_keeps_its_shares_at_every_moment(weights, first, count):
    parts = [Numbered(index) for index in range(len(weights))]
    mixture = Mixture(parts, weights)
    rows = mixture.rows(first, count)
    shares = np.array(weights) / sum(weights)
    for index, share in enumerate(shares):
        own = [number for part, number in rows if part == index]
        if own:  # each corpus in its own order, none left out
            assert own == list(range(own[0], own[0] + len(own)))
        assert abs(len(own) - share * count) <= 2.5 + count / 65536
    before, after = mixture.epochs(first), mixture.epochs(first + count)
    assert [round((b - a) * 100) for a, b in zip(before, after, strict=True)] == [
        sum(part == index for part, _ in rows) for index in range(len(weights))
    ]


class Numbered:
    """A loader whose rows say whose they are and which."""

    rows_per_epoch = 100

    def __init__(self, index):
        self.index = index

    def rows(self, first, count):
        return [(self.index, number) for number in range(first, first + count)]

    def epoch(self, row):
        return row / 100


def test_a_mixture_of_corpora_is_the_same_in_any_portions():
    def mixture():
        parts = [loader(texts(7), seed=1), loader(texts(8), "best-fit", seed=2), loader(texts(9), seed=3)]
        return Mixture(parts, [0.5, 0.3, 0.2])

    whole = plain(mixture().rows(0, 500))
    parts = [row for at in range(0, 500, 7) for row in plain(mixture().rows(at, min(7, 500 - at)))]
    assert parts == whole
    assert mixture().rows_per_epoch == sum(each.rows_per_epoch for each in mixture().loaders)
    assert mixture().epoch(mixture().rows_per_epoch) == 1


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")], [1, 1e-9], []])
def test_weights_that_make_no_sense_are_refused(weights):
    with pytest.raises(ConfigError, match="weight"):
        Mixture([Numbered(0), Numbered(1)], weights)
