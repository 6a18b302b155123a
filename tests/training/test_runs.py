"""The folders of runs, and ``tsumugu runs``: where each stands, how they differ, and what is no run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pexpect
import pytest
from rich.cells import cell_len
from tests.training.run_folders import BEGAN, course, end, make, write

from tsumugu.cli.runs_text import lines_of_runs
from tsumugu.core.errors import InputError, UnknownNameError
from tsumugu.training import runs as rooms
from tsumugu.training.events import LOG, Event, read_events
from tsumugu.training.runs import (
    LOCK,
    RECIPE,
    delete_run,
    differences,
    find_run,
    hold_run,
    list_runs,
    read_recipe,
    read_run,
)

HOLDER = """
import sys, time
from pathlib import Path
from tsumugu.training.runs import hold_run
with hold_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for each in started:
        each.kill()
        each.wait()
        assert each.stdout is not None
        each.stdout.close()


def hold(folder: Path, holder: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE)
    holder.append(child)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    return child


def tsumugu(*arguments: str | Path, cwd: Path, code: int = 0, **more: Any) -> tuple[str, str]:
    command = [sys.executable, "-m", "tsumugu", "runs", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False, **more)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_where_a_run_stands(tmp_path: Path) -> None:
    folder = make(tmp_path / "tiny", total=80, reason="stopped")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "weights").write_bytes(bytes(1_000_000))
    run = read_run(folder)
    events = read_events(folder / LOG)
    losses = [each.values["loss"] for each in events if each.kind == "step"]
    evaluations = [each for each in events if each.kind == "evaluation"]
    best = min(evaluations, key=lambda each: each.values["loss"])
    assert (run.name, run.family, run.objective, run.parameters) == ("tiny", "gpt2", "causal", 10_800_000)
    assert (run.state, run.reason, run.steps, run.total_steps) == ("stopped", "stopped", 40, 80)
    assert (run.loss, run.best_loss, run.best_step) == (losses[-1], best.values["loss"], best.step)
    assert run.best_bits_per_byte == best.values["bits_per_byte"]
    assert best is not evaluations[-1]
    assert (run.tokens, run.seconds) == (20_480, 10.0)
    assert (run.started, run.updated, run.pid) == (BEGAN, BEGAN + 10, None)
    assert run.size == sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def test_a_long_log_is_read_in_pieces_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = [Event("resumed", 40, BEGAN + 11), *(each for each in course(steps=50) if each.step > 40)]
    folder = write(tmp_path / "tiny", [*course(steps=40), end(40, "stopped"), *again])
    whole = read_run(folder)
    assert (whole.state, whole.steps) == ("interrupted", 50)
    for block in (64, 500, 4096):
        monkeypatch.setattr(rooms, "_BLOCK", block)
        assert read_run(folder) == whole
    text = (folder / LOG).read_text()
    (folder / LOG).write_text(text.replace('{"kind":"', '{ "kind": "'))
    assert read_run(folder).__dict__ == whole.__dict__ | {"size": whole.size + 2 * text.count("\n")}
    monkeypatch.setattr(rooms, "_LONGEST_LINE", 1000)
    (folder / LOG).write_text("x" * 9000)
    with pytest.raises(InputError, match="a line is longer than"):
        read_run(folder)


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("done", "done"),
        ("early", "done"),
        ("budget", "stopped"),
        ("stopped", "stopped"),
        ("failed", "failed"),
        (None, "interrupted"),
    ],
)
def test_states(tmp_path: Path, reason: str | None, state: str) -> None:
    assert read_run(make(tmp_path / "tiny", steps=5, reason=reason)).state == state


