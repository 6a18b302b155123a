"""What the files of a run, beside a checkpoint, tell of how it was trained; plain files, read without the trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tsumugu.core.errors import InputError

RECIPE, ENVIRONMENT, LOG = "recipe.yaml", "environment.json", "events.jsonl"
_LARGEST = 1 << 20
_LOOK_UP = 3
"""A checkpoint lies in its run's folder, or in a folder of a folder of it."""


def find_run(folder: Path) -> Path | None:
    """The folder of the run that a checkpoint comes from: its own, or one of the two above it."""
    folder = folder.resolve()
    for each in (folder, *folder.parents)[:_LOOK_UP]:
        if (each / RECIPE).is_file():
            return each
    return None


def read_run(folder: Path) -> dict[str, Any]:
    """The recipe, the environment and the last figures of a run; each is left out where there is none.

    Raises:
        InputError: a file is broken, or far too large.
    """
    found: dict[str, Any] = {"recipe": _yaml(folder / RECIPE)}
    if (folder / ENVIRONMENT).is_file():
        found["environment"] = _json(_text(folder / ENVIRONMENT), folder / ENVIRONMENT)
    if (folder / LOG).is_file():
        found.update(_figures(folder / LOG))
    return found


def _figures(path: Path) -> dict[str, Any]:
    """What the log says at its start, in its evaluations and at its end."""
    start: dict[str, Any] = {}
    last: dict[str, Any] = {}
    evaluations: list[dict[str, Any]] = []
    with path.open("rb") as lines:
        for line in lines:
            kind = line[:24]
            if not any(word in kind for word in (b'"start"', b'"evaluation"', b'"end"')):
                continue
            try:
                event = json.loads(line)
                values = dict(event["values"])
            except (ValueError, KeyError, TypeError):  # a line that a crash cut short
                continue
            if event["kind"] == "start":
                start = start or values
            elif event["kind"] == "end":
                last = values
            else:
                evaluations.append({"step": event.get("step"), **values})
    found: dict[str, Any] = {}
    if start:
        found["start"] = start
    if last:
        found["end"] = last
    if evaluations:
        found["evaluations"] = evaluations
    return found


def _yaml(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"not a recipe ({type(error).__name__})", where=str(path)) from None
    plain = json.loads(json.dumps(found, default=str))  # dates and the like as text
    return plain if isinstance(plain, dict) else {}


def _json(text: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON ({error})", where=str(path)) from None
    return found if isinstance(found, dict) else {}


def _text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise InputError(f"more than {_LARGEST:,} bytes", where=str(path))
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 (byte {error.start})", where=str(path)) from None
