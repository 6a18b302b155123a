"""Text, zero-shot and token classification: the reference library's own pipelines are the judge."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import transformers
from tests.tasks.conftest import ENGLISH_SENTENCES, JAPANESE_SENTENCES, ModelMaker

import tsumugu as tg
from tsumugu.core.errors import CheckpointError, InputError

FAMILIES = ("bert", "roberta", "electra", "gpt2")
FEELINGS = ("NEGATIVE", "NEUTRAL", "POSITIVE")
INFERENCE = ("contradiction", "neutral", "entailment")
TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "LOC")


def alike(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """The same structure, keys in the same order, texts and whole numbers equal, other numbers nearly."""
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            alike(ours[key], theirs[key], tolerance)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            alike(ranked(mine, other, tolerance), other, tolerance)
    elif isinstance(theirs, str | int) or theirs is None:
        assert ours == theirs
    else:
        assert isinstance(ours, float)
        assert abs(ours - float(theirs)) <= tolerance


def ranked(ours: Any, theirs: Any, tolerance: float) -> Any:
    """Our zero-shot answer with labels in their order, where scores are too near to tell which is first.

    Of networks of random weights two labels may have the same score to the last bit.
    """
    if not isinstance(theirs, dict) or "labels" not in theirs:
        return ours
    scores = dict(zip(ours["labels"], ours["scores"], strict=True))
    assert all(high >= low for high, low in pairwise(ours["scores"]))
    there = [scores[label] for label in theirs["labels"]]
    assert all(high >= low - tolerance for high, low in pairwise(there))
    return {**ours, "labels": theirs["labels"], "scores": there}


def short(texts: list[str], folder: Any) -> list[str]:
    """Those that the reference library can read: it does not cut texts that are too long."""
    tokenizer = tg.load_tokenizer(folder)
    return [text for text in texts if 0 < len(tokenizer(text)["input_ids"]) <= 60]


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_of_texts_are_the_usual_pipelines(family: str, make: ModelMaker, texts: list[str]) -> None:
    folder = make(family, "sequence-classification", FEELINGS)
    ours = tg.pipeline("sentiment-analysis", model=str(folder))
    theirs = transformers.pipeline("sentiment-analysis", model=str(folder))
    some = short(texts, folder)
    assert len(some) > 40
    alike(ours(some), theirs(some))
    for top_k in (1, 2, None, 9):
        alike(ours(some, top_k=top_k), theirs(some, top_k=top_k))
    for function in ("sigmoid", "softmax", "none"):
        alike(ours(some, top_k=None, function_to_apply=function), theirs(some, top_k=None, function_to_apply=function))
    alike(ours(some[0]), theirs(some[0]))
    alike(ours(some[0], top_k=2), theirs(some[0], top_k=2))
    alike(list(ours(iter(some[:5]))), theirs(some[:5]))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_pairs_of_texts(family: str, make: ModelMaker, texts: list[str]) -> None:
    folder = make(family, "sequence-classification", INFERENCE)
    ours = tg.pipeline("nli", model=str(folder))
    theirs = transformers.pipeline("text-classification", model=str(folder))
    some = [text for text in short(texts, folder) if len(ours.tokenizer(text)["input_ids"]) < 30]
    pairs = [{"text": a, "text_pair": b} for a, b in zip(some, reversed(some), strict=True)]
    alike(ours(pairs), theirs(pairs))
    alike(ours(pairs[0], top_k=None), theirs(pairs[0], top_k=None))
    mixed = ours([some[0], pairs[0], some[1]])
    alike(mixed, [ours(some[0])[0], ours(pairs[0]), ours(some[1])[0]])


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (("score",), None),
        (("score",), "regression"),
        (FEELINGS, "multi_label_classification"),
        (FEELINGS, "single_label_classification"),
        (FEELINGS, "regression"),
    ],
)
def test_scores_follow_the_models_problem(labels: tuple[str, ...], problem: str | None, make: ModelMaker) -> None:
    folder = make("bert", "sequence-classification", labels, problem_type=problem)
    ours = tg.pipeline("text-classification", model=str(folder))
    theirs = transformers.pipeline("text-classification", model=str(folder))
    for text in (*ENGLISH_SENTENCES, *JAPANESE_SENTENCES):
        alike(ours(text), theirs(text))
        alike(ours(text, top_k=None), theirs(text, top_k=None))


def test_a_problem_outlives_saving(make: ModelMaker, tmp_path: Any) -> None:
    folder = make("bert", "sequence-classification", FEELINGS, problem_type="multi_label_classification")
    pipe = tg.pipeline("text-classification", model=str(folder))
    tg.save_model(pipe.model, tmp_path, tokenizer=pipe.tokenizer)
    again = tg.pipeline(model=str(tmp_path))
    assert again.name == "text-classification"
    assert again("A text.", top_k=None) == pipe("A text.", top_k=None)


def test_all_scores_in_the_labels_order(make: ModelMaker) -> None:
    pipe = tg.pipeline("text-classification", model=str(make("bert", "sequence-classification", FEELINGS)))
    [answers] = pipe("A text.", return_all_scores=True)
    assert [each["label"] for each in answers] == list(FEELINGS)
    assert sorted(answers, key=lambda each: -each["score"]) == pipe("A text.", top_k=None)


def test_long_texts_are_cut_and_neighbours_do_not_matter(make: ModelMaker, texts: list[str]) -> None:
    pipe = tg.pipeline("text-classification", model=str(make("roberta", "sequence-classification", FEELINGS)))
    long = " ".join(texts)
    assert pipe(long) == pipe(long[: len(long) // 2])
    with pytest.raises(InputError, match="more than the 62"):
        pipe(long, truncation=False)
    alike(pipe(texts), [pipe(text)[0] for text in texts])
    one = tg.pipeline("text-classification", model=pipe.model, tokenizer=pipe.tokenizer, batch_size=1)
    alike(one(texts), pipe(texts))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_zero_shot_is_the_usual_pipelines(family: str, make: ModelMaker, texts: list[str]) -> None:
    folder = make(family, "sequence-classification", INFERENCE)
    ours = tg.pipeline("zero-shot-classification", model=str(folder))
    theirs = transformers.pipeline("zero-shot-classification", model=str(folder))
    labels = ["education", "politics", "商売"]
    some = [text for text in texts if text.strip()]  # the longest ones are cut in both
    for multi in (False, True):
        alike(
            ours(some, candidate_labels=labels, multi_label=multi),
            theirs(some, candidate_labels=labels, multi_label=multi),
        )
    for given in ("one, two,three", ["only"]):
        for template in ("This example is {}.", "これは{}についての文章です。"):
            alike(
                [ours(some[0], given, hypothesis_template=template)],
                [theirs(some[0], given, hypothesis_template=template)],
            )


def test_zero_shot_finds_the_label_of_entailment(make: ModelMaker) -> None:
    folder = make("bert", "sequence-classification", ("ENTAILMENT", "NOT_ENTAILMENT"))
    ours = tg.pipeline("zero-shot-classification", model=str(folder))
    theirs = transformers.pipeline("zero-shot-classification", model=str(folder))
    for multi in (False, True):
        alike(ours("A text", ["a", "b"], multi_label=multi), theirs("A text", ["a", "b"], multi_label=multi))
    unnamed = tg.pipeline("zero-shot-classification", model=str(make("bert", "sequence-classification")))
    with pytest.raises(InputError, match="none of the model's labels"):
        unnamed("A text", ["a", "b"])
    assert unnamed("A text", ["a", "b"], entailment="LABEL_1")["labels"]
    for wrong, line in (
        ({}, "no label to choose from"),
        ({"candidate_labels": " , "}, "no label to choose from"),
        ({"candidate_labels": ["a"], "hypothesis_template": "no place"}, "no place for the label"),
    ):
        with pytest.raises(InputError, match=line):
            ours("A text", **wrong)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_tokens_and_entities_are_the_usual_pipelines(
    family: str, strategy: str, make: ModelMaker, texts: list[str]
) -> None:
    folder = make(family, "token-classification", TAGS)
    ours = tg.pipeline("ner", model=str(folder), aggregation_strategy=strategy)
    theirs = transformers.pipeline("ner", model=str(folder), aggregation_strategy=strategy)
    if family in ("roberta", "gpt2") and strategy in ("first", "average", "max"):
        # There, the usual pipeline takes a whole Japanese sentence for one word.
        texts = [text for text in texts if text.isascii()]
    some = [text for text in short(texts, folder) if text.strip()]
    assert len(some) > 20
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ours(some)
        alike(found, theirs(some))
        for mine, text in zip(found, some, strict=True):
            for entity in mine:
                assert entity["start"] <= entity["end"] <= len(text)
        alike(ours(some[:12], ignore_labels=[]), theirs(some[:12], ignore_labels=[]))
        alike(ours(some[0], ignore_labels=["PER", "LOC"]), theirs(some[0], ignore_labels=["PER", "LOC"]))


@pytest.mark.parametrize("stride", [1, 8])
@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
def test_long_texts_are_read_piece_by_piece(strategy: str, stride: int, make: ModelMaker) -> None:
    folder = make("bert", "token-classification", TAGS)
    options = {"aggregation_strategy": strategy, "stride": stride}
    ours = tg.pipeline("ner", model=str(folder), **options)
    theirs = transformers.pipeline("ner", model=str(folder), **options)
    for sentences in (ENGLISH_SENTENCES, JAPANESE_SENTENCES):
        text = " ".join(sentences * 4)
        found = ours(text)
        alike(found, theirs(text))
        assert found[-1]["end"] > len(text) * 0.9


@pytest.mark.parametrize("strategy", ["none", "simple", "first"])
def test_without_a_stride_nothing_is_lost(strategy: str, make: ModelMaker) -> None:
    """The usual pipeline stops where the model's context ends; ours goes on with what follows."""
    folder = make("bert", "token-classification", TAGS)
    ours = tg.pipeline("ner", model=str(folder), aggregation_strategy=strategy)
    theirs = transformers.pipeline("ner", model=str(folder), aggregation_strategy=strategy)
    text = " ".join(ENGLISH_SENTENCES * 4)
    whole, cut = ours(text), theirs(text)
    alike(whole[: len(cut)], cut)
    assert whole[-1]["end"] > len(text) * 0.9 > cut[-1]["end"]


