"""A decoder's texts being continued by the kernels: tokens of any texts at any places are read by one call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import InputError
from tsumugu.engines.native.cache import KeysAndValues
from tsumugu.engines.native.network import Engine
from tsumugu.engines.prefixes import Kept, Prefixes
from tsumugu.engines.recalling import RecallingSession
from tsumugu.engines.session import Logits, Rows

TOGETHER = 512
"""Tokens that are read by one call: enough for large products, few enough for the caches."""

Tokens = NDArray[np.int32]


class NativeSession(RecallingSession):
    """`tsumugu.engines.session.TokenSession` for a decoder that the kernels run.

    A text computes what it would compute alone, whatever is read beside it: nothing is padded.

    Args:
        engine: the network, opened.
        prefixes: what is kept of earlier texts.
        batch: texts that there is room for; more make it anew.
        capacity: the longest a text may become, in tokens.
    """

    def __init__(self, engine: Engine, prefixes: Prefixes, *, batch: int, capacity: int) -> None:
        super().__init__(prefixes, capacity)
        self.engine = engine
        self._allocate(batch)

    def begin(self, rows: int) -> None:
        """Rows without any token."""
        if rows > self._cache.rows:
            self._allocate(rows)
        self.lengths, self._text = np.zeros(rows, np.int64), None

    def step(self, tokens: Rows) -> Logits:
        """Append one token to each row; logits `[rows, vocab]`."""
        count = len(tokens)
        assert count == len(self.lengths), "one token for each row"
        if self.lengths.max(initial=0) >= self.capacity:
            raise InputError(f"a text of {self.capacity} tokens can have no more here", where="step")
        rows = np.arange(count, dtype=np.int32)
        self._wrote(tokens.tolist())
        return self._read(tokens.astype(np.int32), rows, self.lengths.astype(np.int32), rows, np.ones(count, np.int64))

    def extend(self, texts: Sequence[Sequence[int]], *, every: bool = False) -> Logits:
        """Append some tokens to each row, or none; logits of what follows the last of each, or every token."""
        counts = np.array([len(text) for text in texts])
        if (self.lengths + counts).max(initial=0) > self.capacity:
            longest = int((self.lengths + counts).max())
            raise InputError(f"a prompt of {longest} tokens is longer than {self.capacity}", where="prompt")
        self._wrote(texts[0])
        ids = np.concatenate([np.asarray(text, np.int32) for text in texts])
        rows = np.repeat(np.arange(len(texts), dtype=np.int32), counts)
        positions = np.concatenate([np.arange(count) for count in counts]) + self.lengths[rows]
        wanted = np.arange(len(ids)) if every else np.cumsum(counts)[counts > 0] - 1
        return self._read(ids, rows, positions.astype(np.int32), wanted.astype(np.int32), counts)

    def select(self, rows: Rows) -> None:
        """Go on with `rows` in that order."""
        count = len(rows)
        if count == len(self.lengths) and np.array_equal(rows, np.arange(count)):
            return
        self._text = None
        if count > self._cache.rows:
            before = self._cache
            self._allocate(count)
            self._cache.take_over(before)
        self.lengths = self.lengths[rows]
        self._cache.reorder(rows, int(self.lengths.max(initial=0)))

    def _take(self, row: int, tokens: int) -> Kept:
        return self._cache.take(row, tokens)

    def _put(self, row: int, kept: Kept, tokens: int) -> None:
        self._cache.put(row, kept, tokens)

    def _allocate(self, rows: int) -> None:
        network = self.engine.network
        self._cache = KeysAndValues(network, rows=rows, capacity=self.capacity, bits=self.engine.cache_bits)
        self._logits = np.empty((rows, network.head.rows), np.float32)

    def _read(self, ids: Tokens, rows: Tokens, positions: Tokens, wanted: Tokens, counts: Rows) -> Logits:
        """Read tokens; logits of what follows those numbered `wanted`, which are in order."""
        vocab = self.engine.vocab
        if len(ids) and (ids.min() < 0 or ids.max() >= vocab):
            raise InputError(f"a token id is outside the vocabulary of {vocab}", where="input_ids")
        if len(wanted) > len(self._logits):
            self._logits = np.empty((len(wanted), self._logits.shape[1]), np.float32)
        for begin in range(0, len(ids), TOGETHER):
            part = slice(begin, begin + TOGETHER)
            first, last = np.searchsorted(wanted, (begin, begin + TOGETHER))
            which = (wanted[first:last] - begin).astype(np.int32)
            out = self._logits[first:last]
            self.engine.run(self._cache.pointers, ids[part], rows[part], positions[part], which, out)
        self.lengths = self.lengths + counts
        return self._logits[: len(wanted), :vocab]
