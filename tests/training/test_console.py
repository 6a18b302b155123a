"""The console: plain lines where nobody looks on, a panel in a real terminal, and the cursor back afterwards."""

from __future__ import annotations

import io
import os
import pty
import shlex
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from tests.training.recipes import recipe
from tests.training.run_folders import BEGAN, course, end

from tsumugu.training import run_data
from tsumugu.training.console import Console
from tsumugu.training.events import Event
from tsumugu.training.figures import History, Smoother, count, duration, number, safe_text, size, sparkline
from tsumugu.training.progress import Progress
from tsumugu.training.recipe import Recipe
from tsumugu.training.run_data import prepare_text

JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所で泣いていた。"
SAMPLE = Event("sample", 20, BEGAN, {"prompt": "吾輩は", "text": JAPANESE[3:] + "\n\x1b[31mred [bold]x"})


def lines(events: list[Event], **options: object) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, **options)  # type: ignore[arg-type]
    for event in events:
        console(event)
    console.close()
    return file.getvalue().splitlines()


def test_plain_lines() -> None:
    events = [*course("青空", steps=20), SAMPLE, Event("warning", 20, BEGAN, {"what": "a spike"}), end(20)]
    shown = lines(events, every=0.0)
    assert shown[0] == "青空 · gpt2 · causal · 10.8 M parameters · cpu"
    assert shown[1].startswith(
        "step 1/20  loss 4.2145  lr 2.85e-04  2.0 k tokens/s  123 GFLOP/s  gradient 0.50  512 tokens"
    )
    assert shown[2].endswith("epoch 0.02  memory 812 MB  ETA 0:04")
    assert "evaluation at step 10: loss 2.7036, 1.3518 bits/byte" in shown
    assert "checkpoint at step 10: checkpoints/step-00000010 (0.1 s)" in shown
    assert "sample at step 20:" in shown
    assert f"  {JAPANESE}" in shown
    assert "  \\x1b[31mred [bold]x" in shown
    assert "warning at step 20: a spike" in shown
    assert shown[-1].startswith(
        "done · 20 steps, 10.2 k tokens in 0:05 · loss 1.6000 · best loss 2.5060, 1.2530 bits/byte"
    )
    assert not any("\x1b" in line for line in shown)


def test_a_line_about_steps_now_and_then() -> None:
    shown = lines([*course(steps=200), end(200)], every=3600.0)
    assert [line.split()[1] for line in shown if line.startswith("step")] == ["1/200", "200/200"]


def test_quiet_leaves_what_is_wrong() -> None:
    wrong = [
        Event("warning", 5, 0.0, {"what": "a spike"}),
        Event("rollback", 6, 0.0, {"to": 4, "reason": "not finite"}),
    ]
    events = [*course(steps=20), SAMPLE, *wrong]
    assert lines([*events, end(20)], quiet=True) == [
        "warning at step 5: a spike",
        "rollback at step 6 to 4: not finite",
    ]
    assert lines([end(7, "failed")], quiet=True) == []  # its error is raised


def test_signs_that_the_encoding_lacks_are_escaped() -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"))
    console(SAMPLE)
    assert b"\\u543e\\u8f29" in raw.getvalue()


def test_an_event_with_hardly_anything_in_it() -> None:
    events = [Event("start", 0, 0.0), Event("step", 1, 0.0), Event("evaluation", 1, 0.0), Event("sample", 1, 0.0)]
    events += [Event("step", 2, 1.0, {"loss": float("nan"), "tokens_per_second": float("inf")}), Event("end", 2, 1.0)]
    assert lines(events, every=0.0)[0] == "training"
    with Pty(80, 24) as terminal:
        console = Console(file=terminal.file)
        for event in events:
            console(event)
        console.close()


def test_the_best_evaluation_and_the_pace() -> None:
    progress = Progress()
    for event in course(steps=40, total=80):
        progress.take(event)
    assert progress.best is not None
    assert progress.best[1] == 20  # later ones are worse
    assert progress.saved == 40
    assert progress.seconds_left == pytest.approx(10.0)  # a quarter of a second a step
    progress.take(Event("step", 41, BEGAN + 11, {"loss": float("nan")}))
    assert progress.loss == pytest.approx(1.58, abs=0.1)


