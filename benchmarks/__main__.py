"""`python -m benchmarks`: run all benchmarks but the long ones, or those named."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from pathlib import Path

import benchmarks
from benchmarks.harness import Report

HELPERS = {"__main__", "harness", "japanese_encoder", "programs", "workers"}
LONG = {"curves", "faithfulness", "learning", "tasks"}
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
    report = Report(smoke=arguments.smoke)
    for name in arguments.names or [each for each in names if arguments.smoke or each not in LONG]:
        importlib.import_module(f"benchmarks.{name}").run(report)
    report.close(arguments.json)


if __name__ == "__main__":
    main()
