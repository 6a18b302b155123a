"""Many texts on one model, each for itself: they join and leave at any step, as a server's do.

A step reads one token of each text that is being written, and of new prompts as many as a budget allows, so that a long
prompt holds nobody up. A text is the one that it would be alone.

Source: Yu et al. 2022, Orca, section 3.1 (iteration-level scheduling); Agrawal et al. 2023, SARATHI, section 4 (prompts
in pieces).
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from tsumugu.core.errors import InputError
from tsumugu.engines.session import TokenSession, open_session
from tsumugu.generation.ends import Ends
from tsumugu.generation.generate import fitting, guide_of
from tsumugu.generation.options import GenerationOptions
from tsumugu.generation.sampling import Sampler
from tsumugu.text.tokenizer import Tokenizer

PROMPT_TOKENS = 256
"""Tokens of prompts that are read in one step at most."""


@dataclass(eq=False)
class Request:
    """A text that is wanted, or being written.

    Attributes:
        prompt: what it begins with.
        options: how it goes on.
        tokens: what was written.
        ended: whether it is whole.
    """

    prompt: list[int]
    options: GenerationOptions
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    _read: int = 0
    _sampler: Sampler | None = None
    _ends: Ends | None = None


@dataclass(frozen=True)
class Written:
    """Tokens that a step gave a text: one, or several where a shape was closed."""

    request: Request
    tokens: tuple[int, ...]


class ContinuousBatch:
    """Requests wait until there is a row for them; `step` brings all that have one further by a token.

    Args:
        model: a decoder on any engine.
        rows: texts that are written side by side at most.
        capacity: the longest a text may become, its prompt included; the model's context when left out.
        tokenizer: needed for stop strings and shapes.
    """

    def __init__(
        self, model: Any, *, rows: int = 8, capacity: int | None = None, tokenizer: Tokenizer | None = None
    ) -> None:
        context = int(model.config.max_positions)
        self.model, self.tokenizer, self.capacity = model, tokenizer, min(capacity or context, context)
        session = open_session(model, batch=rows, capacity=self.capacity)
        if not hasattr(session, "extend"):
            raise InputError("texts that join and leave need a decoder", where="model")
        self.session = cast(TokenSession, session)
        self.session.begin(rows)
        self.rows: list[Request | None] = [None] * rows
        self.filled = np.zeros(rows, np.int64)
        self.waiting: deque[Request] = deque()

    def __bool__(self) -> bool:
        """Whether there is anything left to do."""
        return bool(self.waiting) or any(self.rows)

    def submit(self, prompt: Sequence[int], options: GenerationOptions) -> Request:
        """Ask for a text.

        Raises:
            InputError: there is no prompt or it is too long, or several texts or beams are wanted.
        """
        if not len(prompt):
            raise InputError("the prompt is empty", where="prompt", mend="give at least one token")
        if options.num_beams > 1 or options.num_return_sequences > 1:
            raise InputError("a request is one text", where="options", mend="submit one for each text")
        text = fitting(list(prompt), self.capacity, False)
        room = min(options.max_new_tokens, self.capacity - len(text))
        seed = secrets.randbits(63) if options.seed is None else options.seed
        options = replace(options, max_new_tokens=room, min_new_tokens=min(options.min_new_tokens, room), seed=seed)
        guide = guide_of(self.model, 1, options, self.tokenizer)
        request = Request(text, options)
        request._sampler = Sampler(options, [text], [0], self.model.config.vocab_size, guide)
        request._ends = Ends(self.model, [text], options, self.tokenizer, guide)
        self.waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Write no more of a text; its row is free."""
        request.ended = True
        if request in self.waiting:
            self.waiting.remove(request)
        elif request in self.rows:
            self._leave(self.rows.index(request))

    def step(self) -> list[Written]:
        """Bring every text further; what was written, in the order of the rows."""
        self._join()
        texts, budget = [], PROMPT_TOKENS
        for request in self.rows:
            mine: list[int] = []
            if request is not None and request._read < len(request.prompt):
                mine = request.prompt[request._read : request._read + budget]
                budget -= len(mine)
            elif request is not None:
                mine = request.tokens[-1:]
            texts.append(mine)
        busy = [row for row, mine in enumerate(texts) if mine]
        if not busy:
            return []
        logits = self.session.extend(texts)
        found = []
        for place, row in enumerate(busy):
            request = self.rows[row]
            assert request is not None
            self.filled[row] += len(texts[row])
            if request._read < len(request.prompt):
                request._read += len(texts[row])
                if request._read < len(request.prompt):
                    continue
            found.append(self._written(row, request, logits[place : place + 1]))
        return found

    def _written(self, row: int, request: Request, logits: Any) -> Written:
        """The next token of a text, and what else belongs to its end."""
        assert request._sampler is not None
        assert request._ends is not None
        number = len(request.tokens)
        picked = request._sampler.pick(logits, number)
        ended, steps = request._ends.after(np.array([0]), picked, number)
        tokens = tuple(int(step.tokens[0]) for step in steps)
        request.tokens += tokens
        if ended.all():
            request.ended = True
            self._leave(row)
        return Written(request, tokens)

    def _join(self) -> None:
        """Give waiting requests the free rows."""
        for row, there in enumerate(self.rows):
            if there is None and self.waiting:
                request = self.rows[row] = self.waiting.popleft()
                if recall := getattr(self.session, "recall", None):
                    request._read = self.filled[row] = recall(row, request.prompt)

    def _leave(self, row: int) -> None:
        request = self.rows[row]
        assert request is not None
        if keep := getattr(self.session, "keep", None):
            read = [*request.prompt, *request.tokens][: int(self.filled[row])]
            keep(row, read)
        counts = np.zeros(len(self.rows), np.int64)
        counts[row], self.filled[row] = self.filled[row], 0
        self.session.forget(counts)
        self.rows[row] = None
