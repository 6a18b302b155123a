"""What sessions of compiled decoders share: texts that were read before are not read again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from tsumugu.engines.prefixes import LEAST, Kept, Prefixes, common
from tsumugu.engines.session import Logits, Rows


class RecallingSession(ABC):
    """A `tsumugu.engines.session.TokenSession` that begins texts from what is kept of earlier ones.

    Args:
        prefixes: the texts that are kept, of all sessions of a model.
        capacity: the longest a text may become, in tokens.
    """

    def __init__(self, prefixes: Prefixes, capacity: int) -> None:
        self.prefixes, self.capacity = prefixes, capacity
        self.lengths = np.zeros(0, np.int64)
        self._text: list[int] | None = None

    def start(self, prompts: Sequence[Sequence[int]]) -> Logits:
        """Read prompts; logits `[rows, vocab]` of what follows each.

        What is known from earlier sessions, and what all prompts begin with, is not read again.
        """
        self.begin(len(prompts))
        known = self.recall(0, prompts[0])
        shared = min((common(prompts[0], prompt[:-1]) for prompt in prompts[1:]), default=0)
        if shared >= LEAST:
            if shared > known:
                self.extend([prompts[0][known:shared], *([] for _ in prompts[1:])])
                self.keep(0, prompts[0][:shared])
            self.select(np.zeros(len(prompts), np.int64))
            self.forget(self.lengths - shared)
        elif len(prompts) > 1:
            self.forget(self.lengths)
        logits = self.extend([prompt[length:] for prompt, length in zip(prompts, self.lengths.tolist(), strict=True)])
        if len(prompts) == 1:
            self.keep(0, prompts[0])
            self._text = list(prompts[0])
        return logits

    @abstractmethod
    def begin(self, rows: int) -> None:
        """Rows without any token."""

    @abstractmethod
    def extend(self, texts: Sequence[Sequence[int]], *, every: bool = False) -> Logits:
        """Append some tokens to each row, or none; logits of what follows the last of each, or every token."""

    @abstractmethod
    def select(self, rows: Rows) -> None:
        """Go on with `rows` in that order."""

    def forget(self, counts: Rows) -> None:
        """Take back the last tokens of each row, `[rows]`."""
        self.lengths = self.lengths - counts
        if self._text is not None:
            del self._text[int(self.lengths[0]) :]

    def recall(self, row: int, text: Sequence[int]) -> int:
        """Fill an empty row with as much of a text as is known, its last token apart; gives how many tokens."""
        known, kept = self.prefixes.find(text[: min(len(text), self.capacity) - 1])
        if kept is not None:
            self._put(row, kept, known)
            self.lengths[row] = known
        return known

    def keep(self, row: int, text: Sequence[int]) -> None:
        """Let later texts begin from what a row has read, which is `text`."""
        if len(text) >= self.prefixes.find(text)[0] + LEAST:
            self.prefixes.keep(text, self._take(row, len(text)))

    def close(self) -> None:
        """No more tokens come; the only text may be begun from again."""
        if self._text is not None and len(self._text) == self.lengths[0]:
            self.keep(0, self._text)
        self._text = None

    def _wrote(self, tokens: Sequence[int]) -> None:
        """The only text has these tokens more."""
        if self._text is not None:
            self._text += tokens

    @abstractmethod
    def _take(self, row: int, tokens: int) -> Kept:
        """A copy of the keys and values of a row's first tokens."""

    @abstractmethod
    def _put(self, row: int, kept: Kept, tokens: int) -> None:
        """The same back again, or less of it."""
