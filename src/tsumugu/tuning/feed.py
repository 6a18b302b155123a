"""The micro-batches of each step out of labelled rows, as a pure function of the step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from tsumugu.core.errors import ConfigError
from tsumugu.corpus.chance import generators
from tsumugu.objectives.base import Batch
from tsumugu.training.feed import Feed
from tsumugu.tuning.base import Row

WINDOW = 100
"""Batches whose rows are sorted by length together: enough that little is padding, few enough that batches vary."""
GROUP = 4
"""Of rows that have two lengths, batches that are alike in the first and sorted by the second."""


class ExampleFeed:
    """All rows once an epoch, in an order of its own, in steps of nearly equal size.

    With `by_length`, rows of like length share a step: the shuffled rows are sorted within windows of about `WINDOW`
    steps, and the steps of the epoch are shuffled again. Windows are equally large, and every second one runs from long
    to short, so that a step that lies in two of them holds rows of like length, too.

    Args:
        rows: what is learnt.
        make: a batch of some rows.
        batch: rows of a step at most; an epoch is cut into steps that differ by one row.
        micro_batch: rows that are computed at once at most; all of a rank's share when None.
        parts: how many ranks take part.
        seed: of the orders.
        places: tokens, padding included, that are computed at once at most: a step is cut into as many micro-batches
            as that takes, down to single rows; as `micro_batch` has it when None.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        make: Callable[[Sequence[Row]], Batch],
        *,
        batch: int,
        micro_batch: int | None,
        parts: int,
        seed: int,
        by_length: bool = True,
        places: int | None = None,
    ) -> None:
        self._rows, self._make, self._seed, self._places = rows, make, seed, places
        self.steps_per_epoch = -(-len(rows) // batch)
        least = len(rows) // self.steps_per_epoch
        most = -(-len(rows) // self.steps_per_epoch)
        # As many micro-batches on each rank, none of them empty.
        self._cuts = min(parts * -(-most // (parts * (micro_batch or most))), least // parts * parts)
        if self._cuts < parts:
            raise ConfigError(f"a step of {least} rows cannot be dealt to {parts} ranks", where="train.batch")
        self._by_length = by_length
        self._windows = max(1, round(self.steps_per_epoch / WINDOW))
        self._lengths = np.array([len(row.ids) for row in rows])
        self._written = np.array([row.written for row in rows])
        self._known: tuple[int, list[np.ndarray]] | None = None

    def batches(self, step: int, part: int, parts: int) -> list[Batch]:
        """See `tsumugu.training.feed.Feed`."""
        epoch, place = divmod(step, self.steps_per_epoch)
        rows = self._order(epoch)[place]
        rows = rows[np.argsort(self._lengths[rows], kind="stable")]
        if self._places is None:
            pieces = np.array_split(rows, self._cuts)[part::parts]
            return [self._make([self._rows[row] for row in piece]) for piece in pieces]
        some = [self._rows[row] for row in rows]
        return cut(some, self._make, places=self._places, least=self._cuts, by=parts)[part::parts]

    def epoch(self, step: int) -> float:
        """See `tsumugu.training.feed.Feed`."""
        return step / self.steps_per_epoch

    def _order(self, epoch: int) -> list[np.ndarray]:
        """The rows of each step of an epoch."""
        if self._known is None or self._known[0] != epoch:
            (random,) = generators(self._seed, [epoch])
            order = random.permutation(len(self._rows))
            if self._by_length:
                order = _back_and_forth(np.array_split(order, self._windows), self._lengths)
                if self._written.any():
                    groups = np.array_split(order, -(-self.steps_per_epoch // GROUP))
                    order = _back_and_forth(groups, self._written)
            steps = np.array_split(order, self.steps_per_epoch)
            if self._by_length:
                steps = [steps[at] for at in random.permutation(len(steps))]
            self._known = epoch, steps
        return self._known[1]


def _back_and_forth(parts: Sequence[np.ndarray], lengths: np.ndarray) -> np.ndarray:
    """The rows of each part sorted by length, in turn from short to long and from long to short."""
    ordered = [part[np.argsort(lengths[part], kind="stable")] for part in parts]
    return np.concatenate([part[::-1] if at % 2 else part for at, part in enumerate(ordered)])


class Beside:
    """The micro-batches of one feed in each step, and those of another beside them, whose weight grows.

    Args:
        first: it is what counts epochs.
        second: its batches get an input `ramp`, which grows from 0 to 1.
        ramp: in so many steps.
    """

    def __init__(self, first: Feed, second: Feed, *, ramp: int) -> None:
        self._first, self._second, self._ramp = first, second, ramp

    def batches(self, step: int, part: int, parts: int) -> list[Batch]:
        """See `tsumugu.training.feed.Feed`."""
        ramp = np.array(min(1.0, (step + 1) / max(self._ramp, 1)), np.float32)
        others = self._second.batches(step, part, parts)
        return [
            *self._first.batches(step, part, parts),
            *(replace(each, inputs={**each.inputs, "ramp": ramp}) for each in others),
        ]

    def epoch(self, step: int) -> float:
        """See `tsumugu.training.feed.Feed`."""
        return self._first.epoch(step)


def cut(
    rows: Sequence[Row], make: Callable[[Sequence[Row]], Batch], *, places: int, least: int = 1, by: int = 1
) -> list[Batch]:
    """Rows in as few micro-batches as keep to `places` tokens each, padding included, or have one row.

    Args:
        rows: sorted by length.
        make: a batch of some rows.
        places: what a micro-batch computes at most.
        least: so many micro-batches at least.
        by: they are so many, or this more, or this more again: as many for each rank.
    """
    for count in range(least, len(rows) + 1, by):
        ends = np.linspace(0, len(rows), count + 1).astype(int)
        made = [make(rows[begin:end]) for begin, end in itertools.pairwise(ends)]
        if max(each.tokens + each.padding for each in made) <= places:
            break
    return made


def held_back(
    rows: Sequence[Row], make: Callable[[Sequence[Row]], Batch], *, micro_batch: int, places: int | None = None
) -> Iterator[Batch]:
    """The rows in micro-batches by length, the same whenever it is asked for; see `cut` for `places`."""
    order = np.argsort([len(row.ids) for row in rows], kind="stable")
    for at in range(0, len(order), micro_batch):
        some = [rows[row] for row in order[at : at + micro_batch]]
        yield from [make(some)] if places is None else cut(some, make, places=places)
