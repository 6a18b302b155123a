"""Prompted tasks on labelled data: what `evaluate` scores is what the prompt's answer is, examples shown or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.conftest import QUESTIONS, Write

import tsumugu as tg
from tsumugu.core.errors import InputError
from tsumugu.data.labelled.load import load_examples
from tsumugu.evaluation.evaluate import evaluate
from tsumugu.evaluation.results import Settings
from tsumugu.evaluation.shots import pick
from tsumugu.tasks.prompting.examples import as_shots

QUICK = Settings(resamples=50)
TEXT = [{"text": text, "label": label} for text, label in (("a cat", "x"), ("dogs", "x"), ("a rose", "y"))]
PAIR = [{"premise": each["text"], "hypothesis": "a cat", "label": "neutral"} for each in TEXT]
ALIKE = [{"text1": "a", "text2": "b", "score": each} for each in (0.0, 2.0, 4.0)]
SPANS = [{"text": "Ada met Bob", "spans": [[0, 3, "PER"]]}, {"text": "Rome", "spans": [[0, 4, "LOC"]]}]
CHOICES = [{"question": "which?", "choices": ["x", "yy"], "label": 1}]
TARGETS = [{"document": "a b c", "summary": "a"}]


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("text-classification", TEXT),
        ("natural-language-inference", PAIR),
        ("sentence-similarity", ALIKE),
        ("token-classification", SPANS),
        ("question-answering", QUESTIONS),
        ("multiple-choice", CHOICES),
        ("summarization", TARGETS),
    ],
)
@pytest.mark.parametrize("shots", [0, 1])
def test_every_kind_can_be_asked(
    decoder_folder: Path, write: Write, task: str, rows: list[dict[str, Any]], shots: int
) -> None:
    if shots and task in ("sentence-similarity", "token-classification"):
        pytest.skip("the tiny decoder reads too little for a prompt with an example")
    data = load_examples(write("a.jsonl", rows))
    found = evaluate(data, model=str(decoder_folder), task=task, train=data, shots=shots, settings=QUICK)
    assert len(found.items) == len(rows)
    assert all(0 <= each <= 100 or each != each for name, each in found.scores.items() if name in ("accuracy", "f1"))
    for item in found.items:
        answer = item.prediction.answer
        if task == "text-classification":
            assert answer in ("x", "y")
            assert set(item.prediction.probabilities or {}) == {"x", "y"}
        elif task == "natural-language-inference":
            assert answer in ("entailment", "neutral", "contradiction")
        elif task == "token-classification":
            assert all(item.texts[0][start:end] for start, end, _ in answer)
        elif task == "question-answering":
            assert answer in item.texts[1]


def test_a_prompt_is_the_pipelines(decoder_folder: Path, write: Write) -> None:
    data = load_examples(write("a.jsonl", TEXT))
    task = tg.pipeline("text-classification", str(decoder_folder))
    found = evaluate(data, model=task, train=data, shots=2, settings=QUICK)
    shown = [{"text": "a cat", "label": "x"}, {"text": "a rose", "label": "y"}]
    expected = task([row["text"] for row in TEXT], labels=["x", "y"], examples=shown)
    assert [item.prediction.answer for item in found.items] == [each["label"] for each in expected]
    sure = [item.prediction.confidence for item in found.items]
    assert sure == pytest.approx([each["score"] for each in expected], abs=1e-5)


def test_examples_are_of_every_label_in_turn(write: Write) -> None:
    data = load_examples(write("a.jsonl", TEXT))
    assert [row.text for row in pick(data, 3)] == ["a cat", "a rose", "dogs"]
    with pytest.raises(InputError, match="4 of 3 examples cannot be shown"):
        pick(data, 4)


def test_scores_and_names_as_examples(decoder_folder: Path, write: Write) -> None:
    alike = load_examples(write("s.jsonl", ALIKE))
    task: Any = tg.pipeline("sentence-similarity", str(decoder_folder))
    assert [each["score"] for each in as_shots(task, alike)] == [0.0, 0.5, 1.0]
    spans = load_examples(write("n.jsonl", SPANS))
    names: Any = tg.pipeline("token-classification", str(decoder_folder))
    assert as_shots(names, spans)[0]["entities"] == [{"word": "Ada", "entity_group": "PER"}]


def test_what_shows_no_examples(decoder_folder: Path, sentence_folder: Path, write: Write) -> None:
    pairs, texts = write("s.jsonl", ALIKE), write("t.jsonl", TEXT)
    with pytest.raises(InputError, match="only prompts show examples"):
        evaluate(pairs, model=str(sentence_folder), train=pairs, shots=1)
    with pytest.raises(InputError, match="there are no examples of training to show"):
        evaluate(texts, model=str(decoder_folder), shots=1)
    with pytest.raises(InputError, match="text-classification asks of one text; use natural-language-inference"):
        evaluate(write("p.jsonl", PAIR), model=str(decoder_folder), task="text-classification")
