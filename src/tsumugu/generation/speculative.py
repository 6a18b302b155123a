"""Several tokens a step: some are guessed, the model reads all at once, and keeps those that it would have written.

Each token is picked by the same sampler from the same logits as without guesses, drawn ones with the same number: a
guess is right when it is that very token. So the text is the same as without guesses, token by token, drawn or not.

Source: Leviathan et al. 2023, Fast Inference from Transformers via Speculative Decoding, section 2 (here with the draws
of the two models coupled); guesses from the text itself: Yang et al. 2023, Inference with Reference, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np

from tsumugu.core.errors import InputError
from tsumugu.engines.session import TokenSession, open_session
from tsumugu.generation.sampling import Sampler

LONGEST_MATCH = 3
"""Tokens at the end of a text that are looked up in it, fewer where these are nowhere else."""


class Guesser(Protocol):
    """Says how a text may go on."""

    def guess(self, text: Sequence[int], step: int, count: int) -> list[int]:
        """Up to `count` tokens that may follow; the next one is written in step `step`."""
        ...


class PromptLookup:
    """Guesses what followed when the text last said the same."""

    def guess(self, text: Sequence[int], step: int, count: int) -> list[int]:
        """What stood behind the latest earlier place with the same last tokens."""
        tokens = np.asarray(text)
        for size in range(min(LONGEST_MATCH, len(tokens) - 1), 0, -1):
            runs = np.lib.stride_tricks.sliding_window_view(tokens[:-1], size)
            found = np.flatnonzero((runs == tokens[-size:]).all(-1))
            if len(found):
                begin = int(found[-1]) + size
                guessed: list[int] = tokens[begin : begin + count].tolist()
                return guessed
        return []


class DraftModel:
    """Guesses what a smaller model of the same vocabulary would write.

    Args:
        model: on any engine.
        sampler: of the text; what it would draw, the draft draws with the same numbers.
        capacity: the longest the text may become.
    """

    def __init__(self, model: Any, sampler: Sampler, capacity: int) -> None:
        self.sampler = sampler
        self.longest = min(capacity, int(model.config.max_positions))
        self.session: TokenSession = token_session(model, capacity=self.longest)
        self.known: list[int] = []

    def guess(self, text: Sequence[int], step: int, count: int) -> list[int]:
        """The draft's own continuation."""
        count = min(count, self.longest - len(text))
        if count < 1:
            return []
        same = 0
        for ours, theirs in zip(self.known, text[:-1], strict=False):
            if ours != theirs:
                break
            same += 1
        if not self.known:
            logits = self.session.start([list(text)])
        else:
            self.session.forget(np.array([len(self.known) - same]))
            logits = self.session.extend([list(text[same:])])
        guessed: list[int] = []
        for number in range(count):
            token = self.sampler.guess(logits, step + number)
            guessed.append(token)
            if number + 1 < count:
                logits = self.session.extend([[token]])
        self.known = [*text, *guessed[:-1]]
        return guessed


def token_session(model: Any, *, capacity: int) -> TokenSession:
    """A session for one text that takes several tokens at once.

    Raises:
        InputError: the model is no decoder.
    """
    session = open_session(model, batch=1, capacity=capacity)
    if not hasattr(session, "extend"):
        raise InputError("guesses need a decoder", where="model", mend="leave out prompt_lookup and draft")
    return cast(TokenSession, session)