def test_a_run_is_running_as_long_as_its_process_lives(tmp_path: Path, holder: list[subprocess.Popen[bytes]]) -> None:
    folder = make(tmp_path / "tiny", reason=None)
    child = hold(folder, holder)
    run = read_run(folder)
    assert (run.state, run.pid) == ("running", child.pid)
    with pytest.raises(InputError, match=f"process {child.pid} is training here"), hold_run(folder):
        pass
    with pytest.raises(InputError, match="is training here"):
        delete_run(folder)
    assert read_run(folder).pid == child.pid
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert read_run(folder).state == "interrupted"
    with hold_run(folder):
        assert read_run(folder).pid == os.getpid()
    assert read_run(folder).state == "interrupted"
    (folder / LOCK).unlink()
    os.mkfifo(folder / LOCK)  # a pipe, on which a careless reader would wait for ever
    assert read_run(folder).state == "interrupted"


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    make(tmp_path / "good", steps=5)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / RECIPE).write_text("train: {}\n")
    (tmp_path / "notes").mkdir()
    (tmp_path / "a file").write_text("")
    (tmp_path / ".x.deleted").mkdir()
    write(tmp_path / "broken", course(steps=3))
    with (tmp_path / "broken" / LOG).open("a") as file:
        file.write("{}\n")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    found, others = list_runs(tmp_path)
    assert {each.name: (each.state, each.steps) for each in found} == {"begun": ("interrupted", 0), "good": ("done", 5)}
    assert others == {
        ".x.deleted": "left over from a deletion that was broken off; it can go",
        "broken": f"broken: {tmp_path}/broken/{LOG}:5: not an event"
        " (expected a kind, a whole step, a time and an object of values)",
        "notes": "no run (it has neither recipe.yaml nor events.jsonl)",
    }
    assert [each.name for each in list_runs(tmp_path / "good")[0]] == ["good"]


def test_values_of_any_kind_do_no_harm(tmp_path: Path) -> None:
    hostile: dict[str, Any] = {"family": 3, "objective": None, "parameters": "many", "steps": 1.5, "name": []}
    events = [
        Event("start", 0, BEGAN, hostile),
        Event("step", 1, BEGAN, {"loss": "x", "tokens": 10**400, "seconds": []}),
    ]
    events += [Event("evaluation", 1, BEGAN, {"loss": float("nan")}), Event("end", 1, BEGAN, {"reason": {}})]
    run = read_run(write(tmp_path / "odd", events))
    assert (run.family, run.parameters, run.total_steps, run.loss, run.best_loss) == (None, None, None, None, None)
    assert run.state == "failed"
    assert lines_of_runs([run], 80)


def test_how_recipes_differ(tmp_path: Path) -> None:
    first = make(
        tmp_path / "a", recipe="data: [a.txt, b.txt]\nmix:\n  - {w: 1}\n  - {w: 2}\ntrain: {lr: 1.0, seed: 3}\n"
    )
    second = make(tmp_path / "b", recipe="data: [a.txt]\nmix:\n  - {w: 1}\n  - {w: 5}\ntrain: {lr: 1.0, ema: 0.9}\n")
    assert differences([read_recipe(first), read_recipe(second)]) == {
        "data": [["a.txt", "b.txt"], ["a.txt"]],
        "mix[1].w": [2, 5],
        "train.seed": [3, None],
        "train.ema": [None, 0.9],
    }
    assert differences([read_recipe(first)] * 2) == {}
    assert read_recipe(write(tmp_path / "c", [], None)) == {}


# Each name holds the one before twice: small to read, endless to write out.
BOMB = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{name}: &{name} {{l: *{before}, r: *{before}}}\n" for before, name in pairwise("abcdefghijklmnopq")
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not a recipe"),
        ("a: !!python/object/apply:os.system [exit]", "not a recipe"),
        ("a: &a [*a, {}]", "not a recipe"),
        (BOMB, "more than 10,000 keys"),
        ("x" * (2 << 20), "more than"),
    ],
)
def test_a_hostile_recipe(tmp_path: Path, text: str, said: str) -> None:
    folder = write(tmp_path / "a", [], text)
    with pytest.raises(InputError, match=said) as error:
        read_recipe(folder)
    assert str(error.value).startswith(f"{folder}/{RECIPE}: ")


def test_runs_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "runs" / "青空", steps=3)
    monkeypatch.chdir(tmp_path)
    assert find_run("青空", Path("runs")) == Path("runs/青空")
    assert find_run(str(folder), Path("runs")) == folder
    with pytest.raises(UnknownNameError, match="did you mean '青空'"):
        find_run("青空文", Path("runs"))
    with pytest.raises(UnknownNameError, match="there are no runs in nowhere"):
        find_run("a", Path("nowhere"))


