"""Evaluation sets in training data: against runs of words compared one by one, from files and from a corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tsumugu as tg
from tsumugu.anatomy.overlap import overlap
from tsumugu.cli import main


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts), "utf-8")
    return path


def by_hand(train: list[str], test: list[str], n: int) -> list[float]:
    def runs(text: str) -> list[tuple[str, ...]]:
        words = text.lower().replace(",", " ").replace(".", " ").split()
        return [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]

    seen = {run for text in train for run in runs(text)}
    return [sum(run in seen for run in runs(text)) / len(runs(text)) for text in test if runs(text)]


def test_equal_to_runs_compared_one_by_one(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    words = [f"word{at}" for at in range(50)]
    train = [" ".join(chance.choice(words, 60)) for _ in range(30)]
    test = [" ".join(chance.choice(words, int(chance.integers(9, 30)))) for _ in range(40)]
    for at in range(0, 40, 4):  # some that were copied, in other letters and with other punctuation
        begun = int(chance.integers(0, 30))
        test[at] = ", ".join(" ".join(train[at % 30].split()[begun : begun + 20]).upper().split()) + "."
    test += ["too short", f"{train[3]} and more"]
    files = write(tmp_path / "train.jsonl", train), write(tmp_path / "test.jsonl", test)
    found = overlap([files[0]], [files[1]])[0]
    wanted = by_hand(train, test, found["n"])
    assert 8 <= found["n"] <= 13
    assert found["short"] == len(test) - len(wanted)
    assert found["dirty"] == sum(share > 0 for share in wanted) >= 11
    assert found["runs_found"] == pytest.approx(sum(wanted) / len(wanted))
    assert found["worst"][0]["share"] == 1.0
    assert overlap([files[1]], [files[1]])[0]["dirty_share"] == 1.0


def test_japanese_by_characters(tmp_path: Path) -> None:
    text = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
    other = "国境の長いトンネルを抜けると雪国であった。夜の底が白くなった。"
    train = write(tmp_path / "train.jsonl", [f"彼はこう書いた「{text.replace('。', '、')}」と。"])
    found = overlap([train], [write(tmp_path / "test.jsonl", [text, other])])[0]
    assert (found["examples"], found["dirty"]) == (2, 1)
    assert found["worst"][0]["text"] == text


def test_the_command_line(
    encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a function that returns the value of an object in a list of names and of other strings"
    train = write(tmp_path / "train.jsonl", [f"see {text} and so on", "no more"])
    test = write(
        tmp_path / "test.jsonl", [text, "another line that is long enough to be looked at but stands nowhere else"]
    )

    def ran(*options: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as left:
            main(["inspect", str(encoder_folder), "--quick", *options])
        printed = capsys.readouterr()
        assert left.value.code == code, printed.err
        return printed.err if code else printed.out

    data = ["--data", str(train), "--overlap", str(test)]
    assert "1 of 2 examples (50.0%) share a run of 13 words" in ran(*data)
    found: Any = json.loads(ran(*data, "--json"))
    assert found["distribution"]["overlap"][0]["dirty"] == 1
    page = tmp_path / "page.html"
    ran(*data, "--html", str(page))
    assert text[:40] in page.read_text("utf-8")
    for wrong in (["--overlap", str(test)], ["--data", str(train), "--overlap", str(tmp_path / "nothing.txt")]):
        assert ran(*wrong, code=2).count("\n") == 1


def test_a_prepared_corpus(encoder_folder: Path, tmp_path: Path) -> None:
    from tsumugu.corpus.prepare import prepare

    text = "a function that returns the value of an object in a list of names and of other strings"
    source = write(tmp_path / "train.jsonl", [text, "another line"])
    prepare([source], tmp_path / "corpus", tokenizer=tg.load_tokenizer(encoder_folder))
    found = overlap([tmp_path / "corpus"], [write(tmp_path / "test.jsonl", [text])])[0]
    assert found["dirty"] == 1
