"""The cache browser: a tree of repos and revisions in which one checks what shall go.

It only chooses. Nothing is deleted while it is open; `browse` returns plans, which were confirmed, or None. The tree
makes the lines of a repo's revisions when it is opened, so that thousands of repos show at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual import events, on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.timer import Timer
from textual.widgets import Footer, Input, Static, Tree
from textual.widgets.tree import TreeNode

from tsumugu.cli.cache_list import plans_of
from tsumugu.cli.cache_screens import ConfirmScreen, HelpScreen
from tsumugu.cli.cache_text import age_text, count_text, fit, printable, size_text
from tsumugu.hub.cache import CacheScan, Plan, Repo, Revision, last_used
from tsumugu.hub.cache.select import order

SORTS = {"size": "size", "accessed:asc": "longest unused", "modified:asc": "age", "name": "name"}
SHOWN_FILES = 500
SIZE_WIDTH, AGE_WIDTH = 9, 14
WIDE = 110


@dataclass(frozen=True, slots=True)
class Item:
    """A line of the tree: a repo of one of the caches, or one of its revisions."""

    scan: CacheScan
    repo: Repo
    revision: Revision | None = None


class CheckTree(Tree[Item]):
    """A tree whose lines have a check box, a name, a size and an age, in columns that fit the width."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "app.check", "Select"),
        Binding("enter", "toggle_node", "Open", show=False),
        Binding("right", "open(True)", "Open", show=False),
        Binding("left", "open(False)", "Close", show=False),
    ]

    auto_expand = False

    def action_open(self, wanted: bool) -> None:
        node = self.cursor_node
        if node is None:
            return
        if not wanted and node.data is not None and node.data.revision is not None and node.parent is not None:
            self.move_cursor(node.parent)
            node.parent.collapse()
        elif node.allow_expand:
            node.expand() if wanted else node.collapse()

    def get_label_width(self, node: TreeNode[Item]) -> int:
        return 20

    def render_label(self, node: TreeNode[Item], base_style: Style, style: Style) -> Text:
        item = node.data
        app = self.app
        if item is None or not isinstance(app, CacheBrowser):
            return Text()
        indent = 2 if item.revision is not None else 0
        width = self.scrollable_content_region.width - indent
        thing: Repo | Revision = item.repo if item.revision is None else item.revision
        tail = f"{size_text(thing.size):>{SIZE_WIDTH}}  {age_text(last_used(thing), app.now):<{AGE_WIDTH}}"
        mark = app.mark(item)
        icon = "  " if item.revision is not None else ("▾ " if node.is_expanded else "▸ ")
        room = max(8, width - len(icon) - 4 - len(tail) - 1)
        label = Text(no_wrap=True)
        label.append(icon, style + Style(meta={"toggle": True}) if item.revision is None else style)
        label.append(f"[{mark}] ", style + Style(bold=mark != " "))
        label.append(fit(describe(item), room), style + Style(bold=item.revision is None))
        label.append(" " + tail, style)
        return label


def describe(item: Item) -> str:
    """The name on a line: a repo's id, or a revision's commit with its refs."""
    repo, revision = item.repo, item.revision
    if revision is None:
        return repo.id + (" (damaged)" if repo.problems else "") + (" (link)" if repo.is_link else "")
    return f"{revision.commit[:12]} {' '.join(revision.refs) or '(detached)'}"


