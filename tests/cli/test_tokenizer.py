"""``tsumugu tokenizer`` as a user types it."""

from __future__ import annotations

import gzip
import json
import os
import pydoc_data.topics
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tsumugu.cli import main
from tsumugu.text.tokenizer import Tokenizer

ENGLISH = "\n".join(list(pydoc_data.topics.topics.values())[::9])
JAPANESE = "猫は川のほとりを歩いていました。\n「どこへ行くの」と犬がたずねました。\n" * 20


@pytest.fixture
def typed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run the program in this process, in a folder of its own; give its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TSUMUGU_OFFLINE", "1")
    Path("en.txt").write_text(ENGLISH, "utf-8")
    Path("ja.jsonl").write_text("".join(json.dumps({"body": each}) + "\n" for each in JAPANESE.split("\n")), "utf-8")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main([str(each) for each in arguments])
        printed = capfd.readouterr()
        return int(leaving.value.code or 0), printed.out, printed.err

    return run


TRAIN = ("tokenizer", "train", "en.txt", "--family", "gpt2", "--vocab-size", 500)


def test_train_show_and_report(typed: Any) -> None:
    assert typed(*TRAIN[:2], *TRAIN[3:], "-o", "small", "en.txt", "ja.jsonl") == (0, "small: 500 tokens\n", "")
    tokenizer = Tokenizer.from_folder("small")
    code, out, _ = typed("tokenizer", "show", "small", "the 猫", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["id"] for row in rows] == tokenizer.encode("the 猫")
    assert all(row["text"] == "the 猫"[row["start"] : row["end"]] for row in rows)
    code, out, _ = typed("tokenizer", "show", "small", "the\x1b[31m")
    assert code == 0
    assert "\x1b" not in out
    code, out, _ = typed("tokenizer", "report", "small", "en.txt", "ja.jsonl", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["total"]["characters"] == len(ENGLISH.replace("\n", "")) + len(JAPANESE.replace("\n", ""))
    assert set(found["languages"]) == {"ja", "other"}
    assert found["total"]["unknown_rate"] == 0
    code, out, _ = typed("tokenizer", "report", "small", "en.txt", "--longest", 2)
    assert code == 0
    assert f"{found['languages']['other']['characters_per_token']:.3f}" in out


def test_every_option_arrives(typed: Any) -> None:
    options = (
        "--lowercase",
        "--nfkc",
        "--special-token",
        "<|im_start|>",
        "--min-frequency",
        3,
        "--text-column",
        "body",
    )
    line = ("tokenizer", "train", "ja.jsonl", "--family", "bert", "-v", 120, "--kind", "wordpiece", "--language", "ja")
    assert typed(*line, *options, "--segment", "mecab", "--dictionary", "ipadic", "-q") == (0, "", "")
    tokenizer = Tokenizer.from_folder("tokenizer")
    assert tokenizer.additional_special_tokens == ["<|im_start|>"]
    assert tokenizer.encode("ＡＢ猫") == tokenizer.encode("ab猫")
    assert sorted(each.name for each in Path("tokenizer").iterdir()) == [
        *("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
    ]


def test_packed_files_and_standard_input_give_the_same_files(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with gzip.open("en.txt.gz", "wt", encoding="utf-8") as file:
        file.write(ENGLISH)
    assert typed(*TRAIN, "-o", "plain")[0] == 0
    assert typed("tokenizer", "train", "en.txt.gz", *TRAIN[3:], "-o", "packed")[0] == 0
    with Path("en.txt").open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "tsumugu", "tokenizer", "train", "-", *map(str, TRAIN[3:]), "-o", "piped"],
            stdin=file,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "piped: 500 tokens\n")
    for name in ("packed", "piped"):
        assert Path(name, "tokenizer.json").read_bytes() == Path("plain", "tokenizer.json").read_bytes()


def test_a_folder_is_replaced_only_when_told_and_only_if_it_is_a_tokenizers(typed: Any) -> None:
    assert typed(*TRAIN)[0] == 0
    before = Path("tokenizer", "tokenizer.json").read_bytes()
    wanted = "tsumugu: tokenizer: the folder is there already; choose another, or pass --force\n"
    assert typed(*TRAIN[:-1], 400) == (2, "", wanted)
    assert Path("tokenizer", "tokenizer.json").read_bytes() == before
    assert typed(*TRAIN[:-1], 400, "--force")[:2] == (0, "tokenizer: 400 tokens\n")
    Path("tokenizer", "model.safetensors").write_bytes(b"")
    code, _, err = typed(*TRAIN, "--force")
    assert (code, "'model.safetensors' in it is no tokenizer's file" in err) == (2, True)
    assert Path("tokenizer", "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.txt",), "nowhere.txt: there is no such file"),
        (("empty.txt",), "empty.txt: the file is empty"),
        (("blank.txt",), "there is no text to train on"),
        (("latin.txt",), "latin.txt, line 1: byte 0xe9 at offset 3 is not UTF-8"),
        (("en.txt", "--vocab-size", "9"), "9 tokens are too few for 2 special tokens and 256 bytes"),
        (("en.txt", "--kind", "wordpiece"), "wordpiece does not keep spaces"),
        (("en.txt", "--family", "bart"), 'did you mean "bert"'),
        (("en.txt", "--kind", "bpee"), 'did you mean "bpe"'),
        (("en.txt", "--text-column", "txt"), "there is no column 'txt'"),
        (("en.txt", "--output", "no/such"), "mkdir -p no"),
        (("en.txt", "--output", "en.txt"), "en.txt: this is no folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(typed: Any, arguments: tuple[str, ...], said: str) -> None:
    Path("empty.txt").touch()
    Path("blank.txt").write_text("\n \n")
    Path("latin.txt").write_bytes(b"caf\xe9")
    before = sorted(each.name for each in Path().iterdir())
    given = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    options = {"--family": "gpt2", "--vocab-size": "500", **given}
    code, out, err = typed("tokenizer", "train", arguments[0], *(each for pair in options.items() for each in pair))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert sorted(each.name for each in Path().iterdir()) == before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_an_interruption_leaves_nothing(tmp_path: Path, how: signal.Signals, family: str) -> None:
    draw = 12345
    with (tmp_path / "much.txt").open("w") as file:
        for _ in range(120_000):  # words without end: the trainer has a minute's work
            draw = draw * 1103515245 + 12345 & 0x7FFFFFFF
            file.write(f"{draw:x}{draw * 7919:x}{draw * 104729:x}\n")
    command = [sys.executable, "-m", "tsumugu", "tokenizer", "train", "much.txt", "--family", family, "-v", "30000"]
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        workers: list[psutil.Process] = []
        while not workers and time.monotonic() < until and process.poll() is None:
            workers = psutil.Process(process.pid).children()
            time.sleep(0.05)
        assert workers
        time.sleep(1.0)
        process.send_signal(how)
        started = time.monotonic()
        _, said = process.communicate(timeout=30)
        assert time.monotonic() - started < 10
    assert process.returncode in (130, -how)
    if how is signal.SIGINT:
        assert said == "tsumugu: interrupted\n"
    _, alive = psutil.wait_procs(workers, timeout=3)
    assert not alive
    assert not list((tmp_path / "tmp").iterdir())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["much.txt", "tmp"]