class Pty:
    """A terminal of some size that somebody reads."""

    def __init__(self, columns: int, rows: int) -> None:
        self.mine, theirs = pty.openpty()
        import fcntl
        import struct
        import termios

        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.file = os.fdopen(theirs, "w", encoding="utf-8")
        self.seen = bytearray()
        self._reader = threading.Thread(target=self._read)

    def _read(self) -> None:
        while True:
            try:
                block = os.read(self.mine, 65536)
            except OSError:  # the other end was closed
                return
            self.seen += block

    def __enter__(self) -> Pty:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self._reader.join()
        os.close(self.mine)

    @property
    def text(self) -> str:
        return self.seen.decode()


@pytest.fixture
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.usefixtures("_terminal")
def test_the_cursor_comes_back_when_training_breaks_off() -> None:
    with Pty(80, 24) as terminal:
        console = Console(file=terminal.file)
        try:
            for event in course(steps=20):
                console(event)
                if event.step == 15:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            console.close()
        terminal.file.flush()
    assert terminal.text.count("\x1b[?25l") == terminal.text.count("\x1b[?25h") == 1
    assert terminal.text.rstrip().endswith("\x1b[?25h")


@pytest.mark.usefixtures("_terminal")
def test_preparing_is_a_bar_in_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Pty(100, 24) as terminal:
        monkeypatch.setattr(sys, "stderr", terminal.file)
        prepare_text(Recipe.from_values(recipe(tmp_path)), tmp_path)
        terminal.file.flush()
    assert "training the tokenizer: " in terminal.text
    assert "preparing: " in terminal.text
    assert "100%" in terminal.text
    assert terminal.text.count("\x1b[?25l") == terminal.text.count("\x1b[?25h") == 1
    assert terminal.text.endswith("\x1b[2K")  # nothing of it stays


def test_preparing_is_a_line_now_and_then_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_data, "EVERY", 0.0)
    prepare_text(Recipe.from_values(recipe(tmp_path)), tmp_path)
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("preparing: ")
    assert said[-1].endswith(", 100%")


@pytest.mark.usefixtures("_terminal")
def test_a_step_between_two_drawings_costs_less_than_a_tenth_of_a_millisecond() -> None:
    values = next(each.values for each in course() if each.kind == "step")
    with Pty(80, 24) as terminal:
        console = Console(file=terminal.file)
        console(next(course(total=10**6)))
        costs = []
        for step in range(1, 5001):
            event = Event("step", step, BEGAN + step, values)
            begun = time.perf_counter()
            console(event)
            costs.append(time.perf_counter() - begun)
        console.close()
    assert statistics.median(costs) < 1e-4


@pytest.mark.usefixtures("_terminal")
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with Pty(80, 24) as terminal:
        console = Console(file=terminal.file)
        for event in course(steps=5):
            console(event)
        console.close()
    assert "step 1/5" in terminal.text
    assert "\x1b" not in terminal.text


RUN = """
import sys, time
from tests.training.run_folders import course, end
from tests.training.test_console import SAMPLE
from tsumugu.training.console import Console
console = Console()
try:
    for event in course("青空文庫の学習", steps=40, total=80):
        if event.kind == "step":
            time.sleep(0.005)
        console(event)
        if event.step == 20 and event.kind == "checkpoint":
            console(SAMPLE)
            print("said meanwhile")
    while "wait" in sys.argv:
        time.sleep(0.05)
    console(end(40, "stopped"))
except KeyboardInterrupt:
    print("heard")
finally:
    console.close()
"""


def test_standard_output_in_a_pipe_is_left_alone(tmp_path: Path) -> None:
    with Pty(80, 24) as terminal:
        command = [sys.executable, "-c", RUN]
        environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.getcwd(), "PYTHONUTF8": "1"}  # noqa: PTH109
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal.file, env=environment, check=True)
    assert done.stdout.decode() == "said meanwhile\n"
    assert "step 40 / 80" in terminal.text
    assert "said meanwhile" not in terminal.text


TMUX = shutil.which("tmux")


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[list[str]]:
    """The words that a tmux server of our own is called with."""
    command = [str(TMUX), "-S", str(tmp_path / "tmux")]
    yield command
    subprocess.run([*command, "kill-server"], capture_output=True, check=False)


