"""Exact and near duplicates: the tables against plain sets, the signatures against the true similarity."""

from __future__ import annotations

import io
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpus.conftest import ENGLISH, JAPANESE

from tsumugu.corpus.duplicates import ExactIndex, MinHasher, NearIndex, NumberTable, bands_for, digest


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), max_size=30), max_size=12))
def test_a_table_finds_what_was_added_in_its_order(blocks):
    table, plain, value = NumberTable(), {}, 0
    for keys in blocks:
        table.add(np.array(keys, np.uint64), np.arange(value, value + len(keys), dtype=np.uint64))
        for key in keys:
            plain.setdefault(key, []).append(value)
            value += 1
        found = table.find(np.arange(41, dtype=np.uint64))
        assert [each.tolist() for each in found] == [plain.get(key, []) for key in range(41)]
        found = table.find(np.arange(41, dtype=np.uint64), most=2)
        assert [each.tolist() for each in found] == [plain.get(key, [])[:2] for key in range(41)]
    assert len(table) == value


def test_a_table_stays_right_and_small_while_it_grows():
    table, draw = NumberTable(), np.random.default_rng(0)
    keys = draw.integers(0, 1 << 63, 400_000).astype(np.uint64)
    for start in range(0, len(keys), 9_000):
        some = keys[start : start + 9_000]
        table.add(some, some ^ np.uint64(5))
    found = table.find(keys[::1000])
    assert all((key ^ np.uint64(5)) in values for key, values in zip(keys[::1000], found, strict=True))
    held = sum(each.nbytes for pair in (table._large, table._small) for each in pair)
    assert held == 16 * len(keys)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=20), max_size=10))
def test_exact_duplicates_agree_with_a_set(blocks):
    index, seen = ExactIndex(), set()
    for block in blocks:
        expected = []
        for each in block:
            expected.append(each not in seen)
            seen.add(each)
        found = index.new(b"".join(digest(str(each).encode()) for each in block))
        assert found.tolist() == expected
    assert len(index) == len(seen)


def test_digests_that_share_a_half_are_two():
    index = ExactIndex()
    rows = [bytes(8) + bytes([last] * 8) for last in (1, 2, 1, 3)]
    assert index.new(b"".join(rows)).tolist() == [True, True, False, True]
    assert index.new(rows[1] + bytes([9] * 8) + bytes(8)).tolist() == [False, True]


def shingles(text: str) -> set:
    if " " in text:
        words = text.split()
        return {tuple(words[at : at + 5]) for at in range(max(len(words) - 4, 1))}
    text = re.sub(r"\s", "", text)
    return {text[at : at + 5] for at in range(max(len(text) - 4, 1))}


def similarity(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def changed(text: str, times: int, draw: random.Random) -> str:
    """The text with words (or characters) replaced."""
    parts, joint = (text.split(), " ") if " " in text else (list(text), "")
    for _ in range(times):
        parts[draw.randrange(len(parts))] = "〇"
    return joint.join(parts)


@pytest.mark.parametrize("base", [ENGLISH[7] * 2, "".join(JAPANESE) * 4], ids=["en", "ja"])
def test_signatures_estimate_the_similarity(base):
    hasher, draw = MinHasher(), random.Random(3)
    errors = []
    for times in (0, 1, 3, 8, 20, 60):
        for _ in range(4):
            other = changed(base, times, draw)
            estimate = np.mean(hasher.signature(base) == hasher.signature(other))
            errors.append(estimate - similarity(base, other))
    assert abs(np.mean(errors)) < 0.03
    assert np.std(errors) < 0.07
    assert errors[0] == 0.0


def test_signatures_are_the_same_in_every_process_and_on_every_machine():
    hasher = MinHasher()
    assert hasher.signature("The quick brown fox jumps over the lazy dog.")[:3].tolist() == [
        3258854238,
        3423375678,
        3381769842,
    ]
    assert hasher.signature(JAPANESE[0])[:3].tolist() == [2423613267, 179747265, 3153304457]


def test_short_texts_are_told_apart():
    hasher = MinHasher()
    rows = np.array([hasher.signature(each) for each in ("one", "two", "one two", "猫", "犬", "one", "!")])
    index = NearIndex(io.BytesIO(), 0.8)
    assert index.new(rows, np.ones(7, bool)).tolist() == [True, True, True, True, True, False, True]


def test_bands_find_pairs_at_the_threshold():
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0):
        bands, rows = bands_for(threshold)
        assert bands * rows <= 128
        assert 1 - (1 - threshold**rows) ** bands >= 0.98
        longer = rows + 1
        if longer <= 128:
            assert 1 - (1 - threshold**longer) ** (128 // longer) < 0.98 or 128 // longer == 128 // rows


def texts_with_copies() -> list[str]:
    """Texts, and slightly changed copies of every second one."""
    draw = random.Random(5)
    originals = [each for each in ENGLISH if len(each) > 600][:40] + [each * 3 for each in JAPANESE]
    return [*originals, *(changed(each, 1, draw) for each in originals[::2])]


def test_near_duplicates_agree_with_comparing_every_pair():
    texts = texts_with_copies()
    hasher = MinHasher()
    rows = np.array([hasher.signature(each) for each in texts])
    for threshold in (0.5, 0.8, 0.95):
        kept: list[int] = []
        expected = []
        for at in range(len(texts)):
            alike = any(np.mean(rows[at] == rows[other]) >= threshold for other in kept)
            expected.append(not alike)
            if not alike:
                kept.append(at)
        for size in (1, 7, len(texts)):
            index = NearIndex(io.BytesIO(), threshold)
            found = [
                each
                for start in range(0, len(texts), size)
                for each in index.new(rows[start : start + size], np.ones(len(rows[start : start + size]), bool))
            ]
            assert found == expected, (threshold, size)
        assert not all(expected)


def test_an_index_goes_on_from_its_file():
    draw = np.random.default_rng(1)
    rows = draw.integers(0, 1 << 32, (60, 128)).astype(np.uint32)
    rows[40:] = rows[:20]
    file = io.BytesIO()
    first = NearIndex(file, 0.8)
    assert first.new(rows[:30], np.arange(30) % 3 > 0).sum() == 20
    assert len(first) == 20
    first.new(rows[30:40], np.ones(10, bool))  # not committed
    again = NearIndex(file, 0.8, documents=20)
    assert len(again) == 20
    assert again.new(rows[30:40], np.ones(10, bool)).all()
    assert again.new(rows[40:], np.ones(20, bool)).tolist() == [at % 3 == 0 for at in range(20)]


def test_boilerplate_that_all_share_costs_no_more_and_more():
    draw = np.random.default_rng(2)
    rows = draw.integers(0, 1 << 32, (3000, 128)).astype(np.uint32)
    rows[:, :64] = rows[0, :64]  # half of each signature is the same: every band there holds all documents
    reads = 0

    class Counting(io.BytesIO):
        def read(self, *arguments):
            nonlocal reads
            reads += 1
            return super().read(*arguments)

    index = NearIndex(Counting(), 0.8)
    for start in range(0, 3000, 100):
        assert index.new(rows[start : start + 100], np.ones(100, bool)).all()
    assert reads <= 3000 * 64
