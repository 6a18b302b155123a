"""The plan of best-fit packing: which remainders of documents share a row. Made once, kept beside the corpus.

Best-fit decreasing: the longest first, each into the row where it leaves the least room. Items of one length are alike,
and so are rows that were filled alike; the work is done on *groups* of rows, of which there are a few for each length,
however many documents there are.

A kept plan is read as what it is: somebody's file. It must carry the digest of what it was made from and one of itself,
and is checked to hold every item once and no row too full. Otherwise it is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tsumugu.checkpoints.atomic import new_file
from tsumugu.core.errors import CheckpointError

Int64s = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]

_VERSION = 1
_HEADER = 18  # words: key and digest, 32 bits in each, then the numbers of rows and of items


class Plan(NamedTuple):
    """Rows of items.

    Attributes:
        offsets: `[rows + 1]`, where each row begins in `items`.
        items: numbers of items, row after row.
    """

    offsets: Words
    items: Words

    @property
    def rows(self) -> int:
        """How many rows."""
        return len(self.offsets) - 1

    def documents(self, rows: Int64s) -> tuple[Int64s, Int64s]:
        """The items of the given rows: which of `rows` each is in, and its number."""
        first = self.offsets[rows].astype(np.int64)
        count = self.offsets[rows + 1].astype(np.int64) - first
        which = np.repeat(np.arange(len(rows)), count)
        before = np.cumsum(count) - count
        return which, self.items[first[which] + np.arange(len(which)) - before[which]].astype(np.int64)


def best_fit_plan(costs: Int64s, *, capacity: int, folder: Path | None) -> Plan:
    """The plan for items that take `costs` places, `[items]`, in rows of `capacity`; those that take 0 lie nowhere.

    Args:
        costs: at most `capacity` each.
        folder: where plans are kept; None keeps none. One that cannot be written to is no error.
    """
    if folder is None:
        return _best_fit(costs, capacity)
    key = _digest(np.array([_VERSION, capacity]), costs)
    path = folder / f"best-fit-{key.tobytes().hex()[:16]}.plan"
    plan = _read(path, key, costs, capacity)
    if plan is None:
        plan = _best_fit(costs, capacity)
        with contextlib.suppress(OSError, CheckpointError):
            _write(path, key, plan)
    return plan


# --- packing


class _Group(NamedTuple):
    """So many `rows`, filled alike: `each` took that many items of one `cost` after what `before` says."""

    rows: int
    cost: int
    each: int
    before: _Group | None


def _best_fit(costs: Int64s, capacity: int) -> Plan:
    counts = np.bincount(costs, minlength=capacity + 1)
    counts[0] = 0
    groups = _groups(counts.tolist(), capacity)
    short = costs.astype(np.uint16) if capacity < 1 << 16 else costs  # sorted by radix, ten times as quick
    items = np.argsort(short, kind="stable").astype(_word(len(costs)), copy=False)
    cursor = len(costs) - int(counts.sum()) + np.cumsum(counts) - counts
    packed = np.empty(int(counts.sum()), items.dtype)
    lengths = []
    at = 0
    for group in groups:
        chain = []
        link: _Group | None = group
        while link is not None:
            chain.append((link.cost, link.each))
            link = link.before
        width = sum(count for _, count in chain)
        block = packed[at : at + group.rows * width].reshape(group.rows, width)
        column = 0
        for cost, count in reversed(chain):
            first, taken = int(cursor[cost]), group.rows * count
            block[:, column : column + count] = items[first : first + taken].reshape(group.rows, count)
            cursor[cost] += taken
            column += count
        at += block.size
        lengths.append(np.full(group.rows, width, items.dtype))
    offsets = np.zeros(sum(map(len, lengths)) + 1, items.dtype)
    if lengths:
        np.cumsum(np.concatenate(lengths), out=offsets[1:])
    return Plan(offsets, packed)


def _groups(counts: list[int], capacity: int) -> list[_Group]:
    """Best-fit decreasing for `counts[c]` items of cost c."""
    by_room: list[list[_Group]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set while there are groups with r places left

    def add(room: int, rows: int, cost: int, count: int, before: _Group | None) -> None:
        nonlocal rooms
        by_room[room].append(_Group(rows, cost, count, before))
        rooms |= 1 << room

    for cost in range(capacity, 0, -1):
        left = counts[cost]
        while left:
            fitting = rooms >> cost
            if not fitting:
                each = capacity // cost
                if left >= each:
                    add(capacity - each * cost, left // each, cost, each, None)
                if left % each:
                    add(capacity - left % each * cost, 1, cost, left % each, None)
                break
            room = cost + (fitting & -fitting).bit_length() - 1
            group = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
            each = room // cost
            rows = min(group.rows, left // each)
            if rows:
                add(room - each * cost, rows, cost, each, group)
                left -= rows * each
            unused = group.rows - rows
            if unused and left:
                add(room - left * cost, 1, cost, left, group)
                unused, left = unused - 1, 0
            if unused:
                add(room, unused, group.cost, group.each, group.before)
    return [group for groups in by_room for group in groups]


# --- keeping


def _word(items: int) -> np.dtype[Any]:
    """The type that numbers items."""
    return np.dtype(np.uint32 if items < 1 << 32 else np.uint64)


def _write(path: Path, key: Words, plan: Plan) -> None:
    header = np.concatenate((key, _digest(plan.offsets, plan.items), [plan.rows, len(plan.items)]))
    path.parent.mkdir(exist_ok=True)
    with new_file(path) as partial, partial.open("wb") as file:
        for part in (header, plan.offsets, plan.items):
            file.write(part.astype(plan.items.dtype.newbyteorder("<"), copy=False).data)


def _read(path: Path, key: Words, costs: Int64s, capacity: int) -> Plan | None:
    """The plan in a file, or None where there is none that can be trusted."""
    try:
        words: Words = np.memmap(path, _word(len(costs)).newbyteorder("<"), "r").view(np.ndarray)
    except (OSError, ValueError):  # there is none, or it is empty or cut off
        return None
    if len(words) < _HEADER or not np.array_equal(words[:8], key):
        return None
    rows, items = (int(each) for each in words[16:_HEADER])
    if len(words) != _HEADER + rows + 1 + items:
        return None
    plan = Plan(words[_HEADER : _HEADER + rows + 1], words[_HEADER + rows + 1 :])
    trusted = np.array_equal(words[8:16], _digest(plan.offsets, plan.items)) and _holds(plan, costs, capacity)
    return plan if trusted else None


def _digest(*arrays: npt.NDArray[np.integer]) -> npt.NDArray[np.uint32]:
    digest = hashlib.sha256()
    for each in arrays:
        digest.update(np.ascontiguousarray(each).data)
    return np.frombuffer(digest.digest(), "<u4")


def _holds(plan: Plan, costs: Int64s, capacity: int) -> bool:
    """Whether every item that takes room lies in exactly one row, and no row is empty or too full."""
    offsets = plan.offsets.astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != len(plan.items) or (offsets[1:] <= offsets[:-1]).any():
        return False
    if len(plan.items) != np.count_nonzero(costs) or (len(plan.items) and int(plan.items.max()) >= len(costs)):
        return False
    found = np.zeros(len(costs), bool)
    found[plan.items] = True
    if not np.array_equal(found, costs > 0):
        return False
    return len(plan.items) == 0 or int(np.add.reduceat(costs[plan.items], offsets[:-1]).max()) <= capacity
