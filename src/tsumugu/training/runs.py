"""The folders of runs: which there are, where each stands, how they differ; holding one while it trains; deleting one.

A run's folder holds ``recipe.yaml``, ``events.jsonl``, ``checkpoints/`` and more; either of the first two makes it one.
Loads neither torch nor numpy, and reads a log of any length in bounded memory without parsing its steps.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tsumugu.core.errors import InputError, UnknownNameError, did_you_mean
from tsumugu.training.events import LOG, Event, merit, read_events

RECIPE = "recipe.yaml"
LOCK = "lock"
"""The file that a training process holds a lock on, and writes its id into."""

State = Literal["running", "done", "stopped", "failed", "interrupted"]
_STATES: dict[str, State] = {"done": "done", "early": "done", "budget": "stopped", "stopped": "stopped"}

_BLOCK = 1 << 22
_LONGEST_LINE = 1 << 26
_LARGEST_RECIPE = 1 << 20
_MOST_KEYS = 10_000


@dataclass(frozen=True)
class Run:
    """Where a run stands, as its log tells; None where it tells nothing.

    Attributes:
        state: running (its lock is held), done, stopped (by a budget or by hand), failed, or interrupted (its log ends
            without an end, and nobody holds it).
        reason: why it ended, in the log's own word.
        steps, total_steps: done, and planned.
        loss: of the last step, smoothed by nothing.
        best_loss, best_bits_per_byte, best_score, best_step: the best evaluation; the score with its name.
        seconds: of training.
        started, updated: seconds since 1970 of the first and the last event.
        size: bytes of all its files.
        pid: of the process that trains it.
    """

    name: str
    path: Path
    state: State
    reason: str | None
    family: str | None
    objective: str | None
    parameters: int | None
    steps: int
    total_steps: int | None
    tokens: int | None
    loss: float | None
    best_loss: float | None
    best_bits_per_byte: float | None
    best_score: tuple[str, float] | None
    best_step: int | None
    seconds: float | None
    started: float | None
    updated: float | None
    size: int
    pid: int | None


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / RECIPE).is_file() or (folder / LOG).is_file()


def list_runs(folder: Path) -> tuple[list[Run], dict[str, str]]:
    """The runs in a folder (or the one that it is itself), and what else is there: why, by name.

    Raises:
        OSError: the folder cannot be read.
    """
    if is_run(folder):
        return [read_run(folder)], {}
    found, others = [], {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(".deleted") and path.name.startswith("."):
            others[path.name] = "left over from a deletion that was broken off; it can go"
        elif path.name.startswith(".") or not path.is_dir():
            continue
        elif not is_run(path):
            others[path.name] = f"no run (it has neither {RECIPE} nor {LOG})"
        else:
            try:
                found.append(read_run(path))
            except (InputError, OSError) as error:
                others[path.name] = f"broken: {error}"
    return found, others


def find_run(name: str, folder: Path) -> Path:
    """The folder of a run, given by its path, or by its name in `folder`.

    Raises:
        UnknownNameError: there is no such run.
    """
    for path in (Path(name), folder / name):
        if is_run(path):
            return path
    known = [each.name for each in folder.iterdir() if is_run(each)] if folder.is_dir() else []
    mend = did_you_mean(name, known) if known else f"there are no runs in {folder}"
    raise UnknownNameError(f"there is no run {name!r}", mend=mend)


def read_run(path: Path) -> Run:
    """Where one run stands.

    Raises:
        InputError: its log is broken; names the file, and the line.
    """
    log = path / LOG
    seen = _Glance.of(log) if log.is_file() else _Glance()
    start = seen.start.values if seen.start else {}
    last = seen.step.values if seen.step else {}
    end = seen.end.values if seen.end else {}
    busy, pid = is_held(path)
    reason = _text(end.get("reason"))
    best = max(
        (each for each in seen.evaluations if merit(each.values) is not None),
        key=lambda each: merit(each.values) or (0.0, 0.0),
        default=None,
    )
    return Run(
        name=path.absolute().name,
        path=path,
        state="running" if busy else "interrupted" if seen.end is None else _STATES.get(reason or "", "failed"),
        reason=reason,
        family=_text(start.get("family")),
        objective=_text(start.get("objective")),
        parameters=_whole(start.get("parameters")),
        steps=next((each.step for each in (seen.step, seen.last) if each is not None), 0),
        total_steps=_whole(start.get("steps")),
        tokens=_whole(end.get("tokens")) or _whole(last.get("tokens")),
        loss=_number(last.get("loss")) if last else _number(end.get("loss")),
        best_loss=_number(best.values.get("loss")) if best else None,
        best_bits_per_byte=_number(best.values.get("bits_per_byte")) if best else None,
        best_score=_score(best.values) if best else None,
        best_step=best.step if best else None,
        seconds=_number(end.get("seconds", last.get("seconds"))),
        started=seen.start.time if seen.start else None,
        updated=seen.last.time if seen.last else None,
        size=_size(path),
        pid=pid,
    )


def _score(evaluation: Mapping[str, Any]) -> tuple[str, float] | None:
    scores = evaluation.get("scores")
    name, value = next(iter(scores.items()), ("", None)) if isinstance(scores, Mapping) else ("", None)
    found = _number(value)
    return None if found is None else (str(name), found)


@dataclass
class _Glance:
    """The few events of a log that say where its run stands."""

    start: Event | None = None
    step: Event | None = None
    end: Event | None = None
    last: Event | None = None
    evaluations: list[Event] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path) -> _Glance:
        """Look through a log; only the lines that matter are parsed."""
        seen, lines = cls(), 0
        for block in _blocks(path):
            places = {block.rfind(b'\n{"kind":"%b"' % kind) for kind in (b"start", b"resumed", b"step", b"end")}
            places |= {each.start() for each in re.finditer(rb'\n\{"kind":"evaluation"', block)}
            places.add(block.rfind(b"\n", 0, -1))  # the last line, whatever it is
            for at in sorted(places - {-1}):
                try:
                    seen.take(Event.from_json(block[at + 1 : block.index(b"\n", at + 1)]))
                except InputError as error:
                    number = lines + block.count(b"\n", 0, at + 1)
                    raise InputError(error.what, where=f"{path}:{number}") from None
            lines += block.count(b"\n") - 1
        if seen.start is None and seen.last is not None:  # not as we write it: perhaps with other spaces
            seen = cls()
            for event in read_events(path):
                seen.take(event)
        return seen

    def take(self, event: Event) -> None:
        """Take one event in."""
        self.last = event
        if event.kind == "evaluation":
            self.evaluations.append(event)
        elif event.kind == "end":
            self.end = event
        elif event.kind in ("start", "resumed", "step"):
            self.end = None
            if event.kind == "step":
                self.step = event
            elif event.kind == "start":
                self.start = self.start or event


def _blocks(path: Path) -> Iterator[bytes]:
    """A file in pieces of whole lines, a line break before each line. A last line without its end is left out."""
    rest = b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            block = rest + block
            cut = block.rfind(b"\n") + 1
            rest = block[cut:]
            if len(rest) > _LONGEST_LINE:
                raise InputError(f"a line is longer than {_LONGEST_LINE:,} bytes", where=str(path))
            if cut:
                yield b"\n" + block[:cut]


@contextlib.contextmanager
def hold_run(path: Path) -> Iterator[None]:
    """Hold a run's folder, so that no second process trains in it, and all see that this one does.

    The lock goes with the process, however that ends. Where a file system knows no locks, none is held.

    Raises:
        InputError: another process holds it; says which.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path / LOCK, timeout=1, poll_interval=0.05, thread_local=False)  # one who lists may be looking
    try:
        lock.acquire()
    except Timeout:
        pid = is_held(path)[1]
        who = "another process" if pid is None else f"process {pid}"
        raise InputError(f"{who} is training here", where=str(path), mend="wait until it is done, or stop it") from None
    except NotImplementedError:
        yield
        return
    try:
        with contextlib.suppress(OSError):  # of a full disk; whoever writes next to it will say so
            (path / LOCK).write_text(f"{os.getpid()}\n", "ascii")
        yield
    finally:
        with contextlib.suppress(OSError):
            (path / LOCK).write_text("", "ascii")
        lock.release()


