"""``tsumugu data``, ``evaluate`` and ``compare``, as the shell sees them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def tsumugu(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tsumugu", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits of a data set: of a test that leaks, and with a row that is broken."""
    (tmp_path / "train.csv").write_text("review,stars\n" + "".join(f"good {at},5\nbad {at},1\n" for at in range(8)))
    (tmp_path / "test.csv").write_text("review,stars\ngood 3,5\nbad x,1\n,5\ngood y,5\n")
    return tmp_path


COLUMNS = ("--columns", "text=review,label=stars")


def test_data_are_checked_and_described(folder: Path) -> None:
    refused = tsumugu("data", folder, *COLUMNS)
    assert refused.returncode == 2
    assert refused.stderr.endswith("test.csv, row 3, column 'review': is empty\n")
    found = tsumugu("data", folder, *COLUMNS, "--skip")
    assert found.returncode == 0
    assert "passed over:" in found.stderr
    assert "! test: 1 example (33.3%) also in train" in found.stdout
    assert "8 (50.0%)" in found.stdout
    kept = tsumugu("data", folder, *COLUMNS, "--problems", folder / "bad.jsonl", "--json")
    assert json.loads(kept.stdout)["splits"]["test"]["skipped"] == 1
    assert json.loads((folder / "bad.jsonl").read_text())["what"] == "is empty"
    one = tsumugu("data", folder / "train.csv", folder / "test.csv", *COLUMNS, "--skip", "--languages")
    assert "train.csv" in one.stdout
    assert "languages" in one.stdout


def test_evaluated_and_compared(folder: Path, tmp_path: Path) -> None:
    for baseline in ("majority", "tfidf"):
        out = tmp_path / baseline
        found = tsumugu("evaluate", folder, *COLUMNS, "--skip", "--baseline", baseline, "-o", out, "--resamples", "50")
        assert found.returncode == 0, found.stderr
        assert found.stdout.startswith(f"{baseline}: text-classification, 3 examples of ")
        assert sorted(each.name for each in out.iterdir()) == ["predictions.jsonl", "report.html", "results.json"]
    table = tsumugu("compare", tmp_path / "majority", tmp_path / "tfidf", "--html", tmp_path / "c.html")
    assert [line.split()[:2] for line in table.stdout.splitlines() if line.strip()[:1].isdigit()] == [
        ["1", "tfidf"],
        ["2", "majority"],
    ]
    assert (tmp_path / "c.html").is_file()
    text = tsumugu("compare", tmp_path / "majority", tmp_path / "tfidf", "--format", "markdown").stdout
    assert "| 1 | tfidf | 1.000 [1.000, 1.000] |" in text
    data = json.loads(tsumugu("compare", tmp_path / "tfidf", "--format", "json").stdout)
    assert data[0]["ranks"][0]["scores"]["accuracy"]["value"] == 1


def test_predictions_are_scored(folder: Path) -> None:
    (folder / "p.csv").write_text("answer\n5\n1\n1\n")
    found = tsumugu("evaluate", folder, *COLUMNS, "--skip", "--predictions", folder / "p.csv", "--json")
    results = json.loads(found.stdout)
    assert results["scores"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert (results["system"], results["skipped"], results["seconds"]) == ("p", 1, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to evaluate is named; name one of a model, predictions, a baseline"),
        (("--baseline", "tfifd"), "there is no baseline 'tfifd'; did you mean 'tfidf'?"),
        (("--baseline", "majority", "--columns", "text"), "'text' is no NAME=VALUE"),
        (("--baseline", "majority", "--confidence", "95"), "95.0 is no confidence"),
    ],
)
def test_one_line_for_what_is_wrong(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    found = tsumugu("evaluate", folder, *COLUMNS, "--skip", *arguments)
    assert found.returncode == 2
    assert message in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr


def test_nothing_to_compare(tmp_path: Path) -> None:
    found = tsumugu("compare", tmp_path)
    assert found.returncode == 2
    assert "there is no such file; tsumugu evaluate … --output FOLDER" in found.stderr