class CacheBrowser(App[list[Plan]]):
    """The browser. Its result is a list of confirmed plans, or None."""

    TITLE = "tsumugu cache"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #title { height: 1; background: $primary; color: $text; text-style: bold; padding: 0 1; }
    #search { height: 1; border: none; display: none; }
    #search.shown { display: block; }
    #body { height: 1fr; }
    CheckTree { height: 1fr; width: 1fr; background: $surface; scrollbar-gutter: stable; }
    #details { height: 7; width: 100%; border-top: solid $primary; padding: 0 1; }
    .wide #body { layout: horizontal; }
    .wide #details { height: 1fr; width: 42%; border-top: none; border-left: solid $primary; }
    .plain #details { display: none; }
    #status { height: 1; background: $panel; color: $text; padding: 0 1; }
    ModalScreen { align: center middle; }
    .dialogue { width: 90%; max-width: 90; height: 90%; max-height: 30; border: round $primary; background: $surface;
                padding: 0 2; }
    .dialogue .title { text-style: bold; height: 1; margin-bottom: 1; }
    .dialogue VerticalScroll { height: 1fr; }
    .dialogue .hint { height: 1; color: $text-muted; }
    #summary { height: 2; text-style: bold; margin: 1 0 0 0; }
    .buttons { height: 3; align: right middle; }
    .buttons Button { margin-left: 2; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        # At once, so that what is typed right behind it is searched for and not taken for other keys.
        Binding("slash", "search", "Search", key_display="/", priority=True),
        Binding("a", "all", "All"),
        Binding("n", "none", "None"),
        Binding("i", "invert", "Invert"),
        Binding("s", "sort", "Sort"),
        Binding("d", "details", "Details", show=False),
        Binding("x,delete", "delete", "Delete", key_display="x"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("t", "theme", "Theme", show=False),
        Binding("q", "leave", "Quit"),
        Binding("escape", "step_back", "Back", show=False),
    ]

    def __init__(self, scans: Sequence[CacheScan], sort: str = "size") -> None:
        super().__init__()
        self.scans = scans
        self.now = time.time()
        self.sorts = list(SORTS) if sort in SORTS else [sort, *SORTS]
        self.sort_by = sort
        self.words: list[str] = []
        self.items = [Item(scan, repo) for scan in scans for repo in scan.repos]
        self.texts = {id(item.repo): _searched(item) for item in self.items}
        self.waiting: Timer | None = None
        self.chosen: dict[str, dict[str, set[str]]] = {scan.root: {} for scan in scans}
        self.plans: list[Plan] = []

    def compose(self) -> ComposeResult:
        total = size_text(sum(scan.disk for scan in self.scans))
        places = ", ".join(f"{scan.cache} {printable(scan.root)}" for scan in self.scans if scan.repos)
        yield Static(Text(f"{total} in {places or 'no cache'}", no_wrap=True, overflow="ellipsis"), id="title")
        yield Input(placeholder="part of a name, a ref or a commit", id="search", compact=True)
        with Container(id="body"):
            tree = CheckTree("caches")
            tree.show_root, tree.show_guides, tree.guide_depth = False, False, 2
            yield tree
            with VerticalScroll(id="details", can_focus=False):
                yield Static(id="about")
        yield Static(id="status")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.theme = "textual-light" if _is_light() else "textual-dark"
        self.fill()
        self.repos.focus()
        self.tell()

    @property
    def repos(self) -> CheckTree:
        return self.query_one(CheckTree)

    def on_resize(self, event: events.Resize) -> None:
        self.screen.set_class(event.size.width >= WIDE, "wide")

    # What is shown

    def fill(self) -> None:
        """Show the repos that the search leaves, in order."""
        tree = self.repos
        here = tree.cursor_node.data if tree.cursor_node is not None else None
        tree.clear()
        nodes = [tree.root.add("", data=item) for item in self.shown()]
        at = next((node for node in nodes if here is not None and node.data and node.data.repo is here.repo), None)
        if nodes:
            tree.call_after_refresh(tree.move_cursor, at or nodes[0])

    def shown(self) -> list[Item]:
        """The repos that the search leaves, in order."""
        found = [each for each in self.items if all(word in self.texts[id(each.repo)] for word in self.words)]
        by_repo = {id(each.repo): each for each in found}
        return [by_repo[id(repo)] for repo, _ in order([(each.repo, None) for each in found], self.sort_by)]

    @on(Tree.NodeExpanded)
    def make_revisions(self, event: Tree.NodeExpanded[Item]) -> None:
        node, item = event.node, event.node.data
        if item is not None and not node.children:
            for revision in sorted(item.repo.revisions, key=lambda each: -each.modified):
                node.add_leaf("", data=Item(item.scan, item.repo, revision))

    @on(Tree.NodeHighlighted)
    def show_details(self, event: Tree.NodeHighlighted[Item]) -> None:
        if event.node.data is not None:
            # There are no panes any more where somebody opens it and leaves at once.
            for pane in self.query("#about").results(Static):
                pane.update(Text(self.about(event.node.data), overflow="fold"))
            for place in self.query("#details"):
                place.scroll_home(animate=False)

    def about(self, item: Item) -> str:
        """The details pane: the files of a revision and who shares them, or the revisions of a repo."""
        repo, revision = item.repo, item.revision
        if revision is None:
            lines = [repo.id, f"{size_text(repo.size)} of files, {size_text(repo.disk)} on the disk", repo.path]
            lines += [f"! {problem}" for problem in repo.problems]
            lines += [
                f"{each.commit[:12]}  {size_text(each.size):>9}  {' '.join(each.refs) or '(detached)'}"
                for each in repo.revisions
            ]
            return "\n".join(printable(line) for line in lines[: SHOWN_FILES + 5])
        [plan] = plans_of([item.scan], {item.scan.root: {repo.folder: [revision.commit]}})
        sharers: dict[str, list[str]] = {}
        for other in repo.revisions:
            if other is not revision:
                for path in {file.blob.path for file in other.files}:
                    sharers.setdefault(path, []).append(other.commit[:7])
        lines = [
            f"{repo.id}@{revision.commit}",
            f"refs: {' '.join(revision.refs) or 'none (detached)'}",
            f"{size_text(revision.size)} of files; {size_text(plan.freed)} come back if it goes alone",
        ]
        for file in sorted(revision.files, key=lambda each: -each.blob.size)[:SHOWN_FILES]:
            shared = sharers.get(file.blob.path)
            note = f"  shared with {' '.join(shared[:3])}" if shared else ""
            note = "  shared with other repos" if file.blob.shared and not shared else note
            lines.append(f"{size_text(file.blob.size):>9}  {file.name}{note}")
        return "\n".join(printable(line) for line in lines)

    def tell(self) -> None:
        """The line that counts, always about everything selected, shown or not."""
        wanted = {root: {k: v for k, v in folders.items() if v} for root, folders in self.chosen.items()}
        self.plans = plans_of(self.scans, wanted)
        count = sum(plan.n_revisions for plan in self.plans)
        freed = size_text(sum(plan.freed for plan in self.plans))
        shown = len(self.repos.root.children)
        self.query_one("#status", Static).update(
            f"{count_text(count, 'revision')} selected counting for {freed}"
            f" · {shown:,} of {count_text(len(self.items), 'repo')}"
            f" · by {SORTS.get(self.sort_by, self.sort_by)}"
        )

    # What is selected

    def mark(self, item: Item) -> str:
        """``x`` selected, ``-`` in part, a space for not selected."""
        chosen = self.chosen[item.scan.root].get(item.repo.folder, ())
        if item.revision is not None:
            return "x" if item.revision.commit in chosen else " "
        return " " if not chosen else "x" if len(chosen) == len(item.repo.revisions) else "-"

    def choose(self, item: Item, wanted: bool) -> None:
        chosen = self.chosen[item.scan.root].setdefault(item.repo.folder, set())
        revisions = item.repo.revisions if item.revision is None else (item.revision,)
        for each in revisions:
            (chosen.add if wanted else chosen.discard)(each.commit)

    def action_check(self) -> None:
        node = self.repos.cursor_node
        if node is not None and node.data is not None:
            self.choose(node.data, self.mark(node.data) != "x")
            (node.parent if node.data.revision is not None and node.parent else node).refresh()
            self.repaint([node])

    @on(Tree.NodeSelected)
    def clicked(self, event: Tree.NodeSelected[Item]) -> None:
        self.action_check()

    def repaint(self, nodes: Sequence[TreeNode[Item]]) -> None:
        for node in nodes:
            node.refresh()
            for child in node.children:
                child.refresh()
        self.tell()

    def choose_shown(self, wanted: bool | None) -> None:
        """Select all that is shown, none of it, or (None) the other way round."""
        for node in self.repos.root.children:
            if node.data is None:
                continue
            for each in node.data.repo.revisions:
                item = Item(node.data.scan, node.data.repo, each)
                self.choose(item, self.mark(item) == " " if wanted is None else wanted)
        self.repaint(list(self.repos.root.children))

    def action_all(self) -> None:
        self.choose_shown(True)

    def action_none(self) -> None:
        self.choose_shown(False)

    def action_invert(self) -> None:
        self.choose_shown(None)

    # Search, order, looks

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A slash that is searched for is no command."""
        return not (action == "search" and (self.query_one("#search", Input).has_focus or len(self.screen_stack) > 1))

    def action_search(self) -> None:
        box = self.query_one("#search", Input)
        box.add_class("shown")
        box.focus()

    @on(Input.Changed, "#search")
    def searched(self, event: Input.Changed) -> None:
        """Search while typing; a moment after the last key, for thousands of repos take a tenth of a second."""
        self.words = event.value.casefold().split()
        if self.waiting is not None:
            self.waiting.stop()
        self.waiting = self.set_timer(0.1, self.refill)

    def refill(self) -> None:
        self.fill()
        self.tell()

    @on(Input.Submitted, "#search")
    def found(self) -> None:
        self.repos.focus()

    def on_key(self, event: events.Key) -> None:
        if event.key == "down" and self.query_one("#search", Input).has_focus:
            self.repos.focus()

    def action_step_back(self) -> None:
        box = self.query_one("#search", Input)
        if not box.has_class("shown"):
            self.exit(None)
            return
        box.value = ""
        box.remove_class("shown")
        self.repos.focus()

    def action_sort(self) -> None:
        at = self.sorts.index(self.sort_by)
        self.sort_by = self.sorts[(at + 1) % len(self.sorts)]
        self.refill()

    def action_details(self) -> None:
        self.screen.toggle_class("plain")

    def action_theme(self) -> None:
        self.theme = "textual-light" if self.theme == "textual-dark" else "textual-dark"

    def action_help(self) -> None:
        self.push_screen(HelpScreen())

    # The end

    def action_leave(self) -> None:
        self.exit(None)

    def action_delete(self) -> None:
        if not self.plans:
            self.notify("Nothing is selected. Space selects.", severity="warning")
            return
        self.push_screen(ConfirmScreen(self.plans), self.answered)

    def answered(self, answer: bool | None) -> None:
        if answer:
            self.exit(self.plans)


def _searched(item: Item) -> str:
    parts = [item.repo.id, *item.repo.refs, *(each.commit for each in item.repo.revisions)]
    return "\n".join(parts).casefold()


def _is_light() -> bool:
    """Whether the terminal says that its background is light (``COLORFGBG``, as rxvt, Konsole and iTerm2 set it)."""
    background = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    return background.isdigit() and int(background) in (7, *range(9, 16))


def browse(scans: Sequence[CacheScan], sort: str = "size") -> list[Plan] | None:
    """Let somebody choose and confirm. None when nothing shall go."""
    return CacheBrowser(scans, sort).run(mouse=True)
