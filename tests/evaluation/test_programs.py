"""Programs that nobody vouches for, really run: bounded in every way; and how many of them pass."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import tsumugu as tg
from tsumugu.cli import main
from tsumugu.core.errors import InputError
from tsumugu.evaluation.code_generation import complete, read_problems, read_shown
from tsumugu.evaluation.evaluate import evaluate_programs
from tsumugu.evaluation.isolation import run_program, walls

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
OUTSIDE = "/tmp/tsumugu-was-here"

HOSTILE = {
    "endless": ("while True: pass", "longer than 1 seconds"),
    "asleep": ("import time\ntime.sleep(60)", "longer than 1 seconds"),
    "deaf": (
        "import signal, time\nfor each in range(1, 65):\n try: signal.signal(each, signal.SIG_IGN)\n"
        " except (OSError, ValueError): pass\ntime.sleep(60)",
        "longer than 1 seconds",
    ),
    "hungry": ("x = bytearray(1 << 31)", "out of memory"),
    "greedy": ("x = []\nwhile True: x.append(bytearray(1 << 24))", "out of memory"),
    "fork bomb": ("import os\nwhile True: os.fork()", "BlockingIOError"),
    "thread": ("import threading\nthreading.Thread(target=print).start()", "can't start new thread"),
    "shell": ("import subprocess\nsubprocess.run(['ls'])", "Error"),
    "leaves": ("import sys\nsys.exit(0)", "it ended before its last line"),
    "leaves at once": ("import os\nos._exit(0)", "it ended before its last line"),
    "flood": ("while True: print('x' * 100_000)", "longer than 1 seconds"),
    "long word": ("raise ValueError('x' * 10_000_000)", "ValueError: xxx"),
    "large file": ("open('x', 'wb').write(bytes(1 << 24))", "File too large"),
    "crash": ("import ctypes\nctypes.string_at(0)", "ended by SIGSEGV"),
    "forged": (
        'import os\nfor each in range(64):\n try: os.write(each, b\'{"passed": true, "secret": ""}\\n\')\n'
        " except OSError: pass\nos._exit(0)",
        "it ended before its last line",
    ),
    "deep": ("def f(): f()\nf()", "RecursionError"),
    "no program": ("def f(:", "SyntaxError"),
    "half a character": ("raise ValueError('\\udcff')", "ValueError"),
    "wrong": ("assert 1 == 2, 'no\\nmore'", "AssertionError: no"),
}
WALLED = {
    "many files": ("for each in range(9999): open(str(each), 'w').write('x')", "files", "No space left"),
    "reads outside": ("open('/etc/passwd').read()", "files", "Permission denied"),
    "writes outside": (f"open({OUTSIDE!r}, 'w')", "files", "Permission denied"),
    "looks around": ("import os\nos.listdir('/proc')", "files", "Permission denied"),
    "kills all": ("import os\nos.kill(-1, 9)", "network", "ProcessLookupError"),
    "calls home": ("import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)", "network", "Error"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_program_does_ends_with_it(name: str) -> None:
    source, why = HOSTILE[name]
    before = {each.pid for each in psutil.Process().children(recursive=True)}
    began = time.monotonic()
    outcome = run_program(source, seconds=1, memory=1 << 28)
    assert not outcome.passed
    assert why in outcome.why
    assert "\n" not in outcome.why
    assert len(outcome.why) <= 1000
    assert time.monotonic() - began < 10
    left = [each for each in psutil.Process().children(recursive=True) if each.pid not in before]
    assert not [each for each in left if each.status() != "zombie"]


@pytest.mark.parametrize("name", WALLED)
def test_what_a_program_cannot_reach(name: str) -> None:
    source, wall, why = WALLED[name]
    if not walls()[wall]:
        pytest.skip(f"this kernel does not shut off {wall}")
    with _listening() as port:
        outcome = run_program(source.replace("{port}", str(port)), seconds=2)
    assert not outcome.passed
    assert why in outcome.why
    assert not Path(OUTSIDE).exists()


def _listening() -> Any:
    import contextlib
    import socket

    @contextlib.contextmanager
    def server() -> Any:
        with socket.create_server(("127.0.0.1", 0)) as found:
            yield found.getsockname()[1]

    return server()


def test_what_a_program_may_do() -> None:
    source = """
import collections, datetime, functools, heapq, itertools, json, math, os, random, re, string, tempfile, typing, hashlib
assert os.listdir(".") == []
with open("a.txt", "w") as file:
    file.write("猫")
