"""The first snippets of the well-known NLP course, with the import changed and a local model named."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tasks.conftest import ModelMaker

from tsumugu import pipeline


def test_sentiment(make: ModelMaker) -> None:
    model = str(make("bert", "sequence-classification", ("NEGATIVE", "POSITIVE")))
    classifier = pipeline("sentiment-analysis", model=model)
    one = classifier("I've been waiting for a HuggingFace course my whole life.")
    assert shape(one) == [{"label": str, "score": float}]
    several = classifier(["I've been waiting for a HuggingFace course my whole life.", "I hate this so much!"])
    assert shape(several) == [{"label": str, "score": float}] * 2


def test_zero_shot(make: ModelMaker) -> None:
    model = str(make("roberta", "sequence-classification", ("contradiction", "neutral", "entailment")))
    classifier = pipeline("zero-shot-classification", model=model)
    result = classifier(
        "This is a course about the Transformers library",
        candidate_labels=["education", "politics", "business"],
    )
    assert shape(result) == {"sequence": str, "labels": [str] * 3, "scores": [float] * 3}
    assert sum(result["scores"]) == pytest.approx(1.0)


def test_generation(decoder_folder: Any) -> None:
    generator = pipeline("text-generation", model=str(decoder_folder))
    assert shape(generator("In this course, we will teach you how to", max_new_tokens=8)) == [{"generated_text": str}]
    two = generator("In this course, we will teach you how to", max_length=60, num_return_sequences=2)
    assert shape(two) == [{"generated_text": str}] * 2
    assert all(each["generated_text"].startswith("In this course, we will teach you how to") for each in two)


def test_mask_filling(encoder_folder: Any) -> None:
    unmasker = pipeline("fill-mask", model=str(encoder_folder))
    found = unmasker("This course will teach you all about [MASK] models.", top_k=2)
    assert shape(found) == [{"score": float, "token": int, "token_str": str, "sequence": str}] * 2
    result = unmasker("This man works as a [MASK].")
    assert len([r["token_str"] for r in result]) == 5


def test_named_entities(make: ModelMaker) -> None:
    model = str(make("bert", "token-classification", ("O", "B-PER", "I-PER", "B-ORG")))
    text = "My name is Sylvain and I work at Hugging Face in Brooklyn."
    entity = {"entity_group": str, "score": float, "word": str, "start": int, "end": int}
    for options in ({"grouped_entities": True}, {"aggregation_strategy": "simple"}):
        found = pipeline("ner", model=model, **options)(text)
        assert found
        assert shape(found) == [entity] * len(found)


def test_question_answering(make: ModelMaker) -> None:
    question_answerer = pipeline("question-answering", model=str(make("bert", "question-answering")))
    result = question_answerer(
        question="Where do I work?",
        context="My name is Sylvain and I work at Hugging Face in Brooklyn",
    )
    assert shape(result) == {"score": float, "start": int, "end": int, "answer": str}


def test_summarization_and_translation(make: ModelMaker) -> None:
    model = str(make("t5", "seq2seq-lm"))
    summarizer = pipeline("summarization", model=model)
    summary = summarizer(
        """
    America has changed dramatically during recent years. Not only has the number of
    graduates in traditional engineering disciplines such as mechanical, civil,
    electrical, chemical, and aeronautical engineering declined.
""",
        max_length=12,
    )
    assert shape(summary) == [{"summary_text": str}]
    translator = pipeline("translation", model=model)
    assert shape(translator("Ce cours est produit par Hugging Face.", max_length=12)) == [{"translation_text": str}]


def shape(value: Any) -> Any:
    """The value with types for texts and numbers."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    return [shape(each) for each in value] if isinstance(value, list) else type(value)