@pytest.mark.skipif(TMUX is None, reason="tmux is not installed, and only it shows a real terminal's screen")
@pytest.mark.parametrize("size", [(60, 24), (80, 24), (120, 40)])
def test_in_tmux(size: tuple[int, int], tmux: list[str], tmp_path: Path) -> None:
    """The panel in a real terminal: lines of equal width, Japanese whole, and the cursor back after Ctrl-C."""

    def ask(*words: str) -> str:
        return subprocess.run([*tmux, *words], capture_output=True, text=True, check=False).stdout

    def wait_for(text: str) -> list[str]:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if text in (screen := ask("capture-pane", "-p")):
                return screen.splitlines()
            time.sleep(0.05)
        raise AssertionError(f"{text!r} did not come; the screen is\n{screen}")

    (tmp_path / "run.py").write_text(RUN, "utf-8")
    inner = f"trap : INT; {shlex.quote(sys.executable)} {tmp_path}/run.py wait; echo left; sleep 60"
    settings = f"env -u COLUMNS -u LINES PYTHONPATH={shlex.quote(os.getcwd())} LANG=C.UTF-8 LC_ALL=C.UTF-8"  # noqa: PTH109
    place = ["-x", str(size[0]), "-y", str(size[1])]
    ask("-f", os.devnull, "new-session", "-d", *place, f"{settings} bash -c {shlex.quote(inner)}")
    shown = wait_for("saved at step 40")
    panel = shown[next(i for i, line in enumerate(shown) if line.startswith("╭")) :]
    panel = panel[: next(i for i, line in enumerate(panel) if line.startswith("╰")) + 1]
    assert {cell_len(line) for line in panel} == {size[0]}
    assert "青空文庫の学習 · gpt2" in panel[0]
    assert "step 40 / 80" in panel[1]
    assert "50%" in panel[1]
    assert "▁" in panel[2]
    above = shown[: shown.index(panel[0])]
    assert "said meanwhile" in above
    assert JAPANESE in "".join(line.strip() for line in above)
    assert all(cell_len(line) <= size[0] for line in shown)
    assert ask("display-message", "-p", "#{cursor_flag}") == "0\n"
    ask("send-keys", "C-c")
    shown = wait_for("left")
    assert ask("display-message", "-p", "#{cursor_flag}") == "1\n"
    assert sum(line.startswith("╭") for line in shown) == 1
    assert "heard" in shown


def test_figures_in_words() -> None:
    assert [count(each) for each in (0, 950, 999.6, 12_400, 10_800_000, 1.75e11)] == [
        "0", "950", "1.0 k", "12.4 k", "10.8 M", "175 B",
    ]  # fmt: skip
    assert [size(each) for each in (512, 1500, 8.12e8, None)] == ["512 B", "1.5 kB", "812 MB", "-"]
    assert [duration(each) for each in (0, 42, 3723, 266_700, None, float("nan"))] == [
        "0:00", "0:42", "1:02:03", "3 d 02:05", "-", "-",
    ]  # fmt: skip
    assert [number(each) for each in (1.23456, float("nan"), None)] == ["1.2346", "nan", "-"]
    assert safe_text("a\tb\r\nc\x07\u3000d\ud800") == "a   b\nc\\x07\u3000d\\ud800"


def test_a_sparkline() -> None:
    assert sparkline([], 10) == ""
    assert sparkline([1.0, 1.0], 10) == "▁▁"
    assert sparkline(list(range(8)), 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([*range(80), float("nan")], 8, plain=True) == "_.-=+*%#"
    assert sparkline([0, 5, 100], 3, low=0, high=10) == "▁▅█"


def test_smoothing_is_right_from_the_first_value_on() -> None:
    smooth = Smoother(0.9)
    assert smooth(float("nan")) is None
    assert smooth(4.0) == pytest.approx(4.0)
    assert smooth(2.0) == pytest.approx((0.9 * 4 + 2) / 1.9)


def test_a_history_is_bounded_and_keeps_the_mean() -> None:
    history = History(limit=64)
    for value in range(10_240):
        history.append(float(value))
    assert len(history.values) <= 64
    assert history.values == sorted(history.values)
    assert sum(history.values) / len(history.values) == pytest.approx(10_239 / 2)
