"""How runs are put into words: a list that fits the terminal, the facts of one, the courses of losses."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len

from tsumugu.cli.cache_text import age_text, fit, lines_of_table, printable
from tsumugu.training.events import Event, settled
from tsumugu.training.figures import count, duration, number, size, sparkline
from tsumugu.training.runs import Run

# The columns of a list, and their order of leaving where the terminal is too narrow for all.
_COLUMNS: dict[str, Callable[[Run], str]] = {
    "NAME": lambda run: run.name,
    "FAMILY": lambda run: run.family or "-",
    "OBJECTIVE": lambda run: run.objective or "-",
    "PARAMETERS": lambda run: count(run.parameters),
    "STEPS": lambda run: f"{run.steps:,}" + (f"/{run.total_steps:,}" if run.total_steps else ""),
    "STATE": lambda run: run.state,
    "LOSS": lambda run: number(run.loss),
    "BEST": lambda run: number(run.best_loss),
    "BITS/BYTE": lambda run: number(run.best_bits_per_byte),
    "SCORE": lambda run: number(None if run.best_score is None else run.best_score[1]),
    "TIME": lambda run: duration(run.seconds),
    "SIZE": lambda run: size(run.size),
}
_LEAVE = ("SIZE", "OBJECTIVE", "TIME", "BEST", "PARAMETERS", "FAMILY", "BITS/BYTE", "SCORE", "LOSS")
_NAME = 24
"""Cells of a name that are kept as long as columns can leave."""
_RIGHT = frozenset({"PARAMETERS", "STEPS", "LOSS", "BEST", "BITS/BYTE", "SCORE", "TIME", "SIZE"})


def lines_of_runs(found: Sequence[Run], width: int | None) -> list[str]:
    """A line for each run, in at most `width` cells: names are cut, then columns leave, then names are cut more."""
    columns = dict(_COLUMNS)
    for name, key in (("BITS/BYTE", "best_bits_per_byte"), ("SCORE", "best_score")):
        if all(getattr(run, key) is None for run in found):
            del columns[name]
    longest = max(cell_len(run.name) for run in found)
    for leaving in (*(each for each in _LEAVE if each in columns), None):
        rows = [[cell(run) for cell in columns.values()] for run in found]
        right = frozenset(i for i, each in enumerate(columns) if each in _RIGHT)
        lines = lines_of_table(list(columns), rows, right)
        excess = max(map(cell_len, lines)) - (width or sys.maxsize)
        if excess <= 0:
            return lines
        if leaving is None or longest - excess >= _NAME:
            break
        del columns[leaving]
    rows = [[fit(row[0], max(4, longest - excess)), *row[1:]] for row in rows]
    return lines_of_table(list(columns), rows, right)


def lines_of_evaluations(found: Sequence[Event]) -> list[str]:
    """A line for each evaluation: the loss, and bits per byte and scores where there are any."""
    scores = list(dict.fromkeys(name for each in found for name in _scores(each)))
    rows = [[f"{each.step:,}", number(each.values.get("loss"))] for each in found]
    heads = ["STEP", "LOSS"]
    if any(each.values.get("bits_per_byte") is not None for each in found):
        heads.append("BITS/BYTE")
        rows = [[*row, number(each.values.get("bits_per_byte"))] for row, each in zip(rows, found, strict=True)]
    rows = [
        [*row, *(number(_scores(each).get(name)) for name in scores)] for row, each in zip(rows, found, strict=True)
    ]
    heads += [printable(name.upper()) for name in scores]
    return lines_of_table(heads, rows, frozenset(range(len(heads))))


def _scores(event: Event) -> Mapping[str, Any]:
    found = event.values.get("scores")
    return found if isinstance(found, Mapping) else {}


def facts_of(run: Run) -> dict[str, str]:
    """What a run is and how it went, as words; what is not known is left out."""
    speed = run.tokens / run.seconds if run.tokens and run.seconds else None
    best = f"{number(run.best_loss)} at step {run.best_step:,}" if run.best_step is not None else None
    state = run.state + (f" ({run.reason})" if run.reason not in (None, run.state) else "")
    facts = {
        "name": run.name,
        "path": str(run.path),
        "state": state + (f", process {run.pid}" if run.pid else ""),
        "family": run.family,
        "objective": run.objective,
        "parameters": count(run.parameters) if run.parameters is not None else None,
        "steps": _COLUMNS["STEPS"](run),
        "tokens": count(run.tokens) if run.tokens is not None else None,
        "loss": number(run.loss) if run.loss is not None else None,
        "best loss": best,
        "bits per byte": number(run.best_bits_per_byte) if run.best_bits_per_byte is not None else None,
        "best score": f"{run.best_score[0]} {number(run.best_score[1])}" if run.best_score is not None else None,
        "training time": duration(run.seconds) if run.seconds is not None else None,
        "speed": f"{count(speed)} tokens/s" if speed else None,
        "last event": age_text(run.updated) if run.updated is not None else None,
        "size": size(run.size),
    }
    return {key: text for key, text in facts.items() if text}


def losses_of(events: Sequence[Event]) -> list[float]:
    """The training losses that still hold, step by step."""
    found = [each.values.get("loss") for each in settled(events) if each.kind == "step"]
    return [float(each) for each in found if isinstance(each, int | float) and math.isfinite(each)]


def lines_of_courses(names: Sequence[str], courses: Sequence[Sequence[float]], width: int) -> list[str]:
    """A sparkline of each run's losses, all on one scale. The steep fall at the beginning may stand out at the top."""
    told = [(name, course) for name, course in zip(names, courses, strict=True) if course]
    if not told:
        return []
    room = min(30, max(cell_len(name) for name, _ in told))
    low = min(min(course) for _, course in told)
    high = max(max(course[len(course) // 10 :]) for _, course in told)
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    lines = [f"training loss, from {low:.4f} to {high:.4f}"]
    for name, course in told:
        bars = sparkline(course, max(8, width - room - 12), low=low, high=high, plain=plain)
        lines.append(f"{fit(name, room)}  {bars}  {number(course[-1])}")
    return lines


def shown(value: Any) -> str:
    """A value of a recipe."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