def test_numbers_of_tokens_go_on_through_a_long_text(make: ModelMaker) -> None:
    ner = tg.pipeline("ner", model=str(make("bert", "token-classification", TAGS)), ignore_labels=[])
    text = " ".join(ENGLISH_SENTENCES * 5)
    names = ner.tokenizer.tokenize(text, add_special_tokens=False)
    offsets = ner.tokenizer(text, add_special_tokens=False).offsets()
    for stride in (0, 5):
        found = ner(text, stride=stride)
        assert [each["index"] for each in found] == list(range(1, len(names) + 1))
        assert [(each["start"], each["end"]) for each in found] == offsets


def test_japanese_words_without_spaces(make: ModelMaker) -> None:
    """Where no spelling tells words apart, a Japanese token is a word; positions are those of the text."""
    folder = make("roberta", "token-classification", TAGS)
    ner = tg.pipeline("ner", model=str(folder), ignore_labels=[])
    for text in JAPANESE_SENTENCES:
        simple = ner(text, aggregation_strategy="simple")
        words = ner(text, aggregation_strategy="first")
        assert len(words) >= len(simple) // 2
        for each in words:
            if "�" not in each["word"]:
                assert text[each["start"] : each["end"]] == each["word"].strip()


def test_half_width_kana_are_found_where_they_stand(make: ModelMaker) -> None:
    """The tokenizer makes full width of them, and voiced ones of two; positions are those of the text as it came."""
    from tokenizers import normalizers

    pipe = tg.pipeline("ner", model=str(make("bert", "token-classification", TAGS)), ignore_labels=[])
    tokenizer = tg.load_tokenizer(make("bert", "token-classification", TAGS))
    tokenizer.backend.normalizer = normalizers.NFKC()
    ner = tg.pipeline("ner", model=pipe.model, tokenizer=tokenizer, ignore_labels=[])
    found = ner("ｶﾞとﾊﾟ", aggregation_strategy="first")
    assert [(each["start"], each["end"]) for each in found] == [(0, 5)]
    spans = [(each["start"], each["end"]) for each in ner("ｶﾞ と ﾊﾟ")]
    assert spans[0][0] == 0
    assert spans[-1][1] == 7
    assert all("ｶﾞ と ﾊﾟ"[start:end].strip() for start, end in spans)


