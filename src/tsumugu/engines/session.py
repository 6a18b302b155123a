"""What generation asks of an engine: read prompts, then one token a row and step. Nothing here knows torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import InputError

Logits = NDArray[np.float32]
Rows = NDArray[np.int64]


class Session(Protocol):
    """A batch of texts that is being continued, with what was read kept in a cache.

    Logits are float32, `[rows, vocab]`, and belong to the session: they are valid until its next step.
    """

    def start(self, prompts: Sequence[Sequence[int]]) -> Logits:
        """Read prompts of any lengths; logits of what follows each."""
        ...

    def step(self, tokens: Rows) -> Logits:
        """Append one token to each row, `[rows]`; logits of what follows."""
        ...

    def select(self, rows: Rows) -> None:
        """Go on with `rows` in that order; they may repeat (beams) or be left out (finished texts)."""
        ...


class TokenSession(Session, Protocol):
    """A session of a decoder, where any number of tokens can be read at once and taken back."""

    def begin(self, rows: int) -> None:
        """Rows without any token, in place of `start`."""
        ...

    def extend(self, texts: Sequence[Sequence[int]], *, every: bool = False) -> Logits:
        """Append some tokens to each row, or none.

        Returns:
            Logits of what follows the last token of each row that got some, `[those rows, vocab]`; with `every`, of
            what follows each token, `[tokens, vocab]`, row by row.
        """
        ...

    def forget(self, counts: Rows) -> None:
        """Take back the last tokens of each row, `[rows]`."""
        ...


class Scorer(Protocol):
    """Says how likely texts go on as proposed. What all texts begin with was read when it was opened."""

    def score(
        self, stems: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[list[float]]]:
        """The log probability of each token of each answer of each row, after that row's stem."""
        ...


def open_session(model: Any, *, batch: int, capacity: int, prefix: Any = None) -> Session:
    """A session of whatever engine `model` belongs to, for `batch` rows of up to `capacity` tokens each.

    Args:
        prefix: what all prompts begin with, as `read_prefix` gives it.

    Raises:
        InputError: the model does not generate text.
    """
    opener = _ability(model, "open_session", "generate text")
    session: Session = opener(batch=batch, capacity=capacity, **({} if prefix is None else {"prefix": prefix}))
    return session


def end_session(session: Session) -> None:
    """No more tokens come; an engine that keeps what was read for later texts does so now."""
    if close := getattr(session, "close", None):
        close()


def open_scorer(model: Any, *, prefix: Sequence[int]) -> Scorer:
    """A scorer of texts that all begin with `prefix`.

    Raises:
        InputError: the model does not write text from left to right.
    """
    scorer: Scorer = _ability(model, "open_scorer", "score texts")(prefix=prefix)
    return scorer


def weights_of(model: Any) -> tuple[Any, ...]:
    """What differs once a network computes otherwise: its active adapters, and how often parameters were changed.

    What was read before must be read again then. A compiled model stays as it is.
    """
    adapters, parameters = getattr(model, "adapters", None), getattr(model, "parameters", None)
    active = tuple(getattr(adapters, "active", {}).items()), getattr(adapters, "merged", False)
    changed = () if parameters is None else (each._version for each in parameters() if not each.is_inference())
    return *active, sum(changed)


def read_prefix(model: Any, ids: Sequence[int]) -> Any:
    """What all prompts of some sessions begin with, read once; None where the model's engine cannot share it."""
    reader = getattr(model, "read_prefix", None)
    return None if reader is None or not ids else reader(ids)


def _ability(model: Any, name: str, what: str) -> Any:
    found = getattr(model, name, None)
    if found is None:
        family, head = (getattr(model, each, None) for each in ("family", "head_name"))
        named = getattr(family, "name", type(model).__name__)
        raise InputError(
            f"a {named} model with head {head!r} does not {what}",
            where="model",
            mend="load a decoder such as smollm2",
        )
    return found
