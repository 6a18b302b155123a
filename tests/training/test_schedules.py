"""Schedules: their properties for any setting, and the reference library's numbers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import optimization

from tsumugu.core.errors import ConfigError
from tsumugu.training.schedules import DEFAULTS, ScheduleConfig, build_schedule

NAMES = tuple(DEFAULTS)
SHAPES = ("linear", "1-sqrt")


@st.composite
def cases(draw: st.DrawFn) -> tuple[ScheduleConfig, int]:
    name = draw(st.sampled_from(NAMES))
    length = st.integers(0, 60) | st.floats(0, 1)
    values: dict[str, Any] = {"final": st.floats(0, 1), "decay": length, "shape": st.sampled_from(SHAPES)}
    options = {key: draw(st.none() | values[key]) for key in DEFAULTS[name]}
    return ScheduleConfig(name=name, warmup=draw(length), **options), draw(st.integers(1, 80))


@given(cases())
def test_a_share_of_the_peak_that_rises_then_falls_without_a_jump(case: tuple[ScheduleConfig, int]) -> None:
    config, total = case
    schedule = build_schedule(config, total)
    warmup = config.warmup if isinstance(config.warmup, int) else round(config.warmup * total)
    factors = [schedule(step) for step in range(max(total, warmup) + 20)]
    assert all(0 <= each <= 1 for each in factors)
    assert factors[warmup] == 1
    assert factors[0] > 0
    rising, falling = factors[: warmup + 1], factors[warmup:]
    assert all(one < other for one, other in pairwise(rising))
    assert all(one >= other - 1e-12 for one, other in pairwise(falling))
    assert factors == [schedule(step) for step in range(len(factors))]
    final = config.filled().final
    if final is not None:
        assert all(each == pytest.approx(final, abs=1e-12) for each in factors[max(total, warmup + 1) :])


@settings(max_examples=20)
@given(cases())
def test_neighbouring_steps_of_a_long_run_lie_close_together(case: tuple[ScheduleConfig, int]) -> None:
    """But for the steep start of the root."""
    config, _ = case
    shares = {"warmup": 0.25} | ({"decay": 0.25} if config.name == "wsd" else {})
    schedule = build_schedule(config.replace(**shares), 10_000)
    factors = [schedule(step) for step in range(10_100)]
    largest = max(abs(one - other) for one, other in pairwise(factors))
    steep = 1.001 * math.sqrt(1 / 2_500) if config.name == "wsd" and config.shape != "linear" else 0.0
    assert largest <= max(8e-4, steep)


def reference(name: str, **options: Any) -> list[float]:
    """The reference library's factors."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = getattr(optimization, f"get_{name}_schedule{'' if 'sqrt' in name or name == 'wsd' else '_with_warmup'}")
    made = schedule(optimizer, **options)
    return [float(made.lr_lambdas[0](step)) for step in range(60)]


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize(
    ("config", "name", "options"),
    [
        ({"name": "linear"}, "linear", {"num_training_steps": 51}),
        ({"name": "cosine", "final": 0.0}, "cosine", {"num_training_steps": 51}),
        ({"name": "cosine"}, "cosine_with_min_lr", {"num_training_steps": 51, "min_lr_rate": 0.1}),
        ({"name": "constant"}, "constant", {}),
        ({"name": "inverse-sqrt"}, "inverse_sqrt", {}),
        (
            {"name": "wsd", "shape": "linear", "decay": 10},
            "wsd",
            {"num_training_steps": 51, "num_decay_steps": 10, "decay_type": "linear"},
        ),
        (
            {"name": "wsd", "decay": 10},
            "wsd",
            {"num_training_steps": 51, "num_decay_steps": 10, "decay_type": "1-sqrt"},
        ),
    ],
)
def test_numbers_are_the_reference_librarys(
    warmup: int, config: dict[str, Any], name: str, options: dict[str, Any]
) -> None:
    """Its step 0 has rate 0 and teaches nothing; ours begins at its step 1, and so has one warm-up step less."""
    theirs = reference(name, num_warmup_steps=warmup + 1, **options)
    ours = build_schedule(ScheduleConfig(warmup=warmup, **config), 50)
    assert [ours(step) for step in range(50)] == pytest.approx(theirs[1:51], abs=1e-12)


def test_lengths_are_steps_or_shares() -> None:
    assert (
        build_schedule(ScheduleConfig(warmup=0.1), 100)(4)
        == build_schedule(ScheduleConfig(warmup=10), 100)(4)
        == 5 / 11
    )
    assert ScheduleConfig.from_dict({"warmup": 1}).warmup == 1
    assert build_schedule(ScheduleConfig(name="wsd", warmup=0, decay=1.0), 10)(1) < 1
    assert build_schedule(ScheduleConfig(name="wsd", warmup=0, decay=1), 10)(9) == 1
    with pytest.raises(ConfigError, match="neither a share nor a number of steps"):
        ScheduleConfig(warmup=100.0)


def test_settings_that_a_schedule_lacks_are_refused() -> None:
    with pytest.raises(ConfigError, match="constant has no final"):
        ScheduleConfig(name="constant", final=0.1)
    with pytest.raises(ConfigError, match="cosine has no decay"):
        ScheduleConfig(decay=0.2)
    config = ScheduleConfig(name="wsd")
    assert config.filled().to_dict() == config.to_dict() | DEFAULTS["wsd"]
    assert ScheduleConfig.from_dict(config.to_dict()) == config
