"""Preparations that are killed, stopped, starved of disk, or fed with broken files: each goes on and ends the same.

``TSUMUGU_KILLS=200`` kills at 200 steps and 24 moments; the default is 16 and 2.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.corpus.conftest import ENGLISH, JAPANESE
from tests.corpus.test_prepare import Standard, contents, rows, texts_of

from tsumugu.core.errors import InputError, TsumuguError
from tsumugu.corpus import blocks, pool
from tsumugu.corpus import prepare as preparing
from tsumugu.corpus.cleaning import Cleaning
from tsumugu.corpus.prepare import prepare

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="killing needs fork and SIGKILL")
KILLS = int(os.environ.get("TSUMUGU_KILLS", "16"))
CLEANING = {"near_duplicates": 0.8, "filters": ["characters>=10"]}
OPTIONS: dict[str, Any] = {"validation_share": 0.2, "shard_tokens": 4000}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, and each is committed."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4000)
    monkeypatch.setattr(preparing, "_SECONDS", 0.0)


def sources(folder: Path) -> list[str]:
    folder.mkdir()
    draw = random.Random(2)
    texts = [each[:700] for each in ENGLISH[:40]] + [each + str(at) for at, each in enumerate(JAPANESE * 4)]
    draw.shuffle(texts)
    rows(folder / "a.jsonl", ["", *texts[:20], *texts[:5]])
    (folder / "b.txt").write_text("\n".join(texts[20:40]), "utf-8")
    rows(folder / "c.jsonl", [*texts[40:], texts[45].replace("e", "x", 1)])
    return [str(folder)]


# --- kill -9, before every step that changes a file


@pytest.fixture(scope="module")
def killer() -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).with_name("killer.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.communicate()


def run(killer: subprocess.Popen[str], task: dict[str, Any]) -> str:
    assert killer.stdin is not None
    assert killer.stdout is not None
    killer.stdin.write(json.dumps(task) + "\n")
    killer.stdin.flush()
    answer = killer.stdout.readline().strip()
    assert "raised" not in answer, answer
    return answer


@pytest.mark.parametrize("force", [False, True])
def test_killed_before_any_step_it_goes_on_and_ends_the_same(killer, tmp_path, tokenizer_folder, force):
    task: dict[str, Any] = {
        "inputs": sources(tmp_path / "raw"),
        "tokenizer": str(tokenizer_folder),
        "cleaning": CLEANING,
        "options": {**OPTIONS, "force": force},
        "target": str(tmp_path / "whole"),
    }
    steps = int(run(killer, task).removeprefix("done "))
    whole = contents(tmp_path / "whole")
    assert {"shard-00001.bin", "validation/corpus.json"} <= set(whole)
    assert not [name for name in whole if name.endswith((".docs", ".partial"))]
    draw = random.Random(steps)
    chosen = sorted({steps, *draw.sample(range(1, steps + 1), min(steps, max(2, KILLS // 2)))})
    for at in chosen:
        target = tmp_path / f"killed-{at}"
        if force:
            shutil.copytree(tmp_path / "whole", target, dirs_exist_ok=True)
            (target / "report.json").unlink()
        assert run(killer, {**task, "target": str(target), "at": at}) == "killed"
        assert force or not target.exists() or contents(target) == whole  # never half a corpus under its name
        if draw.random() < 0.5 and (force or not target.exists()):  # and once more
            run(killer, {**task, "target": str(target), "at": draw.randrange(1, steps)})
        if force or not target.exists():
            assert run(killer, {**task, "target": str(target)}).startswith("done")
        assert contents(target) == whole
        shutil.rmtree(target)
    left = sorted(each.name for each in tmp_path.iterdir())
    assert left == ["raw", "whole"]


# --- signals, to the program with its workers


@pytest.fixture(scope="module")
def much(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some seconds of work, in several files."""
    folder = tmp_path_factory.mktemp("much")
    draw = random.Random(7)
    for number in range(4):
        texts = []
        for _ in range(300):
            words = draw.choice(ENGLISH).split()
            draw.shuffle(words)
            texts.append(" ".join(words[:400]))
        rows(folder / f"{number}.jsonl", texts)
    return folder


