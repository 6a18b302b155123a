"""Packing: every slot of every document in one piece, no row too full, little padding, plans that are not trusted."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsumugu.core.errors import ConfigError, InputError
from tsumugu.corpus.packing import KINDS, pack
from tsumugu.corpus.plan import best_fit_plan
from tsumugu.corpus.rows import SlotRule


class Texts:
    """Documents of given lengths; every token says where it stands."""

    def __init__(self, lengths, path: Path | None = None):
        self.lengths = np.array(lengths, np.int64)
        self.document_bytes = 3 * self.lengths
        self.path = path

    def document(self, index):
        return np.arange(self.lengths[index], dtype=np.uint16)


def rows_of(packing, *, turn=0):
    """Every row as a list of (document, start, stop)."""
    pieces = packing.pieces(np.arange(packing.rows), turn=turn)
    rows = [[] for _ in range(packing.rows)]
    for row, *piece in zip(*(each.tolist() for each in pieces), strict=True):
        rows[row].append(tuple(piece))
    return rows


rules = st.builds(SlotRule, st.integers(0, 2), st.integers(0, 4), st.integers(0, 2))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=150)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    length=st.integers(7, 24),
    slots=rules,
    turn=st.integers(0, 1000),
)
def test_every_slot_lies_in_one_piece_and_no_row_is_too_full(kind, lengths, length, slots, turn):
    corpus = Texts(lengths)
    if sum(lengths) + len(lengths) * slots.per_document == 0:
        with pytest.raises(InputError):
            pack(kind, corpus, length=length, slots=slots)
        return
    rows = rows_of(pack(kind, corpus, length=length, slots=slots), turn=turn)
    seen = [np.zeros(n + slots.per_document, int) for n in lengths]
    for row in rows:
        assert all(start < stop for _, start, stop in row)
        assert sum(stop - start + slots.per_piece for _, start, stop in row) + slots.per_row <= length
        for document, start, stop in row:
            assert stop <= len(seen[document])
            seen[document][start:stop] += 1
    assert all((each == 1).all() for each in seen)
    if kind != "stream":
        assert all(rows)
    if kind == "single":
        assert all(len(row) == 1 for row in rows)


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=40), length=st.integers(2, 30))
def test_a_stream_without_separators_has_no_padding_before_its_last_row(lengths, length):
    corpus = Texts(lengths)
    rows = rows_of(pack("stream", corpus, length=length, slots=SlotRule(per_document=1)))
    taken = [sum(stop - start for _, start, stop in row) for row in rows]
    assert taken[:-1] == [length] * (len(rows) - 1)
    order = [(document, slot) for row in rows for document, start, stop in row for slot in range(start, stop)]
    assert order == [(document, slot) for document, n in enumerate(lengths) for slot in range(n + 1)]


def test_a_turn_moves_the_cuts_of_a_stream_round_the_ring():
    packing = pack("stream", Texts([10, 3]), length=5, slots=SlotRule())
    assert rows_of(packing) == [[(0, 0, 5)], [(0, 5, 10)], [(1, 0, 3)]]
    assert rows_of(packing, turn=2) == [[(0, 2, 7)], [(0, 7, 10), (1, 0, 2)], [(1, 2, 3), (0, 0, 2)]]


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=40), kind=st.sampled_from(KINDS), data=st.data())
def test_rows_are_the_same_asked_in_any_order(lengths, kind, data):
    packing = pack(kind, Texts(lengths), length=9, slots=SlotRule(1, 1, 1))
    every = rows_of(packing)
    asked = data.draw(st.lists(st.integers(0, packing.rows - 1), max_size=12))
    pieces = packing.pieces(np.array(asked, np.int64))
    found = [[] for _ in asked]
    for row, *piece in zip(*(each.tolist() for each in pieces), strict=True):
        found[row].append(tuple(piece))
    assert found == [every[each] for each in asked]


def best_fit_decreasing(costs, capacity):
    """How full the rows are by the textbook: each item goes into the row in which it leaves the least room."""
    rows = []
    for cost in sorted(costs, reverse=True):
        fitting = [row for row in rows if sum(row) + cost <= capacity]
        if fitting:
            max(fitting, key=sum).append(cost)
        else:
            rows.append([cost])
    return sorted(map(sum, rows))


@settings(deadline=None, max_examples=200)
@given(costs=st.lists(st.integers(0, 20), max_size=60), capacity=st.integers(20, 31))
def test_best_fit_is_the_textbooks(costs, capacity):
    plan = best_fit_plan(np.array(costs, np.int64), capacity=capacity, folder=None)
    which, items = plan.documents(np.arange(plan.rows))
    rows = [sum(costs[item] for item in items[which == row]) for row in range(plan.rows)]
    assert sorted(items) == [item for item, cost in enumerate(costs) if cost]
    assert sorted(rows) == best_fit_decreasing([each for each in costs if each], capacity)


@pytest.mark.parametrize("length", [128, 512, 2048])
def test_best_fit_leaves_little_padding_and_is_quick(length):
    lengths = np.random.default_rng(5).lognormal(5.0, 1.1, 200_000).astype(np.int64) + 1
    begin = time.perf_counter()
    packing = pack("best-fit", Texts(lengths), length=length, slots=SlotRule(per_document=1))
    seconds = time.perf_counter() - begin
    padding = 1 - (lengths + 1).sum() / (packing.rows * length)
    assert padding < 0.001
    assert seconds < 3  # 0.05 on a quiet machine
    cut = np.count_nonzero(np.bincount(packing.pieces(np.arange(packing.rows)).document) > 1)
    assert cut == np.count_nonzero(lengths + 1 > length)  # no document is cut that fits in a row


def test_a_plan_is_kept_and_read_again(tmp_path):
    corpus = Texts(np.random.default_rng(1).integers(1, 90, 300), tmp_path)
    rows = rows_of(pack("best-fit", corpus, length=64, slots=SlotRule()))
    (kept,) = (tmp_path / "packing").iterdir()
    before = kept.stat()
    assert rows_of(pack("best-fit", corpus, length=64, slots=SlotRule())) == rows
    assert kept.stat().st_mtime_ns == before.st_mtime_ns
    assert kept.stat().st_ino == before.st_ino
    pack("best-fit", corpus, length=65, slots=SlotRule())
    assert len(list((tmp_path / "packing").iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "foreign", "folder", "longer", "noise"])
def test_a_plan_that_is_broken_or_foreign_is_made_anew(tmp_path, damage):
    corpus = Texts(np.random.default_rng(1).integers(1, 90, 300), tmp_path)
    rows = rows_of(pack("best-fit", corpus, length=64, slots=SlotRule()))
    (kept,) = (tmp_path / "packing").iterdir()
    good = kept.read_bytes()
    if damage == "foreign":
        other = Texts(np.random.default_rng(2).integers(1, 90, 300), tmp_path)
        pack("best-fit", other, length=64, slots=SlotRule())
        (foreign,) = set((tmp_path / "packing").iterdir()) - {kept}
        foreign.replace(kept)
    elif damage == "folder":
        kept.unlink()
        kept.mkdir()
    else:
        middle = len(good) // 2
        kept.write_bytes(
            {
                "cut": good[: middle + 1],
                "empty": b"",
                "flipped": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
                "longer": good + bytes(4),
                "noise": np.random.default_rng(3).bytes(len(good)),
            }[damage]
        )
    assert rows_of(pack("best-fit", corpus, length=64, slots=SlotRule())) == rows
    if damage != "folder":
        assert kept.read_bytes() == good


@pytest.mark.parametrize("lie", ["twice", "outside", "overfull", "empty row", "backwards"])
def test_a_plan_that_is_forged_with_care_is_not_believed(tmp_path, lie):
    costs = np.array([5, 5, 3, 3, 2, 2, 0], np.int64)
    plan = best_fit_plan(costs, capacity=10, folder=tmp_path)
    (kept,) = tmp_path.iterdir()
    words = np.fromfile(kept, "<u4")
    header, offsets, items = words[:18], words[18 : 18 + plan.rows + 1], words[18 + plan.rows + 1 :]
    if lie == "twice":
        items[1] = items[0]
    elif lie == "outside":
        items[0] = 7
    elif lie == "overfull":
        offsets, header[16] = offsets[[0, -1]], 1
    elif lie == "empty row":
        offsets, header[16] = np.insert(offsets, 1, 0), plan.rows + 1
    else:
        offsets[1] = 2**31
    header[8:16] = np.frombuffer(hashlib.sha256(offsets.tobytes() + items.tobytes()).digest(), "<u4")
    np.concatenate((header, offsets, items)).tofile(kept)
    again = best_fit_plan(costs, capacity=10, folder=tmp_path)
    assert again.rows == plan.rows
    assert sorted(again.items.tolist()) == [0, 1, 2, 3, 4, 5]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_folder_that_cannot_be_written_to_costs_the_plan_only(tmp_path):
    corpus = Texts([5, 6, 7], tmp_path)
    tmp_path.chmod(0o500)
    try:
        assert pack("best-fit", corpus, length=8, slots=SlotRule()).rows == 3
    finally:
        tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())


def test_where_plans_would_lie_there_is_a_file(tmp_path):
    (tmp_path / "packing").write_text("mine")
    assert pack("best-fit", Texts([5, 6, 7], tmp_path), length=8, slots=SlotRule()).rows == 3
    assert (tmp_path / "packing").read_text() == "mine"


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'best-fit'"):
        pack("bestfit", Texts([1]), length=8, slots=SlotRule())
    with pytest.raises(ConfigError, match=r"a row of 2 places holds no token.*at least 3"):
        pack("stream", Texts([1]), length=2, slots=SlotRule(0, 1, 1))
    with pytest.raises(InputError, match="the corpus has no tokens"):
        pack("single", Texts([0, 0]), length=8, slots=SlotRule())
