"""The browser, driven by Textual's pilot, and once for real in tmux: keys sent, screen read."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from caches import DATASET, MODEL, NEW, OLD, SPACE, TAGGED, contents, folder
from rich.cells import cell_len
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Input, Static

from tsumugu.cli.cache_browser import CacheBrowser
from tsumugu.cli.cache_screens import ConfirmScreen, HelpScreen
from tsumugu.hub.cache import Plan, choose, execute, find, plan_delete, scan

SIZES = [(80, 24), (120, 40)]


@dataclass
class Shot:
    """What a person would see after the last key; nothing when the browser has ended."""

    lines: list[str]
    screen: Screen[Any] | None
    theme: str
    notes: list[str]


def drive(browser: CacheBrowser, size: tuple[int, int], *steps: str) -> Shot:
    """Open the browser, press keys, and look. ``:`` waits for the search, ``@x,y`` clicks."""
    import asyncio

    async def session() -> Shot:
        async with browser.run_test(size=size) as pilot:
            await settle(pilot)
            for step in steps:
                if step == ":":
                    await pilot.pause(0.2)
                elif step.startswith("@"):
                    x, y = step[1:].split(",")
                    await pilot.click(offset=(int(x), int(y)))
                else:
                    await pilot.press(step)
                await settle(pilot)
            return shot_of(browser)

    return asyncio.run(session())


def shot_of(browser: CacheBrowser) -> Shot:
    if not browser.is_running:
        return Shot([], None, "", [])
    notes = [each.message for each in browser._notifications]
    return Shot(lines_of(browser), browser.screen, browser.theme, notes)


async def settle(pilot: Pilot[list[Plan]]) -> None:
    await pilot.pause()
    await pilot.pause()


def lines_of(browser: CacheBrowser) -> list[str]:
    """The screen as text, one string a line."""
    return ["".join(segment.text for segment in strip) for strip in browser.screen._compositor.render_strips()]


def status(lines: list[str]) -> str:
    return next(line for line in lines if "selected counting for" in line).strip()


@pytest.mark.parametrize("size", SIZES)
def test_select_count_confirm(root: Path, size: tuple[int, int]) -> None:
    """Select one revision: the line counts what really comes back; y confirms; the plan does what it said."""
    seen = scan(root=root)
    expected = plan_delete(seen, choose(seen, find(seen, f"{MODEL}@{OLD}")))
    browser = CacheBrowser([seen])
    lines = drive(browser, size, "slash", *"alpha", ":", "enter", "enter", "down", "down", "space").lines
    assert status(lines).startswith(f"1 revision selected counting for {expected.freed / 1000:.1f} kB")
    assert any(f"[x] {OLD[:12]} (detached)" in line for line in lines)
    assert any(f"[-] model/{MODEL}" in line for line in lines)
    assert all(cell_len(line) <= size[0] for line in lines)
    browser = CacheBrowser([seen])
    drive(browser, size, "slash", *"alpha", ":", "enter", "enter", "down", "down", "space", "x", "y")
    assert browser.return_value is not None
    [plan] = browser.return_value
    assert plan == expected
    execute(plan)
    assert not (root / folder(MODEL) / "snapshots" / OLD).exists()
    assert (root / folder(MODEL) / "snapshots" / NEW).exists()


def test_details_may_be_gone_already(root: Path) -> None:
    """As where somebody opens the browser and leaves at once, on a busy machine."""
    import asyncio

    async def session(browser: CacheBrowser) -> None:
        async with browser.run_test() as pilot:
            await settle(pilot)
            await browser.query_one("#about").remove()
            await pilot.press("down")
            await settle(pilot)

    asyncio.run(session(CacheBrowser([scan(root=root)])))


def test_nothing_goes_without_a_yes(root: Path) -> None:
    seen, before = scan(root=root), contents(root)
    for ending in (["x", "n", "q"], ["x", "enter", "escape"], ["x", "escape", "q"]):
        browser = CacheBrowser([seen])
        drive(browser, (80, 24), "a", *ending)
        assert browser.return_value is None
    assert contents(root) == before


def test_the_question_says_what_goes(root: Path) -> None:
    shot = drive(CacheBrowser([scan(root=root)]), (80, 24), "a", "x")
    assert isinstance(shot.screen, ConfirmScreen)
    text = "\n".join(shot.lines)
    assert "Delete 8 revisions?" in text
    assert "This cannot be undone" in text
    assert "6 repos go as a whole" in text


def test_all_none_invert(root: Path) -> None:
    browser = CacheBrowser([scan(root=root)])
    assert status(drive(browser, (80, 24), "a").lines).startswith("8 revisions")
    assert status(drive(CacheBrowser(browser.scans), (80, 24), "a", "n").lines).startswith(
        "0 revisions selected counting for 0 B"
    )
    assert status(drive(CacheBrowser(browser.scans), (80, 24), "space", "i").lines).startswith("7 revisions")


def test_search_while_typing_and_selection_outlives_it(root: Path) -> None:
    browser = CacheBrowser([scan(root=root)])
    lines = drive(browser, (80, 24), "space", "slash", *"tag", ":").lines
    assert "1 of 6 repos" in status(lines)
    assert status(lines).startswith("1 revision selected")
    assert [line for line in lines if f"model/{TAGGED}" in line]
    lines = drive(CacheBrowser(browser.scans), (80, 24), "slash", *"zzz", ":", "escape", ":").lines
    assert "6 of 6 repos" in status(lines)
    lines = drive(CacheBrowser(browser.scans), (80, 24), "slash", *NEW[:7], ":", "enter", "a").lines
    assert status(lines).startswith("2 revisions selected")


def test_sort(root: Path) -> None:
    seen = scan(root=root)
    days = {SPACE: 30, TAGGED: 20, DATASET: 10}
    for repo in seen.repos:
        moment = time.time() - days.get(repo.name, 1) * 86400
        for blob in repo.blobs:
            os.utime(blob, (moment, moment))
    seen = scan(root=root)

    def first(*steps: str) -> list[str]:
        lines = drive(CacheBrowser([seen]), (80, 24), *steps).lines
        return [found[1] for line in lines if (found := re.search(r"\[ \] \w+/(\S+)", line))]

    assert first("s")[:3] == [SPACE, TAGGED, DATASET]
    assert first("s", "s", "s") == sorted(days.keys() | {repo.name for repo in seen.repos})
    assert first("s", "s", "s", "s") == first()


def test_details_tell_who_shares(root: Path) -> None:
    lines = drive(CacheBrowser([scan(root=root)]), (120, 40), "slash", *"alpha", ":", "enter", "enter", "down").lines
    text = "\n".join(lines)
    assert f"shared with {OLD[:7]}" in text or f"shared with {NEW[:7]}" in text
    assert "come back if" in text
    assert "onnx/model.onnx" in text
    assert "refs: main" in text


def test_the_mouse(root: Path) -> None:
    """A click on the arrow opens a repo, a click on a name selects."""
    browser = CacheBrowser([scan(root=root)])
    lines = drive(browser, (80, 24), "@0,1").lines
    assert any("[ ]" in line and "main" in line for line in lines)
    assert status(lines).startswith("0 revisions")
    lines = drive(CacheBrowser(browser.scans), (80, 24), "@12,2").lines
    assert status(lines).startswith("1 revision")


def test_help_and_looks(root: Path) -> None:
    seen = scan(root=root)
    shot = drive(CacheBrowser([seen]), (80, 24), "question_mark")
    assert isinstance(shot.screen, HelpScreen)
    assert any("Space, or a click" in line for line in shot.lines)
    assert drive(CacheBrowser([seen]), (80, 24), "question_mark", "slash", "escape").lines[0].startswith(" 268")
    assert drive(CacheBrowser([seen]), (80, 24), "t").theme == "textual-light"


@pytest.mark.parametrize(
    ("setting", "theme"), [("0;15", "textual-light"), ("15;0", "textual-dark"), ("", "textual-dark")]
)
def test_light_and_dark_follow_the_terminal(
    root: Path, monkeypatch: pytest.MonkeyPatch, setting: str, theme: str
) -> None:
    monkeypatch.setenv("COLORFGBG", setting)
    assert drive(CacheBrowser([scan(root=root)]), (80, 24)).theme == theme


def test_east_asian_names_keep_the_columns(tmp_path: Path) -> None:
    root = tmp_path / "hub"
    for name in (
        "日本語モデル--とても長い名前のついた日本語の模型その一二三四五六七八九十",
        "한국어--모델",
        "ascii--model",
    ):
        (root / f"models--{name}" / "snapshots" / ("a" * 40)).mkdir(parents=True)
    for size in SIZES:
        lines = drive(CacheBrowser([scan(root=root)]), size).lines
        rows = [line for line in lines if "] model/" in line]
        assert len(rows) == 3
        assert len({cell_len(row[: row.index(" 0 B")]) for row in rows}) == 1
        assert all(cell_len(line) <= size[0] for line in lines)


def test_several_caches_in_one_list(root: Path, tmp_path: Path) -> None:
    own = tmp_path / "own" / "models" / "pypi" / "tiny" / "1.0"
    own.mkdir(parents=True)
    (own / "m.gguf").write_bytes(b"x" * 9000)
    browser = CacheBrowser([scan(root=root), scan("tsumugu", tmp_path / "own")])
    drive(
        browser,
        (80, 24),
        "slash",
        *"tiny",
        ":",
        "enter",
        "space",
        "escape",
        "slash",
        *"space",
        ":",
        "enter",
        "space",
        "x",
        "y",
    )
    assert browser.return_value is not None
    assert [plan.cache for plan in browser.return_value] == ["hub", "tsumugu"]
    for plan in browser.return_value:
        execute(plan)
    assert not own.exists()
    assert not (root / folder(SPACE, "spaces")).exists()


def test_nothing_selected_is_said(root: Path) -> None:
    shot = drive(CacheBrowser([scan(root=root)]), (80, 24), "x")
    assert not isinstance(shot.screen, ConfirmScreen)
    assert shot.notes == ["Nothing is selected. Space selects."]


# In a real terminal

TMUX = shutil.which("tmux")


class Terminal:
    """A tmux server of its own with one window; keys go in, the screen comes out."""

    def __init__(self, folder: Path, size: tuple[int, int], command: str, environment: dict[str, str]) -> None:
        self.socket = str(folder / "tmux")
        given = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        self.tmux(
            "-f",
            os.devnull,
            "new-session",
            "-d",
            "-x",
            str(size[0]),
            "-y",
            str(size[1]),
            f"env -u COLUMNS -u LINES {given} {command}",
        )

    def tmux(self, *words: str) -> str:
        done = subprocess.run([TMUX or "tmux", "-S", self.socket, *words], capture_output=True, text=True, check=False)
        return done.stdout

    def keys(self, *keys: str) -> None:
        for key in keys:
            self.tmux("send-keys", key)

    def screen(self) -> str:
        return self.tmux("capture-pane", "-p")

    def wait_for(self, text: str, without: str = "\0", seconds: float = 30) -> str:
        """The first screen with the one text and without the other: what lies behind a dialogue shows beside it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if text in (screen := self.screen()) and without not in screen:
                return screen
            time.sleep(0.1)
        raise AssertionError(f"{text!r} did not come; the screen is\n{self.screen()}")


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for each in opened:
        each.tmux("kill-server")