def command(much: Path, tokenizer_folder: Path, target: Path) -> list[str]:
    words = [sys.executable, "-m", "tsumugu", "prepare", str(much), "-t", str(tokenizer_folder), "-o", str(target)]
    return [*words, "--workers", "2", "--near-duplicates", "0.9", "--validation-share", "0.1", "--quiet"]


@pytest.fixture(scope="module")
def undisturbed(much: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    target = tmp_path_factory.mktemp("undisturbed") / "corpus"
    subprocess.run(command(much, tokenizer_folder, target), check=True, timeout=100)
    return contents(target)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_at_any_moment_it_goes_on_and_leaves_no_process(much, tokenizer_folder, tmp_path, undisturbed, how):
    draw = random.Random(how)
    for round_number in range(max(1, KILLS // 16)):
        target = tmp_path / f"corpus-{round_number}"
        words = command(much, tokenizer_folder, target)
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
            until, workers = time.monotonic() + 60, []
            while len(workers) < 2 and process.poll() is None and time.monotonic() < until:
                workers = psutil.Process(process.pid).children()
                time.sleep(0.01)
            time.sleep(draw.random() * 1.5)
            process.send_signal(how)
            _, said = process.communicate(timeout=60)
        assert process.returncode in (0, 130, -how)
        if process.returncode == 130:
            assert said == ("what is done is kept: the same command goes on from there\ntsumugu: interrupted\n")
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
        if not target.exists():
            subprocess.run(words, check=True, timeout=100)
        assert contents(target) == undisturbed


def test_a_worker_that_dies_is_told_of_and_its_block_is_done_again(
    much, tokenizer_folder, tmp_path, undisturbed, monkeypatch
):
    asked = 0

    def ask(self: Any, texts: Any, *, ask: Any = pool._Process.ask) -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            self._process.kill()
        ask(self, texts)

    options = {"workers": 2, "cleaning": Cleaning(near_duplicates=0.9), "validation_share": 0.1}
    monkeypatch.setattr(pool._Process, "ask", ask)
    with pytest.raises(TsumuguError, match=r"a worker broke down: it ended with code -9; if memory .* run it again"):
        prepare([str(much)], tmp_path / "corpus", tokenizer=tokenizer_folder, **options)
    assert asked <= 3
    prepare([str(much)], tmp_path / "corpus", tokenizer=tokenizer_folder, **options)
    assert contents(tmp_path / "corpus") == undisturbed


# --- files that are broken, or change


def test_a_broken_file_stops_the_work_and_mended_it_goes_on(tmp_path, tokenizer, small):
    inputs = sources(tmp_path / "raw")
    given: dict[str, Any] = {"tokenizer": tokenizer, "cleaning": Cleaning.from_dict(CLEANING), "workers": 1, **OPTIONS}
    whole = contents(prepare(inputs, tmp_path / "whole", **given).path)
    target = tmp_path / "corpus"
    good = {name: (tmp_path / "raw" / name).read_bytes() for name in ("a.jsonl", "b.txt", "c.jsonl")}
    (tmp_path / "raw" / "c.jsonl").write_bytes(good["c.jsonl"][:9000] + b"\xff" + good["c.jsonl"][9000:])
    with pytest.raises(InputError, match=r"c\.jsonl, line \d+: byte 0xff .* then run it again: it goes on from here"):
        prepare(inputs, target, **given)
    assert not target.exists()
    with pytest.raises(InputError, match=r"byte 0xff"):  # nothing has changed, nor has the answer
        prepare(inputs, target, **given)
    (tmp_path / "raw" / "c.jsonl").write_bytes(good["c.jsonl"])
    assert contents(prepare(inputs, target, **given).path) == whole


def test_bytes_that_are_no_text_may_be_replaced_from_there_on(tmp_path, tokenizer, small):
    source = tmp_path / "a.txt"
    source.write_bytes("\n".join(f"line {number} of many" for number in range(900)).encode() + b"\ncaf\xe9")
    given: dict[str, Any] = {"tokenizer": tokenizer, "workers": 1, "document": "line"}
    with pytest.raises(InputError, match=r"a\.txt, line 901: byte 0xe9 at offset \d+ is not UTF-8"):
        prepare([source], tmp_path / "corpus", **given)
    corpus = prepare([source], tmp_path / "corpus", encoding_errors="replace", **given)
    assert texts_of(corpus)[-1] == "caf\ufffd"
    assert corpus.documents == 901
    assert corpus.settings["encoding_errors"] == "replace"


@pytest.mark.parametrize("cut", [20, 9000])
def test_a_truncated_archive_is_named(tmp_path, tokenizer, small, cut):
    packed = gzip.compress("\n".join(json.dumps({"text": each}) for each in dict.fromkeys(ENGLISH)).encode())
    source = tmp_path / "a.jsonl.gz"
    source.write_bytes(packed[:cut])
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: the compressed data ends too early; copy or download"):
        prepare([source], tmp_path / "corpus", tokenizer=tokenizer, workers=1)
    left = [each.name for each in tmp_path.iterdir()]
    assert left == ["a.jsonl.gz"] if cut == 20 else ".corpus.preparing" in left
    source.write_bytes(packed)
    assert prepare([source], tmp_path / "corpus", tokenizer=tokenizer, workers=1).documents == len(set(ENGLISH))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_file_that_may_not_be_read_is_named(tmp_path, tokenizer):
    source = rows(tmp_path / "a.jsonl", ["one"])
    source.chmod(0)
    with pytest.raises(InputError, match=r"a\.jsonl: the file may not be read \(permission denied\)"):
        prepare([source], tmp_path / "corpus", tokenizer=tokenizer, workers=1)


def stopped(tmp_path: Path, tokenizer: Any) -> tuple[list[str], dict[str, Any]]:
    """A preparation that has read two files and a part of the third."""
    inputs = sources(tmp_path / "raw")
    given: dict[str, Any] = {"tokenizer": tokenizer, "workers": 1}
    with (tmp_path / "raw" / "c.jsonl").open("ab") as file:
        file.write(b"{broken\n")
    with pytest.raises(InputError, match=r"c\.jsonl, line \d+: broken JSON"):
        prepare(inputs, tmp_path / "corpus", **given)
    path = tmp_path / "raw" / "c.jsonl"
    path.write_bytes(path.read_bytes().removesuffix(b"{broken\n"))
    return inputs, given


def test_a_file_that_was_read_and_has_changed_is_noticed(tmp_path, tokenizer, small):
    inputs, given = stopped(tmp_path, tokenizer)
    first = tmp_path / "raw" / "a.jsonl"
    saved, times = first.read_bytes(), first.stat()
    rows(first, ["other"])
    with pytest.raises(InputError, match=r"a\.jsonl: has changed since it was read; put it back, or .* --force"):
        prepare(inputs, tmp_path / "corpus", **given)
    first.unlink()
    with pytest.raises(InputError, match=r"a\.jsonl: source 1 is now .*b\.txt"):
        prepare(inputs, tmp_path / "corpus", **given)
    first.write_bytes(saved)
    os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))
    rows(tmp_path / "raw" / "d.jsonl", ["a further document"])  # not yet read: may be new
    last = tmp_path / "raw" / "c.jsonl"
    third = last.read_bytes()
    last.write_bytes(third.replace(b"the", b"teh", 1))
    with pytest.raises(InputError, match=r"c\.jsonl: has changed in its first \d+ documents"):
        prepare(inputs, tmp_path / "corpus", **given)
    last.write_bytes(third)
    corpus = prepare(inputs, tmp_path / "corpus", **given)
    assert contents(corpus.path) == contents(prepare(inputs, tmp_path / "again", **given).path)
    assert texts_of(corpus)[-1] == "a further document"


def test_other_settings_are_refused_or_begin_anew(tmp_path, tokenizer, small):
    inputs, given = stopped(tmp_path, tokenizer)
    other = Cleaning(normalize="nfkc")
    with pytest.raises(
        InputError, match=r'other settings \(normalize was "none", is "nfkc"\); give the same, or .*--force'
    ):
        prepare(inputs, tmp_path / "corpus", cleaning=other, **given)
    with pytest.raises(InputError, match=r"other settings \(inputs was"):
        prepare([*inputs, *inputs], tmp_path / "corpus", **given)
    begun = prepare(inputs, tmp_path / "corpus", cleaning=other, force=True, **given)
    assert contents(begun.path) == contents(
        prepare(inputs, tmp_path / "again", cleaning=other, force=True, **given).path
    )


def test_standard_input_is_gone_on_with_when_it_is_the_same(tmp_path, tokenizer, small, monkeypatch):
    lines = "\n".join(json.dumps({"text": each}) for each in ENGLISH[:40]).encode() + b"\n"
    given: dict[str, Any] = {"tokenizer": tokenizer, "workers": 1, "format": "jsonl"}
    monkeypatch.setattr(sys, "stdin", Standard(lines))
    whole = contents(prepare(["-"], tmp_path / "whole", **given).path)
    settle, settled = preparing.Settler.settle, 0

    def interrupted(self: Any, *arguments: Any) -> None:
        nonlocal settled
        settled += 1
        if settled == 5:
            raise KeyboardInterrupt
        settle(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(preparing.Settler, "settle", interrupted)
        patch.setattr(sys, "stdin", Standard(lines))
        with pytest.raises(KeyboardInterrupt):
            prepare(["-"], tmp_path / "corpus", **given)
    monkeypatch.setattr(sys, "stdin", Standard(lines + b'{"text": "more"}\n'))
    with pytest.raises(InputError, match="standard_input was"):
        prepare(["-"], tmp_path / "corpus", **given)
    monkeypatch.setattr(sys, "stdin", Standard(lines))
    assert contents(prepare(["-"], tmp_path / "corpus", **given).path) == whole


# --- the disk, and others


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = ["tsumugu", *sys.argv[2:]]
from tsumugu.corpus import blocks, prepare
blocks.BLOCK_BYTES, prepare._SECONDS = 4000, 0.0
from tsumugu.cli import main
main()
"""


def test_a_full_disk_is_one_line_and_with_room_it_goes_on(tmp_path, tokenizer_folder, small):
    inputs = sources(tmp_path / "raw")
    words = ["prepare", *inputs, "-t", str(tokenizer_folder), "-o", str(tmp_path / "corpus"), "-j", "1", "--quiet"]
    size = max(each.stat().st_size for each in tokenizer_folder.iterdir())
    limited = subprocess.run(
        [sys.executable, "-c", LIMITED, str(size + 100), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert limited.returncode == 2, limited.stderr
    assert limited.stderr.count("\n") == 1
    assert "cannot be written: File too large; make room on the disk, then run it again: it goes on" in limited.stderr
    state = json.loads((tmp_path / ".corpus.preparing" / "state.json").read_text("utf-8"))
    assert state["training"]["tokens"] > 0
    subprocess.run([sys.executable, "-m", "tsumugu", *words], check=True, timeout=100)
    whole = prepare(inputs, tmp_path / "whole", tokenizer=tokenizer_folder, workers=1)
    assert contents(tmp_path / "corpus") == contents(whole.path)


def test_two_at_once_do_not_meet(tmp_path, tokenizer, monkeypatch):
    source = rows(tmp_path / "a.jsonl", ["one"])
    settle = preparing.Settler.settle

    def meanwhile(self: Any, *arguments: Any) -> None:
        with pytest.raises(InputError, match="another tsumugu prepares this corpus; wait"):
            prepare([source], tmp_path / "corpus", tokenizer=tokenizer, workers=1)
        settle(self, *arguments)

    monkeypatch.setattr(preparing.Settler, "settle", meanwhile)
    assert prepare([source], tmp_path / "corpus", tokenizer=tokenizer, workers=1).documents == 1
