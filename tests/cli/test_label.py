"""Labelling in the terminal: driven by Textual's pilot, once for real in tmux, and killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.tasks.conftest import ModelMaker, make  # noqa: F401  (a fixture)
from textual.widgets import Static

from tsumugu.cli import main
from tsumugu.cli.label import Suggestion
from tsumugu.cli.label_screen import KEYS, Labeller
from tsumugu.core.errors import InputError
from tsumugu.data.labelled.load import load_examples
from tsumugu.data.labelling import LabelFile

TEXTS = ["a fine film", "dull and long", "それは面白い", "the best"]
TMUX = shutil.which("tmux")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def drive(
    path: Path, texts: Sequence[str], labels: Sequence[str], *keys: str, answer: str = "label", **options: Any
) -> list[str]:
    """Open the screen, press keys, and give what it shows at the end."""

    async def session() -> list[str]:
        with LabelFile(path, answer) as file:
            app = Labeller([each for each in texts if each not in file.texts], labels, file, **options)
            async with app.run_test(size=(80, 24)) as pilot:
                await pilot.pause(0.1)
                for key in keys:
                    await pilot.press(key)
                    await pilot.pause()
                if not app.is_running:
                    return []
                shown = [str(app.query_one(f"#{name}", Static).render()) for name in ("title", "text", "suggestion")]
                return [*shown, str(app.query_one("#labels", Static).render())]

    return asyncio.run(session())


def test_a_key_for_each_text(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    shown = drive(path, TEXTS, ["good", "bad"])
    assert shown[0] == "0 labelled · 4 to do"
    assert shown[1] == "a fine film"
    assert "1  good" in shown[3]
    shown = drive(path, TEXTS, ["good", "bad"], "1", "2", "x", "9", "s")
    assert shown[0] == "2 labelled · 1 to do · 1 skipped"
    assert read(path) == [{"text": TEXTS[0], "label": "good"}, {"text": TEXTS[1], "label": "bad"}]
    assert drive(path, TEXTS, ["good", "bad"])[1] == TEXTS[2]
    shown = drive(path, TEXTS, ["good", "bad"], "u", "u", "u", "2", "q")
    assert shown == []
    assert read(path) == [{"text": TEXTS[0], "label": "bad"}]
    shown = drive(path, TEXTS, ["good", "bad"], "1", "1", "1", "1", "s", "enter")
    assert shown[0] == "4 labelled · 0 to do"
    assert "That was the last text" in shown[1]
    assert drive(path, TEXTS, ["good", "bad"], "u")[1] == TEXTS[3]
    assert list(load_examples(path).labels or ()) == ["bad", "good"]


def test_names_at_characters(tmp_path: Path) -> None:
    path, texts = tmp_path / "names.jsonl", ["山田さんは東京へ行った。", "Ada met  Bob"]
    # 山田, then 東京 with a wrong name that is replaced by the right one.
    keys = ["shift+right", "1", *["right"] * 4, "shift+right", "1", "shift+left", "2", "enter"]
    # Ada with the space behind it, Bob from its end; one of them is removed and marked anew.
    keys += [*["shift+right"] * 3, "1", "home", "end", "shift+left", "shift+left", "2", "backspace"]
    keys += ["end", *["shift+left"] * 2, "1", "enter"]
    drive(path, texts, ["PER", "LOC"], *keys, answer="entities")
    rows = read(path)
    assert [(each["start"], each["end"], each["label"]) for each in rows[0]["entities"]] == [
        (0, 2, "PER"),
        (5, 7, "LOC"),
    ]
    found = [(texts[1][each["start"] : each["end"]], each["label"]) for each in rows[1]["entities"]]
    assert found == [("Ada", "PER"), ("Bob", "PER")]
    examples = load_examples(path)
    assert examples.kind == "token-classification"
    assert [each.spans[0].label for each in examples] == ["PER", "PER"]
    shown = drive(path, texts, ["PER", "LOC"], "u", answer="entities")
    assert "Ada (PER)  Bob (PER)" in shown[2]
    assert len(read(path)) == 1


def test_the_cursor_goes_through_lines(tmp_path: Path) -> None:
    text = "\n".join(["一行目です", "", "second line", "猫" * 60])
    for keys, wanted in [
        (["down", "down"], (text.index("second"), "s")),
        (["down", "down", "end"], (text.index("second") + 11, "\n")),
        (["down"] * 6, (None, "猫")),
        (["right"] * 90, (len(text) - 1, "猫")),
        (["left", "up", "home"], (0, "一")),
    ]:
        path = tmp_path / f"{len(keys)}-{keys[-1]}.jsonl"
        drive(path, [text], ["X"], *keys, "1", "enter", answer="entities")
        found = read(path)[0]["entities"]
        if wanted[1] == "\n":
            assert found == []  # white space alone is no name
            continue
        assert text[found[0]["start"]] == wanted[1]
        if wanted[0] is not None:
            assert (found[0]["start"], found[0]["end"]) == (wanted[0], wanted[0] + 1)


def test_what_a_model_suggests(tmp_path: Path) -> None:
    path, asked = tmp_path / "labels.jsonl", []

    def suggest(texts: Sequence[str]) -> list[Suggestion]:
        asked.append(list(texts))
        return [
            Suggestion({"good": 0.9, "bad": 0.1} if "fine" in each else {"bad": 0.8, "good": 0.2}) for each in texts
        ]

    shown = drive(path, TEXTS, ["good", "bad"], "enter", "enter", suggest=suggest)
    assert "model: bad 0.80  good 0.20" in shown[2]
    assert [each["label"] for each in read(path)] == ["good", "bad"]
    assert asked == [TEXTS]

    def refuses(texts: Sequence[str]) -> list[Suggestion]:
        raise InputError("the model is tired")

    assert drive(path, TEXTS, ["good", "bad"], "1", suggest=refuses)[0] == "3 labelled · 1 to do"


def test_control_characters_are_not_obeyed(tmp_path: Path) -> None:
    shown = drive(tmp_path / "a.jsonl", ["a\x1b[31mred\x07 [bold]x[/bold]"], ["1"])
    assert shown[1] == "a·[31mred· [bold]x[/bold]"
    with pytest.raises(InputError, match="more than the 32 keys"):
        drive(tmp_path / "b.jsonl", ["x"], [str(each) for each in range(len(KEYS) + 1)])


def test_a_file_that_a_kill_left_torn_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_bytes('{"text": "良い", "label": "good"}\n{"text": "悪'.encode()[:-1])
    with LabelFile(path, "label") as file:
        assert file.texts == ["良い"]
        with pytest.raises(InputError, match="another process labels"), LabelFile(path, "label"):
            pass
        file.add({"text": "普通", "label": "so"})
    assert [each["text"] for each in read(path)] == ["良い", "普通"]
    with pytest.raises(InputError, match="line 1: is no row with text and entities"), LabelFile(path, "entities"):
        pass
    with pytest.raises(InputError, match=r"name a \.jsonl file"):
        LabelFile(tmp_path / "labels.csv", "label")


WRITER = """
import sys
from tsumugu.data.labelling import LabelFile
with LabelFile(sys.argv[1], "label") as file:
    number = len(file.texts)
    while True:
        file.add({"text": f"text {number}" + "x" * 5000, "label": "a"})
        number += 1
        print(number, flush=True)
        if number % 7 == 0:
            file.undo()
            number -= 1
            file.add({"text": f"text {number}" + "x" * 5000, "label": "b"})
            number += 1