@pytest.mark.skipif(TMUX is None, reason="tmux is not installed, and only it shows a real terminal's screen")
@pytest.mark.parametrize("size", SIZES)
def test_in_tmux(root: Path, tmp_path: Path, size: tuple[int, int], terminals: list[Terminal]) -> None:
    command = f"{shlex.quote(sys.executable)} -m tsumugu cache delete; echo left with $?; sleep 60"
    environment = {"HF_HUB_CACHE": str(root), "HOME": os.environ["HOME"], "TERM": "screen-256color"}
    environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    environment |= {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
    terminal = Terminal(tmp_path, size, f"sh -c {shlex.quote(command)}", environment)
    terminals.append(terminal)
    screen = terminal.wait_for("0 revisions selected counting for 0 B")
    assert len(screen.splitlines()) <= size[1]
    assert f"[ ] model/{MODEL}" in screen
    terminal.keys("s")
    terminal.wait_for("by longest unused")
    terminal.keys("/", "a", "l", "p", "h", "a")
    terminal.wait_for("1 of 6 repos")
    terminal.keys("Enter")
    terminal.wait_for("space Select")  # the list has the keys again
    terminal.keys("Enter")
    terminal.wait_for(f"[ ] {OLD[:12]}")
    terminal.keys("Down", "Down", "Space")
    terminal.wait_for("1 revision selected counting for")
    terminal.keys("x")
    terminal.wait_for("This cannot be undone")
    terminal.keys("n")
    terminal.wait_for("1 of 6 repos", without="This cannot be undone")
    assert (root / folder(MODEL) / "snapshots" / OLD).exists()
    terminal.keys("x")
    terminal.wait_for("Delete 1 revision?")
    terminal.keys("y")
    screen = terminal.wait_for("left with 0")
    assert "Deleted;" in screen
    assert not (root / folder(MODEL) / "snapshots" / OLD).exists()
    assert (root / folder(MODEL) / "snapshots" / NEW).exists()


def test_a_screenshot_is_a_picture(root: Path) -> None:
    import asyncio

    browser = CacheBrowser([scan(root=root)])

    async def shoot() -> str:
        async with browser.run_test(size=(80, 24)) as pilot:
            await settle(pilot)
            await pilot.press("space")
            await settle(pilot)
            assert browser.query_one("#search", Input).value == ""
            assert "1 revision" in str(browser.query_one("#status", Static).render())
            return browser.export_screenshot()

    assert asyncio.run(shoot()).startswith("<svg")