def test_texts_that_come_as_words(make: ModelMaker) -> None:
    folder = make("bert", "token-classification", TAGS)
    ours = tg.pipeline("ner", model=str(folder))
    theirs = transformers.pipeline("ner", model=str(folder))
    rows = [sentence.split() for sentence in ENGLISH_SENTENCES]
    for strategy in ("none", "simple", "first"):
        options: dict[str, Any] = {"is_split_into_words": True, "aggregation_strategy": strategy}
        alike(ours(rows, **options), theirs(rows, **options))
        alike(ours(rows[0], **options), theirs(rows[0], **options))
    japanese = ["山田太郎", "は", "東京都", "で"]
    options = {"is_split_into_words": True, "delimiter": "", "aggregation_strategy": "simple", "ignore_labels": []}
    found = ours(japanese, **options)
    alike(found, theirs(japanese, **options))
    assert found[0][-1]["end"] == len("".join(japanese))


def test_the_older_way_to_ask_for_entities(make: ModelMaker) -> None:
    ner = tg.pipeline("ner", model=str(make("bert", "token-classification", TAGS)), grouped_entities=True)
    assert ner(ENGLISH_SENTENCES[0]) == ner(ENGLISH_SENTENCES[0], aggregation_strategy="simple")
    assert ner(ENGLISH_SENTENCES, ignore_subwords=True) == ner(ENGLISH_SENTENCES, aggregation_strategy="first")


