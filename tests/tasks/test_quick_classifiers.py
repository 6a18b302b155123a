"""Classifiers on the quick engine answer as on torch, load none, and are refused for another task all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.tasks.conftest import ModelMaker
from tests.tasks.test_classifiers import TAGS, alike

import tsumugu as tg
from tsumugu.core.errors import InputError
from tsumugu.engines.onnx_model import OnnxModel

TOLERANCE = 1e-4


@pytest.fixture(params=["bert", "roberta", "electra"])
def family(request: pytest.FixtureRequest, cache: Path) -> str:
    name: str = request.param
    return name


def test_labels_of_texts_and_pairs(family: str, make: ModelMaker, texts: list[str]) -> None:
    folder = make(family, "sequence-classification", ("no", "maybe", "yes"))
    quick, usual = (tg.pipeline("text-classification", model=folder, engine=each) for each in ("auto", None))
    assert isinstance(quick.model, OnnxModel)
    some = texts[:20]
    alike(quick(some, top_k=None), usual(some, top_k=None), TOLERANCE)
    pairs = [{"text": one, "text_pair": other} for one, other in zip(some, reversed(some), strict=True)]
    alike(quick(pairs), usual(pairs), TOLERANCE)


def test_a_decoder_that_classifies(make: ModelMaker, texts: list[str], cache: Path) -> None:
    folder = make("gpt2", "sequence-classification", ("no", "yes"))
    quick, usual = (tg.pipeline("text-classification", model=folder, engine=each) for each in ("auto", None))
    assert isinstance(quick.model, OnnxModel)
    alike(quick(texts[:20], top_k=None), usual(texts[:20], top_k=None), TOLERANCE)


def test_labels_of_tokens(family: str, make: ModelMaker, texts: list[str]) -> None:
    folder = make(family, "token-classification", TAGS)
    quick, usual = (tg.pipeline("ner", model=folder, engine=each) for each in ("auto", None))
    for strategy in ("none", "average"):
        options = {"aggregation_strategy": strategy, "stride": 4}
        alike(quick(texts[:20], **options), usual(texts[:20], **options), TOLERANCE)


def test_answers(family: str, make: ModelMaker, texts: list[str]) -> None:
    folder = make(family, "question-answering")
    quick, usual = (tg.pipeline("question-answering", model=folder, engine=each) for each in ("auto", None))
    context = " ".join(texts[:12])
    questions = ["Who?", "When was it?"]
    alike(quick(questions, context, top_k=2), usual(questions, context, top_k=2), TOLERANCE)


def test_ranks(make: ModelMaker, texts: list[str], cache: Path) -> None:
    folder = make("bert", "sequence-classification", ("score",))
    quick, usual = (tg.pipeline("text-ranking", model=folder, engine=each) for each in ("auto", None))
    pairs = [(texts[0], text) for text in texts[:20]]
    alike(quick.scores(pairs), usual.scores(pairs), TOLERANCE)


def test_a_model_for_another_task_is_refused(make: ModelMaker, cache: Path) -> None:
    with pytest.raises(InputError, match="question-answering needs"):
        tg.pipeline("question-answering", model=make("bert", "token-classification", TAGS), engine="auto")


def test_a_compiled_classifier_needs_no_torch(make: ModelMaker, cache: Path) -> None:
    folder = make("bert", "sequence-classification", ("no", "maybe", "yes"))
    solve = f"import sys, tsumugu as tg\nprint(tg.pipeline('text-classification', {str(folder)!r}, engine='onnx')('a'))"
    first = subprocess.run([sys.executable, "-c", solve], capture_output=True, text=True, check=True).stdout
    more = f"{solve}\nprint('torch' in sys.modules)"
    again = subprocess.run([sys.executable, "-c", more], capture_output=True, text=True, check=True).stdout
    assert again == first + "False\n"
