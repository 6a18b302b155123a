"""Rows of the table of tasks in which programs are written: the simplest, the most similar, what a model writes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

LENGTH = 160
"""Tokens of a program at most; of the right ones in the data nine in ten are shorter."""
SHOWN = 3
"""Solved problems before each, where the data have some for that: so MBPP is asked (Austin et al. 2021, 3.1)."""
SIMPLE, NEAREST = "first-argument", "nearest"
"""A function that gives back what it is given; the solution of the most similar problem of training under its name."""


def solve(data: Path, folder: Path, models: Sequence[str], *, limit: int) -> None:
    """Evaluate what is not there yet of the first problems."""
    import tsumugu as tg
    from tsumugu.evaluation.evaluate import evaluate_programs

    test = next(data.glob("test*"))
    rows = [json.loads(line) for line in test.read_text("utf-8").splitlines()][:limit]
    written = {SIMPLE: [_simple(row) for row in rows]}
    if (data / "train.jsonl").is_file():
        written[NEAREST] = _nearest(rows, data / "train.jsonl")
    for name, programs in written.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        found = [{"task_id": row["task_id"], "completion": each} for row, each in zip(rows, programs, strict=True)]
        path.write_text("".join(json.dumps(each) + "\n" for each in found), "utf-8")
        cell(folder / name, lambda path=path: evaluate_programs(test, execute=True, completions=path, limit=limit))
    for name in models:
        task = tg.pipeline("text-generation", name, engine="auto")
        made = partial(evaluate_programs, test, execute=True, model=task, limit=limit)
        if (solved := data / "prompt.jsonl").is_file():
            made = partial(made, shots=SHOWN, train=solved)
        cell(folder / name, partial(made, name=name, options={"max_new_tokens": LENGTH}))


def line(folder: Path, models: Sequence[str]) -> str:
    """A set of problems as a line of the table."""
    from tsumugu.evaluation.results import load

    names = [name for name in (SIMPLE, NEAREST, *models) if (folder / name / "results.json").is_file()]
    found = {name: load(folder / name / "results.json") for name in names}
    first = found[SIMPLE][0]
    cells = [
        folder.name,
        first.primary,
        str(first.examples),
        score(found, SIMPLE),
        "",
        score(found, NEAREST),
        "",
        "",
        "",
    ]
    return f"| {' | '.join([*cells, *(score(found, name) for name in models)])} |"


def score(found: dict[str, Any], name: str | None) -> str:
    """What a system scored, with its interval."""
    if name is None or name not in found:
        return ""
    each = found[name][0].scores[found[name][0].primary]
    return f"{each.value:.3f} [{each.low:.3f}, {each.high:.3f}]"


def cell(folder: Path, make: Callable[[], Any]) -> None:
    """An evaluation, made where it is not there."""
    if not (folder / "results.json").is_file():
        make().save(folder)


def _simple(row: dict[str, Any]) -> str:
    if "entry_point" not in row:
        return f"def {_asked(row)}(first, *others):\n    return first\n"
    (made,) = (
        each
        for each in ast.walk(ast.parse(row["prompt"] + "    pass"))
        if isinstance(each, ast.FunctionDef) and each.name == row["entry_point"]
    )
    return f"    return {made.args.args[0].arg}\n" if made.args.args else "    return None\n"


def _asked(row: dict[str, Any]) -> str:
    """The name of the function that the tests call."""
    defined = re.findall(r"def (\w+)", row["code"])
    return next((name for name in re.findall(r"(\w+)\s*\(", row["test_list"][0]) if name in defined), defined[0])


def _nearest(rows: Sequence[dict[str, Any]], train: Path) -> list[str]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    known = [json.loads(line) for line in train.read_text("utf-8").splitlines()]
    bags = TfidfVectorizer(sublinear_tf=True).fit([each["text"] for each in known])
    likeness = bags.transform([row["text"] for row in rows]) @ bags.transform([each["text"] for each in known]).T
    found = []
    for row, nearest in zip(rows, likeness.toarray().argmax(1), strict=True):
        other = known[nearest]
        found.append(re.sub(rf"\b{_asked(other)}\b", _asked(row), other["code"].replace("\r\n", "\n")))
    return found