"""


def test_a_killed_session_loses_nothing(tmp_path: Path) -> None:
    path, draw = tmp_path / "labels.jsonl", random.Random(2)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    last = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        for _ in range(draw.randrange(5, 40)):
            last = int(process.stdout.readline())
        time.sleep(draw.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read().split("\n")
        last = max([last, *(int(each) for each in said[:-1] if each)])
        process.wait()
        with LabelFile(path, "label") as file:
            assert len(file.texts) >= last - 1  # it may have been taking back the last
            assert [each.rstrip("x") for each in file.texts] == [f"text {at}" for at in range(len(file.texts))]
        assert len(read(path)) >= last - 1


@pytest.fixture
def typed(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the program in this process; give its exit code and standard error."""

    def run(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main(["label", *map(str, arguments)])
        return int(leaving.value.code or 0), capfd.readouterr().err

    return run


def test_what_cannot_be_done_is_one_line(typed: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    texts, output = tmp_path / "texts.txt", tmp_path / "labels.jsonl"
    texts.write_text("one\n\ntwo\none\n", "utf-8")
    for arguments, line in [
        ((texts, "-o", output), "there are no labels to choose from"),
        ((texts, "-o", output, "--labels", "a,b"), "labels are given in a terminal"),
        ((texts, "-o", output, "--labels", "a,b", "--order", "uncertain"), "only a model knows"),
        ((texts, "-o", output, "--labels", "a", "--task", "nre"), "did you mean 'ner'?"),
        ((tmp_path / "nowhere.txt", "-o", output, "--labels", "a"), "there is no such file"),
        ((texts, "-o", tmp_path / "no" / "labels.jsonl", "--labels", "a"), "there is no folder"),
        ((texts, "-o", texts, "--labels", "a"), "JSON Lines"),
    ]:
        code, error = typed(*arguments)
        assert (code, error.count("\n")) == (2, 1), error
        assert line in error
    with LabelFile(output, "label") as file:
        file.add({"text": "one", "label": "a"})
        file.add({"text": "two", "label": "b"})
    code, error = typed(texts, "-o", output)
    assert (code, error) == (0, f"nothing is left to label; 2 rows in {output}\n")


def _wait_until_free(path: Path) -> None:
    """Until no process holds the file any more."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            with LabelFile(path, "label"):
                return
        except InputError:
            time.sleep(0.05)


@pytest.mark.skipif(TMUX is None, reason="tmux is not installed")
def test_in_tmux(make: ModelMaker, tmp_path: Path) -> None:  # noqa: F811
    """Texts through a pipe, keys from a real terminal, what the model knows least first, killed and gone on with."""
    folder = make("bert", "sequence-classification", ("good", "bad"))
    tmux = [str(TMUX), "-S", str(tmp_path / "tmux")]
    output = tmp_path / "labels.jsonl"

    def ask(*words: str) -> str:
        return subprocess.run([*tmux, *words], capture_output=True, text=True, check=False).stdout

    def wait_for(text: str) -> str:
        until, screen = time.monotonic() + 60, ""
        while time.monotonic() < until:
            if text in (screen := ask("capture-pane", "-p")):
                return screen
            time.sleep(0.05)
        raise AssertionError(f"{text!r} did not come; the screen is\n{screen}")

    import tsumugu as tg

    solver = tg.pipeline("text-classification", model=str(folder))
    sure = {
        text: abs(answers[0]["score"] - 0.5) for text, answers in zip(TEXTS, solver(TEXTS, top_k=None), strict=True)
    }
    order = sorted(TEXTS, key=sure.__getitem__)
    given = tmp_path / "texts.txt"
    given.write_text("\n".join(TEXTS) + "\n", "utf-8")
    program = f"{shlex.quote(sys.executable)} -m tsumugu label - -o {output} -m {folder} --order uncertain"
    path = os.pathsep.join(filter(None, sys.path))
    inner = f"cat {given} | PYTHONPATH={shlex.quote(path)} LANG=C.UTF-8 {program}; echo left $?; sleep 60"
    try:
        ask("-f", os.devnull, "new-session", "-d", "-x", "80", "-y", "24", f"bash -c {shlex.quote(inner)}")
        screen = wait_for("0 labelled · 4 to do")
        assert order[0] in screen
        wait_for("model:")
        ask("send-keys", "1")
        wait_for("1 labelled · 3 to do")
        ask("send-keys", "2")
        wait_for("2 labelled · 2 to do")
        assert [each["text"] for each in read(output)] == order[:2]
        ask("kill-server")
        _wait_until_free(output)
        tmux[-1] += "-again"
        ask("-f", os.devnull, "new-session", "-d", "-x", "80", "-y", "24", f"bash -c {shlex.quote(inner)}")
        assert order[2] in wait_for("2 labelled · 2 to do")
        ask("send-keys", "q")
        wait_for("left 0")
    finally:
        ask("kill-server")
    assert [each["label"] for each in read(output)] == ["good", "bad"]