def test_deleting(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    kept = make(tmp_path / "kept")
    (folder / "elsewhere").symlink_to(kept)
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "notes").mkdir()
    with pytest.raises(InputError, match="a link to a folder"):
        delete_run(tmp_path / "link")
    with pytest.raises(InputError, match="this is no run"):
        delete_run(tmp_path / "notes")
    delete_run(folder)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["kept", "link", "notes"]
    assert read_run(kept).steps == 40


# The command line


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder whose ``runs`` hold three."""
    make(tmp_path / "runs" / "slow", rate=0.05, recipe="train:\n  lr: 0.001\n")
    make(tmp_path / "runs" / "quick", rate=0.3, steps=60, total=100, reason="stopped", recipe="train:\n  lr: 0.002\n")
    make(tmp_path / "runs" / "青空文庫", reason=None, family="llama")
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path


def test_the_list(place: Path) -> None:
    shown, said = tsumugu(cwd=place)
    head, *rows = shown.splitlines()
    assert re.sub(" +", " ", head) == "NAME FAMILY OBJECTIVE PARAMETERS STEPS STATE LOSS BEST BITS/BYTE TIME SIZE"
    assert [row.split()[:6] for row in rows] == [
        ["quick", "gpt2", "causal", "10.8", "M", "60/100"],
        ["slow", "gpt2", "causal", "10.8", "M", "40/40"],
        ["青空文庫", "llama", "causal", "10.8", "M", "40/40"],
    ]
    assert len({cell_len(row) for row in rows}) == 1
    assert said == "left out: notes: no run (it has neither recipe.yaml nor events.jsonl)\n"
    assert tsumugu("--filter", "GPT2", "--filter", "done", cwd=place)[0].split("\n")[1].startswith("slow ")
    assert tsumugu(cwd=place / "runs") == ("", "There are no runs in runs.\n")
    assert tsumugu(".", cwd=place / "runs" / "slow")[0].count("\n") == 2


def test_sorted(place: Path) -> None:
    def names(*words: str) -> list[str]:
        return [each["name"] for each in json.loads(tsumugu("--json", *words, cwd=place)[0])["runs"]]

    assert names("--sort", "steps") == ["quick", "slow", "青空文庫"]
    assert names("--sort", "bits")[-1] == "slow"
    assert names("--sort", "name:desc") == ["青空文庫", "slow", "quick"]
    write(place / "runs" / "empty", [])
    assert names("--sort", "loss")[-1] == names("--sort", "loss:desc")[-1] == "empty"  # what is not known comes last
    assert tsumugu("--sort", "los", cwd=place, code=2)[1] == (
        "tsumugu: --sort: runs cannot be sorted by 'los'; did you mean 'loss'?\n"
    )


def test_the_list_as_json(place: Path) -> None:
    told = json.loads(tsumugu("--json", "--sort", "name", cwd=place)[0])
    assert told["folder"] == "runs"
    assert told["others"] == {"notes": "no run (it has neither recipe.yaml nor events.jsonl)"}
    quick = told["runs"][0]
    assert quick["path"] == "runs/quick"
    assert (quick["state"], quick["steps"], quick["total_steps"]) == ("stopped", 60, 100)


def test_comparing(place: Path) -> None:
    shown, said = tsumugu("compare", "slow", "runs/quick", "--plot", "out.svg", "--by", "seconds", cwd=place)
    assert said == "wrote out.svg\n"
    assert "training time in seconds" in (place / "out.svg").read_text()
    assert re.search(r"^train\.lr +0\.001 +0\.002$", shown, re.MULTILINE)
    assert re.search(r"^state +done +stopped$", shown, re.MULTILINE)
    courses = shown.splitlines()[-2:]
    assert [each.split()[0] for each in courses] == ["slow", "quick"]
    assert all("█" in each for each in courses)
    assert "▁▁▁" in courses[1]
    assert "▁" not in courses[0]  # on one scale, the slow one stays above
    told = json.loads(tsumugu("compare", "slow", "quick", "--json", cwd=place)[0])
    assert told["differences"] == {"train.lr": [0.001, 0.002]}
    assert "The recipes do not differ." in tsumugu("compare", "slow", "slow", cwd=place)[0]
    assert tsumugu("compare", "slow", "--plot", "a.gif", cwd=place, code=2)[1].startswith("tsumugu: a plot cannot be")
    assert tsumugu("compare", "slov", cwd=place, code=2)[1] == (
        "tsumugu: there is no run 'slov'; did you mean 'slow'?\n"
    )


def test_showing_one(place: Path) -> None:
    events = [*course(steps=20), Event("warning", 12, BEGAN, {"what": "a \x1b[31mspike"})]
    events += [Event("sample", 20, BEGAN, {"prompt": "吾輩は", "text": "猫である。\nうん"}), end(20)]
    write(place / "runs" / "told", events, "train:\n  lr: 0.5\n  name: 紡ぐ\n")
    shown = tsumugu("show", "told", cwd=place)[0]
    assert "warning at step 12: a \\x1b[31mspike" in shown
    assert "sample at step 20\n  吾輩は猫である。\n  うん\n" in shown
    assert re.search(r"^ +20 +2\.5060 +1\.2530$", shown, re.MULTILINE)
    assert re.search(r"^  train\.lr +0\.5$", shown, re.MULTILINE)
    told = json.loads(tsumugu("show", "told", "--json", cwd=place)[0])
    assert told["recipe"] == {"train.lr": 0.5, "train.name": "紡ぐ"}
    assert [each["step"] for each in told["evaluation"]] == [10, 20]
    write(place / "runs" / "begun", [])
    assert "interrupted" in tsumugu("show", "begun", cwd=place)[0]


def test_deleting_asks(place: Path) -> None:
    before = sorted(each.name for each in (place / "runs").iterdir())
    assert tsumugu("delete", "slow", cwd=place, code=2, stdin=subprocess.DEVNULL)[1].startswith(
        "tsumugu: there is nobody to ask; say --yes"
    )
    command = ["-m", "tsumugu", "runs", "delete", "slow", "quick"]
    for answer, left in (("n", before), ("y", ["notes", "青空文庫"])):
        child = pexpect.spawn(sys.executable, command, cwd=str(place), encoding="utf-8", timeout=30)
        child.expect("Delete 2 runs with all checkpoints")
        child.sendline(answer)
        child.expect("Nothing was deleted" if answer == "n" else "Deleted 2 runs")
        child.expect(pexpect.EOF)
        child.close()
        assert sorted(each.name for each in (place / "runs").iterdir()) == left
    tsumugu("delete", "--yes", "青空文庫", cwd=place)
    assert [each.name for each in (place / "runs").iterdir()] == ["notes"]


def test_a_running_run_is_not_deleted(place: Path, holder: list[subprocess.Popen[bytes]]) -> None:
    hold(place / "runs" / "slow", holder)
    assert "this run is training; stop it first" in tsumugu("delete", "quick", "slow", "--yes", cwd=place, code=2)[1]
    assert (place / "runs" / "quick").exists()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_list_fits_a_terminal(tmp_path: Path, width: int) -> None:
    for name in ("とても長い名前のついた実験その一二三四五六七八九十", "short"):
        make(tmp_path / name, steps=5)
    lines = lines_of_runs(list_runs(tmp_path)[0], width)
    assert all(cell_len(line) <= width for line in lines)
    assert all("done" in line for line in lines[1:])
    assert len(lines[0].split()) >= {40: 3, 60: 3, 80: 5, 120: 9}[width]


def test_the_list_answers_at_once(tmp_path: Path) -> None:
    """Two hundred runs and a log of 20 MB: no torch, and most of the time is the start of the program."""
    long = make(tmp_path / "long", steps=100)
    step = next(line for line in (long / LOG).read_bytes().splitlines() if line.startswith(b'{"kind":"step"'))
    with (long / LOG).open("ab") as file:
        file.write((step + b"\n") * (20_000_000 // len(step)))
    short = make(tmp_path / "short", steps=2)
    for i in range(200):
        (tmp_path / f"run-{i}").mkdir()
        (tmp_path / f"run-{i}" / LOG).write_bytes((short / LOG).read_bytes())
    begun = time.perf_counter()
    found, _ = list_runs(tmp_path)
    took = time.perf_counter() - begun
    assert len(found) == 202
    assert took < 2.0
    code = "import sys\nfrom tsumugu.cli.runs import runs\nruns()\n"
    code += "print({'torch', 'numpy', 'yaml', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
