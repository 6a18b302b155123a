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
from tsumugu.generation.sampling import Sampler, log_softmax

NEVER = -1e9
"""Stands for "no such text yet" in a list of scores."""


@dataclass(order=True)
class Finished:
    """A text that has ended: its score, and its new tokens."""

    score: float
    tokens: tuple[int, ...] = field(compare=False)


@dataclass
class Prompt:
    """The beams of one prompt, the best first, and how many tokens it may get."""

    limit: int
    running: list[tuple[int, ...]]
    scores: NDArray[np.float64]
    finished: list[Finished] = field(default_factory=list)
    open: bool = True

    def worst(self, beams: int) -> float:
        """What a new text must beat."""
        return min(each.score for each in self.finished) if len(self.finished) == beams else NEVER

    def finish(self, score: float, tokens: tuple[int, ...], beams: int) -> None:
        """Keep a text that has ended if it is among the best."""
        self.finished.append(Finished(score, tokens))
        self.finished = sorted(self.finished, reverse=True)[:beams]


def beam_search(
    session: Session,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    *,
    begun: Sequence[Sequence[int]],
    vocab: int,
    limits: Sequence[int],
) -> list[list[Finished]]:
    """The best `num_return_sequences` texts of each prompt, best first; tokens include the one that ended them.

    A prompt whose search is over leaves the batch and costs nothing more.

    Args:
        session: not started, with room for `len(prompts) * num_beams` rows.
        prompts: token ids.
        options: what was asked.
        begun: what each prompt's texts begin with; the prompt itself, unless an encoder reads it.
        vocab: size of the vocabulary.
        limits: how many tokens each prompt may get.
    """
    beams = options.num_beams
    width = min(max(2, 1 + len(options.ends)) * beams, beams * vocab)
    rows = np.repeat(np.arange(len(prompts)), beams)
    logits = session.start(prompts)[rows]
    session.select(rows)
    sampler = Sampler(options, [text for text in begun for _ in range(beams)], [0] * len(rows), vocab)
    start = np.array([0.0] + [NEVER] * (beams - 1))
    states = [Prompt(limit, [()] * beams, start.copy()) for limit in limits]
    searching = states
    for step in range(max(limits)):
        scores = sampler.adjusted(log_softmax(logits), step).reshape(len(searching), -1)
        totals = scores + np.repeat([state.scores for state in searching], vocab, axis=-1)
        best = np.argpartition(-totals, width - 1, axis=-1)[:, :width]
        order = np.argsort(-np.take_along_axis(totals, best, axis=-1), axis=-1, kind="stable")
        best = np.take_along_axis(best, order, axis=-1)
        origins, tokens = [], []
        for number, state in enumerate(searching):
            chosen = _advance(state, best[number], totals[number], step, vocab, options)
            if state.open:
                origins.append(number * beams + chosen // vocab)
                tokens.append(chosen % vocab)
        searching = [state for state in searching if state.open]
        if not searching:
            break
        rows = np.concatenate(origins)
        session.select(rows)
        sampler.select(rows)
        sampler.wrote(np.concatenate(tokens))
        logits = session.step(np.concatenate(tokens))
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
    ends = np.isin(best % vocab, options.ends) | (length == state.limit)
    for rank in np.flatnonzero(ends[:beams]):
        score = totals[best[rank]]
        if score > NEVER / 2:
            tokens = (*state.running[best[rank] // vocab], int(best[rank] % vocab))
            state.finish(float(score / length**options.length_penalty), tokens, beams)
    # Texts that end come last, should there be too few that run on.
    chosen = best[np.argsort(ends, kind="stable")][:beams]
    state.running = [(*state.running[each // vocab], int(each % vocab)) for each in chosen]
    state.scores = np.where(np.isin(chosen % vocab, options.ends), NEVER, 0.0) + totals[chosen]
    horizon = state.limit if options.early_stopping == "never" and options.length_penalty > 0 else length
    attainable = state.scores[0] / horizon**options.length_penalty
    full = options.early_stopping is True and len(state.finished) == beams
    state.open = bool(attainable > state.worst(beams)) and not ends.all() and not full
    return chosen


def _best(state: Prompt, options: GenerationOptions) -> list[Finished]:
    running = [
        Finished(float(score) / max(1, len(tokens)) ** options.length_penalty, tokens)
        for tokens, score in zip(state.running, state.scores, strict=True)
    ]
    return [*state.finished, *running][: options.num_return_sequences]
