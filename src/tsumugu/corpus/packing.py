"""Packing: which stretch of which document lies in which row. Nothing is cropped, and nothing is lost or doubled.

    stream    documents one after another, cut at the row's edge: no padding.
    best-fit  documents are cut only if longer than a row; the rest of each is put where it fits tightest.
    single    one document, or one piece of a long one, in each row.

`stream` and `single` look a row up in cumulative lengths, 8 bytes a document. `best-fit` keeps a plan of 4 bytes a
document and 4 a row, in a memory-mapped file beside the corpus.

Source: Ding et al. 2024, "Fewer Truncations Improve Language Modeling", section 3 (best-fit packing).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tsumugu.core.errors import ConfigError, InputError, did_you_mean
from tsumugu.corpus.plan import best_fit_plan
from tsumugu.corpus.rows import Ids, SlotRule

Int64s = npt.NDArray[np.int64]

KINDS = ("stream", "best-fit", "single")


class Documents(Protocol):
    """What packing and loading read of a corpus.

    Attributes:
        lengths: tokens of each document, `[documents]`.
        document_bytes: UTF-8 bytes of each document, `[documents]`.
        path: its folder.
    """

    @property
    def lengths(self) -> Int64s: ...
    @property
    def document_bytes(self) -> Int64s: ...
    @property
    def path(self) -> Path | None: ...
    def document(self, index: int) -> Ids: ...


class Pieces(NamedTuple):
    """The pieces of several rows, `[pieces]` each, in order.

    Attributes:
        row: which of the rows that were asked for holds it, counted from 0.
        document: the document's number.
        start, stop: its slots.
    """

    row: Int64s
    document: Int64s
    start: Int64s
    stop: Int64s


class Packing(Protocol):
    """How the documents of a corpus lie in rows.

    Attributes:
        rows: how many rows hold the whole corpus.
    """

    rows: int

    def pieces(self, rows: Int64s, *, turn: int = 0) -> Pieces:
        """What the given rows hold.

        Args:
            rows: numbers of rows, `[n]`, in any order.
            turn: an integer that moves the cuts, where there are any to move. Each turn packs the whole corpus.
        """
        ...


def pack(kind: str, corpus: Documents, *, length: int, slots: SlotRule) -> Packing:
    """The packing called `kind` of a corpus in rows of `length` places.

    Raises:
        ConfigError: no such kind, or rows so short that they hold no token.
        InputError: the corpus has nothing to pack.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown packing {kind!r}", where="packing", mend=did_you_mean(kind, KINDS))
    room = length - slots.per_row - slots.per_piece
    if room < 1:
        taken = slots.per_row + slots.per_piece
        what = f"a row of {length} places holds no token beside the {taken} that this objective needs"
        raise ConfigError(what, where="length", mend=f"at least {taken + 1}")
    if kind == "stream":
        packing: Packing = Stream(corpus.lengths, room=room, slots=slots)
    elif kind == "single":
        packing = Single(corpus.lengths, room=room, slots=slots)
    else:
        packing = BestFit(corpus, room=room, slots=slots)
    if packing.rows == 0:
        raise InputError("the corpus has no tokens", where=str(corpus.path or "corpus"), mend="prepare one with text")
    return packing


class Stream:
    """Documents one after another, cut every `room` slots.

    Separators count as slots of the stream. Where a row ends inside a document, the cut piece takes its separator from
    the places kept free for it. `turn` moves all cuts by as many slots; the corpus is a ring then.
    """

    def __init__(self, lengths: Int64s, *, room: int, slots: SlotRule) -> None:
        self._slots = lengths + slots.per_document
        self._ends = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(self._slots + np.where(self._slots > 0, slots.per_piece, 0), out=self._ends[1:])
        self._room, self._total = room, int(self._ends[-1])
        self.rows = -(-self._total // room)

    def pieces(self, rows: Int64s, *, turn: int = 0) -> Pieces:
        """What the given rows hold."""
        shift = turn % self._total
        begin = rows * self._room + shift
        end = np.minimum(rows * self._room + self._room, self._total) + shift
        over = np.clip(self._total, begin, end)  # where a row reaches over the end of the ring, which begins anew there
        begin, end = np.stack((begin, over - self._total), 1), np.stack((over, end - self._total), 1)
        filled = begin < end
        row, begin, end = np.nonzero(filled)[0], begin[filled], end[filled]
        first = np.searchsorted(self._ends, begin, "right") - 1
        last = np.searchsorted(self._ends, end, "left") - 1
        which, document = _ranges(first, last - first + 1)
        start = np.maximum(begin[which] - self._ends[document], 0)
        stop = np.minimum(end[which] - self._ends[document], self._slots[document])
        real = start < stop  # a row may begin with the separator of a document that ended in the one before
        return Pieces(row[which][real], document[real], start[real], stop[real])


class Single:
    """One document, or one piece of `room` slots of a long one, in each row."""

    def __init__(self, lengths: Int64s, *, room: int, slots: SlotRule) -> None:
        self._slots, self._room = lengths + slots.per_document, room
        self._first = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(-(-self._slots // room), out=self._first[1:])
        self.rows = int(self._first[-1])

    def pieces(self, rows: Int64s, *, turn: int = 0) -> Pieces:
        """What the given rows hold; there are no cuts to move."""
        document = np.searchsorted(self._first, rows, "right") - 1
        start = (rows - self._first[document]) * self._room
        stop = np.minimum(start + self._room, self._slots[document])
        return Pieces(np.arange(len(rows)), document, start, stop)


class BestFit:
    """Full rows of the documents longer than a row come first; then what is left of all documents, by the plan."""

    def __init__(self, corpus: Documents, *, room: int, slots: SlotRule) -> None:
        self._slots, self._room = corpus.lengths + slots.per_document, room
        full = self._slots // room
        self._long = np.flatnonzero(full)
        self._first = np.zeros(len(self._long) + 1, np.int64)
        np.cumsum(full[self._long], out=self._first[1:])
        rest = self._slots - full * room
        self._plan = best_fit_plan(
            np.where(rest > 0, rest + slots.per_piece, 0),
            capacity=room + slots.per_piece,
            folder=None if corpus.path is None else corpus.path / "packing",
        )
        self._full = int(self._first[-1])
        self.rows = self._full + self._plan.rows

    def pieces(self, rows: Int64s, *, turn: int = 0) -> Pieces:
        """What the given rows hold; cuts are as few as can be, and stay."""
        whole = np.flatnonzero(rows < self._full)
        owner = np.searchsorted(self._first, rows[whole], "right") - 1
        start = (rows[whole] - self._first[owner]) * self._room
        mixed = np.flatnonzero(rows >= self._full)
        which, document = self._plan.documents(rows[mixed] - self._full)
        stop = self._slots[document]
        pieces = Pieces(
            np.concatenate((whole, mixed[which])),
            np.concatenate((self._long[owner], document)),
            np.concatenate((start, stop - stop % self._room)),
            np.concatenate((start + self._room, stop)),
        )
        order = np.argsort(pieces.row, kind="stable")
        return Pieces(*(each[order] for each in pieces))


def _ranges(first: Int64s, count: Int64s) -> tuple[Int64s, Int64s]:
    """`count[i]` numbers from `first[i]` on, for each i: which i, and the number."""
    which = np.repeat(np.arange(len(first)), count)
    before = np.cumsum(count) - count
    return which, first[which] + np.arange(len(which)) - before[which]
