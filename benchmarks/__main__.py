"""`python -m benchmarks`: run all benchmarks but the long ones, or those named."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pkgutil
import platform
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import benchmarks
from benchmarks.harness import Row, close, measured

HELPERS = {"__main__", "harness", "japanese_encoder", "programs", "workers"}
LONG = {"answering", "curves", "faithfulness", "learning", "tasks"}
"""Only run where they are named, and in the smoke mode: they take from minutes to hours."""


def main() -> None:
    names = sorted(each.name for each in pkgutil.iter_modules(benchmarks.__path__) if each.name not in HELPERS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"among: {', '.join(names)}")
    parser.add_argument("--smoke", action="store_true", help="once, small, to see that everything still works")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(names)
    if unknown:
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", flush=True)
    chosen = arguments.names or [each for each in names if arguments.smoke or each not in LONG]
    if arguments.smoke and len(chosen) > 1:
        rows = side_by_side(chosen)
    else:
        rows = [row for name in chosen for row in measured(name, smoke=arguments.smoke)]
    close(rows, arguments.json)


def side_by_side(names: list[str]) -> list[Row]:
    """Two benchmarks at a time, each on a core, where figures mean nothing."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    pool = ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))
    try:
        runs = [pool.submit(measured, name, smoke=True) for name in names]
        return [row for run in runs for row in run.result()]
    finally:
        pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    main()
