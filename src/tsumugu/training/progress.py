"""Where a run stands, gathered from its events: what a console, or a page, shows of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tsumugu.training.events import Event, merit
from tsumugu.training.figures import History, Smoother, count, duration, flops, number, safe_text, size, sparkline

_ENDS = {
    "done": "done",
    "budget": "stopped: the budget is spent",
    "stopped": "stopped",
    "early": "stopped early: no longer improving",
    "failed": "failed",
}

_SHOWN: dict[str, Callable[[float], str]] = {
    "lr": lambda x: f"lr {x:.2e}",
    "grad_norm": lambda x: f"gradient {x:.2f}",
    "tokens": lambda x: f"{count(x)} tokens",
    "epoch": lambda x: f"epoch {x:.2f}",
    "memory": lambda x: f"memory {size(x)}",
    "padding": lambda x: f"padding {x:.1%}",
}


class Progress:
    """Where a run stands.

    Attributes:
        start, values, evaluation, end: values of the last event of that kind (`values`: of the last step).
        best: values and step of the best evaluation.
        saved: the step of the last checkpoint.
        losses: the smoothed loss of all steps so far.
    """

    def __init__(self) -> None:
        self.start: Mapping[str, Any] = {}
        self.values: Mapping[str, Any] = {}
        self.evaluation: Mapping[str, Any] = {}
        self.best: tuple[Mapping[str, Any], int] | None = None
        self.end: Mapping[str, Any] | None = None
        self.saved: int | None = None
        self.step = 0
        self.losses = History()
        self._loss, self._pace = Smoother(0.98), Smoother(0.98)
        self._last: tuple[int, float] | None = None

    def take(self, event: Event) -> None:
        """Take one event in."""
        self.step = event.step
        if event.kind == "start":
            self.start = event.values
            if self.steps:  # a short run is smoothed over fewer steps
                self._loss.decay = 1 - 1 / min(50.0, max(5.0, self.steps / 50))
        elif event.kind == "step":
            self._take_step(event)
        elif event.kind == "evaluation":
            self.evaluation = {**event.values, "step": event.step}
            found = merit(event.values)
            if found is not None and (self.best is None or found > (merit(self.best[0]) or found)):
                self.best = event.values, event.step
        elif event.kind == "checkpoint":
            self.saved = event.step
        elif event.kind in ("rollback", "resumed"):
            self._last = None
            self.end = None
        elif event.kind == "end":
            self.end = event.values

    def _take_step(self, event: Event) -> None:
        self.values = event.values
        loss = event.values.get("loss")
        if isinstance(loss, int | float):
            smooth = self._loss(loss)
            if smooth is not None:
                self.losses.append(smooth)
        if self._last is not None and event.step > self._last[0]:
            self._pace((event.time - self._last[1]) / (event.step - self._last[0]))
        self._last = (event.step, event.time)

    @property
    def loss(self) -> float | None:
        """The smoothed loss; the last one where no step had a finite one."""
        return self.values.get("loss") if self._loss.value is None else self._loss.value

    @property
    def steps(self) -> int | None:
        """How many steps the run shall have."""
        steps = self.start.get("steps")
        return steps if isinstance(steps, int) and steps > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """By the pace of the last steps, with what stood between them (evaluation, saving); None while unknown."""
        if self._pace.value is None or not self.steps:
            return None
        return max(0, self.steps - self.step) * self._pace.value

    def speed(self) -> list[str]:
        """Tokens a second, and the share of the machine's peak, or the rate of computing where that is not known."""
        rate = self.values.get("tokens_per_second")
        if not isinstance(rate, int | float):
            return []
        said = [f"{count(rate)} tokens/s"]
        mfu, cost = self.values.get("mfu"), self.start.get("flops_per_token")
        if isinstance(mfu, int | float):
            said.append(f"MFU {mfu:.1%}")
        elif isinstance(cost, int | float):
            said.append(flops(rate * cost))
        return said

    def figures(self) -> list[str]:
        """What else a step tells."""
        said = []
        for key, shown in _SHOWN.items():
            value = self.values.get(key)
            if isinstance(value, int | float) and not (key == "padding" and value == 0):
                said.append(shown(value))
        return said

    def sparkline(self, width: int, *, plain: bool = False) -> str:
        """The smoothed loss as bars. The first tenth, a steep fall, may stand out at the top."""
        losses = self.losses.values
        later = losses[len(losses) // 10 :]
        return sparkline(losses, width, low=min(losses), high=max(later), plain=plain) if losses else ""

    def verdict(self) -> str:
        """How it ended, in one line."""
        end = self.end or {}
        words = [_ENDS.get(str(end.get("reason")), safe_text(str(end.get("reason")), one_line=True))]
        words.append(f"{self.step:,} steps, {count(end.get('tokens'))} tokens in {duration(end.get('seconds'))}")
        if isinstance(end.get("loss"), int | float):
            words.append(f"loss {number(end['loss'])}")
        if self.best is not None:
            words.append(f"best {measured(self.best[0])} at step {self.best[1]:,}")
        return " · ".join(words)


def measured(values: Mapping[str, Any]) -> str:
    """What an evaluation found: the loss, and bits per byte and scores where there are any."""
    words, bits, scores = [f"loss {number(values.get('loss'))}"], values.get("bits_per_byte"), values.get("scores")
    if isinstance(bits, int | float):
        words.append(f"{number(bits)} bits/byte")
    if isinstance(scores, Mapping):
        words += [safe_text(f"{name} {number(value)}", one_line=True) for name, value in scores.items()]
    return ", ".join(words)
