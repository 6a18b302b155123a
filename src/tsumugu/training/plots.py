"""Plots of runs, from their logs: the loss and the learning rate of one, the losses of several in one figure.

The same log gives the same SVG, byte for byte. No display is needed. matplotlib is loaded when the first plot is drawn.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tsumugu.core.errors import InputError, did_you_mean
from tsumugu.training.events import LOG, Event, read_events, settled
from tsumugu.training.figures import count, safe_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

By = Literal["step", "tokens", "seconds"]
FORMATS = ("svg", "png")
_POINTS = 1000
_LABELS = {"step": "step", "tokens": "tokens", "seconds": "training time in seconds"}

# Fonts that hold Japanese, Chinese and Korean signs, where they are installed; a browser finds its own.
_WIDE_FONTS = (
    *("Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "IPAGothic", "TakaoGothic", "VL Gothic"),
    *("Hiragino Sans", "Yu Gothic", "Meiryo", "MS Gothic", "Noto Sans CJK SC", "Noto Sans CJK KR"),
)


@dataclass(frozen=True)
class Curves:
    """What a plot shows of a run: points of its steps and of its evaluations, in order of their steps."""

    name: str
    steps: dict[str, list[float]]  # step, tokens, seconds, loss, lr
    evaluations: dict[str, list[float]]  # step, tokens, seconds, loss, bits_per_byte

    @classmethod
    def of(cls, events: Sequence[Event], name: str = "") -> Curves:
        """Gather the points. Steps that a rollback took back are left out. `name` stands in where the log has none."""
        steps: dict[str, list[float]] = {key: [] for key in ("step", "tokens", "seconds", "loss", "lr")}
        evaluations: dict[str, list[float]] = {
            key: [] for key in ("step", "tokens", "seconds", "loss", "bits_per_byte")
        }
        at = {"tokens": 0.0, "seconds": 0.0}
        for event in settled(events):
            values = event.values
            if event.kind == "start" and isinstance(values.get("name"), str):
                name = values["name"]
            elif event.kind == "step":
                at = {key: _number(values.get(key), old) for key, old in at.items()}
                _add(steps, {**values, **at, "step": event.step})
            elif event.kind == "evaluation":
                _add(evaluations, {**values, **at, "step": event.step})
        return cls(safe_text(name, one_line=True)[:80], steps, evaluations)

    @property
    def best(self) -> int | None:
        """Which evaluation has the least loss; None when there is none."""
        losses = self.evaluations["loss"]
        sound = [i for i, loss in enumerate(losses) if math.isfinite(loss)]
        return min(sound, key=losses.__getitem__, default=None)


def plot_run(run: str | Path | Sequence[Event], folder: str | Path, *, formats: Sequence[str] = ("svg",)) -> list[Path]:
    """Draw ``loss`` and ``lr`` of a run into a folder.

    Args:
        run: the run's folder, or its events.
        folder: where the files go, made where it is missing; each file appears whole or not at all.
        formats: "svg", "png".

    Returns:
        The files' paths.

    Raises:
        InputError: the log is broken, or a format is none of these.
    """
    curves = _curves(run)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    targets = [(what, folder / f"{what}.{each}") for what in ("loss", "lr") for each in formats]
    for what, target in targets:
        with _figure(target, [curves.name]) as (_, axes):
            axes.set_title(curves.name, loc="left", parse_math=False)
            if what == "loss":
                _draw_loss(axes, curves)
            else:
                axes.plot(*_thinned(curves.steps["step"], curves.steps["lr"]), color="C0")
                axes.set_ylabel("learning rate")
                axes.set_ylim(bottom=0)
            axes.set_xlabel("step")
    return [target for _, target in targets]


def plot_runs(runs: Sequence[str | Path], target: str | Path, *, by: By = "step") -> None:
    """Draw the losses of several runs into one figure: training thin and smoothed, validation thick.

    Args:
        runs: the runs' folders.
        target: an .svg or .png file.
        by: what the runs are laid beside: "step", "tokens" or "seconds" (of training).

    Raises:
        InputError: no run, a broken log, or a suffix that is none of these.
    """
    if by not in get_args(By):
        raise InputError(f"{by!r} is no axis of a plot", mend=did_you_mean(by, get_args(By)))
    if not runs:
        raise InputError("there is no run to plot")
    every = [_curves(run) for run in runs]
    names = [Path(run).resolve().name for run in runs]
    names = names if len(set(names)) == len(names) else [str(run) for run in runs]
    names = [safe_text(each, one_line=True)[:80] for each in names]
    target = Path(target)
    with _figure(target, names, 4 + 0.22 * len(every)) as (figure, axes):
        handles, limits = [], []
        for i, curves in enumerate(every):
            colour = f"C{i % 10}"
            dash = ("-", "--", ":", "-.")[i // 10 % 4]
            x, loss = _thinned(curves.steps[by], curves.steps["loss"])
            axes.plot(x, _smoothed(loss), color=colour, linestyle=dash, linewidth=0.8, alpha=0.6)
            (line,) = axes.plot(
                curves.evaluations[by],
                curves.evaluations["loss"],
                color=colour,
                linestyle=dash,
                marker="o",
                markersize=3,
            )
            handles.append(line)
            limits += [each for each in (_limits(loss, curves.evaluations["loss"]),) if each is not None]
        if limits:
            axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        axes.set_xlabel(_LABELS[by])
        axes.xaxis.set_major_formatter(lambda value, _: count(value))
        axes.set_ylabel("loss (thin: training, smoothed; with marks: validation)")
        legend = figure.legend(handles, names, loc="outside lower left", frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)


class Plots:
    """A sink that keeps ``loss.svg`` and ``lr.svg`` in a run's folder up to date, from the log there.

    It stands behind the log's own sink. The plots are drawn after evaluations and checkpoints, never oftener than costs
    1 % of the time, and at the end. A plot that cannot be written stops no training; it can be drawn again at any time.
    """

    def __init__(self, folder: str | Path, *, formats: Sequence[str] = ("svg",)) -> None:
        self._folder, self._formats = Path(folder), tuple(formats)
        self._next = time.monotonic() + 30

    def __call__(self, event: Event) -> None:
        """Draw, if it is time."""
        due = event.kind in ("evaluation", "checkpoint") and time.monotonic() >= self._next
        if due or event.kind == "end":
            begun = time.monotonic()
            with contextlib.suppress(OSError, InputError):
                plot_run(self._folder, self._folder, formats=self._formats)
            took = time.monotonic() - begun
            self._next = time.monotonic() + max(30.0, 100 * took)

    def close(self) -> None:
        """Nothing is open."""


def _draw_loss(axes: Axes, curves: Curves) -> None:
    x, loss = _thinned(curves.steps["step"], curves.steps["loss"])
    axes.plot(x, loss, color="C0", alpha=0.25, linewidth=0.8)
    axes.plot(x, _smoothed(loss), color="C0", label="training, smoothed")
    found = curves.evaluations
    if found["loss"]:
        axes.plot(found["step"], found["loss"], color="C1", marker="o", markersize=3, label="validation")
    best = curves.best
    if best is not None:
        label = f"best: {found['loss'][best]:.4f} at step {found['step'][best]:,.0f}"
        if math.isfinite(found["bits_per_byte"][best]):
            label += f", {found['bits_per_byte'][best]:.4f} bits per byte"
        point = [found["step"][best]], [found["loss"][best]]
        axes.plot(*point, color="C3", marker="*", markersize=11, linestyle="none", label=label)
    limits = _limits(loss, found["loss"])
    if limits is not None:
        axes.set_ylim(*limits)
    axes.set_ylabel("loss")
    axes.legend(frameon=False, loc="upper right")


def _curves(run: str | Path | Sequence[Event]) -> Curves:
    if isinstance(run, str | Path):
        folder = Path(run)
        return Curves.of(read_events(folder / LOG), folder.resolve().name)
    return Curves.of(run)


def _add(columns: dict[str, list[float]], values: dict[str, Any]) -> None:
    for key, column in columns.items():
        column.append(_number(values.get(key), math.nan))


def _number(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else otherwise


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `_POINTS` points, each the mean of neighbours; what is not finite is left out of the means."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    each = -(-len(pairs) // _POINTS) or 1
    groups = [pairs[i : i + each] for i in range(0, len(pairs), each)]
    return [sum(a for a, _ in g) / len(g) for g in groups], [sum(b for _, b in g) / len(g) for g in groups]


def _smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each point's surroundings, about a fiftieth of them all; symmetrical, so that nothing lags."""
    reach = max(1, len(values) // 100)
    sums = [0.0, *accumulate(values)]
    last = len(values)
    edges = [(i - each, i + each + 1) for i in range(last) for each in (min(reach, i, last - 1 - i),)]
    return [(sums[b] - sums[a]) / (b - a) for a, b in edges]


def _limits(train: Sequence[float], validation: Sequence[float]) -> tuple[float, float] | None:
    """The range of losses worth seeing: all but the steep fall of the first steps."""
    later = [*train[len(train) // 20 :], *(each for each in validation if math.isfinite(each))]
    if not later:
        return None
    low, high = min(later), sorted(later)[int(0.98 * (len(later) - 1))]
    margin = 0.05 * (high - low) or 0.1
    return low - margin, high + margin


@contextlib.contextmanager
def _figure(target: Path, names: Sequence[str], height: float | None = None) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure for the runs of these names; it becomes the file `target`, whole, when the block ends well.

    Of a given height it makes room for what stands beside the axes, which costs as much time as to draw it.
    """
    kind = target.suffix[1:].lower()
    if kind not in FORMATS:
        raise InputError(f"a plot cannot be a {target.suffix or 'file without a suffix'}", mend="use .svg or .png")
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.hashsalt": "tsumugu",
        "svg.fonttype": "none",  # texts stay texts: small, searchable, in the reader's own fonts
        "font.family": ["DejaVu Sans", *([] if "".join(names).isascii() else _wide_fonts()), "sans-serif"],
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9,
        "path.simplify": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
    }
    with warnings.catch_warnings(), matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own style would make the plots of one log differ
        matplotlib.rcParams.update(settings)
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a PNG shows boxes then; nothing breaks
        figure = Figure(figsize=(8, height or 4), layout="constrained" if height else None)
        if height is None:
            figure.subplots_adjust(left=0.11, right=0.98, bottom=0.12, top=0.91)
        axes = figure.add_subplot()
        yield figure, axes
        partial = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.partial")
        metadata = {"Date": None, "Creator": "tsumugu"} if kind == "svg" else {"Software": "tsumugu"}
        try:
            with partial.open("xb") as file:
                figure.savefig(file, format=kind, dpi=120, metadata=metadata)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def _wide_fonts() -> list[str]:
    """The first installed font with East Asian signs."""
    from matplotlib import font_manager

    known = {each.name for each in font_manager.fontManager.ttflist}
    return [each for each in _WIDE_FONTS if each in known][:1]
