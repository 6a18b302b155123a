"""Processes that each have a model of their own, and one thread: windows of rows in, answers out, in order.

A worker gets rows on standard input and answers on standard output, a line of JSON each: nothing is executed on either
side. It ends when its input does, and so never outlives whoever started it. Under Ray the same lines go to actors.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from queue import SimpleQueue
from typing import Any, Protocol, Self, TypeVar

from tsumugu.core.children import Child
from tsumugu.core.errors import InputError, TsumuguError
from tsumugu.tasks.answers import answers, packed, plain, unpacked
from tsumugu.tasks.base import Task

W = TypeVar("W")


class Workers:
    """Workers for a task, to be used in a ``with`` block.

    Args:
        count: how many; None for one, or under Ray for as many as the cluster has cores.
        task: its name.
        options: of `pipeline`.
        ray: actors of a Ray cluster, the one that RAY_ADDRESS names or one on this machine alone.

    Attributes:
        kind: the task's class.
        window: how many rows are best handed over at once.

    Raises:
        TsumuguError: as `pipeline`.
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, count: int | None, task: str, options: dict[str, Any], *, ray: bool = False) -> None:
        self._processes: list[_Worker] = []
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._stack = contextlib.ExitStack()
        start: Callable[[str], _Worker] = _Process
        if ray:
            from tsumugu.tasks.ray_workers import RayActor, joined

            count, start = self._stack.enter_context(joined(count)), RayActor
        count = count or 1
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="tsumugu-run")
        asked = json.dumps({"task": task, "options": options}, default=plain)
        ready: dict[str, Any] = {}
        try:
            for several in (1, count - 1):  # the first alone: what it compiles, the others find
                started = [start(asked) for _ in range(several)]
                self._processes += started
                for each in started:
                    ready = json.loads(_checked(each.answer()))
                    self._idle.put(each)
        except BaseException:
            self.close()
            raise
        self.kind: type[Task] = getattr(import_module(ready["module"]), ready["name"])
        self.window: int = ready["window"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def map(
        self, windows: Iterable[W], rows: Callable[[W], Sequence[Any]], options: dict[str, Any], **how: bool
    ) -> Iterator[tuple[W, list[Any]]]:
        """Each window with the `answers` to its rows, in order; few windows are read ahead."""
        waiting: deque[tuple[W, Future[str]]] = deque()
        for window in windows:
            asked = json.dumps({"rows": rows(window), "options": options, "how": how}, default=plain)
            waiting.append((window, self._threads.submit(self._ask, asked)))
            if len(waiting) > 2 * len(self._processes):
                first, done = waiting.popleft()
                yield first, unpacked(done.result())
        while waiting:
            first, done = waiting.popleft()
            yield first, unpacked(done.result())

    def close(self) -> None:
        """End all processes, at work or not."""
        for each in self._processes:
            each.kill()  # so that no thread waits for an answer any more
        self._threads.shutdown(wait=True, cancel_futures=True)
        for each in self._processes:
            each.close()
        self._stack.close()

    def _ask(self, line: str) -> str:
        process = self._idle.get()
        try:
            process.ask(line)
            return _checked(process.answer())
        finally:
            self._idle.put(process)


class _Worker(Protocol):
    """One worker, wherever it is; the first line says what it loads."""

    def ask(self, line: str) -> None:
        """Send a line."""

    def answer(self) -> str:
        """The line that it answers."""

    def kill(self) -> None:
        """End it at once."""

    def close(self) -> None:
        """Let go of what connects us with it, once it has ended."""


def _checked(line: str) -> str:
    """The line; raises the error that a worker sent."""
    if line.startswith('{"error"'):
        what, where, mend = json.loads(line)["error"]
        raise InputError(what, where=where, mend=mend)
    return line


class _Process(Child):
    """One worker, a process."""

    def __init__(self, first: str) -> None:
        super().__init__("tsumugu.tasks.workers")
        self.ask(first)

    def ask(self, line: str) -> None:
        """Send a line."""
        with contextlib.suppress(OSError, ValueError):  # it is gone; the answer will say so
            self.to.write(line.encode() + b"\n")
            self.to.flush()

    def answer(self) -> str:
        """The line that it answers. Raises what says how it ended."""
        line = self.source.readline()
        if not line.endswith(b"\n"):
            raise self.gone()
        return line.decode()


class Server:
    """The other side: a task that is loaded as the first line says, and answers the others."""

    def __init__(self) -> None:
        self._task: Task | None = None

    def answer(self, line: str | bytes) -> str:
        """The line that answers a line; what is wrong is one, too."""
        asked = json.loads(line)
        try:
            if self._task is None:
                from tsumugu.tasks.pipeline import pipeline

                self._task = pipeline(asked["task"], **asked["options"])
                kind = type(self._task)
                return json.dumps({"module": kind.__module__, "name": kind.__qualname__, "window": self._task.window})
            return packed(answers(self._task, asked["rows"], asked["options"], **asked["how"]))
        except TsumuguError as error:
            return json.dumps({"error": [error.what, error.where, error.mend]})


def main() -> None:
    """Answer lines until standard input ends."""
    source, out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not stand among the answers
    server = Server()
    try:
        while line := source.readline():
            out.write(server.answer(line).encode() + b"\n")
            out.flush()
    except BrokenPipeError:  # nobody waits for the answer any more
        os._exit(1)
