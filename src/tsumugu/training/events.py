"""What happens in a run, as one stream of events: the console, the log file, TensorBoard and the plots all read it.

A log (``events.jsonl``) holds one JSON object a line, the kind first, so that a reader may look for a kind without
parsing the rest. Loads neither torch nor numpy.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

from tsumugu.core.errors import InputError, TsumuguError

Kind = Literal["start", "step", "evaluation", "sample", "checkpoint", "warning", "rollback", "resumed", "end"]
KINDS: tuple[Kind, ...] = get_args(Kind)

LOG = "events.jsonl"
"""The name of the log in a run's folder."""

_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_TEXTS = {"name", "family", "objective", "device", "kind", "path", "prompt", "text", "what", "reason", "from", "to"}

_REDONE = {"step", "evaluation", "sample", "checkpoint"}


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: one of `KINDS`.
        step: optimiser steps done by then.
        time: seconds since 1970.
        values: plain JSON values, by kind:
            start {name, family, objective, parameters, steps, tokens_per_step, flops_per_token, peak_flops, device,
            ranks, epochs};
            step {loss, losses, lr, grad_norm, tokens (so far), tokens_per_second, seconds (of training, so far), epoch,
            memory (bytes at the peak), mfu (0 to 1, or None), padding (share of the places, 0 to 1)};
            evaluation {loss, bits_per_byte, losses, scores, seconds}; sample {prompt, text};
            checkpoint {path, seconds, kind: last|best|step}; warning {what}; rollback {to, reason}; resumed {from};
            end {reason: done|budget|stopped|early|failed, tokens, seconds, loss}.
    """

    kind: str
    step: int
    time: float
    values: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON, without its end.

        Numbers that JSON lacks are the words "NaN", "Infinity" and "-Infinity", which any reader takes.

        Raises:
            TypeError: a value is no plain JSON value.

        Source: Protocol Buffers, ProtoJSON format (the words).
        """
        head = {"kind": self.kind, "step": self.step, "time": round(self.time, 3), "values": self.values}
        try:
            return json.dumps(head, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except ValueError:  # a number that is not finite: rare, so only then is every value looked at
            return json.dumps(_worded(head), ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes) -> Event:
        """The event of one line.

        Raises:
            InputError: the line is not JSON, or not an event.
        """
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"not valid JSON ({error})") from None
        if not isinstance(found, dict):
            raise InputError("not an event (expected an object of kind, step, time and values)")
        kind, step, moment, values = (found.get(key) for key in ("kind", "step", "time", "values"))
        if not (isinstance(kind, str) and type(step) is int and _is_number(moment) and isinstance(values, dict)):
            raise InputError("not an event (expected a kind, a whole step, a time and an object of values)")
        return cls(kind, step, float(cast(float, moment)), _revived(values))


class Sink(Protocol):
    """What takes events: called with each in turn, from one thread, and closed once at the end."""

    def __call__(self, event: Event) -> None:
        """Take one event."""
        ...

    def close(self) -> None:
        """Finish; may be called twice."""
        ...


class Stream:
    """Hands every event to each of several sinks, in their order.

    Closing closes all of them, even when one fails, and then raises the first failure.
    """

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self.sinks = list(sinks)

    def emit(self, kind: Kind, step: int, values: Mapping[str, Any] | None = None) -> Event:
        """Make an event of now and hand it on."""
        event = Event(kind, step, time.time(), dict(values or {}))
        self(event)
        return event

    def __call__(self, event: Event) -> None:
        """Hand on an event."""
        for sink in self.sinks:
            sink(event)

    def close(self) -> None:
        """Close every sink."""
        with contextlib.ExitStack() as stack:
            for sink in reversed(self.sinks):
                stack.callback(sink.close)


