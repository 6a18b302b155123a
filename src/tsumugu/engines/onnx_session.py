"""A compiled decoder's texts being continued: keys and values allocated once and written in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import InputError
from tsumugu.engines.prefixes import Kept, Prefixes
from tsumugu.engines.recalling import RecallingSession
from tsumugu.engines.session import Logits, Rows

CHUNK = 512
"""Tokens of one prompt that are read together: enough for large matrix products, few enough for the caches."""
TOGETHER = 64
"""Prompts up to this length are read side by side; longer ones alone, so that none is padded."""

Array = NDArray[Any]


class Buffers:
    """Keys and values of rows of text, `[layers, 2, rows, kv_heads, capacity, head_dim]`, written in place.

    Args:
        layers, kv_heads, head_dim: of the keys and values.
        rows: that there is room for.
        capacity: the longest a row may become, in tokens.
    """

    def __init__(self, layers: int, rows: int, kv_heads: int, capacity: int, head_dim: int) -> None:
        self.array = np.zeros((layers, 2, rows, kv_heads, capacity, head_dim), np.float32)

    @property
    def rows(self) -> int:
        return self.array.shape[2]

    def grow(self, rows: int, *, keep: int) -> None:
        """Make room for more rows, of which the first `keep` stay as they are."""
        shape = list(self.array.shape)
        shape[2] = rows
        grown = np.zeros(shape, np.float32)
        grown[:, :, :keep] = self.array[:, :, :keep]
        self.array = grown

    def select(self, rows: Rows, filled: int) -> None:
        """The first rows become `rows`, of which the first `filled` tokens count; there is room for as many."""
        for layer in self.array:
            layer[:, : len(rows), :, :filled] = layer[:, rows, :, :filled]

    def take(self, row: int, tokens: int) -> Kept:
        """A copy of the first tokens of a row."""
        return (self.array[:, :, row, :, :tokens].copy(),)

    def put(self, row: int, kept: Kept, tokens: int) -> None:
        """The same back again, or less of it."""
        self.array[:, :, row, :, :tokens] = kept[0][..., :tokens, :]

    def bind(self, run: Binding, rows: slice) -> None:
        """Hand the keys and values of `rows` to a run, which writes the new ones behind them."""
        for index, (keys, values) in enumerate(self.array):
            for name, buffer in (("key", keys[rows]), ("value", values[rows])):
                run.bind(f"past_{name}_{index}", buffer)
                run.bind(f"present_{name}_{index}", buffer, output=True)


class OnnxSession(RecallingSession):
    """`tsumugu.engines.session.TokenSession` for a compiled decoder.

    A row's next token goes to that row's own end, so that a row computes what it would compute alone.

    Args:
        session: ONNX Runtime's session of the graph.
        prefixes: what is kept of earlier texts.
        layers, kv_heads, head_dim: of the keys and values.
        vocab: size of the vocabulary.
        positioned: whether the graph asks for position ids.
        batch: rows that there is room for; more rows make it anew.
        capacity: the longest a row may become, in tokens.
    """

    def __init__(
        self,
        session: Any,
        prefixes: Prefixes,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        vocab: int,
        positioned: bool,
        batch: int,
        capacity: int,
    ) -> None:
        super().__init__(prefixes, capacity)
        self.session, self.vocab, self.positioned = session, vocab, positioned
        self._cache = Buffers(layers, batch, kv_heads, capacity, head_dim)
        self._logits = np.empty((batch, 1, vocab), np.float32)
        self._step: _Run | None = None

    def start(self, prompts: Sequence[Sequence[int]]) -> Logits:
        """Read prompts; logits `[rows, vocab]` of what follows each."""
        longest = max(len(prompt) for prompt in prompts)
        if longest > self.capacity:
            raise InputError(f"a prompt of {longest} tokens is longer than {self.capacity}", where="prompt")
        if len(prompts) == 1 or longest > TOGETHER:
            return super().start(prompts)
        self.begin(len(prompts))
        self.lengths = np.array([len(prompt) for prompt in prompts])
        ids = np.zeros((len(prompts), longest), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        self._read(slice(0, len(prompts)), ids, self.lengths)
        return self._logits[: len(prompts), 0]

    def begin(self, rows: int) -> None:
        """Rows without any token, in place of `start`."""
        self._grow(rows, keep=0)
        self._step, self._text, self.lengths = None, None, np.zeros(rows, np.int64)

    def step(self, tokens: Rows) -> Logits:
        """Append one token to each row; logits `[rows, vocab]`."""
        rows = len(tokens)
        assert rows == len(self.lengths), "one token for each row"
        self._wrote(tokens.tolist())
        if self._step is None:
            self._step = self._prepared(slice(0, rows), rows, 1, self._logits[:rows])
        if self.positioned:
            self._step.positions[:, 0] = self.lengths
        self.lengths = self.lengths + 1
        self._step.ids[:, 0] = tokens
        self._step.read(self.lengths)
        return self._logits[:rows, 0]

    def extend(self, texts: Sequence[Sequence[int]], *, every: bool = False) -> Logits:
        """Append some tokens to each row, or none; logits of what follows the last of each, or every token."""
        found = []
        self._wrote(texts[0])
        for row, text in enumerate(texts):
            before = int(self.lengths[row])
            if before + len(text) > self.capacity:
                raise InputError(
                    f"a text of {before + len(text)} tokens is longer than {self.capacity}", where="prompt"
                )
            for first in range(0, len(text), CHUNK):
                ids = np.array(text[first : first + CHUNK])[None]
                last = first + ids.shape[1] == len(text)
                logits = np.empty((1, ids.shape[1] if every else 1, self.vocab), np.float32)
                self._read(slice(row, row + 1), ids, np.array([before + first + ids.shape[1]]), logits)
                if every or last:
                    found.append(logits[0])
            self.lengths[row] = before + len(text)
        return np.concatenate(found)

    def select(self, rows: Rows) -> None:
        """Go on with `rows` in that order."""
        if len(rows) == len(self.lengths) and np.array_equal(rows, np.arange(len(rows))):
            return
        self._grow(len(rows), keep=len(self.lengths))
        self._text = None
        self.lengths = self.lengths[rows]
        self._cache.select(rows, int(self.lengths.max(initial=0)))
        self._step = None

    def _take(self, row: int, tokens: int) -> Kept:
        return self._cache.take(row, tokens)

    def _put(self, row: int, kept: Kept, tokens: int) -> None:
        self._cache.put(row, kept, tokens)

    def _read(self, rows: slice, ids: Array, lengths: Array, logits: Array | None = None) -> None:
        """Read `ids` `[rows, time]` behind what the rows have; `lengths` are those afterwards.

        Logits of what follows each row's last tokens, as many as `logits` `[rows, kept, vocab]` has room for.
        """
        count, time = ids.shape
        run = self._prepared(rows, count, time, self._logits[rows] if logits is None else logits)
        run.ids[:] = ids
        begin = lengths.max() - ids.shape[1]
        if self.positioned:
            run.positions[:] = np.arange(begin, begin + ids.shape[1])
        kept = run.wanted.shape[1]
        run.wanted[:, :, 0] = (lengths - begin)[:, None] - kept + np.arange(kept)
        run.read(lengths)

    def _grow(self, rows: int, *, keep: int) -> None:
        if rows > self._cache.rows:
            self._cache.grow(rows, keep=keep)
            self._logits, self._step = np.empty((rows, 1, self.vocab), np.float32), None

    def _prepared(self, rows: slice, count: int, time: int, logits: Array) -> _Run:
        """A run over some rows of the buffers, with everything bound."""
        run = _Run(self.session, count, time, logits.shape[1])
        if self.positioned:
            run.bind("position_ids", run.positions)
        run.bind("logits", logits, output=True)
        self._cache.bind(run, rows)
        return run


class Binding:
    """Inputs and outputs of one shape, bound once for many runs."""

    def __init__(self, session: Any) -> None:
        self.session, self.binding = session, session.io_binding()
        self._bound: dict[str, Array] = {}

    def bind(self, name: str, array: Array, *, output: bool = False) -> None:
        """Let the graph read or write an array, which is kept as long as this."""
        bind = self.binding.bind_output if output else self.binding.bind_input
        bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self._bound[name] = array

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)


class _Run(Binding):
    """Some tokens of some rows; filled for each run."""

    def __init__(self, session: Any, rows: int, time: int, kept: int) -> None:
        super().__init__(session)
        self.ids = np.zeros((rows, time), np.int64)
        self.positions = np.zeros((rows, time), np.int64)
        self.wanted = np.zeros((rows, kept, 1), np.int64)
        self.lengths = np.zeros(rows, np.int32)
        self.total = np.zeros((), np.int32)
        for name, array in (
            ("input_ids", self.ids),
            ("wanted", self.wanted),
            ("lengths", self.lengths),
            ("total", self.total),
        ):
            self.bind(name, array)

    def read(self, lengths: Array) -> None:
        """Rows have `lengths` tokens with those that are read now."""
        self.lengths[:] = lengths - 1
        self.total[...] = lengths.max()
        self.run()
