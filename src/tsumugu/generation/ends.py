"""When a text is at its end: an end token, a stop string, a shape that is whole, or no more room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsumugu.generation.constrained import Guide
from tsumugu.generation.options import GenerationOptions
from tsumugu.text.stream import StreamDecoder
from tsumugu.text.tokenizer import Tokenizer

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """One token for each text that had not ended.

    Attributes:
        rows: `[active]`, numbers of the texts.
        tokens: `[active]`.
        ended: `[active]`, True for the last token of a text.
        logs: `[active]`, the log probability that the model gives each token, whatever chose it; empty where that was
            not asked for, and where a text is closed without the model.
    """

    rows: Rows
    tokens: Rows
    ended: NDArray[np.bool_]
    logs: Sequence[float] = ()


def limit_of(model: Any, begun: Sequence[int], options: GenerationOptions) -> int:
    """How many tokens a text may get: those asked for, or what is left of the context."""
    return min(options.max_new_tokens, int(model.config.max_positions) - len(begun))


class Ends:
    """Says when texts are at their end.

    Args:
        begun: what each text begins with, by its number.
    """

    def __init__(
        self,
        model: Any,
        begun: Sequence[Sequence[int]] | Mapping[int, Sequence[int]],
        options: GenerationOptions,
        tokenizer: Tokenizer | None,
        guide: Guide | None,
    ) -> None:
        numbered = begun if isinstance(begun, Mapping) else dict(enumerate(begun))
        self.options, self.guide = options, guide
        self.limits = {number: limit_of(model, text, options) for number, text in numbered.items()}
        self.watchers = None
        if options.stops and tokenizer:
            self.watchers = {number: _Watcher(tokenizer.stream(), options.stops) for number in numbered}

    def after(
        self, active: Rows, tokens: Rows, step: int, logs: Sequence[float] = ()
    ) -> tuple[NDArray[np.bool_], list[Step]]:
        """Which texts end with these tokens, `[active]`, and the steps to give out."""
        full = np.array([step + 1 >= self.limits[number] for number in active.tolist()])
        ended = np.isin(tokens, self.options.ends) | full
        closings: list[tuple[int, list[int]]] = []
        if self.guide is not None:
            whole = self.guide.wrote(tokens)
            ended |= whole
            cut = [(int(active[place]), self.guide.closing(int(place))) for place in np.flatnonzero(full & ~whole)]
            closings = [(row, closing) for row, closing in cut if closing]
        if self.watchers is not None:
            pairs = zip(active.tolist(), tokens.tolist(), strict=True)
            ended |= np.array([self.watchers[number].saw(token) for number, token in pairs])
        left = np.isin(active, [row for row, _ in closings])
        found = [Step(active, tokens, ended & ~left, logs)]
        for row, closing in closings:
            for number, token in enumerate(closing, 1):
                found.append(Step(np.array([row]), np.array([token]), np.array([number == len(closing)])))
        return ended, found


class _Watcher:
    """Looks for stop strings in one text as it grows."""

    def __init__(self, decoder: StreamDecoder, stops: tuple[str, ...]) -> None:
        self.decoder, self.stops = decoder, stops
        self.longest = max(map(len, stops))
        self.tail = ""

    def saw(self, token: int) -> bool:
        self.tail += self.decoder.push(token)
        hit = any(stop in self.tail for stop in self.stops)
        self.tail = self.tail[-self.longest + 1 :] if self.longest > 1 else ""
        return hit
