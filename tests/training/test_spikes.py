"""Losses that stand out, held to a plain course of losses."""

from __future__ import annotations

import math

from tsumugu.training.checkpointing import State
from tsumugu.training.spikes import EARLY, PATIENCE, stands_out


def course(losses: list[float], limit: float | None = 10.0) -> list[bool]:
    state, found = State(), []
    for state.step, loss in enumerate(losses):
        found.append(stands_out(state, loss, 1.0, limit))
    return found


def test_only_the_third_high_loss_in_a_row_stands_out() -> None:
    calm = [2.0 + 0.01 * (i % 3) for i in range(EARLY + 20)]
    assert not any(course([*calm, 9.0, 9.0, 2.0, 9.0, 9.0, 2.0]))
    assert course([*calm, 9.0, 9.0, 9.0])[-PATIENCE:] == [False, False, True]
    assert not any(course([*calm, *[9.0] * 5], limit=None))
    assert not any(course([2.0] * 10 + [9.0] * 5))  # too early to tell
    assert not any(course([*calm, *[2.3] * 5]))  # within two in a hundred, ten times


def test_what_is_no_number_always_stands_out() -> None:
    assert course([math.nan, math.inf], limit=None) == [True, True]
    assert stands_out(State(), 1.0, math.nan, None)


def test_a_resumed_run_judges_alike() -> None:
    calm = State()
    for calm.step in range(EARLY + 20):
        stands_out(calm, 2.0 + 0.01 * (calm.step % 3), 1.0, 10.0)
    stands_out(calm, 9.0, 1.0, 10.0)
    again = State(**vars(calm))
    assert [stands_out(again, 9.0, 1.0, 10.0) for _ in range(2)] == [False, True]
