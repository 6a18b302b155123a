"""What a terminal shows while a model is fetched, and how it asks for the acceptance of terms."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Display
    from rich.progress import TaskID


class TerminalProgress:
    """A `tsumugu.hub.progress.Progress` on standard error. rich is loaded at the first stage: never, for cached models.

    Args:
        quiet: draw nothing; terms are shown all the same.
        accept_licence: the user accepted terms beforehand.
    """

    def __init__(self, *, quiet: bool = False, accept_licence: bool = False) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._accept = accept_licence
        self._display: Display | None = None
        self._task: TaskID | None = None

    def stage(self, what: str, total: int | None) -> None:
        if not self._shown:
            return
        if self._display is None:
            self._display = _display()
            self._display.start()
        if self._task is not None:
            self._display.remove_task(self._task)
        self._task = self._display.add_task(what, total=total)

    def done(self, count: int) -> None:
        if self._display is not None and self._task is not None:
            self._display.update(self._task, completed=count)

    def accept_terms(self, model: str, terms: Path) -> bool:
        self.stop()
        if not self._accept and not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        print(f"{model} comes under terms of use: {terms}", file=sys.stderr)
        if self._accept:
            return True
        print("Do you accept them? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in {"y", "yes"}

    def stop(self) -> None:
        """Clear the display."""
        if self._display is not None:
            self._display.stop()
            self._display = self._task = None


@contextmanager
def downloads(*, quiet: bool = False, accept_licence: bool = False) -> Iterator[TerminalProgress]:
    """A progress to hand to `resolve` or `pull`; its display is cleared at the end."""
    progress = TerminalProgress(quiet=quiet, accept_licence=accept_licence)
    try:
        yield progress
    finally:
        progress.stop()


def megabytes(size: int) -> str:
    """A size in bytes for people, in decimal megabytes."""
    return f"{size / 1e6:,.1f} MB"


def _display() -> Display:
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

    from tsumugu.cli.console import stderr

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=stderr(), transient=True)
