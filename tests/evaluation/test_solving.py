"""Every task on labelled data: what `evaluate` scores is what the pipeline answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluation.conftest import QUESTIONS, Write

import tsumugu as tg
from tsumugu.core.errors import InputError
from tsumugu.core.registry import FAMILIES
from tsumugu.evaluation.evaluate import evaluate
from tsumugu.evaluation.results import Settings

QUICK = Settings(resamples=50)
MakeModel = Callable[..., Path]


@pytest.fixture
def make(encoder_folder: Path, tmp_path: Path) -> MakeModel:
    """(head, labels) -> the folder of a BERT with random weights."""

    def made(head: str, labels: tuple[str, ...]) -> Path:
        tokenizer = tg.load_tokenizer(encoder_folder)
        family = FAMILIES["bert"]
        sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64, "max_positions": 64}
        model = family.build(family.config_class(vocab_size=len(tokenizer), labels=labels, **sizes), head)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for each in model.parameters():
                noise = torch.randn(each.shape, generator=generator)
                each.copy_(noise * 0.3 if each.dim() > 1 else 1.0 + noise * 0.1)
        tg.save_model(model, tmp_path / head, tokenizer=tokenizer)
        return tmp_path / head

    return made


TEXTS = ["The module is imported.", "A class has methods and functions", "if it is None: return"]


def test_labels_of_texts(make: MakeModel, write: Write) -> None:
    data = write("t.jsonl", [{"text": text, "label": label} for text, label in zip(TEXTS, "aba", strict=True)])
    task = tg.pipeline("text-classification", make("sequence-classification", ("A", "B")))
    found = evaluate(data, model=task, settings=QUICK)
    for item in found.items:
        expected = {each["label"].lower(): each["score"] for each in task(item.texts[0], top_k=None)}
        assert item.prediction.probabilities == pytest.approx(expected, abs=1e-5)
        assert item.prediction.answer == max(expected, key=expected.__getitem__)
    assert {"ece", "log_loss", "brier"} <= set(found.scores)


def test_labels_of_pairs(make: MakeModel, write: Write) -> None:
    rows = [{"premise": text, "hypothesis": TEXTS[0], "label": label} for text, label in zip(TEXTS, "xyx", strict=True)]
    task = tg.pipeline("text-classification", make("sequence-classification", ("LABEL_0", "LABEL_1")))
    found = evaluate(write("p.jsonl", rows), model=task, settings=QUICK)
    for item in found.items:
        answer = task({"text": item.texts[0], "text_pair": item.texts[1]})
        assert item.prediction.answer == {"LABEL_0": "x", "LABEL_1": "y"}[answer["label"]]
        assert item.prediction.confidence == pytest.approx(answer["score"], abs=1e-5)
    with pytest.raises(InputError, match="are none of the data's"):
        evaluate(write("p.jsonl", [{**row, "label": f"{row['label']}{at}"} for at, row in enumerate(rows)]), model=task)


def test_labels_of_ones_own(make: MakeModel, write: Write) -> None:
    data = write("z.jsonl", [{"text": text, "label": label} for text, label in zip(TEXTS, "aba", strict=True)])
    task = tg.pipeline("zero-shot-classification", make("sequence-classification", ("contradiction", "entailment")))
    found = evaluate(data, model=task, settings=QUICK)
    for item in found.items:
        answer = task(item.texts[0], candidate_labels=["a", "b"])
        assert item.prediction.answer == answer["labels"][0]
        assert item.prediction.confidence == pytest.approx(answer["scores"][0], abs=1e-5)


def test_entities(make: MakeModel, write: Write) -> None:
    rows = [{"text": text, "spans": [[0, 3, "X"]]} for text in TEXTS]
    task = tg.pipeline("token-classification", make("token-classification", ("O", "B-X", "I-X")))
    found = evaluate(write("n.jsonl", rows), model=task, options={"aggregation_strategy": "first"}, settings=QUICK)
    for item in found.items:
        entities = task(item.texts[0], aggregation_strategy="first")
        assert list(item.prediction.answer) == [(each["start"], each["end"], each["entity_group"]) for each in entities]
    assert any(item.prediction.answer for item in found.items)


def test_answers(make: MakeModel, write: Write) -> None:
    task = tg.pipeline("question-answering", make("question-answering", ("LABEL_0", "LABEL_1")))
    for rows in (QUESTIONS, QUESTIONS[:1]):
        found = evaluate(write("q.jsonl", rows), model=task, settings=QUICK)
        for item in found.items:
            asked: dict[str, Any] = dict(zip(("question", "context"), item.texts, strict=True))
            answer = task(asked, handle_impossible_answer=len(rows) == 2)
            assert item.prediction.answer == answer["answer"]
