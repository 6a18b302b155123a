"""Extractive question answering: its documented behaviour in plain loops over the reference library's logits."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.tasks.conftest import ENGLISH_SENTENCES, JAPANESE_SENTENCES, ModelMaker
from tests.tasks.test_classifiers import alike
from transformers.pipelines.document_question_answering import select_starts_ends

import tsumugu as tg
from tsumugu.core.errors import InputError
from tsumugu.tasks.question_answering import _best_spans

FAMILIES = ("bert", "roberta", "electra")
QUESTIONS = ["Where do I work?", "Who jumps over the dog?", "山田太郎はどこで学んだ？"]


def expected(
    model: Any,
    tokenizer: Any,
    question: str,
    context: str,
    *,
    top_k: int = 1,
    doc_stride: int = 8,
    max_seq_len: int = 48,
    max_answer_len: int = 15,
    handle_impossible_answer: bool = False,
    align_to_words: bool = True,
) -> list[dict[str, Any]]:
    """What the pipeline is documented to do: pieces, spans, words, equal answers joined."""
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=max_seq_len,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    answers: list[dict[str, Any]] = []
    nothing = 1e6
    for piece, ids in enumerate(encoded["input_ids"]):
        given = {"input_ids": torch.tensor([ids])}
        if "token_type_ids" in encoded:
            given["token_type_ids"] = torch.tensor([encoded["token_type_ids"][piece]])
        with torch.no_grad():
            output = model(**given)
        sides = encoded.sequence_ids(piece)
        hidden = [
            0 if side == 1 or token == tokenizer.cls_token_id else 1 for side, token in zip(sides, ids, strict=True)
        ]
        wanted = top_k * 2 + 10 if align_to_words else top_k
        starts, ends, scores, nothing = select_starts_ends(
            output.start_logits.double().numpy(),
            output.end_logits.double().numpy(),
            np.array(hidden),
            np.ones(len(ids), dtype=int),
            min_null_score=nothing,
            top_k=wanted,
            handle_impossible_answer=handle_impossible_answer,
            max_answer_len=max_answer_len,
        )
        for start, end, score in zip(starts, ends, scores, strict=True):
            if score == 0:
                continue
            first, last = encoded["offset_mapping"][piece][start][0], encoded["offset_mapping"][piece][end][1]
            if align_to_words:
                a, b = encoded.token_to_word(piece, int(start)), encoded.token_to_word(piece, int(end))
                first = encoded.word_to_chars(piece, a, sequence_index=1).start
                last = encoded.word_to_chars(piece, b, sequence_index=1).end
            text = context[first:last]
            same = [each for each in answers if each["answer"].lower() == text.lower()]
            if same:
                same[0]["score"] += float(score)
            else:
                answers.append({"score": float(score), "start": first, "end": last, "answer": text})
    if handle_impossible_answer:
        answers.append({"score": nothing, "start": 0, "end": 0, "answer": ""})
    return sorted(answers, key=lambda each: each["score"], reverse=True)[:top_k]


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    """Questions with short and long contexts in both languages."""
    draw = random.Random(1)
    contexts = [
        ENGLISH_SENTENCES[0],
        " ".join(ENGLISH_SENTENCES),
        " ".join(draw.choices(ENGLISH_SENTENCES, k=12)),
        "".join(JAPANESE_SENTENCES[:2]),
        "".join(draw.choices(JAPANESE_SENTENCES, k=9)),
        "\n".join([*ENGLISH_SENTENCES, *JAPANESE_SENTENCES]),
    ]
    return [*zip(QUESTIONS * 2, contexts, strict=True), *zip(QUESTIONS[1:], contexts, strict=False)]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_that_are_documented(family: str, make: ModelMaker, pairs: list[tuple[str, str]]) -> None:
    folder = str(make(family, "question-answering"))
    ours = tg.pipeline("question-answering", model=folder, max_seq_len=48, doc_stride=8)
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for options in (
        {"align_to_words": True},
        {"align_to_words": False, "top_k": 4},
        {"align_to_words": True, "top_k": 3, "max_answer_len": 4, "handle_impossible_answer": True},
        {"align_to_words": False, "doc_stride": 3, "max_seq_len": 44, "handle_impossible_answer": True},
    ):
        found = ours(question=[q for q, _ in pairs], context=[c for _, c in pairs], **options)
        for mine, (question, context) in zip(found, pairs, strict=True):
            wanted = expected(theirs, tokenizer, question, context, **options)
            alike(mine, wanted[0] if len(wanted) == 1 else wanted)
            for each in mine if isinstance(mine, list) else [mine]:
                assert each["answer"] == context[each["start"] : each["end"]]


def test_forms_of_a_call(make: ModelMaker) -> None:
    ask = tg.pipeline("qa", model=str(make("bert", "question-answering")))
    question, context = QUESTIONS[0], ENGLISH_SENTENCES[0]
    one = ask(question=question, context=context)
    assert list(one) == ["score", "start", "end", "answer"]
    assert ask({"question": question, "context": context}) == one
    assert ask(question, context) == one
    assert ask([{"question": question, "context": context}]) == one
    several = ask(question=QUESTIONS, context=context)
    alike(several, [ask(question=each, context=context) for each in QUESTIONS])
    many = ask(question=question, context=ENGLISH_SENTENCES)
    alike(many, [ask(question=question, context=each) for each in ENGLISH_SENTENCES])
    rows = ({"question": question, "context": each} for each in ENGLISH_SENTENCES)
    alike(list(ask(rows)), many)
    assert len(ask(question=question, context=context, top_k=3)) == 3


def test_long_contexts_are_read_to_their_end(make: ModelMaker) -> None:
    ask = tg.pipeline("qa", model=str(make("bert", "question-answering")))
    long = " ".join(ENGLISH_SENTENCES * 30)
    answers = ask(question=QUESTIONS[0], context=long, top_k=1000)
    assert max(each["end"] for each in answers) > len(long) * 0.5
    assert len({each["answer"].lower() for each in answers}) == len(answers)
    asked_at_length = ask(question=QUESTIONS[0] * 50, context=long, max_question_len=8)
    assert asked_at_length["answer"]


def test_no_answer(make: ModelMaker) -> None:
    """A model whose first token is by far the likeliest start and end says that there is none."""
    ask = tg.pipeline("qa", model=str(make("bert", "question-answering")))
    found = ask(question=QUESTIONS[0], context=ENGLISH_SENTENCES[0], handle_impossible_answer=True, top_k=2000)
    [none] = [each for each in found if each["answer"] == ""]
    assert (none["start"], none["end"]) == (0, 0)
    assert 0 < none["score"] < 1


def test_the_best_spans_of_a_piece_by_trying_all() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        time, length, count = (int(each) for each in generator.integers((3, 1, 1), (20, 8, 12)))
        start, end = generator.normal(size=(2, time)) * 3
        readable = generator.random(time) < 0.8
        readable[0] = True
        found, none = _best_spans(start.copy(), end.copy(), readable, count, length)
        p, q = (np.exp(np.where(readable, each, -1e4)) for each in (start, end))
        p, q = p / p.sum(), q / q.sum()
        assert none == pytest.approx(p[0] * q[0], abs=1e-12)
        every = [
            (a, b, p[a] * q[b])
            for a in range(1, time)
            for b in range(a, min(time, a + length))
            if readable[a] and readable[b]
        ]
        wanted = sorted(every, key=lambda each: -each[2])[:count]
        assert [each[:2] for each in found] == [each[:2] for each in wanted][: len(found)]
        assert len(found) == min(count, len(wanted))
        assert np.allclose([each[2] for each in found], [each[2] for each in wanted])


def test_japanese_answers_are_not_widened(make: ModelMaker) -> None:
    """Where words are not parted by spaces, an answer keeps to its tokens unless words are asked for."""
    ask = tg.pipeline("qa", model=str(make("roberta", "question-answering")))
    context = "".join(JAPANESE_SENTENCES)
    plain = ask(question=QUESTIONS[2], context=context)
    assert plain == ask(question=QUESTIONS[2], context=context, align_to_words=False)
    english = ask(question=QUESTIONS[0], context=ENGLISH_SENTENCES[0])
    assert english == ask(question=QUESTIONS[0], context=ENGLISH_SENTENCES[0], align_to_words=True)


def test_what_is_missing_is_said(make: ModelMaker) -> None:
    ask = tg.pipeline("qa", model=str(make("bert", "question-answering")))
    for wrong, line in (
        ({"question": "Where?"}, "the context is not there"),
        ({"question": " ", "context": "x"}, "the question is empty"),
        ({"question": "Where?", "context": 3}, "the context is no text"),
    ):
        with pytest.raises(InputError, match=line):
            ask(wrong)
    with pytest.raises(InputError, match="3 questions and 2 contexts"):
        ask(question=["a", "b", "c"], context=["d", "e"])
    with pytest.raises(InputError, match="0 is too small"):
        ask(question="a", context="b", top_k=0)
    with pytest.raises(InputError, match="stride"):
        ask(question="a", context="b " * 100, max_seq_len=20, doc_stride=30)
