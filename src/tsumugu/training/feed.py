"""What a training loop eats: the micro-batches of each step, as a pure function of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from tsumugu.core.errors import ConfigError
from tsumugu.corpus.chance import generators
from tsumugu.corpus.loader import Rows
from tsumugu.objectives.base import Batch, Objective

HELD_BACK = 1
"""The purpose of what is drawn for held-back rows, which each evaluation draws alike."""


class Feed(Protocol):
    """The data of a run; see `RowFeed` for text."""

    def batches(self, step: int, part: int, parts: int) -> list[Batch]:
        """The micro-batches of a step that one of `parts` ranks computes, at least one, as many on each of them."""
        ...

    def epoch(self, step: int) -> float:
        """How many times everything has been read before a step."""
        ...


class RowFeed:
    """So many rows of text a step, cut into micro-batches, which the ranks take in turn.

    Args:
        rows: the text, in rows.
        objective: makes batches of them.
        batch: rows of a step.
        micro_batch: rows of a micro-batch.
        seed: of what the objective draws; a function of each row's number.
    """

    def __init__(self, rows: Rows, objective: Objective, *, batch: int, micro_batch: int, seed: int) -> None:
        self._rows, self._objective, self._seed = rows, objective, seed
        self._batch, self._micro_batch = batch, micro_batch

    def batches(self, step: int, part: int, parts: int) -> list[Batch]:
        """See `Feed`."""
        first, made = step * self._batch, []
        for at in range(part * self._micro_batch, self._batch, parts * self._micro_batch):
            count = min(self._micro_batch, self._batch - at)
            made.append(self._one(first + at, count))
        return made

    def epoch(self, step: int) -> float:
        """See `Feed`."""
        return self._rows.epoch(step * self._batch)

    def _one(self, first: int, count: int) -> Batch:
        random = generators(self._seed, range(first, first + count))
        return self._objective.batch(self._rows.rows(first, count), random)


def share(batch: int, micro_batch: int | None, parts: int) -> int:
    """How many rows a micro-batch has, so that each of `parts` ranks computes as many of them.

    Raises:
        ConfigError: that cannot be.
    """
    if micro_batch is None:
        if batch % parts:
            raise ConfigError(f"{parts} ranks do not divide a batch of {batch} rows", where="train.batch")
        return batch // parts
    count = -(-batch // micro_batch)
    if count % parts:
        raise ConfigError(
            f"{count} micro-batches of {micro_batch} rows cannot be dealt to {parts} ranks", where="train.micro_batch"
        )
    return micro_batch


def held_back(rows: Rows, objective: Objective, *, limit: int | None, micro_batch: int, seed: int) -> Iterator[Batch]:
    """Held-back text in micro-batches, the same whenever it is asked for."""
    total = rows.rows_per_epoch if limit is None else min(limit, rows.rows_per_epoch)
    for first in range(0, total, micro_batch):
        count = min(micro_batch, total - first)
        random = generators(seed, range(first, first + count), purpose=HELD_BACK)
        yield objective.batch(rows.rows(first, count), random)


class Ahead:
    """Makes the batches of the next step while this one is computed.

    Args:
        make: the batches of a step.
    """

    def __init__(self, make: Callable[[int], list[Batch]]) -> None:
        self._make = make
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._next: tuple[int, Future[list[Batch]]] | None = None

    def __call__(self, step: int) -> list[Batch]:
        """The batches of `step`; begins with those of the step after it."""
        held, self._next = self._next, None
        batches = held[1].result() if held is not None and held[0] == step else self._make(step)
        self._next = step + 1, self._pool.submit(self._make, step + 1)
        return batches

    def close(self) -> None:
        """Give up what is under way."""
        self._pool.shutdown(wait=True, cancel_futures=True)