class JsonLines:
    """A sink that appends to a log, one write a line, so that what was written outlives the process.

    The disk itself is only waited for at checkpoints and at the end. A line that a killed process left half written is
    taken off first; a line that cannot be written whole is taken back.

    Raises:
        TsumuguError: the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._said_clearly():
            self._file = self.path.open("ab", buffering=0)
            self._mend()

    def _mend(self) -> None:
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            tail = b""
            while len(tail) < size and b"\n" not in tail:
                at = max(0, size - len(tail) - 65536)
                file.seek(at)
                tail = file.read(size - len(tail) - at) + tail
        tail = tail[tail.rfind(b"\n") + 1 :]
        if not tail:
            return
        try:
            Event.from_json(tail)
        except InputError:
            self._file.truncate(size - len(tail))
        else:
            self._file.write(b"\n")

    def __call__(self, event: Event) -> None:
        """Write one line."""
        line = event.to_json() + "\n"
        try:
            data = line.encode()
        except UnicodeEncodeError:  # half a surrogate pair in a text: JSON can say it, UTF-8 cannot
            data = json.dumps(json.loads(line)).encode() + b"\n"
        with self._said_clearly():
            start = os.fstat(self._file.fileno()).st_size
            try:
                written = 0
                while written < len(data):
                    written += self._file.write(data[written:])
            except OSError:
                self._file.truncate(start)
                raise
            if event.kind in ("checkpoint", "end"):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Bring everything to the disk."""
        if not self._file.closed:
            with self._said_clearly(), self._file:
                os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def _said_clearly(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            mend = "make room on the disk, then resume the run" if "space" in reason or "large" in reason else None
            raise TsumuguError(f"cannot be written: {reason}", where=str(self.path), mend=mend) from error


def read_events(path: str | Path) -> list[Event]:
    """All events of a log. A last line that was cut off by the end of its process is left out.

    Raises:
        InputError: any other line is broken; names it as file:line.
        OSError: the file cannot be read.
    """
    return [event for _, event in _lines(Path(path))]


def truncate_events(path: str | Path, step: int) -> list[Event]:
    """Take off what a log says of the time after the checkpoint of `step`, for a run that goes on from there.

    Everything since the last checkpoint event of that step goes (without one: since the last event up to it) but for
    events of the same attempt up to that step, such as its evaluation. Earlier attempts, which a rollback ended, stay.
    The file is replaced whole or not at all. Returns the events that stay.

    Raises:
        InputError: a line other than the last is broken.
    """
    path = Path(path)
    lines = list(_lines(path))
    events = [event for _, event in lines]
    at = max((i for i, each in enumerate(events) if each.kind == "checkpoint" and each.step == step), default=None)
    if at is None:
        at = max((i for i, each in enumerate(events) if each.step <= step), default=-1)
    begins = [i for i, each in enumerate(events) if each.kind in ("rollback", "resumed")]
    first = max((i for i in begins if i <= at), default=-1)
    last = min((i for i in begins if i > at), default=len(events))
    kept = [pair for i, pair in enumerate(lines[:last]) if i <= first or pair[1].step <= step]
    _replace(path, b"".join(line + b"\n" for line, _ in kept))
    return [event for _, event in kept]


def settled(events: Sequence[Event]) -> list[Event]:
    """The events that still hold: without those of steps that were done again, after a rollback or a resumption."""
    kept: list[Event] = []
    for event in events:
        if event.kind == "step":
            at = len(kept)
            while at and not (kept[at - 1].kind in ("start", "step") and kept[at - 1].step < event.step):
                at -= 1
            kept[at:] = [each for each in kept[at:] if each.step < event.step or each.kind not in _REDONE]
        kept.append(event)
    return kept


def _lines(path: Path) -> Iterator[tuple[bytes, Event]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.rstrip(b"\n"), Event.from_json(line)
            except InputError as error:
                if not line.endswith(b"\n"):  # only the last line of a file has no end
                    return
                raise InputError(error.what, where=f"{path}:{number}") from None


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(path.stat().st_mode & 0o777)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold."""
    return type(value) in (int, float) and abs(value) < 1e300


def _worded(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return next(word for word, each in _WORDS.items() if each == value or (each != each and value != value))
    if isinstance(value, Mapping):
        return {key: _worded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_worded(each) for each in value]
    return value


def _revived(value: Any) -> Any:
    """Words for numbers as numbers again, but not where a text is expected."""
    if isinstance(value, str):
        return _WORDS.get(value, value)
    if isinstance(value, dict):
        return {key: each if key in _TEXTS else _revived(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_revived(each) for each in value]
    return value


def merit(evaluation: Mapping[str, Any]) -> tuple[float, float] | None:
    """What makes an evaluation the best, more being better: its first score where it has any, then its loss.

    None where nothing was measured.
    """
    loss, scores = evaluation.get("loss"), evaluation.get("scores")
    first = next(iter(scores.values()), None) if isinstance(scores, Mapping) else None
    if isinstance(loss, bool) or not isinstance(loss, int | float):
        return None
    return (float(first) if isinstance(first, int | float) else 0.0, -float(loss))