def test_what_does_not_fit_is_one_clear_line(make: ModelMaker, encoder_folder: Path, decoder_folder: Path) -> None:
    texts = str(make("bert", "sequence-classification", FEELINGS))
    pipe = tg.pipeline("text-classification", model=texts)
    for wrong, line in (
        ({"function_to_apply": "softmx"}, "did you mean 'softmax'"),
        ({"top_k": 0}, "0 labels are none"),
        ({"topk": 1}, "did you mean 'top_k'"),
    ):
        with pytest.raises(InputError, match=line):
            pipe("A text.", **wrong)
    with pytest.raises(InputError, match="expected text and text_pair"):
        pipe({"text": "a", "pair": "b"})
    with pytest.raises(InputError, match="row 1"):
        pipe(["a", 3])
    with pytest.raises(InputError, match="loaded with head 'sequence-classification'"):
        tg.pipeline("ner", model=pipe.model, tokenizer=pipe.tokenizer)
    with pytest.raises(InputError, match="gives a label for each text, and token-class"):
        tg.pipeline("ner", model=texts)
    with pytest.raises(CheckpointError, match="missing"):
        tg.pipeline("ner", model=str(encoder_folder))
    with pytest.raises(InputError, match="the model gives the next token"):
        tg.pipeline("text-ranking", model=str(decoder_folder))
    ner = tg.pipeline("ner", model=str(make("bert", "token-classification", TAGS)))
    with pytest.raises(InputError, match="did you mean 'simple'"):
        ner("A text.", aggregation_strategy="simpel")
    with pytest.raises(InputError, match="stride"):
        ner(" ".join(ENGLISH_SENTENCES * 5), stride=70)
