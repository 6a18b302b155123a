"""The dialogues of the cache browser: what the keys do, and the last question before anything is deleted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from tsumugu.cli.cache_text import count_text, lines_of_plan, printable, size_text
from tsumugu.hub.cache import Plan

HELP = """\
Move           Up, Down, PageUp, PageDown, Home, End
Open a repo    Enter, Right          Close it   Left
Select         Space, or a click
All / none     a / n                 Invert     i
Search         /  then type          Leave it   Escape
Sort           s: size, last use, age, name
Details        d: show or hide
Light, dark    t
Delete         x: asks before anything goes
Leave          q, Escape: nothing is deleted

[x] selected   [-] some of its revisions   [ ] not selected

A repo whose revisions are all selected goes as a whole.
What several revisions share stays until the last of
them goes; the line below the list counts only what
really comes back.

Without a screen: tsumugu cache delete --disable-tui
"""


class HelpScreen(ModalScreen[None]):
    """What the keys do."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,q,question_mark,enter", "dismiss", "Back")]

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialogue"):
            yield Static("Keys", classes="title")
            with VerticalScroll():
                yield Static(HELP, markup=False)
            yield Static("Escape: back", classes="hint")


class ConfirmScreen(ModalScreen[bool]):
    """The summary of what would go, and the question. `Cancel` has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("y", "answer(True)", "Delete"),
        ("n,escape,q", "answer(False)", "Cancel"),
        ("left,right", "app.focus_next", "Other button"),
    ]

    def __init__(self, plans: Sequence[Plan]) -> None:
        super().__init__()
        self._plans = plans

    def compose(self) -> ComposeResult:
        freed = sum(plan.freed for plan in self._plans)
        count = sum(plan.n_revisions for plan in self._plans)
        whole = sum(plan.n_whole for plan in self._plans)
        lines: list[str] = []
        for plan in self._plans:
            lines += [f"{plan.cache} cache, {printable(plan.root)}", *lines_of_plan(plan, limit=200)]
        with Vertical(classes="dialogue"):
            yield Static(f"Delete {count_text(count, 'revision')}?", classes="title")
            with VerticalScroll():
                yield Static(Text("\n".join(lines)))
            yield Static(
                f"{count_text(count, 'revision')} counting for {size_text(freed)}; "
                f"{count_text(whole, 'repo goes', 'repos go')} as a whole.\nThis cannot be undone.",
                id="summary",
            )
            with Horizontal(classes="buttons"):
                yield Button("Cancel (n)", id="cancel")
                yield Button("Delete (y)", id="delete", variant="error")

    def on_mount(self) -> None:
        self.query_one("#cancel", Button).focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "delete")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)
