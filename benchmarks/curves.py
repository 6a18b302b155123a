"""How the quick engine and llama.cpp keep up as work grows: with the context, the batch, the model and the threads.

Each point is a comparison as in `engine`, of weights of as many bits, each engine a process of its own and in turn.
They are kept in `runs/curves/` as a table, a figure and JSON; what is there already is not measured again, so an
interrupted run goes on. Models of other sizes than SmolLM2's have its vocabulary and random weights.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine import BANDWIDTH, BITS, peer_name, written
from benchmarks.harness import Report
from benchmarks.workers import CORES, THREADS, Worker

PLACE = Path("runs/curves")
TOKENS = 32
CONTEXTS, BATCHES = (128, 512, 2048, 8000), (1, 2, 4, 8, 16, 32)
SIZES = {15: (8, 256, 4, 1024), 60: (12, 512, 8, 1536), 135: (30, 576, 9, 1536), 360: (32, 960, 15, 2560)}
"""Million parameters: layers, width, heads, width between."""


@dataclass(frozen=True)
class Point:
    """One comparison.

    Attributes:
        curve: what grows.
        at: how large it is.
        work: decode or prefill.
        bits: of the weights.
        ours, peer: tokens in a second.
    """

    curve: str
    at: int
    work: str
    bits: str
    ours: float
    peer: float


@dataclass(frozen=True)
class Case:
    """A point before it is measured: what its workers are asked for, and how many tokens that makes."""

    curve: str
    at: int
    work: str
    options: dict[str, int]
    count: int
    size: int = 135
    threads: int = THREADS

    @property
    def rows(self) -> int:
        return self.options.get("rows", 1)


def cases(smoke: bool) -> Iterator[Case]:
    """All points of all curves, so that a model's stand together."""

    def decode(curve: str, at: int, *, rows: int = 1, length: int = 64, **others: int) -> Case:
        return Case(curve, at, "decode", {"tokens": TOKENS, "rows": rows, "length": length}, TOKENS * rows, **others)

    if smoke:
        yield decode("size", 15, size=15)
        return
    for length in CONTEXTS:
        yield decode("context", length, length=length)
        yield Case("context", length, "prefill", {"tokens": length}, length)
    for rows in BATCHES:
        yield decode("batch", rows, rows=rows)
    for threads in range(1, CORES + 1):
        yield decode("threads", threads, threads=threads)
        yield Case("threads", threads, "prefill", {"tokens": 512}, 512, threads=threads)
    for size in SIZES:
        yield decode("size", size, size=size)
        yield Case("size", size, "prefill", {"tokens": 512}, 512, size=size)


def run(report: Report) -> None:
    """Measure what is missing, and write what is known."""
    with tempfile.TemporaryDirectory() as folder, nullcontext(folder if report.smoke else PLACE) as kept:
        place = Path(kept)
        place.mkdir(parents=True, exist_ok=True)
        models: dict[int, dict[str, Path]] = {}
        for case in cases(report.smoke):
            for bits, (quantize, kind) in list(BITS.items())[1:]:
                file = place / f"{case.curve}-{case.at}-{case.work}-{kind}.json"
                if file.exists():
                    continue
                if case.size not in models:
                    models[case.size] = files_of(case.size, Path(folder) / str(case.size))
                point = measured(report, case, bits, quantize, models[case.size][kind], models[case.size]["hub"])
                file.write_text(json.dumps(asdict(point)) + "\n", "utf-8")
        points = [Point(**json.loads(each.read_text("utf-8"))) for each in sorted(place.glob("*-*.json"))]
        (place / "curves.md").write_text(table(points), "utf-8")
        draw(points, place / "curves.svg")


def files_of(size: int, place: Path) -> dict[str, Path]:
    """A model of so many million parameters in every form that is measured."""
    import tsumugu as tg
    from tsumugu.core.registry import FAMILIES
    from tsumugu.training.initialization import initialize

    place.mkdir()
    real = tg.load_model("smollm2")
    if size == 135:
        return written(place, real)
    layers, width, heads, between = SIZES[size]
    sizes = {"num_layers": layers, "hidden_size": width, "num_heads": heads, "num_kv_heads": heads}
    config = real.config.replace(**sizes, head_dim=width // heads, intermediate_size=between)
    made = FAMILIES["llama"].build(config, "causal-lm")
    initialize(made, seed=0)
    return written(place, made)


def measured(report: Report, case: Case, bits: str, quantize: str, file: Path, hub: Path) -> Point:
    """One comparison, in processes that are started for it."""
    room = 2 * TOKENS + max(case.options.get("length", 0), case.options["tokens"])
    ours = Worker("ours", hub, quantize, threads=case.threads, home=hub.parent)
    peer = Worker(peer_name(), file, case.rows, room, threads=case.threads)
    report.compare(
        f"{case.work}, {case.curve} {case.at}, {bits}",
        lambda: ours.ask(case.work, **case.options),
        lambda: peer.ask(case.work, **case.options),
        peer_name="llama.cpp",
        limit="arithmetic" if case.work == "prefill" else BANDWIDTH,
        rounds=3,
    )
    ours.close()
    peer.close()
    row = report.rows[-1]
    return Point(case.curve, case.at, case.work, bits, case.count / row.ours, case.count / row.peer)


def table(points: list[Point]) -> str:
    """Tokens in a second, ours and llama.cpp's, and how many times as many ours are."""
    head = "| What grows | Work | " + " | ".join(f"{bits}: tokens/s | llama.cpp | ratio" for bits in list(BITS)[1:])
    lines = [head + " |", "|---|---|" + "--:|--:|--:|" * (len(BITS) - 1)]
    known: dict[tuple[str, str, int], dict[str, Point]] = {}
    for point in points:
        known.setdefault((point.curve, point.work, point.at), {})[point.bits] = point
    for (curve, work, at), kinds in sorted(known.items()):
        cells = [
            f"{each.ours:,.0f} | {each.peer:,.0f} | {each.ours / each.peer:.2f}" if each else " | | "
            for each in map(kinds.get, list(BITS)[1:])
        ]
        lines.append(f"| {curve} {at:,} | {work} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(points: list[Point], path: Path) -> None:
    """One panel for each curve and work."""
    import matplotlib
    from matplotlib.figure import Figure

    labels = {"context": "tokens of context", "batch": "texts at once", "threads": "threads", "size": "M parameters"}
    kinds = sorted({(point.work, point.curve) for point in points})
    with matplotlib.rc_context({"svg.hashsalt": "tsumugu", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(10, 5), layout="constrained")
        panels: Any = figure.subplots(2, -(-len(kinds) // 2), squeeze=False).flat
        for axes in panels:
            axes.set_axis_off()
        for axes, (work, curve) in zip(panels, kinds, strict=False):
            axes.set_axis_on()
            for colour, bits in enumerate(list(BITS)[1:]):
                found = sorted(
                    (each for each in points if (each.work, each.curve, each.bits) == (work, curve, bits)),
                    key=lambda each: each.at,
                )
                xs = [each.at for each in found]
                axes.plot(xs, [each.ours for each in found], f"C{colour}o-", markersize=3, label=f"tsumugu, {bits}")
                axes.plot(xs, [each.peer for each in found], f"C{colour}o:", markersize=3, label=f"llama.cpp, {bits}")
            axes.set(title=work, xlabel=labels[curve], xscale="log", ylim=(0, None))
            axes.set_xticks(xs, [f"{x:,}" for x in xs])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].set_ylabel("tokens/s")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), frameon=False, ncols=4, loc="outside lower center")
        figure.savefig(path, metadata={"Date": None, "Creator": "tsumugu"})