def is_held(path: Path) -> tuple[bool, int | None]:
    """Whether a process holds a run's folder, and its id if it is known. Changes nothing there."""
    lock = path / LOCK
    if sys.platform == "win32":
        from tsumugu.hub.cache.locks import is_held as is_locked

        return is_locked(str(lock)), None
    import fcntl

    try:
        with open(os.open(lock, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123  (a pipe must not hang us)
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                said = file.read(20).strip()
                return True, int(said) if said.isdigit() else None
    except OSError:
        pass
    return False, None


def delete_run(path: Path) -> None:
    """Delete a run's folder with all that is in it. It goes under another name first, so that none is left half gone.

    Raises:
        InputError: it is no run's folder, or a link to one, or a process is training in it.
    """
    if path.is_symlink():
        raise InputError("this is a link to a folder", where=str(path), mend="delete the link, or name the folder")
    if not is_run(path):
        raise InputError(f"this is no run (it has neither {RECIPE} nor {LOG})", where=str(path))
    path = path.resolve()
    gone = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.deleted")
    with hold_run(path):
        pass
    path.rename(gone)
    shutil.rmtree(gone)


def read_recipe(path: Path) -> dict[str, Any]:
    """A run's recipe as one flat table: dotted keys, plain values. Empty when the run has none.

    Raises:
        InputError: the recipe is not YAML, or too large to be one.
    """
    import yaml

    file = path / RECIPE
    if not file.is_file():
        return {}
    try:
        with file.open("rb") as source:
            text = source.read(_LARGEST_RECIPE + 1).decode()
        if len(text) > _LARGEST_RECIPE:
            raise InputError(f"more than {_LARGEST_RECIPE:,} characters", where=str(file))
        found = yaml.safe_load(text)
        flat: dict[str, Any] = {}
        for key, value in _leaves(found if isinstance(found, dict) else {"": found}, ""):
            flat[key] = value
            if len(flat) > _MOST_KEYS:
                raise InputError(f"more than {_MOST_KEYS:,} keys", where=str(file))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"not a recipe ({type(error).__name__}: {error})", where=str(file)) from None
    return flat


def differences(recipes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The keys in which recipes differ, with the value of each; None where one has no such key."""
    keys = dict.fromkeys(key for each in recipes for key in each)
    rows = {key: [each.get(key) for each in recipes] for key in keys}
    return {key: row for key, row in rows.items() if any(each != row[0] for each in row)}


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from _leaves(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        for i, each in enumerate(value):
            yield from _leaves(each, f"{key}[{i}]")
    else:
        yield key, value if isinstance(value, str | int | float | bool | list | None) else str(value)


def _size(path: Path) -> int:
    """Bytes of all files below a folder; links are not followed."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    total += _size(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e300 else None
