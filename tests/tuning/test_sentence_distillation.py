"""A teacher's sense of which texts are alike, learnt by a model that reads their translations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tuning.samples import BAD, GOOD, THINGS, likeness
from tests.tuning.test_finetune import recipe

import tsumugu as tg
from tsumugu.core.errors import ConfigError
from tsumugu.data.labelled.examples import Examples, TargetExample
from tsumugu.engines.torch import load_model
from tsumugu.training.step import tensors_of
from tsumugu.tuning.recipe import DataSection, LossSection
from tsumugu.tuning.sentence_distillation import SentenceDistillation

TASK = "sentence-distillation"
SOURCES = [f"the {thing} was {word}" for thing in THINGS for word in GOOD + BAD]
ROWS = [{"source": each, "target": " ".join(reversed(each.split()))} for each in SOURCES]


def cosines(model, texts):
    vectors = tg.pipeline("sentence-embedding", model).encode(texts, normalize=True).astype(np.float64)
    return vectors @ vectors.T


def test_the_loss_is_how_far_cosines_are_from_the_teachers(tiny):
    rows = tuple(TargetExample(source=row["source"], targets=(row["target"],)) for row in ROWS[:9])
    examples = Examples("text-to-text", rows)
    model = load_model(tiny(), task="base")
    loss = LossSection(teacher=str(tiny("roberta")))
    objective = SentenceDistillation(model, tg.load_tokenizer(tiny()), DataSection(source="x"), loss)
    objective.begin(model, examples)
    batch = objective.batch(objective.rows(examples))
    ours = objective.losses(model, tensors_of(batch, torch.device("cpu")))["pair"]
    gaps = cosines(tiny(), [row["target"] for row in ROWS[:9]]) - cosines(tiny("roberta"), SOURCES[:9])
    off = ~np.eye(9, dtype=bool)
    assert float(ours.detach()) / 9 == pytest.approx(float(np.square(gaps[off]).mean()), rel=1e-4)


def test_another_language_comes_to_lie_as_the_teacher_has_it(tmp_path, tiny):
    scored = recipe(tmp_path / "first", tiny("roberta"), "sentence-similarity", likeness())
    teacher = tg.finetune(scored, tmp_path / "teacher", quiet=True).model
    targets = [row["target"] for row in ROWS]
    values = recipe(tmp_path, tiny(), TASK, ROWS, loss={"teacher": str(teacher)}, train={"batch": 20})
    found = tg.finetune(values, tmp_path / "run", quiet=True)
    off = ~np.eye(len(ROWS), dtype=bool)
    before, after = (
        np.square(cosines(each, targets) - cosines(teacher, SOURCES))[off].mean() for each in (tiny(), found.model)
    )
    assert after < before / 4
    assert (found.model / "modules.json").is_file()


def test_a_teacher_must_be_named(tmp_path, tiny):
    with pytest.raises(ConfigError, match=r"loss\.teacher: no teacher is named; such as minilm"):
        tg.finetune(recipe(tmp_path, tiny(), TASK, ROWS), tmp_path / "run", quiet=True)
