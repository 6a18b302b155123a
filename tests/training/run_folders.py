"""Folders of runs, written by the sinks that a real run uses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tsumugu.training.events import LOG, Event, JsonLines

BEGAN = 1_700_000_000.0


def course(
    name: str = "tiny", *, steps: int = 40, total: int | None = None, rate: float = 0.1, every: int = 10, **start: Any
) -> Iterator[Event]:
    """The events of a run whose loss falls: a start, `steps` steps, an evaluation and a checkpoint every so often."""
    told = {"name": name, "family": "gpt2", "objective": "causal", "parameters": 10_800_000, "steps": total or steps}
    yield Event("start", 0, BEGAN, {**told, "flops_per_token": 6e7, "device": "cpu", "ranks": 1, **start})
    for step in range(1, steps + 1):
        now = BEGAN + step / 4
        loss = 1.5 + 3 * math.exp(-rate * step)
        yield Event(
            "step",
            step,
            now,
            {
                "loss": loss,
                "losses": {"token": loss},
                "lr": 3e-4 * (1 - step / (total or steps)),
                "grad_norm": 0.5,
                "tokens": 512 * step,
                "tokens_per_second": 2048.0,
                "seconds": step / 4,
                "epoch": step / 100,
                "memory": 812_000_000,
                "mfu": None,
                "padding": 0.0,
            },
        )
        if step % every == 0:
            evaluated = loss + 0.1 + (step > steps / 2) * 0.5
            yield Event("evaluation", step, now, {"loss": evaluated, "bits_per_byte": evaluated / 2, "seconds": 0.1})
            yield Event(
                "checkpoint", step, now, {"path": f"checkpoints/step-{step:08}", "seconds": 0.1, "kind": "last"}
            )


def end(step: int, reason: str = "done") -> Event:
    return Event(
        "end", step, BEGAN + step / 4, {"reason": reason, "tokens": 512 * step, "seconds": step / 4, "loss": 1.6}
    )


def write(folder: Path, events: Iterator[Event] | list[Event], recipe: str | None = "train:\n  lr: 0.0003\n") -> Path:
    folder.mkdir(parents=True)
    if recipe is not None:
        (folder / "recipe.yaml").write_text(recipe, "utf-8")
    sink = JsonLines(folder / LOG)
    for event in events:
        sink(event)
    sink.close()
    return folder


def make(folder: Path, *, steps: int = 40, reason: str | None = "done", recipe: str | None = None, **more: Any) -> Path:
    """A whole run's folder; without a `reason` its log has no end."""
    events = list(course(folder.name, steps=steps, **more))
    events += [] if reason is None else [end(steps, reason)]
    return write(folder, events, recipe or f"model:\n  layers: 2\ntrain:\n  lr: 0.0003\n  steps: {steps}\n")
