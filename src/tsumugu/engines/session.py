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


def open_session(model: Any, *, batch: int, capacity: int) -> Session:
    """A session of whatever engine `model` belongs to, for `batch` rows of up to `capacity` tokens each.

    Raises:
        InputError: the model does not generate text.
    """
    opener = getattr(model, "open_session", None)
    if opener is None:
        family, head = (getattr(model, name, None) for name in ("family", "head_name"))
        named = getattr(family, "name", type(model).__name__)
        raise InputError(
            f"a {named} model with head {head!r} does not generate text",
            where="model",
            mend="load a decoder such as smollm2",
        )
    session: Session = opener(batch=batch, capacity=capacity)
    return session
