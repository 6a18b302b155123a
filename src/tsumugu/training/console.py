"""The console of a run: a live panel in a terminal, a line now and then everywhere else. Goes to standard error."""

from __future__ import annotations

import atexit
import contextlib
import sys
import time
from collections.abc import Iterable, Mapping
from typing import IO, TYPE_CHECKING, Any

from tsumugu.training.events import Event
from tsumugu.training.figures import count, duration, number, safe_text
from tsumugu.training.progress import Progress, measured

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType
    from rich.live import Live
    from rich.text import Text

REFRESH = 0.25
"""Seconds between two drawings of the panel, at least. A slow terminal gets fewer: drawing takes 2 % of the time."""


class Console:
    """A sink that shows a run to whoever looks on.

    In a terminal it draws a panel that stays at the foot of the screen; what a run says besides (samples, evaluations,
    warnings) scrolls by above it. Elsewhere, and in a terminal that cannot move its cursor, it writes plain lines. The
    cursor comes back when it is closed, and when the program ends without closing it.

    Args:
        file: where to write; standard error when left out.
        quiet: only warnings, rollbacks and failure.
        every: seconds between two plain lines about steps.
    """

    def __init__(self, *, file: IO[str] | None = None, quiet: bool = False, every: float = 10.0) -> None:
        self.progress = Progress()
        self._file = file or sys.stderr
        self._quiet, self._every = quiet, every
        self._next = 0.0
        self._rich: RichConsole | None = None
        self._live: Live | None = None
        if not quiet and self._file is not None and self._file.isatty():
            from rich.console import Console as RichConsole

            rich = RichConsole(file=self._file, highlight=False)
            self._rich = None if rich.is_dumb_terminal else rich

    def __call__(self, event: Event) -> None:
        """Show one event, or keep it until the panel is drawn again."""
        self.progress.take(event)
        if event.kind == "step":
            if time.monotonic() >= self._next:
                self._show_step()
            return
        if self._rich is None:
            for line in self._lines(event):
                self._write(line)
            return
        if self._live is None and event.kind in ("start", "resumed"):
            self._open()
        for each in self._above(event):
            self._rich.print(each)
        if event.kind == "end":
            self.close()
        else:
            self._draw()

    def close(self) -> None:
        """Leave the last panel on the screen, and give the cursor back."""
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(OSError, ValueError):  # a terminal that has gone
                live.update(self._panel())
                live.stop()
            atexit.unregister(self.close)

    def _open(self) -> None:
        from rich.live import Live

        # Standard output is only held back from the panel where it goes to the same terminal, not in a pipe.
        shared = sys.stdout is not None and sys.stdout.isatty()
        self._live = Live(console=self._rich, auto_refresh=False, redirect_stdout=shared, redirect_stderr=True)
        atexit.register(self.close)
        self._live.start()

    def _show_step(self) -> None:
        if self._rich is None:
            if not self._quiet:
                self._write(self._step_line())
            self._next = time.monotonic() + self._every
            return
        if self._live is None:
            self._open()
        self._draw()

    def _draw(self) -> None:
        if self._live is not None:
            from rich.console import Group

            begun = time.monotonic()
            # The empty line below takes what the terminal echoes, such as ^C, which would break the panel's own lines.
            self._live.update(Group(self._panel(), ""), refresh=True)
            took = time.monotonic() - begun
            self._next = begun + max(REFRESH, 50 * took)

    # Plain lines

    def _write(self, line: str) -> None:
        if self._file is not None:
            encoding = getattr(self._file, "encoding", None) or "utf-8"
            self._file.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            self._file.flush()

    def _step_line(self) -> str:
        told = self.progress
        whole = f"/{told.steps:,}" if told.steps else ""
        words = [f"step {told.step:,}{whole}", f"loss {number(told.loss)}", *told.figures()[:1], *told.speed()]
        words += told.figures()[1:]
        if told.seconds_left is not None:
            words.append(f"ETA {duration(told.seconds_left)}")
        return "  ".join(words)

    def _lines(self, event: Event) -> Iterable[str]:
        values, told = event.values, self.progress
        if event.kind in ("warning", "rollback"):
            yield _said(event)
        elif self._quiet:  # a failure, too: its error says more, in one line
            return
        elif event.kind == "start":
            yield _title(values)
        elif event.kind == "end":
            if told.values:
                yield self._step_line()
            yield told.verdict()
        elif event.kind == "sample":
            yield f"sample at step {event.step:,}:"
            yield from (f"  {line}" for line in _sample(values).split("\n"))
        else:
            yield _said(event)

    # The panel

    def _above(self, event: Event) -> Iterable[RenderableType]:
        from rich.padding import Padding
        from rich.rule import Rule
        from rich.text import Text

        if event.kind == "sample":
            yield Rule(f"sample at step {event.step:,}", align="left", style="dim")
            text = Text(safe_text(str(event.values.get("prompt") or "")), style="bold")
            yield Padding(text.append(safe_text(str(event.values.get("text", ""))), style="not bold"), (0, 2))
        elif event.kind in ("warning", "rollback"):
            yield Text(_said(event), style="yellow")
        elif event.kind in ("evaluation", "resumed"):
            yield Text(_said(event), style="dim")

    def _panel(self) -> RenderableType:
        from rich import box
        from rich.panel import Panel
        from rich.text import Text

        assert self._rich is not None
        width = self._rich.width - 4
        told = self.progress
        lines = [self._bar(width)]
        if told.values:
            lines.append(self._loss_line(width))
            lines += _flowed([*told.figures()[:2], *told.speed(), *told.figures()[2:]], width)
        words = []
        if told.evaluation:
            words.append(f"evaluation {measured(told.evaluation)}")
        if told.best is not None:
            words.append(f"best {measured(told.best[0])} at step {told.best[1]:,}")
        if told.saved is not None:
            words.append(f"saved at step {told.saved:,}")
        lines += _flowed(words, width)
        if told.end is not None:
            lines.append(Text(told.verdict()))
        return Panel(
            Text("\n").join(lines),
            box=box.ROUNDED,
            title=Text(_title(told.start, width - 2), style="bold"),
            title_align="left",
            border_style="cyan",
        )

    def _bar(self, width: int) -> Text:
        from rich.text import Text

        told = self.progress
        head = f"step {told.step:,}" + (f" / {told.steps:,}" if told.steps else "")
        share = min(1.0, told.step / told.steps) if told.steps else 0.0
        tail = [f"{share:.0%}"] if told.steps else []
        if told.end is None and told.steps:
            tail.append(f"ETA {duration(told.seconds_left)}")
        tail.append(duration(told.values.get("seconds")))
        while tail and width < len(head) + sum(3 + len(each) for each in tail):
            tail.pop()
        room = width - len(head) - sum(3 + len(each) for each in tail) - 1
        if room < 6 or not told.steps:
            return Text("   ".join([head, *tail]), style="bold")
        full, empty = ("#", "-") if self._plain() else ("━", "─")
        done = int(share * room)
        return Text.assemble(
            (head, "bold"), "  ", (full * done, "cyan"), (empty * (room - done), "dim"), "  ", "   ".join(tail)
        )

    def _loss_line(self, width: int) -> Text:
        from rich.text import Text

        head = f"loss {number(self.progress.loss)}  "
        line = self.progress.sparkline(max(1, width - len(head)), plain=self._plain())
        return Text.assemble((head, "bold"), (line, "cyan"))

    def _plain(self) -> bool:
        assert self._rich is not None
        return not self._rich.encoding.lower().startswith("utf")


