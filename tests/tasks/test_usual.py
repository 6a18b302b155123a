"""Calls written for the usual pipeline run unchanged: what it calls things, and the shapes of its edge cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tests.tasks.conftest import ENGLISH_SENTENCES, ModelMaker
from tests.tasks.test_classifiers import FEELINGS, INFERENCE, TAGS, alike

import tsumugu as tg
from tsumugu.core.errors import InputError

TEXT = ENGLISH_SENTENCES[0]
SHORT = "Ann met Bob Lee."
Call = Any


@pytest.mark.parametrize(
    "options",
    [
        {"device": -1},
        {"device": None, "token": None, "config": None, "feature_extractor": None},
        {"device_map": "auto"},
        {"device_map": {"": "cpu"}, "framework": "pt"},
        {"torch_dtype": torch.float32, "use_fast": True, "trust_remote_code": True},
        {"model_kwargs": {"torch_dtype": "float32"}, "revision": "main", "num_workers": 0},
    ],
    ids=lambda options: "-".join(options),
)
def test_arguments_of_loading(options: dict[str, Any], make: ModelMaker) -> None:
    folder = str(make("bert", "sequence-classification", FEELINGS))
    assert tg.pipeline("sentiment-analysis", model=folder, **options)(TEXT) == tg.pipeline(
        "sentiment-analysis", model=folder
    )(TEXT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"framework": "tf"}, "framework: 'tf' does not compute here"),
        ({"torch_dtype": "float16", "dtype": "float32"}, "torch_dtype and dtype are the same"),
        ({"device_map": {"a": "cpu", "b": "disk"}}, "a model lies on one device"),
        ({"token": "secret"}, "set HF_TOKEN"),
        ({"config": {}}, "the checkpoint's own files say it"),
        ({"revision": "v2"}, "of no use for this model"),
        ({"device": 0, "model_kwargs": {"device": 1}}, "device is said twice"),
    ],
)
def test_what_cannot_be_had_is_said(options: dict[str, Any], message: str, make: ModelMaker) -> None:
    with pytest.raises(InputError, match=message):
        tg.pipeline("ner", model=str(make("bert", "token-classification", TAGS)), **options)


CALLS: dict[str, tuple[str, str, tuple[str, ...], list[Call]]] = {
    "text-classification": (
        *("bert", "sequence-classification", FEELINGS),
        [
            lambda pipe: pipe([TEXT, "A"], batch_size=2, num_workers=0, padding=True),
            lambda pipe: pipe(TEXT, add_special_tokens=False),
        ],
    ),
    "fill-mask": (
        *("bert", "masked-lm", FEELINGS),
        [
            lambda pipe: pipe(["the [MASK] statement"], top_k=2),
            lambda pipe: pipe("a [MASK] of [MASK]", top_k=2),
            lambda pipe: pipe(["a [MASK] of [MASK]"], top_k=1),
            lambda pipe: pipe("the [MASK] of", top_k=1, tokenizer_kwargs={"truncation": True}),
            lambda pipe: pipe(["the [MASK] of"] * 2, top_k=1, batch_size=2),
        ],
    ),
    "ner": (
        *("bert", "token-classification", TAGS),
        [
            lambda pipe: pipe(""),
            lambda pipe: pipe(["", TEXT], batch_size=2),
            lambda pipe: pipe("", aggregation_strategy="first"),
            lambda pipe: pipe(TEXT.split(), is_split_into_words=True, batch_size=1),
        ],
    ),
    "zero-shot-classification": (
        *("roberta", "sequence-classification", INFERENCE),
        [
            lambda pipe: pipe(sequences=TEXT, candidate_labels=["a", "b"]),
            lambda pipe: pipe([TEXT, "A"], candidate_labels="a, b", batch_size=2),
        ],
    ),
    "text-generation": (
        *("gpt2", "causal-lm", FEELINGS),
        [
            lambda pipe: pipe("A class", max_new_tokens=5, do_sample=False, pad_token_id=1, use_cache=True),
            lambda pipe: pipe(text_inputs="A class", max_new_tokens=5, do_sample=False, return_text=True),
            lambda pipe: pipe("A class", max_new_tokens=5, do_sample=False, prefix="Lists are"),
            lambda pipe: pipe("A class", max_new_tokens=5, do_sample=False, handle_long_generation="hole"),
            lambda pipe: pipe("A class", min_length=9, max_length=12, do_sample=False, eos_token_id=5),
            lambda pipe: pipe(["A class", "A"], max_new_tokens=5, do_sample=False, batch_size=2),
            lambda pipe: pipe(
                "A class", generation_config=transformers.GenerationConfig(max_new_tokens=4, do_sample=False)
            ),
        ],
    ),
}


@pytest.mark.parametrize("task", CALLS)
def test_calls_are_the_usual_pipelines(task: str, make: ModelMaker) -> None:
    family, head, labels, calls = CALLS[task]
    folder = str(make(family, head, labels))
    ours, theirs = tg.pipeline(task, model=folder), transformers.pipeline(task, model=folder)
    for call in calls:
        alike(call(ours), call(theirs))


def test_features_by_their_arguments(make: ModelMaker) -> None:
    extract = tg.pipeline("feature-extraction", model=str(make("bert", "base")))
    assert extract(TEXT, return_tensors=True, tokenize_kwargs={"max_length": 4, "truncation": True}).shape == (1, 4, 32)
    with pytest.raises(InputError, match="truncation and max_length are known"):
        extract(TEXT, tokenize_kwargs={"max_len": 4})


def test_older_names(make: ModelMaker) -> None:
    ask = tg.pipeline("question-answering", model=str(make("bert", "question-answering")))
    asked = {"question": "Who works?", "context": TEXT}
    assert ask(data=asked, topk=2, padding="longest") == ask(asked, top_k=2)
    assert ask(X=[asked, asked], batch_size=1) == [ask(asked)] * 2
    assert ask([asked]) == ask(question=["Who works?"], context=TEXT) == ask(asked)
    judge = tg.pipeline("zero-shot", model=str(make("roberta", "sequence-classification", INFERENCE)))
    assert judge(TEXT, ["a", "b"], multi_class=True) == judge(TEXT, ["a", "b"], multi_label=True)
    with pytest.raises(InputError, match="multi_class and multi_label are the same"):
        judge(TEXT, ["a", "b"], multi_class=True, multi_label=False)


def near(answer: dict[str, Any]) -> dict[str, Any]:
    """The same answer, computed beside others: its score in float32."""
    return {**answer, "score": pytest.approx(answer["score"], rel=1e-5)}


def test_a_prompt_is_called_as_the_usual_pipeline(decoder_folder: Any) -> None:
    """The task that a decoder is asked for takes the arguments that the course gives to a model with a head."""
    model, tokenizer = tg.load_model(decoder_folder), tg.load_tokenizer(decoder_folder)

    def pipe(task: str, **options: Any) -> Any:
        return tg.pipeline(task, model, tokenizer, **options)

    feel = pipe("sentiment-analysis")
    (every,) = feel(SHORT, return_all_scores=True, truncation=True)
    assert [each["label"] for each in every] == ["negative", "positive"]
    assert feel(SHORT, function_to_apply="softmax") == feel(SHORT)
    assert feel([SHORT, "A"], batch_size=1) == feel([SHORT, "A"])
    (nested,) = pipe("sentiment-analysis", top_k=None)(SHORT)
    assert {each["label"] for each in nested} == {"negative", "positive"}
    with pytest.raises(InputError, match="not for prompts"):
        feel(SHORT, function_to_apply="sigmoid")

    topic = pipe("zero-shot-classification")
    plain, about = (topic(SHORT, ["a", "b"], **more) for more in ({}, {"hypothesis_template": "It {}."}))
    assert sorted(plain["labels"]) == sorted(about["labels"])
    assert plain["scores"] != about["scores"]

    names = pipe("ner", grouped_entities=True)
    assert names(SHORT) == names(SHORT, aggregation_strategy="first")
    assert names(SHORT, ignore_labels=["PER", "LOC", "ORG"]) == []
    with pytest.raises(InputError, match="a prompt finds names"):
        names(SHORT, aggregation_strategy="none")

    ask, asked = pipe("question-answering"), {"question": "Who?", "context": SHORT}
    best = ask(asked, max_answer_len=4, doc_stride=2, max_seq_len=30)
    assert ask(question=["Who?", "Where?"], context=SHORT, max_answer_len=4)[0] == near(best)
    several = ask(asked, top_k=3, max_answer_len=4)
    assert len(several) == len({each["answer"] for each in several}) == 3
    assert [each["score"] for each in several] == sorted((each["score"] for each in several), reverse=True)
    assert next(each for each in several if each["answer"] == best["answer"]) == near(best)

    short = pipe("summarization")
    assert short(SHORT, max_length=4, truncation=True) == short(SHORT, max_new_tokens=4)
    assert [list(each) for each in short(SHORT, max_length=4, num_return_sequences=2, seed=1)] == [["summary_text"]] * 2


def test_long_texts_are_cut_for_a_prompt(decoder_folder: Any) -> None:
    feel = tg.pipeline("sentiment-analysis", str(decoder_folder))
    with pytest.raises(InputError, match="tokens are more than"):
        feel("word " * 500)
    assert feel("word " * 500, truncation=True) == feel("word " * 300, truncation=True)
    examples = [{"text": "word " * 500, "label": "positive"}]
    with pytest.raises(InputError, match="fewer or shorter examples"):
        feel("A text.", truncation=True, examples=examples)
