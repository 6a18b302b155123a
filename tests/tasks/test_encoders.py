"""Fill-mask, features, sentence vectors and their likeness, against the libraries that people know them from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tensorflow as tf
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

import tsumugu as tg
from tsumugu.core.errors import CheckpointError, InputError
from tsumugu.tasks.fill_mask import FillMask
from tsumugu.tasks.sentence_embedding import SentenceEmbedding, read_pooling
from tsumugu.tasks.sentence_similarity import SentenceSimilarity

TEXTS = [
    "The import statement binds names.",
    "A",
    "",
    "Lists are mutable sequences, typically used to store collections of homogeneous items and more and more and more.",
    "日本語の文と the English text",
]


@pytest.fixture(scope="module")
def masks(encoder_folder: Path) -> FillMask:
    made = tg.pipeline("fill-mask", model=str(encoder_folder))
    assert isinstance(made, FillMask)
    return made


def test_fill_mask_is_the_usual_pipelines(masks: FillMask, encoder_folder: Path) -> None:
    reference = transformers.pipeline("fill-mask", model=str(encoder_folder))
    texts = ["the [MASK] statement", "a class [MASK] names [MASK] .", "[MASK]"]
    for text in texts:
        ours, theirs = masks(text, top_k=7), reference(text, top_k=7)
        for mine, other in zip(_flat(ours), _flat(theirs), strict=True):
            assert mine["token"] == other["token"]
            assert mine["token_str"] == other["token_str"]
            assert mine["score"] == pytest.approx(other["score"], abs=1e-6)
            assert list(mine) == list(other)
        if text.count("[MASK]") == 1:
            assert [each["sequence"] for each in ours] == [each["sequence"] for each in theirs]
    together = masks(texts, top_k=3)
    assert [_tokens(each) for each in together] == [_tokens(masks(text, top_k=3)) for text in texts]


def test_fill_mask_among_chosen_words(masks: FillMask) -> None:
    answers = masks("the [MASK] statement", targets=["import", "class"])
    assert {each["token_str"] for each in answers} == {"import", "class"}
    assert answers[0]["score"] >= answers[1]["score"]
    with pytest.raises(InputError, match="not one token"):
        masks("the [MASK]", targets=["supercalifragilistic"])


def test_fill_mask_says_what_is_missing(masks: FillMask) -> None:
    with pytest.raises(InputError, match=r"no \[MASK\]"):
        masks("nothing is hidden here")


def test_features_are_the_usual_pipelines(encoder_folder: Path) -> None:
    ours = tg.pipeline("feature-extraction", model=str(encoder_folder))
    reference = transformers.pipeline("feature-extraction", model=str(encoder_folder))
    for text in TEXTS:
        assert np.allclose(ours(text), reference(text), atol=1e-5)
    for row, text in zip(ours(TEXTS), TEXTS, strict=True):
        assert np.allclose(row, ours(text), atol=1e-5)


def test_features_come_in_every_framework(encoder_folder: Path) -> None:
    ours = tg.pipeline("feature-extraction", model=str(encoder_folder))
    plain = np.array(ours(TEXTS[0]))
    kinds = {"pt": torch.Tensor, "tf": tf.Tensor, "jax": jax.Array, "np": np.ndarray}
    for name, kind in kinds.items():
        features = ours(TEXTS[0], return_tensors=name)
        assert isinstance(features, kind)
        assert np.allclose(np.asarray(features), plain)


def test_vectors_are_those_of_sentence_transformers(sentence_folder: Path) -> None:
    ours = tg.pipeline("sentence-embedding", model=str(sentence_folder))
    assert isinstance(ours, SentenceEmbedding)
    reference = SentenceTransformer(str(sentence_folder), device="cpu")
    wanted = reference.encode(TEXTS)
    assert np.abs(ours.encode(TEXTS) - wanted).max() <= 1e-5
    assert np.allclose(ours(TEXTS[0]), wanted[0], atol=1e-5)
    assert ours.encode([]).shape == (0, 32)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=60), min_size=1, max_size=12))
def test_a_vector_does_not_depend_on_its_neighbours(encoder_folder: Path, texts: list[str]) -> None:
    task = _embedding(encoder_folder)
    alone = np.stack([task.encode([text])[0] for text in texts])
    assert np.abs(task.encode(texts) - alone).max() <= 1e-5


def test_pooling_and_length_can_be_chosen(encoder_folder: Path) -> None:
    task = _embedding(encoder_folder)
    unit = task.encode(TEXTS, normalize=True)
    assert np.allclose(np.linalg.norm(unit, axis=-1), 1.0, atol=1e-5)
    assert not np.allclose(task.encode(TEXTS, pooling="cls"), task.encode(TEXTS, pooling="mean"))
    with pytest.raises(InputError, match="did you mean 'mean'"):
        task.encode(TEXTS, pooling="meen")


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        ("modules.json", "{", "not valid JSON"),
        ("modules.json", "{}", "expected a list"),
        ("modules.json", '[{"type": "x.Dense", "path": "2_Dense"}]', "'Dense' is not known"),
        ("modules.json", '[{"type": "x.Pooling", "path": "../../etc"}]', "leads out of the folder"),
    ],
)
def test_broken_sentence_files_are_named(tmp_path: Path, file: str, content: str, line: str) -> None:
    (tmp_path / file).write_text(content, "utf-8")
    with pytest.raises(CheckpointError, match=line):
        read_pooling(tmp_path)


def test_likeness_of_pairs_lists_and_matrices(encoder_folder: Path) -> None:
    sts = tg.pipeline("sts", model=str(encoder_folder))
    assert isinstance(sts, SentenceSimilarity)
    one = sts(TEXTS[0], TEXTS[3])["score"]
    assert sts([(TEXTS[0], TEXTS[3]), (TEXTS[0], TEXTS[0])]) == [
        {"score": pytest.approx(one, abs=1e-6)},
        {"score": pytest.approx(1.0, abs=1e-6)},
    ]
    several = sts(TEXTS[0], TEXTS[1:])
    assert [each["text"] for each in several] == TEXTS[1:]
    scores = sts({"source_sentence": TEXTS[0], "sentences": TEXTS[1:]})
    assert scores == [each["score"] for each in several]
    ranked = sts.rank(TEXTS[0], TEXTS)
    assert ranked[0]["index"] == 0
    assert [each["score"] for each in ranked] == sorted((each["score"] for each in ranked), reverse=True)
    matrix = sts.matrix(TEXTS)
    assert np.allclose(matrix, matrix.T, atol=1e-6)
    with pytest.raises(InputError, match="source_sentence"):
        sts({"sentences": ["a"]})


@pytest.mark.weights
def test_minilm_gives_the_vectors_of_sentence_transformers(minilm_path: Path) -> None:
    """200 sentences of many lengths and several scripts: cosine at least 0.99999."""
    import pydoc_data.topics

    words = " ".join(pydoc_data.topics.topics.values()).split()
    texts = [" ".join(words[i * 37 : i * 37 + 1 + i % 25]) for i in range(189)]
    texts += [
        " ".join(words[:400]),
        "駅はどこですか。",
        "Grüße!",
        "¿Qué tal?",
        "🙂👩‍👩‍👧",
        "a",
        "",
        "x" * 500,
        "ＡＢＣ",
        "한국어 문장",
        "\t\n tabs",
    ]
    ours = tg.pipeline("sentence-embedding", model=str(minilm_path)).encode(texts)  # type: ignore[attr-defined]
    theirs = SentenceTransformer(str(minilm_path), device="cpu").encode(texts)
    cosine = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert len(cosine) == 200
    assert cosine.min() >= 0.99999


def test_a_saved_sentence_encoder_keeps_its_manner(sentence_folder: Path, tmp_path: Path) -> None:
    ours = tg.pipeline("sentence-embedding", model=str(sentence_folder))
    tg.save_model(ours.model, tmp_path, tokenizer=ours.tokenizer)
    again = tg.pipeline("sentence-embedding", model=str(tmp_path))
    assert isinstance(ours, SentenceEmbedding)
    assert isinstance(again, SentenceEmbedding)
    assert again.pooling == ours.pooling
    assert np.array_equal(again.encode(TEXTS), ours.encode(TEXTS))
    assert np.abs(SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS) - ours.encode(TEXTS)).max() <= 1e-5


_known: dict[Path, SentenceEmbedding] = {}


def _embedding(folder: Path) -> SentenceEmbedding:
    if folder not in _known:
        made = tg.pipeline("sentence-embedding", model=str(folder))
        assert isinstance(made, SentenceEmbedding)
        _known[folder] = made
    return _known[folder]


def _flat(answers: Any) -> list[dict[str, Any]]:
    return [each for group in answers for each in group] if isinstance(answers[0], list) else answers


def _tokens(answers: Any) -> list[int]:
    return [each["token"] for each in _flat(answers)]
