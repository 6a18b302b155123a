"""A compiled encoder-decoder's texts being written: what was read is kept once for each prompt, and asked each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import InputError
from tsumugu.engines.onnx_session import TOGETHER, Array, Binding, Buffers
from tsumugu.engines.session import Logits, Rows

Lengths = NDArray[np.int32]


class OnnxSeq2SeqSession:
    """`tsumugu.engines.session.Session` for a compiled encoder-decoder.

    Every text begins with the start token. Texts of the same prompt, such as its beams, ask the same keys and values,
    whichever of them change places.

    Args:
        encoder, decoder: ONNX Runtime's sessions of the two graphs.
        layers, heads, head_dim: of the decoder's keys and values.
        context_dim: width of a head of those that were read.
        reach: where distances between tokens are cut off.
        vocab: size of the vocabulary.
        start_token: what texts begin with.
        batch: rows that there is room for; more rows make it anew.
        capacity: the longest a text may become, in tokens, the start token included.
    """

    def __init__(
        self,
        encoder: Any,
        decoder: Any,
        *,
        layers: int,
        heads: int,
        head_dim: int,
        context_dim: int,
        reach: int,
        vocab: int,
        start_token: int,
        batch: int,
        capacity: int,
    ) -> None:
        self.encoder, self.decoder = encoder, decoder
        self.vocab, self.start_token, self.capacity, self.reach = vocab, start_token, capacity, reach
        self.length = 0
        self.origins = np.zeros(0, np.int64)
        self._cache = Buffers(layers, batch, heads, capacity, head_dim)
        self._context = Buffers(layers, 0, heads, 0, context_dim)
        self._read_lengths: Lengths = np.zeros(0, np.int32)
        # From the last token back to each that came before it.
        self._behind = self._distances(np.arange(1 - capacity, 1))[None]
        self._step: Binding | None = None

    def start(self, prompts: Sequence[Sequence[int]]) -> Logits:
        """Read prompts; logits `[rows, vocab]` of the first token of each text."""
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        longest = int(lengths.max())
        layers, _, _, heads, _, dim = self._context.array.shape
        self._context = Buffers(layers, len(prompts), heads, longest, dim)
        self._read_lengths = lengths
        if longest <= TOGETHER:
            self._read(slice(0, len(prompts)), prompts)
        else:
            for row, prompt in enumerate(prompts):
                self._read(slice(row, row + 1), [prompt])
        self._grow(len(prompts), keep=0)
        self.length, self.origins, self._step = 0, np.arange(len(prompts)), None
        return self.step(np.full(len(prompts), self.start_token))

    def step(self, tokens: Rows) -> Logits:
        """Append one token to each row; logits `[rows, vocab]`."""
        assert len(tokens) == len(self.origins), "one token for each row"
        self._within(tokens)
        if self.length == self.capacity:
            raise InputError(f"a text of {self.length + 1} tokens is longer than {self.capacity}", where="generation")
        if self._step is None:
            self._step = self._prepared()
        self.length += 1
        self._ids[:, 0], self._lengths[:], self._total[...] = tokens, self.length - 1, self.length
        self._step.bind("distances", np.ascontiguousarray(self._behind[:, self.capacity - self.length :]))
        self._step.run()
        return self._logits[:, 0]

    def select(self, rows: Rows) -> None:
        """Go on with `rows` in that order."""
        if len(rows) == len(self.origins) and np.array_equal(rows, np.arange(len(rows))):
            return
        self._grow(len(rows), keep=len(self.origins))
        self._cache.select(rows, self.length)
        origins = self.origins[rows]
        if not np.array_equal(origins, self.origins):
            self._step = None
            kept, origins = np.unique(origins, return_inverse=True)
            if len(kept) < len(self._read_lengths):
                self._context.array = np.ascontiguousarray(self._context.array[:, :, kept])
                self._read_lengths = self._read_lengths[kept]
            self.origins = origins

    def _read(self, rows: slice, prompts: Sequence[Sequence[int]]) -> None:
        """The keys and values of some prompts, side by side and padded on the right."""
        lengths = self._read_lengths[rows]
        time = int(lengths.max())
        ids = np.zeros((len(prompts), time), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        self._within(ids)
        places = np.arange(time)
        feeds = {
            "input_ids": ids,
            "distances": self._distances(places[None, :] - places[:, None]),
            "lengths": lengths - 1,
            "total": np.array(time, np.int32),
        }
        found = iter(self.encoder.run(None, feeds))
        for keys, values in self._context.array:
            keys[rows, :, :time], values[rows, :, :time] = next(found), next(found)

    def _prepared(self) -> Binding:
        """A step of the rows that there are, with everything bound but the distances."""
        count = len(self.origins)
        run = Binding(self.decoder)
        self._ids, self._lengths = np.zeros((count, 1), np.int64), np.zeros(count, np.int32)
        self._total = np.zeros((), np.int32)
        self._logits = np.empty((count, 1, self.vocab), np.float32)
        slots, places = seated(self.origins, len(self._read_lengths))
        given: dict[str, Array] = {
            "input_ids": self._ids,
            "lengths": self._lengths,
            "total": self._total,
            "context_lengths": self._read_lengths,
            "slots": slots,
            "places": places,
        }
        for name, array in given.items():
            run.bind(name, array)
        for index, (keys, values) in enumerate(self._context.array):
            run.bind(f"context_key_{index}", keys)
            run.bind(f"context_value_{index}", values)
        run.bind("logits", self._logits, output=True)
        self._cache.bind(run, slice(0, count))
        return run

    def _grow(self, rows: int, *, keep: int) -> None:
        if rows > self._cache.rows:
            self._cache.grow(rows, keep=keep)
            self._step = None

    def _distances(self, whole: NDArray[np.int64]) -> NDArray[np.int32]:
        found: NDArray[np.int32] = (np.clip(whole, -self.reach, self.reach) + self.reach).astype(np.int32)
        return found

    def _within(self, ids: Rows) -> None:
        if ids.min() < 0 or ids.max() >= self.vocab:
            raise InputError(f"a token id is outside the vocabulary of {self.vocab}", where="input_ids")


def seated(origins: Rows, texts: int) -> tuple[Rows, Rows]:
    """Rows side by side that ask the same text: who sits where, `[texts, most]`, and where each is, `[rows]`."""
    order = np.argsort(origins, kind="stable")
    counts = np.bincount(origins, minlength=texts)
    most = int(counts.max())
    number = np.empty(len(origins), np.int64)
    number[order] = np.arange(len(origins)) - (np.cumsum(counts) - counts)[origins[order]]
    places = origins * most + number
    slots = np.zeros(texts * most, np.int64)
    slots[places] = np.arange(len(origins))
    return slots.reshape(texts, most), places
