"""Pictures of what a model holds, as PNG or SVG: texts as points, a vocabulary, attention."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tsumugu.anatomy.charts import COLOURS
from tsumugu.anatomy.projections import Plane, project
from tsumugu.checkpoints.atomic import new_file
from tsumugu.core.errors import InputError, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tsumugu.text.tokenizer import Tokenizer

FORMATS = ("svg", "png")
_NAMED = 40
"""Points that are still told apart by their names."""
_WIDE = (
    "Noto Sans CJK JP",
    "Noto Sans JP",
    "IPAexGothic",
    "IPAPGothic",
    "IPAGothic",
    "Hiragino Sans",
    "Yu Gothic",
    "Meiryo",
)


def check_target(target: Path) -> None:
    """Refuse a file that no picture can be.

    Raises:
        InputError: another suffix than .svg and .png.
    """
    if target.suffix[1:].lower() not in FORMATS:
        raise InputError(f"a picture cannot be a {target.suffix or 'file without a suffix'}", mend="use .svg or .png")


def plot_points(
    vectors: npt.NDArray[Any],
    names: Sequence[str],
    target: Path,
    *,
    labels: Sequence[str] | None = None,
    projections: Sequence[str] = ("pca",),
    neighbours: int = 15,
    seed: int = 0,
    title: str = "",
) -> None:
    """Vectors `[n, dim]` as points, coloured by label; few ones are named. A panel for each projection of `project`.

    Raises:
        InputError, MissingExtraError: as `project` does.
    """
    planes = [project(vectors, each, neighbours=neighbours, seed=seed) for each in projections]
    groups = list(dict.fromkeys(labels or [""]))

    def scattered(axes: Axes, plane: Plane) -> None:
        for number, group in enumerate(groups):
            at = [i for i in range(len(vectors)) if labels is None or labels[i] == group]
            colour = COLOURS[number % len(COLOURS)]
            axes.scatter(plane.points[at, 0], plane.points[at, 1], s=18, color=colour, label=group, alpha=0.85)
        for point, name in zip(plane.points, names, strict=True) if len(names) * len(planes) <= _NAMED else ():
            text, place = one_line(name, limit=40), (float(point[0]), float(point[1]))
            axes.annotate(text, place, xytext=(4, 3), textcoords="offset points", fontsize=7, parse_math=False)
        axes.set_xlabel(plane.axes[0])
        axes.set_ylabel(plane.axes[1])
        if not plane.axes[1]:  # without a unit
            axes.set_xticklabels([])
            axes.set_yticklabels([])

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(planes), squeeze=False)[0]
        for axes, plane in zip(panels, planes, strict=True):
            scattered(axes, plane)
        if labels is not None and len(groups) <= 20:
            panels[0].legend(frameon=False, fontsize=8)
        panels[0].set_title(title, loc="left", parse_math=False)

    picture(target, draw, (min(8 * len(planes), 21), 6), "".join([*names[:_NAMED], *(labels or [])]))


def plot_vocabulary(tokenizer: Tokenizer, texts: Sequence[str], target: Path, *, title: str = "") -> None:
    """How a tokenizer cuts texts: counts by rank, and the characters of its tokens."""
    counts = np.zeros(len(tokenizer), np.int64)
    for text in texts:
        np.add.at(counts, tokenizer.encode(text, add_special_tokens=False), 1)
    ranked = np.sort(counts[counts > 0])[::-1]
    if not len(ranked):
        raise InputError("there is no text")
    sizes = np.array([len(tokenizer.decode([number])) for number in range(len(tokenizer))])
    width = int(min(sizes.max(), 24)) + 1

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        left.loglog(np.arange(1, len(ranked) + 1), ranked, color=COLOURS[0])
        left.set_xlabel("rank")
        left.set_ylabel("count in the texts")
        left.set_title(title, loc="left", parse_math=False)
        edges = np.arange(width + 1)
        clipped = np.minimum(sizes, width - 1)
        whole = np.histogram(clipped, edges)[0] / len(sizes)
        used = np.histogram(clipped, edges, weights=counts)[0] / counts.sum()
        right.bar(edges[:-1] - 0.2, whole, width=0.4, color=COLOURS[7], label="in the vocabulary")
        right.bar(edges[:-1] + 0.2, used, width=0.4, color=COLOURS[0], label="in the texts")
        right.set_xlabel("characters of a token")
        right.set_ylabel("share")
        right.legend(frameon=False)

    picture(target, draw, (10, 4), title)


def plot_attention(weights: npt.NDArray[Any], tokens: Sequence[str], target: Path) -> None:
    """Attention `[layers, heads, queries, keys]`: a small matrix for each head, layers down, heads across."""
    layers, heads, time, _ = weights.shape
    named = heads == 1 and time <= 30

    def draw(figure: Figure) -> None:
        grid = figure.subplots(layers, heads, squeeze=False)
        for layer in range(layers):
            for head in range(heads):
                axes = grid[layer][head]
                axes.imshow(weights[layer, head], cmap="viridis", vmin=0, vmax=1, aspect="auto")
                axes.grid(visible=False)
                axes.set_xticks([])
                axes.set_yticks([])
                if layer == 0:
                    axes.set_title(f"head {head + 1}" if heads > 1 else "", fontsize=7)
                if head == 0:
                    axes.set_ylabel(f"layer {layer + 1}", fontsize=7)
                if named:
                    axes.set_xticks(range(time), [one_line(each, limit=16) for each in tokens], rotation=90, fontsize=6)
                    axes.set_yticks(range(time), [one_line(each, limit=16) for each in tokens], fontsize=6)

    side = 0.9 if heads > 1 else max(2.0, 0.2 * time)
    picture(target, draw, (min(1.2 + side * heads, 24), min(0.6 + side * layers, 40)), "".join(tokens) if named else "")


def picture(target: Path, draw: Callable[[Figure], None], size: tuple[float, float], texts: str) -> None:
    """Draw on an empty figure and write it; the file appears whole. `texts` decide whether wide fonts are needed."""
    check_target(target)
    import matplotlib
    from matplotlib.figure import Figure

    kind = target.suffix[1:].lower()
    settings: Any = {
        "svg.hashsalt": "tsumugu",
        "svg.fonttype": "none",
        "font.family": ["DejaVu Sans", *([] if texts.isascii() else _wide_fonts())],
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.axisbelow": True,
    }
    with warnings.catch_warnings(), matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        metadata = {"Date": None, "Creator": "tsumugu"} if kind == "svg" else {"Software": "tsumugu"}
        with new_file(target) as partial:
            figure.savefig(partial, format=kind, dpi=130, metadata=metadata)


def _wide_fonts() -> list[str]:
    from matplotlib import font_manager

    known = {each.name for each in font_manager.fontManager.ttflist}
    return [each for each in _WIDE if each in known][:1]
