"""The screen of ``tsumugu label``: a text, what may be said of it, and what a model thinks.

A key of a label is a digit, or a letter that has no other meaning here. Names are marked at characters: the cursor
stands on one, Shift and an arrow select, and spans never overlap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rich.console import Console
from rich.text import Text
from textual import events, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Footer, Static

from tsumugu.cli.label import Suggest, Suggestion
from tsumugu.core.errors import InputError
from tsumugu.data.labelling import LabelFile

KEYS = "123456789abcdefghijklmnoprtvwxyz"
"""Keys of labels; q, s and u have a meaning of their own."""
COLOURS = ("green", "blue", "magenta", "yellow", "cyan", "red")
AHEAD = 8
"""Texts that a model is asked about before they are shown."""

Span = tuple[int, int, str]


class Labeller(App[None]):
    """Asks about one text after another.

    Args:
        texts: that have no label yet, in order.
        labels: to choose from.
        file: where rows go; what `answer` it has says whether texts or names in them get labels.
        suggest: what asks a model.
        ready: what a model said already.

    Raises:
        InputError: there are more labels than keys.
    """

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #title { height: 1; background: $primary; color: $text; text-style: bold; padding: 0 1; }
    #place { height: 1fr; padding: 1 2; }
    #suggestion { height: auto; max-height: 4; padding: 0 2; color: $text-muted; }
    #labels { height: auto; max-height: 10; padding: 0 2; border-top: solid $primary; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "accept", "Accept", priority=True),
        Binding("s", "skip", "Skip"),
        Binding("u,ctrl+z", "undo", "Undo", key_display="u"),
        Binding("q,ctrl+c", "leave", "Quit", key_display="q", priority=True),
    ]

    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[str],
        file: LabelFile,
        *,
        suggest: Suggest | None = None,
        ready: Mapping[str, Suggestion] | None = None,
    ) -> None:
        super().__init__()
        if len(labels) > len(KEYS):
            raise InputError(f"{len(labels)} labels are more than the {len(KEYS)} keys", where="--labels")
        self.keys = dict(zip(KEYS, labels, strict=False))
        self.labels, self.file = list(labels), file
        self.names = file.answer == "entities"
        self.waiting, self.skipped = deque(texts), 0
        self.suggest, self.ready = suggest, dict(ready or {})
        self.spans: list[Span] = []
        self.cursor = self.anchor = 0
        self.asking = False

    def compose(self) -> ComposeResult:
        yield Static(id="title")
        with VerticalScroll(id="place", can_focus=False):
            yield Static(id="text")
        yield Static(id="suggestion")
        yield Static(id="labels")
        yield Footer()

    def on_mount(self) -> None:
        self._next()

    @property
    def text(self) -> str:
        """The text that is asked about."""
        return self.waiting[0]

    def _next(self, spans: Sequence[Span] | None = None) -> None:
        """Show the first text that waits; `spans` are those that it had before."""
        if not self.waiting:
            self._show()
            return
        known = self.ready.get(self.text)
        self.spans = list(spans if spans is not None else known.spans if known and self.names else ())
        self.cursor = self.anchor = 0
        self._show()
        self.query_one("#place", VerticalScroll).scroll_home(animate=False)
        self._ask()

    @work(thread=True)
    def _ask(self) -> None:
        """Ask the model about the texts that come next."""
        some = [text for text in list(self.waiting)[:AHEAD] if text not in self.ready]
        if self.suggest is None or not some or self.asking:
            return
        self.asking = True
        try:
            found = self.suggest(some)
        except InputError as error:
            self.call_from_thread(self._silence, str(error))
            return
        finally:
            self.asking = False
        self.call_from_thread(self._hear, dict(zip(some, found, strict=True)))

    def _hear(self, found: dict[str, Suggestion]) -> None:
        self.ready |= found
        if self.waiting and self.text in found and not self.spans and self.names:
            self.spans = list(found[self.text].spans)
        if self.waiting:
            self._show()
            self._ask()

    def _silence(self, why: str) -> None:
        self.suggest = None
        self.notify(why, severity="warning", markup=False)

    # What is shown

    def _show(self) -> None:
        done = f"{len(self.file.texts):,} labelled · {len(self.waiting):,} to do"
        if self.skipped:
            done += f" · {self.skipped:,} skipped"
        self.query_one("#title", Static).update(Text(done))
        if not self.waiting:
            self.query_one("#text", Static).update(Text("That was the last text. u takes it back, q leaves."))
            self.query_one("#suggestion", Static).update(Text())
            return
        self.query_one("#text", Static).update(self._marked() if self.names else Text(_shown(self.text)))
        keys = Text()
        for at, (key, label) in enumerate(self.keys.items()):
            keys.append(f" {key} ", f"bold reverse {COLOURS[at % len(COLOURS)]}").append(f" {label}   ")
        if self.names:
            keys.append("\n←→ move, Shift selects, ⌫ removes a name", "dim")
        self.query_one("#labels", Static).update(keys)
        known, said = self.ready.get(self.text), Text()
        if known is not None and known.scores:
            best = sorted(known.scores.items(), key=lambda each: -each[1])[:3]
            said = Text("model: " + "  ".join(f"{name} {score:.2f}" for name, score in best) + "  (Enter accepts)")
        elif self.names:
            said = Text("  ".join(f"{_shown(self.text[start:end])} ({name})" for start, end, name in self.spans))
        self.query_one("#suggestion", Static).update(said)

    def _marked(self) -> Text:
        """The text with its spans, the selection and the cursor; a character is one place, whatever its width."""
        shown = Text(_shown(self.text))
        for start, end, name in self.spans:
            shown.stylize(f"bold reverse {COLOURS[self.labels.index(name) % len(COLOURS)]}", start, end)
        low, high = self._selection()
        shown.stylize("underline on grey37", low, high)
        shown.stylize("reverse blink" if low == high - 1 else "reverse", self.cursor, self.cursor + 1)
        return shown

    def _selection(self) -> tuple[int, int]:
        return min(self.cursor, self.anchor), max(self.cursor, self.anchor) + 1

    # What is done

    def on_key(self, event: events.Key) -> None:
        """A label's key, or one that moves."""
        key = event.key
        if not self.waiting:
            return
        if key in self.keys:
            self._mark(self.keys[key]) if self.names else self._write(self.keys[key])
        elif self.names and key.removeprefix("shift+") in ("left", "right", "up", "down", "home", "end"):
            self._move(key.removeprefix("shift+"), selects=key.startswith("shift+"))
        elif self.names and key in ("backspace", "delete"):
            self.spans = [each for each in self.spans if not each[0] <= self.cursor < each[1]]
            self._show()
        elif key in ("pageup", "pagedown"):
            place = self.query_one("#place", VerticalScroll)
            place.scroll_page_up() if key == "pageup" else place.scroll_page_down()
        else:
            return
        event.stop()
        event.prevent_default()

    def _move(self, way: str, *, selects: bool) -> None:
        begins = _lines(self.text, self.query_one("#text", Static).size.width, self.console)
        ends = [*begins[1:], len(self.text)]
        row = next(at for at, end in enumerate(ends) if self.cursor < end)
        to = {"left": self.cursor - 1, "right": self.cursor + 1, "home": begins[row], "end": ends[row] - 1}
        if way in ("up", "down"):
            other = min(max(row + (1 if way == "down" else -1), 0), len(ends) - 1)
            to[way] = min(begins[other] + self.cursor - begins[row], ends[other] - 1)
            row = other
        self.cursor = min(max(to[way], 0), len(self.text) - 1)
        if not selects:
            self.anchor = self.cursor
        self._show()
        self.query_one("#place", VerticalScroll).scroll_to(y=max(0, row - 3), animate=False)

    def _mark(self, label: str) -> None:
        """Give the selection a label, in place of what it overlaps."""
        low, high = self._selection()
        while low < high and self.text[low].isspace():
            low += 1
        while high > low and self.text[high - 1].isspace():
            high -= 1
        if low < high:
            kept = [each for each in self.spans if each[1] <= low or each[0] >= high]
            self.spans = sorted([*kept, (low, high, label)])
            self.anchor = self.cursor
            self._show()

    def _write(self, answer: Any) -> None:
        try:
            self.file.add({"text": self.text, self.file.answer: answer})
        except InputError as error:
            self.notify(str(error), severity="error", markup=False)
            return
        self.waiting.popleft()
        self._next()

    def action_accept(self) -> None:
        """Write the names, or what the model suggests."""
        if not self.waiting:
            return
        if self.names:
            self._write([{"start": start, "end": end, "label": name} for start, end, name in self.spans])
            return
        known = self.ready.get(self.text)
        if known is not None and known.scores:
            self._write(max(known.scores, key=known.scores.__getitem__))

    def action_skip(self) -> None:
        """Leave this text; it comes again at the next start."""
        if not self.waiting:
            return
        self.waiting.popleft()
        self.skipped += 1
        self._next()

    def action_undo(self) -> None:
        """Take back the last row, and ask about it again."""
        row = self.file.undo()
        if row is None:
            self.bell()
            return
        self.waiting.appendleft(row["text"])
        spans = row.get("entities", ())
        self._next([(each["start"], each["end"], each["label"]) for each in spans if each["label"] in self.labels])

    def action_leave(self) -> None:
        """End; every row is on the disk."""
        self.exit()


def _lines(text: str, width: int, console: Console) -> list[int]:
    """Where each line of a text begins on a screen so wide."""
    begins, start = [], 0
    for part in text.split("\n"):
        at = 0
        for line in Text(_shown(part)).wrap(console, max(2, width)) or [Text()]:
            word = line.plain.strip()
            begins.append(start + (_shown(part).find(word, at) if word else at))
            at = begins[-1] - start + len(word)
        start += len(part) + 1
    return begins


def _shown(text: str) -> str:
    """A text of as many characters, none of which a terminal obeys."""
    return "".join(each if each.isprintable() or each == "\n" else "·" for each in text)
