"""How the learning rate rises and falls: a pure function of the step, in shares of its peak."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tsumugu.core.config import Config, limits

Schedule = Callable[[int], float]

DEFAULTS: dict[str, dict[str, Any]] = {
    "cosine": {"final": 0.1},
    "linear": {"final": 0.0},
    "constant": {},
    "wsd": {"final": 0.0, "decay": 0.2, "shape": "1-sqrt"},
    "inverse-sqrt": {},
}
"""What each schedule takes beside the warm-up, and its value where nothing is said.

Source: cosine: Loshchilov & Hutter 2017, SGDR, with the tenth of Brown et al. 2020, GPT-3, appendix B; linear: Devlin
et al. 2019, BERT, appendix A.2; wsd: Hu et al. 2024, MiniCPM, section 4, with the shape and the share of Hägele et al.
2024, Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations, section 3; inverse-sqrt: Vaswani et al.
2017, section 5.3.
"""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Config):
    """How the learning rate changes. What is None has the schedule's own value, see `DEFAULTS`.

    A length is a number of steps, or, as a fraction, a share of all steps: `warmup: 100` or `warmup: 0.02`.

    Attributes:
        name: after a linear warm-up: cosine, linear (down to `final`); constant; wsd (stays, then decays at the end);
            inverse-sqrt (1 / sqrt of the step).
        warmup: the length of the warm-up.
        final: the share of the peak that is left at the end.
        decay: the length of wsd's decay.
        shape: of wsd's decay: a straight line, or one minus the root of how far it got.
    """

    name: Literal["cosine", "linear", "constant", "wsd", "inverse-sqrt"] = "cosine"
    warmup: int | float = limits(0.02, low=0)
    final: float | None = limits(None, low=0.0, high=1.0)
    decay: int | float | None = limits(None, low=0)
    shape: Literal["linear", "1-sqrt"] | None = None

    def check(self) -> None:
        own = DEFAULTS[self.name]
        for key in ("final", "decay", "shape"):
            if getattr(self, key) is not None and key not in own:
                self.refuse(key, f"{self.name} has no {key}", mend=f"it takes {', '.join(['warmup', *own])}")
        for key in ("warmup", "decay"):
            value = getattr(self, key)
            if isinstance(value, float) and value > 1:
                self.refuse(key, f"{value} is neither a share nor a number of steps", mend="steps are a whole number")

    def filled(self) -> ScheduleConfig:
        """The same with the schedule's own values where there was None."""
        return self.replace(**{key: each for key, each in DEFAULTS[self.name].items() if getattr(self, key) is None})


def build_schedule(config: ScheduleConfig, total_steps: int) -> Schedule:
    """Step, counted from 0 -> the share of the peak learning rate, in [0, 1], that the step has.

    With a warm-up of w steps, step w is the first at the peak, and step 0 has 1 / (w + 1) of it: no step is wasted on
    a rate of 0. `final` is reached at `total_steps`, the step after the last, and stays.
    """
    config = config.filled()
    warmup = steps_of(config.warmup, total_steps)
    after = _shape(config, warmup, max(total_steps, warmup + 1))

    def schedule(step: int) -> float:
        return (step + 1) / (warmup + 1) if step < warmup else after(step)

    return schedule


def steps_of(length: int | float, total_steps: int) -> int:
    """A number of steps, or a share of all steps, in steps."""
    return length if isinstance(length, int) else round(length * total_steps)


def _shape(config: ScheduleConfig, warmup: int, total: int) -> Schedule:
    """What follows the warm-up."""

    def falling(begin: int, curve: Callable[[float], float]) -> Schedule:
        """From 1 at `begin` to `final` at `total`; `curve` falls from 1 at 0 to 0 at 1."""
        final = config.final
        assert final is not None

        def schedule(step: int) -> float:
            share = min(max((step - begin) / (total - begin), 0.0), 1.0)
            return final + (1 - final) * curve(share)

        return schedule

    match config.name:
        case "cosine":
            return falling(warmup, lambda share: 0.5 + 0.5 * math.cos(math.pi * share))
        case "linear":
            return falling(warmup, lambda share: 1 - share)
        case "wsd":
            assert config.decay is not None
            length = min(max(steps_of(config.decay, total), 1), total - warmup)
            line = config.shape == "linear"
            return falling(total - length, lambda share: 1 - (share if line else math.sqrt(share)))
        case "inverse-sqrt":
            return lambda step: math.sqrt((warmup + 1) / (step + 1))
        case "constant":
            return lambda step: 1.0
