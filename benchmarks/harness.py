"""Measuring in turn: A B A B …, medians, the ratio, and what limits us next to it."""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CPU = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Row:
    """One comparison: medians of seconds (or of another unit), and how many times less ours is."""

    work: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    rounds: int
    limit: str
    unit: str


class Report:
    """Collects comparisons and prints each as it is made.

    Args:
        smoke: one round, small sizes; the figures mean nothing then.
    """

    def __init__(self, *, smoke: bool) -> None:
        self.smoke = smoke
        self.rows: list[Row] = []

    def compare(
        self,
        work: str,
        ours: Callable[[], float],
        peer: Callable[[], float],
        *,
        peer_name: str,
        limit: str,
        rounds: int = 5,
        unit: str = "s",
    ) -> None:
        """Measure both in turn. Each callable does the work once and gives what counts, in `unit`."""
        rounds = 1 if self.smoke else rounds
        pairs = [(ours(), peer()) for _ in range(rounds)]
        mine, theirs = (statistics.median(each) for each in zip(*pairs, strict=True))
        row = Row(work, mine, theirs, peer_name, theirs / mine, rounds, limit, unit)
        self.rows.append(row)
        print(
            f"{work:44} ours {mine:8.3f} {unit}  {peer_name} {theirs:8.3f} {unit}  {row.ratio:6.2f}x  ({limit})",
            flush=True,
        )

    def skip(self, work: str, why: str) -> None:
        print(f"{work:44} skipped: {why}", flush=True)


def measured(name: str, *, smoke: bool) -> list[Row]:
    """The comparisons of one benchmark."""
    report = Report(smoke=smoke)
    importlib.import_module(f"benchmarks.{name}").run(report)
    return report.rows


def close(rows: list[Row], path: Path | None) -> None:
    """Say how many comparisons there were, and write them to a file if one is named."""
    print(f"{len(rows)} comparisons, medians; above 1x we are quicker, or take less", flush=True)
    if path is not None:
        path.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", "utf-8")


def shallow(model: Any) -> Any:
    """The model with its first two layers only: for the smoke mode, in which nobody reads what it says."""
    del model.decoder.layers[2:]
    model.config = model.config.replace(num_layers=2)
    return model


def precision() -> str:
    """What networks are trained in: bfloat16 where the processor has units for it; elsewhere it crawls."""
    return "bf16" if CPU.is_file() and "amx_bf16" in CPU.read_text("utf-8") else "fp32"


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def child(*arguments: str, timeout: float = 120) -> tuple[float, str]:
    """Run Python with these arguments in a fresh process: its wall-clock seconds and what it printed."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return time.perf_counter() - began, done.stdout