def _title(start: Mapping[str, Any], width: int = 1000) -> str:
    """Which run it is: name, family, objective, parameters, device; as much of it as `width` cells take."""
    from rich.cells import cell_len

    words = [safe_text(str(start[key]), one_line=True) for key in ("name", "family", "objective") if start.get(key)]
    if isinstance(start.get("parameters"), int):
        words.append(f"{count(start['parameters'])} parameters")
    ranks = start.get("ranks")
    if start.get("device"):
        words.append(safe_text(str(start["device"])) + (f" x {ranks}" if isinstance(ranks, int) and ranks > 1 else ""))
    while len(words) > 1 and cell_len(" · ".join(words)) > width:
        words.pop()
    return " · ".join(words) or "training"


def _said(event: Event) -> str:
    """An event as one plain line."""
    values, at = event.values, f"at step {event.step:,}"
    if event.kind == "evaluation":
        return f"evaluation {at}: {measured(values)}"
    if event.kind == "rollback":
        return f"rollback {at} to {safe_text(str(values.get('to')))}: {safe_text(str(values.get('reason')))}"
    if event.kind == "resumed":
        return f"resumed {at} from {safe_text(str(values.get('from')))}"
    if event.kind == "checkpoint":
        return f"checkpoint {at}: {safe_text(str(values.get('path')))} ({number(values.get('seconds'), 1)} s)"
    return f"{event.kind} {at}: {safe_text(str(values.get('what', '')), one_line=True)}"


def _sample(values: Mapping[str, Any]) -> str:
    return safe_text(f"{values.get('prompt') or ''}{values.get('text', '')}")


def _flowed(words: list[str], width: int) -> list[Text]:
    """Words side by side, three spaces between them, as many as a line of `width` cells takes."""
    from rich.text import Text

    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 3 + len(word) <= width:
            lines[-1] += "   " + word
        else:
            lines.append(word)
    return [Text(line) for line in lines]
