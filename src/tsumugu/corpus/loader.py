"""The rows of a corpus in an endless order of epochs, numbered from 0. A loader's state is the next row's number.

Row `n` is a function of corpus, settings, seed and `n`: the billionth is found as soon as the first, and the order is
the same for any number of ranks and workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tsumugu.core.errors import ConfigError
from tsumugu.corpus.chance import Permutation, mix
from tsumugu.corpus.packing import Documents, Pieces, pack
from tsumugu.corpus.rows import Piece, Row, SlotRule

_BLOCK = 1024  # rows that are looked up at once, so that they share what calling NumPy costs
_PERIOD = 1 << 16  # rows in which a mixture's shares come out exactly


class Rows(Protocol):
    """Rows by number: what a training loop reads.

    Attributes:
        rows_per_epoch: how many rows hold everything once.
    """

    rows_per_epoch: int

    def rows(self, first: int, count: int) -> list[Row]:
        """Rows `first` to `first + count` of the endless order."""
        ...

    def epoch(self, row: int) -> float:
        """How many times everything has been read before row `row`."""
        ...


class _Block(NamedTuple):
    """The pieces of a block of rows; those of its row i begin at `offsets[i]`."""

    number: int
    offsets: list[int]
    pieces: Pieces


class Loader:
    """Rows of one corpus.

    Args:
        corpus: its documents.
        packing: "stream", "best-fit" or "single".
        length: places in a row.
        slots: what the objective needs beside the tokens.
        seed: of the order.
        shuffle: each epoch in an order of its own; False keeps the order of the corpus.
        move_cuts: where rows are cut from a stream, cut each epoch at other places. Only if shuffled.

    Raises:
        ConfigError: no such packing, or rows too short.
        InputError: there is nothing in the corpus.
    """

    def __init__(
        self,
        corpus: Documents,
        packing: str,
        *,
        length: int,
        slots: SlotRule,
        seed: int,
        shuffle: bool = True,
        move_cuts: bool = True,
    ) -> None:
        self._corpus, self._sizes = corpus, corpus.document_bytes
        self._packing = pack(packing, corpus, length=length, slots=slots)
        self._seed, self._shuffle, self._move_cuts = seed, shuffle, move_cuts and shuffle
        self.rows_per_epoch = self._packing.rows
        self._span = min(_BLOCK, 4 * self.rows_per_epoch)
        self._block: _Block | None = None

    def rows(self, first: int, count: int) -> list[Row]:
        """Rows `first` to `first + count` of the endless order."""
        found: list[Row] = []
        while len(found) < count:
            number, at = divmod(first + len(found), self._span)
            block = self._looked_up(number)
            found += self._read(block, at, min(self._span, at + count - len(found)))
        return found

    def epoch(self, row: int) -> float:
        """How many times everything has been read before row `row`."""
        return row / self.rows_per_epoch

    def _looked_up(self, number: int) -> _Block:
        block = self._block
        if block is not None and block.number == number:
            return block
        parts, row, left = [], number * self._span, self._span
        while left:
            epoch, at = divmod(row, self.rows_per_epoch)
            count = min(left, self.rows_per_epoch - at)
            indices = np.arange(at, at + count)
            if self._shuffle:
                indices = Permutation(self.rows_per_epoch, self._seed, epoch)(indices)
            turn = mix(self._seed, epoch, 1) if self._move_cuts else 0
            found = self._packing.pieces(indices, turn=turn)
            parts.append(found._replace(row=found.row + self._span - left))
            row, left = row + count, left - count
        pieces = Pieces(*(np.concatenate(each) for each in zip(*parts, strict=True)))
        self._block = _Block(number, np.searchsorted(pieces.row, np.arange(self._span + 1)).tolist(), pieces)
        return self._block

    def _read(self, block: _Block, first: int, last: int) -> list[Row]:
        low, high = block.offsets[first], block.offsets[last]
        _, document, start, stop = (each[low:high] for each in block.pieces)
        size = self._sizes[document].tolist()
        documents = document.tolist()
        tokens = map(self._corpus.document, documents)
        pieces = list(map(Piece, documents, tokens, start.tolist(), stop.tolist(), size))
        edges = [each - low for each in block.offsets[first : last + 1]]
        return [pieces[edges[i] : edges[i + 1]] for i in range(last - first)]


class Mixture:
    """Rows of several loaders in turn, so that each gives its share. Its state, too, is the next row's number.

    The shares hold at every moment to within a row or two, so that every batch has them. They are rounded to multiples
    of 1/65536. A small corpus with a large share is read again and again.

    Args:
        loaders: each with the same length of rows, and a seed of its own.
        weights: the share of each; they need not add up to 1.

    Raises:
        ConfigError: the numbers of loaders and weights differ, or a weight is not positive, or too small.
    """

    def __init__(self, loaders: Sequence[Rows], weights: Sequence[float]) -> None:
        if not loaders or len(loaders) != len(weights):
            raise ConfigError(f"{len(weights)} weights for {len(loaders)} corpora", where="weights")
        shares = np.asarray(weights, np.float64)
        if not (np.isfinite(shares) & (shares > 0)).all():
            raise ConfigError("a weight must be a positive number", where="weights")
        self.loaders, self._counts = list(loaders), _apportion(shares / shares.sum(), _PERIOD)
        if not self._counts.all():
            least = shares.sum() / _PERIOD
            raise ConfigError(
                f"weight {shares.min():g} is too small beside the others", where="weights", mend=f"at least {least:.2g}"
            )
        # The k-th of a corpus's n rows in a period lies in the middle of the k-th of n equal stretches.
        places = np.concatenate([(np.arange(count) + 0.5) / count for count in self._counts])
        owner = np.repeat(np.arange(len(loaders)), self._counts)
        self._owner: npt.NDArray[np.int64] = owner[np.argsort(places, kind="stable")]
        self._before = np.empty(_PERIOD, np.int64)  # how many rows of the same corpus came earlier in the period
        for index, count in enumerate(self._counts):
            self._before[self._owner == index] = np.arange(count)
        self.rows_per_epoch = sum(each.rows_per_epoch for each in loaders)

    def rows(self, first: int, count: int) -> list[Row]:
        """Rows `first` to `first + count` of the endless order."""
        numbers = np.arange(first, first + count)
        period, place = np.divmod(numbers, _PERIOD)
        owner = self._owner[place]
        own = period * self._counts[owner] + self._before[place]
        found: list[Row] = [[] for _ in range(count)]
        for index, loader in enumerate(self.loaders):
            where = np.flatnonzero(owner == index)
            if len(where):  # their numbers follow one another
                for at, row in zip(where.tolist(), loader.rows(int(own[where[0]]), len(where)), strict=True):
                    found[at] = row
        return found

    def epoch(self, row: int) -> float:
        """How many times as many rows as all corpora hold came before row `row`; `epochs` has it for each."""
        return row / self.rows_per_epoch

    def epochs(self, row: int) -> list[float]:
        """How many times each corpus has been read before row `row`."""
        period, place = divmod(row, _PERIOD)
        before = np.bincount(self._owner[:place], minlength=len(self.loaders)) + period * self._counts
        return [loader.epoch(int(each)) for loader, each in zip(self.loaders, before, strict=True)]


def _apportion(shares: npt.NDArray[np.float64], total: int) -> npt.NDArray[np.int64]:
    """Whole numbers that add up to `total`, as near the shares as can be (largest remainders)."""
    exact = shares * total
    whole = exact.astype(np.int64)
    missing = total - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:missing]] += 1
    return whole
