"""``tsumugu runs``: the training runs in a folder, one of them in full, several side by side. Loads no torch."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from tsumugu.cli.cache_text import count_text, fit, lines_of_table, printable
from tsumugu.cli.runs_text import facts_of, lines_of_courses, lines_of_evaluations, lines_of_runs, losses_of, shown
from tsumugu.core.errors import InputError, did_you_mean
from tsumugu.training.events import LOG, Event, read_events, settled
from tsumugu.training.figures import safe_text, size
from tsumugu.training.runs import Run, delete_run, differences, find_run, list_runs, read_recipe, read_run

app = App(name="runs", help="List training runs, show one, compare several, delete some.")

AsJson = Annotated[bool, Parameter(name="--json", negative="", help="One JSON object instead of text.")]
Folder = Annotated[
    Path | None, Parameter(name="--folder", negative="", help="Where runs are looked for by name (./runs).")
]
Plot = Annotated[Path | None, Parameter(name="--plot", negative="", help="Draw the losses: an .svg or .png file.")]
By = Annotated[
    Literal["step", "tokens", "seconds"], Parameter(help="Lay the runs of a plot beside steps, tokens or seconds.")
]
Names = Annotated[list[str], Parameter(negative="", help="Names of runs, or paths of their folders.")]

_RUNS = Path("runs")
# What a list may be sorted by; True: the greatest first.
_SORTS: dict[str, tuple[Callable[[Run], Any], bool]] = {
    "started": (lambda run: run.started, True),
    "updated": (lambda run: run.updated, True),
    "name": (lambda run: run.name, False),
    "state": (lambda run: run.state, False),
    "family": (lambda run: run.family, False),
    "parameters": (lambda run: run.parameters, True),
    "steps": (lambda run: run.steps, True),
    "loss": (lambda run: run.loss, False),
    "best": (lambda run: run.best_loss, False),
    "bits": (lambda run: run.best_bits_per_byte, False),
    "time": (lambda run: run.seconds, True),
    "size": (lambda run: run.size, True),
}


@app.default
def runs(
    folder: Path | None = None,
    /,
    *,
    filter: Annotated[list[str] | None, Parameter(name="--filter", negative="", consume_multiple=False)] = None,
    sort: str = "started",
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder: where each stands, its loss, its best evaluation, its time, its size on disk.

    Parameters
    ----------
    folder
        Where runs are; ./runs when left out.
    filter
        Only runs with this word in their name, family, objective or state; may be repeated, then all must be there.
    sort
        started, updated, name, state, family, parameters, steps, loss, best, bits, time or size; with :asc or :desc.
    """
    key, backwards = _order(sort)
    place = _RUNS if folder is None else folder
    found: list[Run] = []
    others: dict[str, str] = {}
    if place.is_dir():
        found, others = list_runs(place)
    elif folder is not None:
        raise InputError(
            f"there is no folder {str(place)!r}", mend="give one that holds runs, or: show, compare, delete"
        )
    found = [each for each in found if all(_matches(each, word) for word in filter or ())]
    found.sort(key=lambda run: run.name)
    known = sorted((run for run in found if key(run) is not None), key=key, reverse=backwards)
    found = known + [run for run in found if key(run) is None]
    if as_json:
        told = {"folder": str(place), "runs": [_values(each) for each in found], "others": others}
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    for line in lines_of_runs(found, _width()) if found else []:
        print(line)
    if not found:
        print(f"There are no runs{' of that kind' if filter else ''} in {printable(str(place))}.", file=sys.stderr)
    for name, why in others.items():
        print(printable(f"left out: {name}: {why}"), file=sys.stderr)


@app.command
def show(run: str, /, *, folder: Folder = None, plot: Plot = None, by: By = "step", as_json: AsJson = False) -> None:
    """Show one run: its course, its evaluations, its last sample and warnings, its recipe.

    Parameters
    ----------
    run
        The name of a run, or the path of its folder.
    """
    path = find_run(run, folder or _RUNS)
    if plot is not None:
        _draw([path], plot, by)
    found, recipe = read_run(path), read_recipe(path)
    events = settled(_events(path))
    of = {
        kind: [each for each in events if each.kind == kind] for kind in ("evaluation", "sample", "warning", "rollback")
    }
    if as_json:
        told = {kind: [json.loads(each.to_json()) for each in some] for kind, some in of.items()}
        print(json.dumps({**_values(found), "recipe": recipe, **told}, indent=2, ensure_ascii=False, default=str))
        return
    for name, text in facts_of(found).items():
        print(f"{name:15}{printable(text)}")
    for line in lines_of_courses([found.name], [losses_of(events)], _width() or 80):
        print(line)
    last = of["evaluation"][-8:]
    if last:
        print("\nlast evaluations")
        for line in lines_of_evaluations(last):
            print(f"  {line}")
    for each in [*of["warning"], *of["rollback"]][-5:]:
        what = each.values.get("what") or each.values.get("reason")
        print(f"\n{each.kind} at step {each.step:,}: {safe_text(str(what), one_line=True)}")
    for each in of["sample"][-1:]:
        print(f"\nsample at step {each.step:,}")
        for line in safe_text(f"{each.values.get('prompt') or ''}{each.values.get('text', '')}").split("\n"):
            print(f"  {line}")
    if recipe:
        print("\nrecipe")
        for line in lines_of_table(["", ""], [[key, shown(value)] for key, value in recipe.items()], frozenset())[1:]:
            print(f"  {line}")


