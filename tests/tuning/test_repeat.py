"""Seeds and folds: each run in a folder of its own, none done twice, their scores summed up."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score
from tests.tuning.samples import sentiment, write
from tests.tuning.test_finetune import recipe

import tsumugu as tg
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.data.labelled.examples import Examples, TextExample
from tsumugu.training.runs import read_run
from tsumugu.tuning.finetune import resume
from tsumugu.tuning.recipe import Tuning
from tsumugu.tuning.splits import folds_of, read_splits


@given(st.lists(st.sampled_from("abc"), min_size=7, max_size=60), st.integers(2, 7), st.integers(0, 5))
def test_folds_are_of_like_size_and_have_like_shares_of_each_label(labels, folds, seed):
    rows = tuple(TextExample(text=str(at), label=label) for at, label in enumerate(labels))
    places = folds_of(Examples("text-classification", rows), folds, seed)
    sizes = np.bincount(places, minlength=folds + 1)[1:]
    assert sizes.max() - sizes.min() <= 1
    for label in "abc":
        shares = np.bincount(places[np.array(labels) == label], minlength=folds + 1)[1:]
        assert shares.max() - shares.min() <= 1


def test_every_example_is_tested_once_by_a_model_that_did_not_see_it(tmp_path):
    path = write(tmp_path / "train.jsonl", [{**row, "id": str(at)} for at, row in enumerate(sentiment())])
    tested = []
    for fold in (1, 2, 3):
        values = {
            "task": "sentiment",
            "model": {"source": "x"},
            "data": {"source": str(path), "folds": 3, "fold": fold},
        }
        splits = read_splits(Tuning.from_values(values), "text-classification")
        names = [{row.id for row in part} for part in (splits.train, splits.validation, splits.test)]
        assert sum(map(len, names)) == len(set.union(*names)) == len(sentiment())
        tested += names[2]
    assert sorted(tested) == sorted(str(at) for at in range(len(sentiment())))


def test_folds_are_pooled(tmp_path, tiny):
    values = recipe(tmp_path, tiny(), train={"epochs": 2})
    values["data"]["test"] = None
    found = tg.finetune({**values, "repeat": {"folds": 3}}, tmp_path / "run", quiet=True)
    items = found.test.items
    assert len(items) == len(sentiment())
    assert found.test.scores["accuracy"] == pytest.approx(
        accuracy_score([item.reference for item in items], [item.prediction.answer for item in items])
    )
    each = [json.loads((tmp_path / f"run/fold-{at}/test/results.json").read_text("utf-8")) for at in (1, 2, 3)]
    values = [one["scores"]["accuracy"]["value"] for one in each]
    summary = json.loads((tmp_path / "run/summary.json").read_text("utf-8"))
    assert summary["scores"]["accuracy"]["mean"] == pytest.approx(statistics.fmean(values))
    assert summary["scores"]["accuracy"]["deviation"] == pytest.approx(np.std(values, ddof=1))
    assert summary["pooled"]["accuracy"]["value"] == found.test.scores["accuracy"]
    assert tg.pipeline("text-classification", tmp_path / "run")("the film was dull")[0]["label"] in ("good", "bad")
    assert read_run(tmp_path / "run").state == "done"


def test_what_has_only_a_loss(tmp_path, tiny):
    rows = [{"prompt": f"the {row['text']}", "completion": row["label"]} for row in sentiment()[:20]]
    values = recipe(tmp_path, tiny("llama"), "instruction-tuning", rows, train={"epochs": None, "steps": 1})
    with pytest.raises(ConfigError, match="no score that folds could pool"):
        tg.finetune({**values, "repeat": {"folds": 2}}, tmp_path / "folds", quiet=True)
    found = tg.finetune({**values, "repeat": {"seeds": 2}}, tmp_path / "seeds", quiet=True)
    assert list(found.summary.scores) == ["validation loss"]
    assert found.summary.scores["validation loss"].mean > 0


def test_what_is_done_is_not_done_again(tmp_path, tiny):
    values = recipe(tmp_path, tiny(), train={"epochs": 1, "seed": 4}, repeat={"seeds": 2})
    first = tg.finetune(values, tmp_path / "run", quiet=True)
    assert list(first.summary.runs) == ["seed-4", "seed-5"]
    weights = tmp_path / "run" / "seed-4" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns, weights.stat().st_ino
    with pytest.raises(InputError, match="there is a run"):
        tg.finetune(values, tmp_path / "run", quiet=True)
    more = resume(tmp_path / "run", {"repeat.seeds": "3"}, quiet=True)
    assert list(more.summary.runs) == ["seed-4", "seed-5", "seed-6"]
    assert (weights.stat().st_mtime_ns, weights.stat().st_ino) == before
    assert {name: more.summary.runs[name] for name in first.summary.runs} == first.summary.runs
    alone = recipe(tmp_path, tiny(), train={"epochs": 1, "seed": 6})
    assert tg.finetune(alone, tmp_path / "alone", quiet=True).test.scores == more.summary.runs["seed-6"]


def test_a_bad_request_leaves_nothing(tmp_path, tiny):
    values = recipe(tmp_path, tiny(), train={"epochs": 1})
    with pytest.raises(ConfigError, match="there are seeds already"):
        tg.finetune({**values, "repeat": {"folds": 3, "seeds": 3}}, tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match="a fold is tested already"):
        tg.finetune({**values, "repeat": {"folds": 3}}, tmp_path / "run", quiet=True)
    values["data"]["test"] = None
    with pytest.raises(InputError, match="do not fill 500 folds"):
        tg.finetune({**values, "repeat": {"folds": 500}}, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_from_the_command_line(tmp_path, tiny):
    write(tmp_path / "data" / "train.jsonl", sentiment())
    options = ["-m", str(tiny()), "-d", str(tmp_path / "data"), "-o", str(tmp_path / "run"), "--epochs", "1"]
    command = [sys.executable, "-m", "tsumugu", "finetune", "sentiment-analysis", *options, "--seeds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["metric", "mean", "±", "dev.", "least", "most"]
    assert lines[1].split()[0] == "validation"
    assert lines[-1] == str(tmp_path / "run" / "model")
