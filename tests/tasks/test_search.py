"""Extracts, search and ranking, against plain loops and sentence-transformers."""

from __future__ import annotations

import math
import pydoc_data.topics
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer, util
from tests.tasks.conftest import ENGLISH_SENTENCES, JAPANESE_SENTENCES, ModelMaker

import tsumugu as tg
from tsumugu.core.errors import InputError
from tsumugu.tasks.extractive_summarization import DAMPING, lexrank, words
from tsumugu.text.sentences import sentences

TEXT = pydoc_data.topics.topics["import"]
STORY = "".join(JAPANESE_SENTENCES)


@pytest.mark.parametrize("text", [TEXT, STORY, "One.", "A b. A b. C d."])
def test_lexrank_is_the_walk_by_plain_loops(text: str) -> None:
    rows = [Counter(words(each)) for each in sentences(text)]
    count = len(rows)
    having = Counter(word for row in rows for word in row)
    vectors = [{word: times * math.log(1 + count / having[word]) for word, times in row.items()} for row in rows]

    def cosine(a: dict[str, float], b: dict[str, float]) -> float:
        product = sum(value * b.get(word, 0.0) for word, value in a.items())
        lengths = math.sqrt(sum(x * x for x in a.values()) * sum(x * x for x in b.values()))
        return product / lengths if lengths else 0.0

    likeness = [[cosine(a, b) for b in vectors] for a in vectors]
    weights = [1 / count] * count
    for _ in range(300):
        reached = [0.0] * count
        for source in range(count):
            total = sum(likeness[source])
            for target in range(count):
                reached[target] += weights[source] * (likeness[source][target] / total if total else 1 / count)
        weights = [DAMPING * each + (1 - DAMPING) / count for each in reached]
    assert np.allclose(lexrank(sentences(text)), weights, atol=1e-9)


def test_extracts_are_sentences_of_the_text_in_its_order() -> None:
    pipe = tg.pipeline("extractive-summarization")
    for text in (TEXT, STORY):
        for options in ({}, {"num_sentences": 2}, {"ratio": 0.2}, {"method": "lead", "num_sentences": 2}):
            [found] = pipe(text, **options)
            every = sentences(text)
            chosen = [each["text"] for each in found["sentences"]]
            assert [each for each in every if each in chosen] == chosen
            assert all(text[each["start"] : each["end"]] == each["text"] for each in found["sentences"])
            wanted = max(1, round(0.2 * len(every))) if "ratio" in options else options.get("num_sentences", 3)
            assert len(chosen) == wanted
            assert all(each in found["summary_text"] for each in chosen)
    assert [each["text"] for each in pipe(TEXT, method="lead")[0]["sentences"]] == sentences(TEXT)[:3]
    assert pipe([STORY, TEXT]) == [pipe(STORY), pipe(TEXT)]
    assert " " not in pipe(STORY)[0]["summary_text"].replace("Hugging Face", "")
    assert pipe("")[0] == {"summary_text": "", "sentences": []}


def test_the_central_sentence_is_found() -> None:
    text = "The moon is far. Cats like milk. Cats like fish. Cats like milk and fish. Tea is hot."
    [found] = tg.pipeline("extractive-summarization", num_sentences=1)(text)
    assert found["summary_text"] == "Cats like milk and fish."


def test_rankings_are_those_of_sentence_transformers(make: ModelMaker, texts: list[str]) -> None:
    folder = str(make("bert", "sequence-classification", ("score",)))
    rank = tg.pipeline("text-ranking", model=folder)
    reference = CrossEncoder(folder, device="cpu", max_length=64)
    query, corpus = ENGLISH_SENTENCES[0], [text for text in texts if text.strip()]
    ours = rank(query, corpus)
    theirs = reference.rank(query, corpus, return_documents=True)
    assert np.allclose([each["score"] for each in ours], [each["score"] for each in theirs], atol=1e-5)
    wanted = {each["corpus_id"]: (each["text"], pytest.approx(each["score"], abs=1e-5)) for each in theirs}
    assert {each["index"]: (each["text"], each["score"]) for each in ours} == wanted
    assert rank({"query": query, "texts": corpus}, top_k=3) == ours[:3]
    raw = rank(query, corpus, function_to_apply="none")
    squashed = [1 / (1 + math.exp(-each["score"])) for each in raw]
    assert np.allclose(squashed, [each["score"] for each in ours], atol=1e-6)
    with pytest.raises(InputError, match="has 2 labels"):
        tg.pipeline("text-ranking", model=str(make("bert", "sequence-classification")))


def test_search_is_that_of_sentence_transformers(make: ModelMaker, sentence_folder: Path, texts: list[str]) -> None:
    corpus = list(dict.fromkeys(text for text in texts if text.strip()))
    queries = [*ENGLISH_SENTENCES, *JAPANESE_SENTENCES]
    search = tg.pipeline("semantic-search", model=str(sentence_folder), corpus=corpus)
    encoder = SentenceTransformer(str(sentence_folder), device="cpu")
    wanted = util.semantic_search(encoder.encode(queries), encoder.encode(corpus), top_k=7)
    for mine, theirs in zip(search(queries, top_k=7), wanted, strict=True):
        assert np.allclose([each["score"] for each in mine], [each["score"] for each in theirs], atol=1e-5)
        scores = {each["corpus_id"]: each["score"] for each in theirs}
        assert all(abs(scores.get(each["index"], mine[-1]["score"]) - each["score"]) <= 1e-5 for each in mine)
        assert all(corpus[each["index"]] == each["text"] for each in mine)
    one = search(queries[0])
    assert len(one) == 5
    assert search(queries[0], corpus=corpus[:3], top_k=9)[0]["text"] in corpus[:3]
    reranker = str(make("bert", "sequence-classification", ("score",)))
    again = tg.pipeline("semantic-search", model=str(sentence_folder), corpus=corpus, reranker=reranker)
    rank = tg.pipeline("text-ranking", model=reranker)
    nearest = [each["text"] for each in search(queries[0], corpus=corpus, top_k=20)]
    wanted_texts = [each["text"] for each in rank(queries[0], nearest, top_k=4)]
    assert [each["text"] for each in again(queries[0], top_k=4, candidates=20)] == wanted_texts


def test_search_says_what_is_missing(sentence_folder: Path) -> None:
    search = tg.pipeline("semantic-search", model=str(sentence_folder))
    with pytest.raises(InputError, match="nothing to search in"):
        search("a")
    with pytest.raises(InputError, match="list of texts"):
        search("a", corpus=[])
    with pytest.raises(InputError, match="needs no model"):
        tg.pipeline("extractive-summarization", model=str(sentence_folder))
    with pytest.raises(InputError, match="did you mean 'lexrank'"):
        tg.pipeline("extractive-summarization")("a", method="lexrang")
