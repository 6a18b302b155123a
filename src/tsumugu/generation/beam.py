"""Beam search: the likeliest texts, not the likeliest next token.

For each prompt `num_beams` unfinished texts are kept. Each step looks at the best continuations of all of them, more
than `num_beams` so that enough unfinished ones remain; those that end compete with the finished ones by log probability
over length to the power `length_penalty`.

Source: Sutskever et al. 2014, Sequence to Sequence Learning, section 3.2; Wu et al. 2016, Google's Neural Machine
Translation System, section 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tsumugu.engines.session import Session
from tsumugu.generation.options import GenerationOptions
from tsumugu.generation.sampling import Floats, Sampler

NEVER = -1e9
"""Stands for "no such text yet" in a list of scores."""


@dataclass(order=True)
class Finished:
    """A text that has ended: its score, and its new tokens."""

    score: float
    tokens: tuple[int, ...] = field(compare=False)


@dataclass
class Prompt:
    """The beams of one prompt, the best first."""

    running: list[tuple[int, ...]]
    scores: NDArray[np.float64]
    finished: list[Finished] = field(default_factory=list)
    open: bool = True
    ended: bool = False

    def worst(self, beams: int) -> float:
        """What a new text must beat."""
        return min(each.score for each in self.finished) if len(self.finished) == beams else NEVER

    def finish(self, score: float, tokens: tuple[int, ...], beams: int) -> None:
        """Keep a text that has ended if it is among the best."""
        self.finished.append(Finished(score, tokens))
        self.finished = sorted(self.finished, reverse=True)[:beams]


def beam_search(
    session: Session, prompts: Sequence[Sequence[int]], options: GenerationOptions, *, vocab: int
) -> list[list[Finished]]:
    """The best `num_return_sequences` texts of each prompt, best first; tokens include the one that ended them.

    Args:
        session: not started, with room for `len(prompts) * num_beams` rows.
        prompts: token ids.
        options: what was asked.
        vocab: size of the vocabulary.
    """
    beams = options.num_beams
    width = min(max(2, 1 + len(options.ends)) * beams, beams * vocab)
    rows = np.repeat(np.arange(len(prompts)), beams)
    logits = session.start(prompts)[rows]
    session.select(rows)
    sampler = Sampler(options, [prompt for prompt in prompts for _ in range(beams)], [0] * len(rows), vocab)
    start = np.array([0.0] + [NEVER] * (beams - 1))
    states = [Prompt([()] * beams, start.copy()) for _ in prompts]
    for step in range(options.max_new_tokens):
        scores = sampler.adjusted(_log_softmax(logits), step).reshape(len(prompts), -1)
        totals = scores + np.repeat([state.scores for state in states], vocab, axis=-1)
        best = np.argpartition(-totals, width - 1, axis=-1)[:, :width]
        order = np.argsort(-np.take_along_axis(totals, best, axis=-1), axis=-1, kind="stable")
        best = np.take_along_axis(best, order, axis=-1)
        origins = np.empty(len(rows), dtype=np.int64)
        tokens = np.empty(len(rows), dtype=np.int64)
        for number, state in enumerate(states):
            chosen = _advance(state, best[number], totals[number], step, vocab, options)
            where = slice(number * beams, (number + 1) * beams)
            origins[where] = number * beams + chosen // vocab
            tokens[where] = chosen % vocab
        if _done(states, options) or step + 1 == options.max_new_tokens:
            break
        session.select(origins)
        if sampler.seen is not None:
            sampler.select(origins)
            sampler.seen[np.arange(len(rows)), tokens] = True
            assert sampler.counts is not None
            sampler.counts[np.arange(len(rows)), tokens] += 1
        logits = session.step(tokens)
    return [_best(state, options) for state in states]


def _advance(
    state: Prompt,
    best: NDArray[np.int64],
    totals: NDArray[np.float64],
    step: int,
    vocab: int,
    options: GenerationOptions,
) -> NDArray[np.int64]:
    """Let the best continuations end or run on; those that run on, `[num_beams]`, as beam * vocab + token."""
    beams, length = options.num_beams, step + 1
    last = length == options.max_new_tokens
    ends = np.isin(best % vocab, options.ends) | last
    full = options.early_stopping is True and len(state.finished) == beams
    for rank in np.flatnonzero(ends[:beams]):
        score = totals[best[rank]]
        if state.open and not full and score > NEVER / 2:
            tokens = (*state.running[best[rank] // vocab], int(best[rank] % vocab))
            state.finish(float(score / length**options.length_penalty), tokens, beams)
    # Texts that end come last, should there be too few that run on.
    chosen = best[np.argsort(ends, kind="stable")][:beams]
    state.running = [(*state.running[each // vocab], int(each % vocab)) for each in chosen]
    state.scores = np.where(np.isin(chosen % vocab, options.ends), NEVER, 0.0) + totals[chosen]
    state.ended = bool(ends.all())
    horizon = options.max_new_tokens if options.early_stopping == "never" and options.length_penalty > 0 else length
    attainable = state.scores[0] / horizon**options.length_penalty
    state.open = state.open and bool(attainable > state.worst(beams))
    return chosen


def _done(states: list[Prompt], options: GenerationOptions) -> bool:
    if not any(state.open for state in states) or all(state.ended for state in states):
        return True
    return options.early_stopping is True and all(len(state.finished) == options.num_beams for state in states)


def _best(state: Prompt, options: GenerationOptions) -> list[Finished]:
    running = [
        Finished(float(score) / max(1, len(tokens)) ** options.length_penalty, tokens)
        for tokens, score in zip(state.running, state.scores, strict=True)
    ]
    return [*state.finished, *running][: options.num_return_sequences]


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
