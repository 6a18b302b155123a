"""Texts without labels: labelled by the model itself, or agreed upon; told by a teacher."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.tuning.samples import sentiment
from tests.tuning.test_finetune import recipe
from tests.tuning.test_losses import made

import tsumugu as tg
from tsumugu.blocks.attention import Attention
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.training.events import LOG, read_events
from tsumugu.training.step import tensors_of
from tsumugu.tuning.classification import CONSISTENCY, HIDDEN, LIKELY, SHARPENED, disagreement
from tsumugu.tuning.feed import Beside, ExampleFeed
from tsumugu.tuning.finetune import resume
from tsumugu.tuning.self_training import balanced


def few(folder, source, **sections):
    """A recipe that learns from twenty labelled rows, and has other texts without labels."""
    rows = sentiment()
    free = folder / "free.txt"
    free.parent.mkdir(parents=True, exist_ok=True)
    free.write_text("".join(f"{row['text']} really\n" for row in rows), "utf-8")
    data = {"per_label": 10, "unlabelled": [str(free)], **sections.pop("data", {})}
    return recipe(folder, source, data=data, **sections)


def test_as_many_of_each_label_the_surest_first():
    answers = [
        {"label": label, "score": score}
        for label, score in [("a", 0.91), ("b", 0.99), ("a", 0.97), ("b", 0.5), ("a", 0.95)]
    ]
    assert balanced(answers, ("a", "b"), 0.9) == [(1, "b", 0.99), (2, "a", 0.97)]
    assert balanced(answers, ("a", "b", "c"), 0.9) == []
    assert len(balanced(answers, ("a", "b"), 0.5)) == 4


def test_rounds_of_self_training(tmp_path, tiny):
    values = few(tmp_path, tiny(), self_training={"rounds": 2, "confidence": 0.55}, train={"epochs": 20})
    found = tg.finetune(values, tmp_path / "run", quiet=True)
    learnt = [json.loads(line) for line in (tmp_path / "run/round-1.jsonl").read_text("utf-8").splitlines()]
    labels = [row["label"] for row in learnt]
    assert labels.count("good") == labels.count("bad") > 0
    assert all(row["confidence"] >= 0.55 for row in learnt)
    sources = json.loads((tmp_path / "run/round-1/environment.json").read_text("utf-8"))["sources"]
    assert {each["split"]: each["examples"] for each in sources}["train"] == 20 + len(learnt)
    assert (tmp_path / "run/round-2/model").is_dir()
    assert tg.pipeline("text-classification", found.model)("the film was dull")[0]["label"] in ("good", "bad")
    weights = tmp_path / "run/round-1/model/model.safetensors"
    before = weights.stat().st_mtime_ns
    again = resume(tmp_path / "run", quiet=True)
    assert weights.stat().st_mtime_ns == before
    assert again.test.scores == found.test.scores


def test_consistency_is_the_divergence_of_a_part_from_the_whole(tmp_path, tiny):
    objective, model, _, examples = made("text-classification", tmp_path, tiny(), consistency=1.0)
    rows = objective.unlabelled([row.text for row in examples])
    batch = objective.batch(rows)
    assert batch.counts == {"label": 0, CONSISTENCY: len(examples)}
    inputs = {key: each for key, each in tensors_of(batch, torch.device("cpu")).items() if key != "labels"}
    for module in model.modules():  # what is dropped would have to be dropped alike
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, Attention):
            module.dropout = 0.0
    with torch.no_grad():
        first, second = model(**inputs).logits.unbind(-1)
        gaps = (first - second).abs().sort().values
        model.head.classifier.weight.data *= np.log(LIKELY / (1 - LIKELY)) / (gaps[3:5].mean())  # three are likely
    model.train()
    torch.manual_seed(3)
    ours = float(disagreement(model, inputs).detach())
    torch.manual_seed(3)
    ids = inputs["input_ids"]
    real = inputs.get("attention_mask", torch.ones_like(ids))
    kept = torch.rand(ids.shape) >= HIDDEN
    kept[:, 0] = True
    with torch.no_grad():
        whole, part = (model(input_ids=ids, attention_mask=each).logits for each in (real, real * kept))
    likely = whole.softmax(-1).amax(-1) >= LIKELY
    assert likely.sum() == len(likely) - 4
    wanted = (whole / SHARPENED).softmax(-1)
    each = torch.special.xlogy(wanted, wanted / part.softmax(-1)).sum(-1)
    assert ours == pytest.approx(float(each[likely].sum()), rel=1e-4)


def test_the_weight_of_texts_grows(tmp_path, tiny):
    objective, _, _, examples = made("text-classification", tmp_path, tiny(), count=8, consistency=0.5)
    options = {"batch": 4, "micro_batch": None, "parts": 1, "seed": 0}
    first = ExampleFeed(objective.rows(examples), objective.batch, **options)
    second = ExampleFeed(objective.unlabelled([row.text for row in examples]), objective.batch, **options)
    feed = Beside(first, second, ramp=4)
    ramps = [
        [float(each.inputs["ramp"]) for each in feed.batches(step, 0, 1) if "ramp" in each.inputs] for step in range(6)
    ]
    assert ramps == [[0.25], [0.5], [0.75], [1.0], [1.0], [1.0]]
    assert [each.counts for each in feed.batches(0, 0, 1)] == [
        {"label": 4, CONSISTENCY: 0},
        {"label": 0, CONSISTENCY: 4},
    ]
    assert objective.weights == {"label": 1.0, CONSISTENCY: 0.5}


def test_texts_beside_labels_are_learnt(tmp_path, tiny):
    values = few(tmp_path, tiny(), loss={"consistency": 1.0}, train={"epochs": 40, "batch": 10})
    values["data"]["unlabelled_batch"] = 16
    found = tg.finetune(values, tmp_path / "run", quiet=True)
    losses = [each.values["losses"] for each in read_events(tmp_path / "run" / LOG) if each.kind == "step"]
    assert set(losses[0]) == {"label", CONSISTENCY}
    assert all(np.isfinite(each[CONSISTENCY]) for each in losses)
    assert any(each[CONSISTENCY] > 0 for each in losses)
    assert found.test.scores["accuracy"] > 0.6


def test_a_teacher_labels_what_nobody_did(tmp_path, tiny):
    teacher = tg.finetune(recipe(tmp_path / "teacher", tiny()), tmp_path / "teacher/run", quiet=True)
    assert teacher.test.scores["accuracy"] > 0.99
    values = few(tmp_path, tiny(), loss={"teacher": str(teacher.model), "teacher_share": 1.0}, train={"epochs": 12})
    student = tg.finetune(values, tmp_path / "run", quiet=True)
    assert student.test.scores["accuracy"] > 0.95


@pytest.mark.parametrize(
    ("changes", "task", "error", "said"),
    [
        ({"loss": {"consistency": 1.0}, "data": {"unlabelled": []}}, None, ConfigError, "no texts without labels"),
        ({"self_training": {"rounds": 1}, "data": {"unlabelled": []}}, None, ConfigError, "no texts without labels"),
        ({}, None, ConfigError, "how they are learnt is not said"),
        ({}, "natural-language-inference", ConfigError, "learns nothing from texts"),
        ({"loss": {"consistency": 1.0}}, "natural-language-inference", ConfigError, "has no use for this"),
        ({"self_training": {"rounds": 1}}, "natural-language-inference", ConfigError, "by self-training"),
        (
            {"loss": {"consistency": 1.0}, "data": {"unlabelled": ["data/train.jsonl"]}},
            None,
            InputError,
            "has no label",
        ),
    ],
)
def test_what_does_not_fit(changes, task, error, said, tmp_path, tiny, monkeypatch):
    values = few(tmp_path, tiny())
    if task is not None:
        free = values["data"]["unlabelled"]
        values = recipe(tmp_path, tiny(), task, data={"unlabelled": free})
    monkeypatch.chdir(tmp_path)
    for key, each in changes.items():
        values[key] = {**values.get(key, {}), **each}
    with pytest.raises(error, match=said):
        tg.finetune(values, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