@app.command
def compare(
    runs: Names, /, *, folder: Folder = None, plot: Plot = None, by: By = "step", as_json: AsJson = False
) -> None:
    """Compare runs: their results, the keys in which their recipes differ, and the courses of their losses."""
    paths = [find_run(each, folder or _RUNS) for each in runs]
    if plot is not None:
        _draw(paths, plot, by)
    found = [read_run(each) for each in paths]
    differing = differences([read_recipe(each) for each in paths])
    if as_json:
        told = {"runs": [_values(each) for each in found], "differences": differing}
        print(json.dumps(told, indent=2, ensure_ascii=False, default=str))
        return
    names = [each.name for each in found]
    names = names if len(set(names)) == len(names) else list(runs)
    facts = [facts_of(each) for each in found]
    rows = [[key, *(each.get(key, "-") for each in facts)] for key in dict.fromkeys(k for each in facts for k in each)]
    rows = [row for row in rows if row[0] not in ("name", "path")]
    rows += [[key, *map(shown, row)] for key, row in differing.items()]
    rows = [[fit(cell, 40).rstrip() for cell in row] for row in rows]
    at = len(rows) - len(differing)
    lines = lines_of_table(["", *(fit(each, 40).rstrip() for each in names)], rows, frozenset())
    for line in lines[: at + 1]:
        print(line)
    print("\nrecipes differ in" if differing else "\nThe recipes do not differ.")
    for line in lines[at + 1 :]:
        print(line)
    print()
    courses = [losses_of(_events(path)) for path in paths]
    for line in lines_of_courses(names, courses, _width() or 80):
        print(line)


@app.command
def delete(
    runs: Names,
    /,
    *,
    folder: Folder = None,
    yes: Annotated[bool, Parameter(name=("--yes", "-y"), negative="", help="Do not ask.")] = False,
) -> None:
    """Delete runs with all their checkpoints, after a question. One that is training is refused."""
    paths = list(dict.fromkeys(find_run(each, folder or _RUNS) for each in runs))
    found = [read_run(each) for each in paths]
    for each in found:
        if each.state == "running":
            raise InputError("this run is training", where=str(each.path), mend="stop it first")
        print(printable(f"{each.path}: {each.steps:,} steps, {each.state}, {size(each.size)}"))
    if not yes:
        if not sys.stdin.isatty():
            raise InputError("there is nobody to ask", mend="say --yes to delete without a question")
        answer = input(f"Delete {count_text(len(found), 'run')} with all checkpoints? This cannot be undone. [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            print("Nothing was deleted.")
            return
    for path in paths:
        delete_run(path)
    print(f"Deleted {count_text(len(found), 'run')}, {size(sum(each.size for each in found))}.")


def _order(words: str) -> tuple[Callable[[Run], Any], bool]:
    name, _, direction = words.partition(":")
    if name not in _SORTS:
        raise InputError(f"runs cannot be sorted by {name!r}", where="--sort", mend=did_you_mean(name, _SORTS))
    if direction not in ("", "asc", "desc"):
        raise InputError(f"{direction!r} is no direction", where="--sort", mend="use :asc or :desc")
    key, backwards = _SORTS[name]
    return key, direction == "desc" if direction else backwards


def _matches(run: Run, word: str) -> bool:
    told = " ".join((run.name, run.family or "", run.objective or "", run.state))
    return word.lower() in told.lower()


def _events(path: Path) -> list[Event]:
    return read_events(path / LOG) if (path / LOG).is_file() else []


def _draw(paths: Sequence[Path], target: Path, by: Literal["step", "tokens", "seconds"]) -> None:
    from tsumugu.training.plots import plot_runs

    plot_runs(paths, target, by=by)
    print(printable(f"wrote {target}"), file=sys.stderr)


def _values(run: Run) -> dict[str, Any]:
    return {**asdict(run), "path": str(run.path)}


def _width() -> int | None:
    """The terminal's width; None where there is no terminal, and so no need to fit."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
