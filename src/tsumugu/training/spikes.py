"""Losses that stand out: running averages tell a spike from the usual noise, and where a step must be taken back."""

from __future__ import annotations

import math

from tsumugu.training.checkpointing import State

PATIENCE = 3
"""How many steps running a loss must stand out before it is taken back."""
EARLY = 50
"""Steps in which the loss falls too fast for its averages to mean anything."""


def stands_out(state: State, loss: float, norm: float, limit: float | None) -> bool:
    """Whether a step must not be taken. Keeps the averages in `state`, so that a resumed run judges alike.

    Args:
        state: where the run stands before the step.
        loss: of the step, the main one.
        norm: of its gradient.
        limit: how many deviations above its average make a loss a spike; None: only what is no number stands out.
    """
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return True
    mean = loss if state.mean is None else state.mean
    high = limit is not None and state.step > EARLY and loss > mean + limit * max(state.deviation, 0.02 * mean)
    state.high = state.high + 1 if high else 0
    if not high:
        state.deviation = 0.95 * state.deviation + 0.05 * abs(loss - mean)
        state.mean = 0.95 * mean + 0.05 * loss
    return state.high >= PATIENCE