assert open("a.txt").read() == "猫"
assert __name__ == "__main__"
assert not [each for each in os.environ if each.startswith(("HF_", "TSUMUGU", "AWS", "HOME"))]
"""
    assert run_program(source) == (True, "")
    assert run_program("import os\nassert os.listdir('.') == []") == (True, "")


HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "def double(x):\n",
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
}
MBPP = {
    "task_id": 7,
    "text": "Write a function to add two numbers.",
    "code": "def add(a, b):\r\n    return a + b",
    "test_setup_code": "",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
}


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (HUMANEVAL, MBPP)), "utf-8")
    return path


def typed(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as leaving:
        main(["evaluate", *map(str, arguments), "--task", "code-generation"])
    printed = capfd.readouterr()
    return int(leaving.value.code or 0), printed.out, printed.err


def test_completions_of_a_file(problems: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "samples.jsonl"
    rows = [("HumanEval/0", "    return x + x"), ("HumanEval/0", "    return 4"), ("HumanEval/0", "    while 1: pass")]
    rows += [("7", MBPP["code"]), ("7", "def add(a, b): return a - b"), ("7", "import sys; sys.exit()")]
    random.Random(0).shuffle(rows)
    written.write_text("".join(json.dumps({"task_id": a, "completion": b}) + "\n" for a, b in rows), "utf-8")
    asked = (problems, "--predictions", written, "--k", "1,2", "--time-limit", 1)
    code, out, error = typed(capfd, *asked)
    assert (code, out) == (2, "")
    assert error == "tsumugu: execute: pass@k runs programs that nobody has read; allow it: --execute\n"
    code, out, _ = typed(capfd, *asked, "--execute", "--json", "-o", tmp_path / "found")
    assert code == 0
    scores = json.loads(out)["scores"]
    assert scores["pass@1"]["value"] == pytest.approx(1 / 3)
    assert scores["pass@2"]["value"] == pytest.approx(2 / 3)
    kept = [json.loads(line) for line in (tmp_path / "found" / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert [(each["id"], each["prediction"], each["reference"]) for each in kept] == [
        ("HumanEval/0", 1, 3),
        ("7", 1, 3),
    ]
    assert sorted(kept[0]["extra"]["outcomes"]) == ["AssertionError", "longer than 1 seconds", "passed"]
    assert (tmp_path / "found" / "report.html").stat().st_size > 1000
    from tsumugu.evaluation.results import load

    results, _ = load(tmp_path / "found")
    assert results.scores["pass@2"].value == pytest.approx(2 / 3)
    assert results.scoring.k == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--k", "0", "--execute"), "'0' is no list of numbers"),
        (("--k", "5", "--execute", "-m", "MODEL"), "pass@5 cannot be told from 1 samples"),
        (("--execute", "--predictions", "BAD"), "there is no column 'completion'"),
        (("--execute",), "name one of a model and a file of completions"),
        (("--execute", "--samples", "0", "--time-limit", "0"), "0 seconds are no time"),
    ],
)
def test_what_cannot_be_asked(
    problems: Path,
    decoder_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    line: str,
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"task_id": "7"}\n', "utf-8")
    named = {"MODEL": decoder_folder, "BAD": tmp_path / "bad.jsonl"}
    code, _, error = typed(capfd, problems, *(named.get(each, each) for each in arguments))
    assert code == 2
    assert line in error
    assert error.count("\n") == 1


def test_a_model_writes_and_is_judged(problems: Path, decoder_folder: Path) -> None:
    task = tg.pipeline("text-generation", model=str(decoder_folder))
    found = evaluate_programs(
        problems, execute=True, model=task, samples=3, k=(1, 3), options={"max_new_tokens": 6}, limit=1
    )
    [item] = found.items
    assert (item.reference, item.prediction.answer) == (3, 0)
    again = evaluate_programs(problems, execute=True, model=task, samples=3, options={"max_new_tokens": 6}, limit=1)
    assert again.items[0].extra["completions"] == item.extra["completions"]
    assert len(set(item.extra["completions"])) > 1
    one = read_problems(problems, limit=1)[0]
    side_by_side = list(complete(task, [one, replace(one, prompt="def f(x):"), one], 1, {"max_new_tokens": 6}))
    shown = list(complete(task, [one], 1, {"max_new_tokens": 6}, read_shown(problems, 1)))
    assert shown != side_by_side[:1]
    with pytest.raises(InputError, match="name a file of them with train"):
        evaluate_programs(problems, execute=True, model=task, shots=1)
    assert side_by_side[0] == side_by_side[2] == next(complete(task, [one], 1, {"max_new_tokens": 6}))


def test_the_solutions_of_the_benchmarks_pass() -> None:
    files = [SHARED / name / "test.jsonl" for name in ("humaneval", "mbpp")]
    if not all(each.is_file() for each in files):
        pytest.skip("the benchmarks are not there")
    for file in files:
        found = evaluate_programs(file, execute=True, samples=0, limit=12, seconds=20)
        assert found.scores == {"pass@1": 1.0}, [each.extra["outcomes"] for each in found.items]
        assert len(read_problems(file)) >= 100
