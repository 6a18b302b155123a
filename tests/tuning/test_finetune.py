"""Every task is learnt, by every family that has the head; what comes out runs anywhere."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from typing import get_args

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from tests.tuning.samples import DATA, sentiment, write

import tsumugu as tg
from tsumugu.core.config import type_hints
from tsumugu.core.errors import CheckpointError, ConfigError, InputError, UnknownNameError
from tsumugu.training import sparse_gradients
from tsumugu.training.events import LOG, read_events
from tsumugu.tuning.finetune import resume
from tsumugu.tuning.objectives import find_objective
from tsumugu.tuning.recipe import EPOCHS, RATES, ModelSection, Tuning

QUICK = {"train": {"epochs": 10, "lr": 5e-3}, "evaluation": {"every": 0.5}}


def recipe(folder, source, task="text-classification", rows=None, **sections):
    """The values of a recipe that learns the rows of a task and is judged by the same."""
    path = write(folder / "data" / "train.jsonl", DATA[task]() if rows is None else rows)
    data = {"source": str(path), "validation": str(path), "test": str(path), **sections.pop("data", {})}
    values = {"task": task, "model": {"source": str(source), **sections.pop("model", {})}, "data": data}
    values["train"] = {"batch": 8, **QUICK["train"], **sections.pop("train", {})}
    values["evaluation"] = {**QUICK["evaluation"], **sections.pop("evaluation", {})}
    return {**values, **sections}


PRIMARY = {
    "text-classification": ("accuracy", 0.99),
    "natural-language-inference": ("accuracy", 0.99),
    "text-similarity": ("pearson", 0.95),
    "token-classification": ("f1", 0.99),
    "question-answering": ("f1", 0.99),
    "multiple-choice": ("accuracy", 0.99),
    "text2text-generation": ("rougeL", 0.99),
}


@pytest.mark.parametrize("task", DATA)
def test_every_task_is_learnt(task, tmp_path, tiny):
    model = tiny("t5" if task == "text2text-generation" else "bert")
    values = recipe(tmp_path, model, task)
    if task == "question-answering":  # what depends on two things takes longer
        values["model"]["config"] = {"dropout": 0.0, "attention_dropout": 0.0}
    if task in ("question-answering", "text2text-generation"):
        values |= {"optimizer": {"name": "muon"}, "train": {"epochs": 18, "batch": 8, "lr": 8e-3}}
    found = tg.finetune(values, tmp_path / "run", quiet=True)
    assert found.result.reason == "done"
    metric, least = PRIMARY[task]
    assert found.test is not None
    assert found.test.scores[metric] >= least, found.test.scores
    assert (tmp_path / "run" / "test" / "report.html").is_file()
    evaluations = [each for each in read_events(tmp_path / "run" / LOG) if each.kind == "evaluation"]
    best = max(next(iter(each.values["scores"].values())) for each in evaluations)
    assert found.result.best_score == best


def test_gradients_of_the_words_that_were_read_teach_what_whole_ones_do(tmp_path, tiny, monkeypatch):
    move, moved, found = sparse_gradients.RowAdamW._move, {1: 0, 1 << 60: 0}, []
    for large in moved:

        def counted(self, *given, large=large):
            moved[large] += 1
            move(self, *given)

        monkeypatch.setattr(sparse_gradients, "LARGE", large)
        monkeypatch.setattr(sparse_gradients.RowAdamW, "_move", counted)
        tuned = tg.finetune(recipe(tmp_path, tiny(), train={"epochs": 2}), tmp_path / str(large), quiet=True)
        found.append(load_file(tuned.model / "model.safetensors"))
    assert moved[1] >= tuned.result.steps
    assert not moved[1 << 60]
    assert all(np.allclose(each, found[1][name], atol=1e-5) for name, each in found[0].items())
    table = "embeddings.word_embeddings.weight"
    assert np.abs(found[1][f"bert.{table}"] - load_file(tiny() / "model.safetensors")[table]).max() > 1e-3


@pytest.mark.parametrize("family", ["roberta", "electra", "gpt2"])
def test_other_families_learn_too(family, tmp_path, tiny):
    values = recipe(tmp_path, tiny(family))
    found = tg.finetune(values, tmp_path / "run", quiet=True)
    assert found.test.scores["accuracy"] >= 0.99


def test_a_decoder_out_of_a_gguf_file_learns_to_classify(tmp_path, tiny):
    folder = tiny("llama")
    tg.save_model(tg.load_model(folder), tmp_path / "tiny.gguf", tokenizer=tg.load_tokenizer(folder))
    found = tg.finetune(recipe(tmp_path, tmp_path / "tiny.gguf"), tmp_path / "run", quiet=True)
    assert found.test.scores["accuracy"] >= 0.99
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(found.model).eval()
    ids = torch.tensor(tg.load_tokenizer(found.model)("the film was lovely")["input_ids"])[None]
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, tg.load_model(found.model)(ids).logits, atol=1e-5)


def test_the_reference_library_loads_what_comes_out(tmp_path, tiny):
    found = tg.finetune(recipe(tmp_path, tiny()), tmp_path / "run", quiet=True)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(found.model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(found.model)
    assert theirs.config.id2label == {0: "bad", 1: "good"}
    ours = tg.pipeline("text-classification", tmp_path / "run")
    for text in ("the film was lovely", "the song was cold indeed"):
        with torch.no_grad():
            scores = theirs(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist()
        answer = ours(text, top_k=None)
        assert {each["label"]: each["score"] for each in answer} == pytest.approx(
            dict(zip(("bad", "good"), scores, strict=True)), abs=1e-5
        )
    assert not (found.model / "training").exists()
    card = (found.model / "README.md").read_text("utf-8")
    assert "accuracy" in card


def test_the_head_alone(tmp_path, tiny):
    values = recipe(tmp_path, tiny(), model={"method": "head"}, train={"epochs": 2})
    found = tg.finetune(values, tmp_path / "run", quiet=True)
    before, after = load_file(tiny() / "model.safetensors"), load_file(found.model / "model.safetensors")
    after = {name.removeprefix("bert."): each for name, each in after.items()}
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"pooler.dense.weight", "pooler.dense.bias"}
    assert len(after) == len(before) + 2


def test_lora_leaves_an_adapter_and_a_merged_model(tmp_path, tiny):
    values = recipe(tmp_path, tiny(), model={"method": "lora", "lora": {"rank": 4}}, train={"lr": 5e-3})
    found = tg.finetune(values, tmp_path / "run", quiet=True)
    assert found.test.scores["accuracy"] >= 0.99
    before, after = load_file(tiny() / "model.safetensors"), load_file(found.model / "model.safetensors")
    assert np.array_equal(before["embeddings.word_embeddings.weight"], after["bert.embeddings.word_embeddings.weight"])
    config = transformers.AutoConfig.from_pretrained(found.model)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(str(tiny()), config=config)
    theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "run" / "adapter")).eval()
    tokenizer = tg.load_tokenizer(found.model)
    ids = torch.tensor(tokenizer("the film was lovely")["input_ids"])[None]
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, tg.load_model(found.model)(ids).logits, atol=1e-5)


def test_a_head_that_is_there_is_kept(tmp_path, tiny):
    first = tg.finetune(recipe(tmp_path, tiny()), tmp_path / "first", quiet=True)
    values = recipe(tmp_path, first.model, train={"steps": 1, "epochs": None, "lr": 0.0})
    again = tg.finetune(values, tmp_path / "again", quiet=True)
    assert again.test.scores == first.test.scores
    one, other = (load_file(each.model / "model.safetensors") for each in (first, again))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_run_that_is_killed_goes_on_to_the_same_bits(tmp_path, tiny):
    values = recipe(tmp_path, tiny(), train={"epochs": 6}, model={"config": {"dropout": 0.1}})
    values["checkpoints"] = {"every": 4}
    whole = tg.finetune(values, tmp_path / "whole", quiet=True)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values), "utf-8")
    command = [sys.executable, "-m", "tsumugu", "finetune", "-c", str(path), "-o", str(tmp_path / "run"), "--quiet"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 120
    while not [*(tmp_path / "run").glob("checkpoints/step-*")] and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert not (tmp_path / "run" / "model").exists()
    found = resume(tmp_path / "run", quiet=True)
    assert found.test.scores == whole.test.scores
    one, other = (load_file(each.model / "model.safetensors") for each in (whole, found))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_changed_data_are_noticed(tmp_path, tiny):
    values = recipe(tmp_path, tiny(), train={"epochs": 1})
    tg.finetune(values, tmp_path / "run", quiet=True)
    write(tmp_path / "data" / "train.jsonl", sentiment()[1:])
    with pytest.raises(InputError, match="not those that the run began with"):
        resume(tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match="cannot change"):
        resume(tmp_path / "run", {"task": "nli"}, quiet=True)


def test_early_stopping_by_the_score(tmp_path, tiny):
    values = recipe(tmp_path, tiny(), train={"lr": 0.0}, evaluation={"every": 2, "patience": 3})
    found = tg.finetune(values, tmp_path / "run", quiet=True)
    assert (found.result.reason, found.result.steps) == ("early", 8)
    assert found.model is not None
    again = resume(tmp_path / "run", quiet=True)
    assert (again.result.reason, again.result.steps) == ("early", 8)


def test_without_a_validation_split_a_share_is_drawn(tmp_path, tiny):
    rows = sentiment()
    values = recipe(tmp_path, tiny(), rows=rows, train={"epochs": 1})
    values["data"] |= {"validation": None, "validation_share": 0.25}
    tg.finetune(values, tmp_path / "run", quiet=True)
    sources = json.loads((tmp_path / "run" / "environment.json").read_text("utf-8"))["sources"]
    assert {each["split"]: each["examples"] for each in sources} == {
        "train": len(rows) * 3 // 4,
        "validation": len(rows) // 4,
        "test": len(rows),
    }


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"task": "sentimnt"}, UnknownNameError, "did you mean"),
        ({"train": {"tokens": 10}}, ConfigError, "steps or epochs"),
        ({"evaluation": {"every": 0, "patience": 2}}, ConfigError, "nothing is measured before the end"),
        (
            {"data": {"validation": None, "validation_share": 0}, "evaluation": {"patience": 2}},
            ConfigError,
            "held back",
        ),
        ({"data": {"columns": {"text": "nothing"}}}, InputError, "nothing"),
        ({"data": {"labels": ["bad"]}}, InputError, "good"),
        ({"data": {"source": "nowhere.csv"}}, InputError, "no such file"),
        ({"loss": {"class_weights": {"goood": 2.0}}}, ConfigError, "did you mean 'good'"),
    ],
)
def test_what_does_not_fit_is_said_and_leaves_nothing(changes, error, said, tmp_path, tiny):
    values = recipe(tmp_path, tiny())
    for key, each in changes.items():
        values[key] = {**values.get(key, {}), **each} if isinstance(each, dict) else each
    if "tokens" in values["train"]:
        values["train"].pop("epochs")
    with pytest.raises(error, match=said):
        tg.finetune(values, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_lacks_more_than_a_head_is_refused(tmp_path, tiny):
    from safetensors.numpy import save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny().iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors.pop(next(name for name in tensors if "query" in name))
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match="query"):
        tg.finetune(recipe(tmp_path, broken), tmp_path / "run", quiet=True)


def test_names_of_tasks():
    assert find_objective("sentiment-analysis").name == "text-classification"
    assert find_objective("NER").name == "token-classification"
    assert find_objective("translation_en_to_ja").name == "text2text-generation"
    assert find_objective("summarization").name == "text2text-generation"
    assert find_objective("nli").name == "natural-language-inference"


def test_from_the_command_line(tmp_path, tiny):
    write(tmp_path / "data" / "train.jsonl", sentiment())
    write(tmp_path / "data" / "test.jsonl", sentiment()[::3])
    command = [sys.executable, "-m", "tsumugu"]
    options = ["-m", str(tiny()), "-d", str(tmp_path / "data"), "-o", str(tmp_path / "run"), "--epochs", "10"]
    done = subprocess.run(
        [*command, "finetune", "sentiment-analysis", *options, "--train.lr", "5e-3", "--train.batch=8"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == str(tmp_path / "run" / "model")
    assert float(lines[0].split()[1]) > 0.9
    answer = subprocess.run(
        [*command, "run", "sentiment-analysis", "-m", str(tmp_path / "run"), "the town was lovely"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert answer.stdout.split()[1] == "good"
    bad = subprocess.run(
        [*command, "finetune", "sentiment-analysis", "-m", str(tiny())], capture_output=True, text=True, check=False
    )
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)
    assert "no data is named" in bad.stderr
    assert math.isfinite(float(lines[1].split()[1]))


def test_a_value_of_a_section_leaves_the_others_as_they_usually_are(tmp_path, tiny):
    values = recipe(tmp_path, tiny(), schedule={"warmup": 0.05}, evaluation={"patience": 2})
    found = Tuning.from_values(values)
    assert (found.schedule.name, found.schedule.warmup) == ("linear", 0.05)
    assert found.evaluation.rows == Tuning.from_values(recipe(tmp_path, tiny())).evaluation.rows
    assert Tuning.from_yaml(_written(tmp_path / "recipe.yaml", found.to_yaml())) == found


def test_every_method_has_its_rate_and_its_epochs():
    methods = set(get_args(type_hints(ModelSection)["method"]))
    assert methods == set(RATES) == set(EPOCHS)


def _written(path, text):
    path.write_text(text, "utf-8")
    return path
