"""Long runs of tasks: killed and gone on with, interrupted, in several processes, over rows that are broken."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.tasks.conftest import ModelMaker, make  # noqa: F401  (a fixture)

from tsumugu.cli import main

FEELINGS = ("bad", "good")
PROGRAM = "import sys, tsumugu.data.resumable as r; r.SECONDS = 0.0; from tsumugu.cli import main; main(sys.argv[1:])"
Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(capfd: pytest.CaptureFixture[str]) -> Typed:
    """Run the program in this process; give its exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main([str(each) for each in arguments])
        printed = capfd.readouterr()
        return int(leaving.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def folder(make: ModelMaker) -> Path:  # noqa: F811
    return make("bert", "sequence-classification", FEELINGS)


def started(*arguments: object) -> subprocess.Popen[bytes]:
    """The program in a process of its own, with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, error = process.communicate(timeout=120)
    return process.returncode, error.decode()


def rows(count: int) -> list[dict[str, Any]]:
    draw = random.Random(3)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "said", "猫", "が", "好き", "です", "nothing", "more"]
    return [{"id": at, "text": " ".join(draw.choices(words, k=draw.randrange(1, 50)))} for at in range(count)]


def write(path: Path, given: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in given), "utf-8")
    return path


def done(output: Path) -> int:
    """Rows that the journal of an unfinished output counts."""
    try:
        return int(json.loads(output.with_name(f".{output.name}.journal").read_text("utf-8"))["done"])
    except FileNotFoundError:
        return 0


@pytest.mark.timeout(600)
def test_a_run_that_is_killed_again_and_again_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    given = rows(4000)
    for at in range(97, 4000, 500):
        given[at]["text"] = None  # rows without a result
    source, whole, output = write(tmp_path / "in.jsonl", given), tmp_path / "whole.csv", tmp_path / "out.csv"
    said = ("run", "sentiment-analysis", "-m", folder, "-i", source)
    undisturbed = started(*said, "-o", whole, "--error-report", tmp_path / "whole-bad.jsonl")
    code, error = ended(undisturbed)
    assert code == 0, error
    command = (*said, "-o", output, "--error-report", tmp_path / "bad.jsonl")
    draw = random.Random(11)
    kills = 0
    for until in (1, 1500, 3000):
        process = started(*command)
        while process.poll() is None and done(output) < until:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.05)
        process.kill()
        code, _ = ended(process)
        kills += code == -signal.SIGKILL
        assert not output.exists() or code == 0
    code, error = ended(started(*command))
    assert code == 0, error
    assert kills >= 2
    assert "going on after row" in error
    assert output.read_bytes() == whole.read_bytes()
    assert (tmp_path / "bad.jsonl").read_bytes() == (tmp_path / "whole-bad.jsonl").read_bytes()
    bad = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text("utf-8").splitlines()]
    assert [each["row"]["id"] for each in bad] == list(range(97, 4000, 500))
    assert bad[0]["where"] == f"{source}, line 98, column 'text'"
    assert not [each.name for each in tmp_path.iterdir() if each.name.startswith(".")]


def test_ctrl_c_saves_and_says_how_to_go_on(folder: Path, tmp_path: Path) -> None:
    given = rows(4000)
    source, output = write(tmp_path / "in.jsonl", given), tmp_path / "out.jsonl"
    said = ("run", "sentiment-analysis", "-m", folder, "-i", source, "-o", output)
    process = started(*said)
    while process.poll() is None and done(output) < 500:
        time.sleep(0.005)
    second = ended(started(*said))
    assert second[0] == 2
    assert "another process writes this file" in second[1]
    process.send_signal(signal.SIGINT)
    code, error = ended(process)
    assert code == 130, error
    kept = done(output)
    assert error.strip().endswith(f"interrupted; {kept:,} rows are done, the same command goes on after them")
    assert not output.exists()
    assert ended(started(*said))[0] == 0
    assert [json.loads(line)["id"] for line in output.read_text("utf-8").splitlines()] == list(range(4000))
    assert not [each.name for each in tmp_path.iterdir() if each.name.startswith(".")]


def test_it_goes_on_with_the_same_input_and_settings_only(folder: Path, tmp_path: Path, typed: Typed) -> None:
    given = rows(1200)
    broken = [*given[:1100], {"id": 1100, "text": None}, *given[1101:]]
    source, output = write(tmp_path / "in.jsonl", broken), tmp_path / "out.jsonl"
    said = ("run", "sentiment-analysis", "-m", folder, "-i", source, "-o", output, "--engine", "torch")
    code, _, error = typed(*said)
    assert (code, error.count("\n")) == (2, 1)
    assert f"{source}, line 1101, column 'text': is empty (null)" in error
    assert "1,024 rows are done, the same command goes on" in error
    code, _, error = typed(*said, "--top-k", 1)
    assert code == 2
    assert "was left unfinished with top_k None, now 1" in error
    write(source, [given[5], *given[1:]])
    code, _, error = typed(*said)
    assert code == 2
    assert "its first 1,024 rows are not those that the unfinished run read" in error
    write(source, given)  # the row that was broken is mended
    code, _, error = typed(*said)
    assert code == 0
    assert "going on after row 1,024" in error
    again = tmp_path / "again.jsonl"
    assert typed(*said[:-3], again, *said[-2:])[0] == 0
    assert again.read_bytes() == output.read_bytes()
    typed(*said[:-3], again, *said[-2:], "--restart")
    assert again.read_bytes() == output.read_bytes()


def test_several_processes_give_the_same_in_the_same_order(folder: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [*rows(900), {"id": -1, "text": None}])
    said = ("run", "sentiment-analysis", "-m", folder, "-i", source, "--top-k", 2, "--skip-errors")
    one, two = started(*said, "-o", tmp_path / "one.jsonl"), started(*said, "-o", tmp_path / "two.jsonl", "-w", 2)
    assert ended(one)[0] == 0
    code, error = ended(two)
    assert code == 0, error
    assert "line 901, column 'text': is empty (null)" in error
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    shown = started("run", "sentiment-analysis", "-m", folder, "a cat", "a mat", "-w", 2)
    out, _ = shown.communicate(timeout=120)
    assert len(out.decode().splitlines()) == 2
    code, error = ended(started("run", "sentiment-analysis", "-m", tmp_path / "nowhere", "a cat", "-w", 2))
    assert code == 2
    assert "nowhere" in error
    assert "Traceback" not in error


def test_workers_end_with_whoever_started_them(folder: Path, tmp_path: Path) -> None:
    import psutil

    source, output = write(tmp_path / "in.jsonl", rows(40000)), tmp_path / "out.jsonl"
    process = started("run", "sentiment-analysis", "-m", folder, "-i", source, "-o", output, "-w", 2)
    while process.poll() is None and done(output) < 300:
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2
    process.kill()
    ended(process)
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert len(gone) == 2, alive


def test_bad_rows_are_named_and_the_others_answered(folder: Path, tmp_path: Path, typed: Typed) -> None:
    lines = [b'{"text": "fine"}', b"{broken", b'{"text": 3}', b'{"other": "x"}', b'{"text": "\xff bytes"}', b"[1]"]
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join([*lines, '{"text": "良い"}'.encode()]) + b"\n")
    output, report = tmp_path / "out.jsonl", tmp_path / "bad.jsonl"
    said = ("run", "sentiment-analysis", "-m", folder, "-i", source, "-o", output)
    assert typed(*said)[0] == 2
    assert typed(*said, "--error-report", report)[0] == 0
    assert [json.loads(line)["text"] for line in output.read_text("utf-8").splitlines()] == ["fine", "良い"]
    bad = [json.loads(line) for line in report.read_text("utf-8").splitlines()]
    assert sorted(each["where"] for each in bad) == [
        f"{source}, line 2",
        f"{source}, line 3, column 'text'",
        f"{source}, line 4",
        f"{source}, line 5, column 'text'",
        f"{source}, line 6",
    ]
    assert next(each["row"] for each in bad if "line 5" in each["where"]) == {"text": "\\udcff bytes"}
    code, _, error = typed(*said, "--skip-errors")
    assert code == 0
    assert error.count("passed over: ") == 5


def test_a_row_that_the_model_refuses_is_found_among_the_others(
    make: ModelMaker,  # noqa: F811
    tmp_path: Path,
    typed: Typed,
) -> None:
    folder = make("bert", "masked-lm")
    source = tmp_path / "in.txt"
    source.write_text("".join(f"a [MASK] {at}\n" if at != 21 else "none\n" for at in range(40)), "utf-8")
    said = ("run", "fill-mask", "-m", folder, "-i", source, "--json", "--engine", "torch")
    code, _, error = typed(*said)
    assert code == 2
    assert f"{source}, line 22: there is no [MASK] in 'none'" in error
    code, out, error = typed(*said, "--skip-errors")
    assert code == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == [f"a [MASK] {at}" for at in range(40) if at != 21]
    assert f"passed over: {source}, line 22" in error
    source.write_text("none\nnothing\n" * 20, "utf-8")
    code, _, error = typed(*said, "--targets", "cat", "--top-k", 0, "--skip-errors")
    assert (code, error.count("\n")) == (2, 1)


def test_folders_patterns_and_whole_files(folder: Path, tmp_path: Path, typed: Typed) -> None:
    texts = tmp_path / "texts"
    (texts / "more").mkdir(parents=True)
    (texts / "b.txt").write_text("first\nsecond\n", "utf-8")
    (texts / "a.csv").write_text("review\nthird\n", "utf-8")
    (texts / "more" / "c.txt").write_text("fourth\n", "utf-8")
    (texts / "more" / "picture.png").write_bytes(b"\x89PNG")
    said = ("run", "sentiment-analysis", "-m", folder, "--engine", "torch", "-i")
    output = tmp_path / "out.jsonl"

    def found(*arguments: object) -> list[tuple[str, str]]:
        code, _, error = typed(*said, *arguments, "-o", output)
        assert code == 0, error
        each = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
        return [(Path(row["file"]).name, row.get("text", row.get("review"))) for row in each]

    assert found(texts) == [("a.csv", "third"), ("b.txt", "first"), ("b.txt", "second"), ("c.txt", "fourth")]
    assert found(f"{texts}/*.txt") == [("b.txt", "first"), ("b.txt", "second")]
    wholes = [("a.csv", "review\nthird\n"), ("b.txt", "first\nsecond\n"), ("c.txt", "fourth\n")]
    assert found(texts, "--whole-files") == wholes
    code, _, error = typed(*said, texts, "-o", texts / "b.txt")
    assert code == 2
    assert "the output is one of the input files" in error
    code, _, error = typed(*said, f"{texts}/*.parquet")
    assert code == 2
    assert "no file fits this pattern" in error


@pytest.mark.slow
def test_actors_of_ray_give_the_same(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    source = write(tmp_path / "in.jsonl", rows(900))
    said = ("run", "sentiment-analysis", "-m", folder, "-i", source)
    one = started(*said, "-o", tmp_path / "one.jsonl")
    many = started(*said, "-o", tmp_path / "ray.jsonl", "--engine", "ray", "--workers", 2)
    assert ended(one)[0] == 0
    code, error = ended(many)
    assert (code, error) == (0, "")
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_ray_that_is_not_there_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, typed: Typed) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, error = typed("run", "sentiment-analysis", "-m", folder, "a cat", "--engine", "ray")
    assert code == 2
    assert error == "tsumugu: --engine ray needs ray; pip install 'tsumugu[ray]'\n"
