"""From logits to the next token: penalties, temperature, top-k, top-p, min-p, and a draw, for all rows at once.

Everything works on `[rows, vocab]` arrays of NumPy, so that any engine can be stepped; a greedy step without penalties
is one argmax and copies nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tsumugu.generation.constrained import Guide
from tsumugu.generation.options import GenerationOptions

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
F = TypeVar("F", np.float32, np.float64)

NUCLEUS = 1024
"""How many of the likeliest tokens are sorted first when looking for a nucleus; more only if they do not suffice."""


class Sampler:
    """Picks one token a row and step, and remembers what each row has seen.

    Args:
        options: what was asked.
        prompts: the prompt of each row.
        numbers: for each row its number among the texts of its prompt; it chooses the row's own stream of draws.
        vocab: size of the vocabulary.
        guide: the shape that texts must have.
    """

    def __init__(
        self,
        options: GenerationOptions,
        prompts: Sequence[Sequence[int]],
        numbers: Sequence[int],
        vocab: int,
        guide: Guide | None = None,
    ) -> None:
        self.options, self.guide = options, guide
        self.draws = _draws(options, numbers) if options.samples else None
        self.seen: NDArray[np.bool_] | None = None
        self.counts: NDArray[np.int32] | None = None
        if options.penalises:
            self.seen = np.zeros((len(prompts), vocab), dtype=bool)
            self.counts = np.zeros((len(prompts), vocab), dtype=np.int32)
            for row, prompt in enumerate(prompts):
                self.seen[row, list(prompt)] = True
        self.texts = [list(prompt) for prompt in prompts] if options.no_repeat_ngram_size else None

    def pick(self, logits: Floats, step: int) -> Rows:
        """The next token of each row, `[rows]`, from logits `[rows, vocab]`; `step` counts from 0."""
        plain, logits = logits, self.adjusted(logits, step)
        if self.guide is not None:
            logits = self.guide.masked(logits, plain)
        if self.draws is None:
            tokens: Rows = logits.argmax(-1)
        else:
            tokens = draw(logits, self.options, self.draws[:, step])
        self.wrote(tokens)
        return tokens

    def guess(self, logits: Floats, step: int) -> int:
        """What a draft with these logits `[1, vocab]` writes in step `step` of the only row; nothing is remembered."""
        if self.draws is None or step >= self.draws.shape[1]:
            return int(logits[0].argmax())
        return int(draw(logits, self.options, self.draws[:, step])[0])

    def wrote(self, tokens: Rows) -> None:
        """Remember the token that each row went on with, `[rows]`."""
        if self.seen is not None and self.counts is not None:
            rows = np.arange(len(tokens))
            self.seen[rows, tokens] = True
            self.counts[rows, tokens] += 1
        if self.texts is not None:
            self.texts = [[*text, int(token)] for text, token in zip(self.texts, tokens, strict=True)]

    def adjusted(self, logits: Floats, step: int) -> Floats:
        """Logits after penalties; the array itself when there is nothing to change."""
        options = self.options
        ends = [each for each in options.ends if each < logits.shape[-1]]
        too_early = step < options.min_new_tokens and ends
        if self.seen is None and self.texts is None and not too_early:
            return logits
        logits = logits.copy()
        if self.seen is not None and self.counts is not None:
            penalty = options.repetition_penalty
            if penalty != 1.0:
                punished = np.where(logits < 0, logits * penalty, logits / penalty)
                logits = np.where(self.seen, punished, logits).astype(np.float32, copy=False)
            logits -= options.frequency_penalty * self.counts + options.presence_penalty * (self.counts > 0)
        for row, text in enumerate(self.texts or []):
            logits[row, _repeating(text, options.no_repeat_ngram_size)] = -np.inf
        if too_early:
            logits[:, ends] = -np.inf
        return logits

    def select(self, rows: Rows) -> None:
        """Go on with `rows` only, in that order."""
        if self.draws is not None:
            self.draws = self.draws[rows]
        if self.seen is not None and self.counts is not None:
            self.seen, self.counts = self.seen[rows], self.counts[rows]
        if self.texts is not None:
            self.texts = [self.texts[row] for row in rows]


def _repeating(text: Sequence[int], size: int) -> list[int]:
    """The tokens with which `text` would end in a run of `size` tokens that it holds already."""
    if len(text) < size:
        return []
    runs = np.lib.stride_tricks.sliding_window_view(np.asarray(text), size)
    last = text[len(text) - size + 1 :]
    found: list[int] = runs[(runs[:, :-1] == last).all(-1), -1].tolist()
    return found


def distribution(logits: Floats, options: GenerationOptions) -> tuple[NDArray[np.float64], Rows | None]:
    """The probabilities that tokens are drawn from.

    Returns:
        Probabilities `[rows, candidates]` in float64, and the candidates' token ids `[rows, candidates]`, likeliest
        first; ids are None when every token of the vocabulary is one, in order.
    """
    vocab = logits.shape[-1]
    top_k = min(options.top_k, vocab) if options.top_k else 0
    if not top_k and options.top_p >= 1.0:
        probabilities = _softmax(logits, options.temperature)
        return _at_least(probabilities, options.min_p), None
    size = top_k or min(NUCLEUS, vocab)
    while True:
        ids = _likeliest(logits, size)
        chosen = np.take_along_axis(logits, ids, axis=-1)
        if top_k:
            probabilities = _softmax(chosen, options.temperature)
        else:
            probabilities = _softmax(logits, options.temperature)
            probabilities = np.take_along_axis(probabilities, ids, axis=-1)
        if top_k or size == vocab or bool((probabilities.sum(-1) >= options.top_p).all()):
            break
        size = vocab
    before = np.cumsum(probabilities, axis=-1) - probabilities
    probabilities = np.where(before < options.top_p, probabilities, 0.0)
    probabilities[:, 0] = np.maximum(probabilities[:, 0], np.finfo(np.float64).tiny)
    probabilities /= probabilities.sum(-1, keepdims=True)
    return _at_least(probabilities, options.min_p), ids


def draw(logits: Floats, options: GenerationOptions, uniform: NDArray[np.float64]) -> Rows:
    """One token a row by inverting the cumulative distribution at `uniform` `[rows]`, each in [0, 1)."""
    probabilities, ids = distribution(logits, options)
    cumulative = np.cumsum(probabilities, axis=-1)
    # Never past the last candidate that has any probability, whatever rounding does to the sum.
    passed = (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(-1)
    where: Rows = np.minimum(passed, probabilities.shape[-1] - 1).astype(np.int64)
    if ids is None:
        return where
    chosen: Rows = np.take_along_axis(ids, where[:, None], axis=-1)[:, 0]
    return chosen


def _draws(options: GenerationOptions, numbers: Sequence[int]) -> NDArray[np.float64]:
    seed = secrets.randbits(64) if options.seed is None else options.seed
    streams = {number: np.random.default_rng([seed, number]).random(options.max_new_tokens) for number in set(numbers)}
    return np.stack([streams[number] for number in numbers])


def log_softmax(logits: NDArray[F]) -> NDArray[F]:
    """The logarithms of the chances that logits `[..., choices]` stand for."""
    shifted = logits - logits.max(-1, keepdims=True)
    result: NDArray[F] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _softmax(logits: Floats, temperature: float) -> NDArray[np.float64]:
    shifted = (logits - logits.max(-1, keepdims=True)).astype(np.float64)
    with np.errstate(over="ignore"):  # by a temperature near 0: to -inf, which is meant
        weights = np.exp(shifted / temperature)
    result: NDArray[np.float64] = weights / weights.sum(-1, keepdims=True)
    return result


def _at_least(probabilities: NDArray[np.float64], min_p: float) -> NDArray[np.float64]:
    if min_p <= 0.0:
        return probabilities
    kept = np.where(probabilities >= min_p * probabilities.max(-1, keepdims=True), probabilities, 0.0)
    result: NDArray[np.float64] = kept / kept.sum(-1, keepdims=True)
    return result


def _likeliest(logits: Floats, count: int) -> Rows:
    """Ids of the `count` greatest logits of each row, greatest first; of equal ones the smaller id first."""
    rows, vocab = logits.shape
    if count >= vocab:
        return np.argsort(-logits, axis=-1, kind="stable")
    ids = np.argpartition(logits, vocab - count, axis=-1)[:, vocab - count :]
    least = np.take_along_axis(logits, ids, axis=-1).min(-1, keepdims=True)
    if ((logits >= least).sum(-1) > count).any():
        # Equal logits on both sides of the cut, where partitioning takes any of them: take the smaller ids.
        greater, equal = logits > least, logits == least
        kept = greater | (equal & (np.cumsum(equal, axis=-1) <= count - greater.sum(-1, keepdims=True)))
        ids = np.nonzero(kept)[1].reshape(rows, count)
    ids.sort(axis=-1)
    order = np.argsort(-np.take_along_axis(logits, ids, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(ids, order, axis=-1)
