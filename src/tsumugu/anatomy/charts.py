"""Charts as SVG for pages: drawn by matplotlib, in colours that the page decides on, dark or light."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GRID = "#010101", "#020202"
COLOURS = ("#3f74c9", "#c2571a", "#2f8f5b", "#8a6fb3", "#b0406f", "#7a8b1c", "#2a8c9c", "#8a8f98")
"""Told apart on white and on black."""
_VARIABLES = {INK: "var(--ink, #1d2129)", GRID: "var(--grid, #d8dce2)"}


def chart(draw: Callable[[Axes], None], *, label: str, size: tuple[float, float] = (6.4, 2.9)) -> str:
    """An SVG element of what `draw` draws on the axes it is given; `label` is read out where it cannot be seen."""
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.hashsalt": "tsumugu",
        "svg.fonttype": "none",  # the page's fonts set the words, Japanese ones too
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": GRID,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "text.color": INK,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=COLOURS),
    }
    with warnings.catch_warnings(), matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return themed(buffer.getvalue(), label)


def themed(svg: str, label: str) -> str:
    """The `<svg>` element of a drawing alone, with variables for its colours and a label for screen readers."""
    body = svg[svg.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    body = body.replace("font: 9px 'DejaVu Sans'", "font: 9px sans-serif")
    return body.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" class="chart" ', 1)


def bars(values: Mapping[str, float], *, label: str, unit: str = "") -> str:
    """Horizontal bars, the first on top, each with its value."""
    from tsumugu.anatomy.diagram import short

    names, numbers = list(values), list(values.values())

    def told(value: float) -> str:
        return short(value) if value >= 1000 else format(value, ".3g")

    def draw(axes: Axes) -> None:
        places = range(len(names))
        axes.barh(places, numbers, color=COLOURS[0], height=0.66)
        axes.set_yticks(list(places), names, parse_math=False)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(lambda value, _: told(value))
        axes.set_xlim(0, max(numbers, default=1) * 1.16 or 1)
        axes.set_xlabel(unit)
        for place, number in enumerate(numbers):
            axes.text(number, place, f" {told(number)}", va="center")

    return chart(draw, label=label, size=(6.4, 0.75 + 0.27 * max(len(names), 2)))


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    label: str,
    x: str,
    y: str,
    logarithmic: str = "",
    marks: bool = False,
) -> str:
    """A line for each series of points; `logarithmic` names the axes that are, "x", "y" or "xy"."""

    def draw(axes: Axes) -> None:
        for name, points in series.items():
            axes.plot(
                [a for a, _ in points],
                [b for _, b in points],
                label=name,
                linewidth=1.4,
                marker="o" if marks else None,
                markersize=2.6,
            )
        if "x" in logarithmic:
            axes.set_xscale("log")
        if "y" in logarithmic:
            axes.set_yscale("log")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=8, ncols=2 if len(series) > 4 else 1)

    return chart(draw, label=label)


def histogram(edges: Sequence[int], counts: Sequence[int], *, label: str, x: str, y: str) -> str:
    """Bars between edges, on a logarithmic axis."""

    def draw(axes: Axes) -> None:
        from tsumugu.anatomy.diagram import short

        places = [max(each, 0.7) for each in edges]
        widths = [b - a for a, b in pairwise(places)]
        axes.bar(places[:-1], counts, width=widths, align="edge", color=COLOURS[0], edgecolor=GRID, linewidth=0.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    return chart(draw, label=label)
