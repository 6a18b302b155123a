"""The whole way: predictions, baselines and models on labelled data; results kept, read again, compared, shown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.evaluation.conftest import QUESTIONS, Write

import tsumugu as tg
from tsumugu.core.errors import InputError
from tsumugu.data.labelled.load import load_examples, load_splits
from tsumugu.evaluation.baselines import BASELINES, find_baseline, sentences
from tsumugu.evaluation.comparison import compare_all, holm, markdown, rank
from tsumugu.evaluation.evaluate import Evaluation, evaluate
from tsumugu.evaluation.predictions import read_predictions
from tsumugu.evaluation.report import write_comparison, write_report
from tsumugu.evaluation.report_words import WORDS
from tsumugu.evaluation.results import Settings, load, summarize
from tsumugu.evaluation.scoring import Item, Prediction, Scoring
from tsumugu.evaluation.solving import match_labels

QUICK = Settings(resamples=50)


# Predictions ------------------------------------------------------------------------------------------


def test_predictions_by_order_and_by_id(write: Write) -> None:
    data = load_examples(write("a.jsonl", [{"id": 1, "text": "x", "label": "a"}, {"id": 2, "text": "y", "label": "b"}]))
    ordered = read_predictions(write("p.jsonl", [{"prediction": "a"}, {"prediction": "a"}]), data)
    assert [each.answer for each in ordered] == ["a", "a"]
    rows = [{"id": "2", "pred": "b", "confidence": 0.75}, {"id": "1", "pred": "b", "confidence": 1.5}]
    by_id = read_predictions(write("p.jsonl", rows), data)
    assert [(each.answer, each.confidence) for each in by_id] == [("b", None), ("b", 0.75)]
    scores = [{"result": [{"label": "b", "score": 0.2}, {"label": "a", "score": 0.8}]}] * 2
    first, _ = read_predictions(write("p.jsonl", scores), data)
    assert (first.answer, first.confidence, first.probabilities) == ("a", 0.8, {"a": 0.8, "b": 0.2})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prediction": "a"}], "1 predictions for 2 examples, and no ids in common"),
        ([{"id": 1, "prediction": "a"}], "there is no prediction for the example '2'"),
        ([{"id": at, "prediction": "a"} for at in (1, 2, 3)], "line 3, column 'id': there is no example '3'"),
        ([{"id": 1, "prediction": "a"}] * 2, "line 2, column 'id': '1' is also the id of "),
        ([{"x": "a"}] * 2, "no column is known for the predictions (columns: 'x'); name it with --column"),
        ([{"prediction": "a"}, {"prediction": None}], "line 2, column 'prediction': holds no label"),
        ([{"prediction": "a"}, {"other": "b"}], "line 2: there is no column 'prediction'"),
    ],
)
def test_predictions_that_do_not_fit(write: Write, rows: list[dict[str, Any]], message: str) -> None:
    data = load_examples(write("a.jsonl", [{"id": 1, "text": "x", "label": "a"}, {"id": 2, "text": "y", "label": "b"}]))
    with pytest.raises(InputError) as caught:
        read_predictions(write("p.jsonl", rows), data)
    assert message in str(caught.value)


def test_predictions_of_every_kind(write: Write, tmp_path: Path) -> None:
    spans = load_examples(write("s.jsonl", [{"text": "京都へ", "spans": [[0, 2, "地"]]}]))
    for value in ([[0, 2, "地"]], [{"start": 0, "end": 2, "entity_group": "地", "score": 0.9}], '[[0, 2, "地"]]'):
        assert read_predictions(write("p.jsonl", [{"entities": value}]), spans)[0].answer == ((0, 2, "地"),)
    words = load_examples(write("t.jsonl", [{"tokens": ["New", "York", "!"], "tags": ["B-X", "I-X", "O"]}]))
    assert read_predictions(write("p.jsonl", [{"tags": ["B-X", "I-X", "O"]}]), words)[0].answer == ((0, 8, "X"),)
    with pytest.raises(InputError, match="2 tags for 3 tokens"):
        read_predictions(write("p.jsonl", [{"tags": ["B-X", "O"]}]), words)
    questions = load_examples(write("q.jsonl", QUESTIONS))
    (tmp_path / "squad.json").write_text('{"q2": "", "q1": "Ada"}')
    assert [each.answer for each in read_predictions(tmp_path / "squad.json", questions)] == ["Ada", ""]
    choices = load_examples(write("c.jsonl", [{"question": "?", "choices": ["x", "y"], "label": 1}] * 3))
    found = read_predictions(write("p.jsonl", [{"prediction": each} for each in ("B", 1, "y")]), choices)
    assert [each.answer for each in found] == [1, 1, 1]
    pairs = load_examples(write("n.jsonl", [{"text1": "a", "text2": "b", "score": 0.5}]))
    with pytest.raises(InputError, match="'x' is not a finite number"):
        read_predictions(write("p.jsonl", [{"prediction": "x"}]), pairs)
    texts = load_examples(write("d.jsonl", [{"document": "a", "summary": "b"}]))
    assert read_predictions(write("p.jsonl", [{"result": [{"summary_text": "[s]"}]}]), texts)[0].answer == "[s]"


# Metrics of every kind --------------------------------------------------------------------------------


def test_each_kind_has_its_metrics(write: Write) -> None:
    questions = evaluate(write("q.jsonl", QUESTIONS), predictions=["Ada!", "it"], settings=QUICK)
    assert questions.scores == {"exact_match": 0.5, "f1": 0.5, "f1_has_answer": 1.0, "f1_no_answer": 0.0}
    assert questions.results.notes == {"rules": "squad"}
    sure = [Prediction("Ada", no_answer=0.1), Prediction("it", no_answer=0.9)]
    assert evaluate(load_examples(write("q.jsonl", QUESTIONS)), predictions=sure, settings=QUICK).results.notes == {
        "rules": "squad",
        "best_f1": 1.0,
        "best_f1_threshold": 0.1,
    }
    rows = [{"text": "京都と東京", "spans": [[0, 2, "地"], [3, 5, "地"]]}, {"text": "太郎", "spans": [[0, 2, "人"]]}]
    spans = evaluate(write("s.jsonl", rows), predictions=[((0, 2, "地"),), ((0, 2, "神"),)], settings=QUICK)
    assert spans.scores == pytest.approx({"precision": 0.5, "recall": 1 / 3, "f1": 0.4, "f1_macro": 2 / 9})
    assert [(each["label"], each["support"]) for each in spans.results.per_label] == [("人", 1), ("地", 2), ("神", 0)]
    pairs = [{"text1": "a", "text2": "b", "score": each} for each in (0.0, 1.0, 2.0)]
    alike = evaluate(write("n.jsonl", pairs), predictions=[0.1, 0.2, 0.9], settings=QUICK)
    assert alike.scores["spearman"] == pytest.approx(1)
    choice = [{"question": "?", "choices": ["x", "y"], "label": 1}] * 2
    assert evaluate(write("c.jsonl", choice), predictions=[1, 0], settings=QUICK).scores == {"accuracy": 0.5}
    texts = [{"document": "a b c d", "summary": "a b c d"}]
    found = evaluate(write("d.jsonl", texts), predictions=["a b c d"], settings=QUICK)
    assert found.scores["rougeL"] == found.scores["exact_match"] == 1
    assert found.scores["bleu"] == pytest.approx(100)
    assert "tok:13a" in found.results.notes["bleu"]


def test_slices_and_what_is_counted(reviews: Path) -> None:
    found = evaluate(reviews, baseline="majority", slice_by=["source"], limit=6, settings=QUICK)
    assert found.results.scores["accuracy"].value == 0.5
    assert [(each.by, each.name) for each in found.results.slices] == []  # too few to say anything
    data = load_splits(reviews, keep=["source"])
    many = replace(data["test"], rows=data["test"].rows * 4)
    sliced = evaluate(many, predictions=["positive"] * len(many), slice_by=["source"], settings=QUICK).results
    parts = {(each.by, each.name): (each.score.value, each.score.examples) for each in sliced.slices}
    assert parts["label", "positive"] == (1.0, 12)
    assert parts["label", "negative"] == (0.0, 12)
    assert parts["source", "web"] == (0.5, 16)
    assert sum(count for (by, _), (_, count) in parts.items() if by == "length") <= 24
    assert sliced.confusion == [[0, 12, 0], [0, 12, 0]]


def test_what_cannot_be_evaluated(reviews: Path, write: Write) -> None:
    for systems, message in (
        ({}, "nothing to evaluate is named"),
        ({"baseline": "majority", "predictions": []}, "several things to evaluate are named"),
        ({"baseline": "most"}, "there is no baseline 'most'"),
        ({"baseline": "lead"}, "the baseline lead is not for text-classification; use majority, tfidf, embeddings"),
        ({"baseline": "majority", "split": "tset"}, "there is no split 'tset'; did you mean 'test'?"),
        ({"baseline": "majority", "metric": "acuracy"}, "there is no metric 'acuracy'; did you mean 'accuracy'?"),
        ({"baseline": "majority", "limit": 0}, "0 examples are none"),
        ({"predictions": ["positive"]}, "1 predictions for 6 examples"),
        ({"predictions": ["positive"] * 6, "slice_by": ["genre"]}, "there is no column 'genre'"),
        ({"model": "minilm", "task": "fill-mask"}, "fill-mask does not solve text-classification"),
    ):
        with pytest.raises(InputError) as caught:
            evaluate(reviews, settings=QUICK, **systems)
        assert message in str(caught.value)
    with pytest.raises(InputError, match="the baseline majority learns from examples; name those of training"):
        evaluate(reviews / "test.jsonl", baseline="majority")


def test_labels_of_training_hold(reviews: Path, write: Write) -> None:
    other = write("other.jsonl", [{"text": "x", "label": "mixed"}])
    with pytest.raises(
        InputError, match=r"other\.jsonl, line 1, column 'label': the label 'mixed' is unseen in training"
    ):
        evaluate(other, baseline="majority", train=reviews)


# Baselines --------------------------------------------------------------------------------------------


def fake_vectors(texts: Any) -> Any:
    return np.array(
        [[text.count("良") + text.count("good"), text.count("悪") + text.count("bad"), 1.0] for text in texts]
    )


@pytest.mark.parametrize("name", ["majority", "tfidf", "embeddings"])
def test_baselines_of_classes(reviews: Path, name: str) -> None:
    data = load_splits(reviews)
    predict = find_baseline(name, "text-classification").fit(data["train"], fake_vectors)
    found = evaluate(data["test"], predictions=list(predict(data["test"])), settings=QUICK)
    assert found.scores["accuracy"] == (0.5 if name == "majority" else 1.0)
    assert found.scores["ece"] >= 0
    assert all(sum((item.prediction.probabilities or {}).values()) == pytest.approx(1) for item in found.items)


def test_baselines_of_pairs_scores_and_choices(write: Write) -> None:
    words = ["dog", "cat", "bird", "fish", "tree", "rose"]
    pairs = [
        {"text1": f"a {one} here", "text2": f"a {other} here", "label": "same" if one == other else "other"}
        for one in words
        for other in (one, words[(words.index(one) + 1) % 6])
    ]
    nli = load_examples(write("p.jsonl", pairs))
    predict = find_baseline("tfidf", "pair-classification").fit(nli, None)
    assert evaluate(nli, predictions=list(predict(nli)), settings=QUICK).scores["accuracy"] == 1
    sts = load_examples(write("s.jsonl", [{**each, "score": 5.0 * (each["label"] == "same")} for each in pairs]), "sts")
    for name in ("tfidf", "overlap"):
        predict = find_baseline(name, "similarity").fit(sts, None)
        assert evaluate(sts, predictions=list(predict(sts)), settings=QUICK).scores["pearson"] > 0.9
    constant = find_baseline("majority", "similarity").fit(sts, None)
    assert {each.answer for each in constant(sts)} == {2.5}
    asked = [
        {"question": f"which is a {one}", "choices": [words[at - 1], one, "x"], "label": 1}
        for at, one in enumerate(words)
    ]
    choices = load_examples(write("c.jsonl", asked))
    for name in ("tfidf", "overlap", "majority"):
        predict = find_baseline(name, "multiple-choice").fit(choices, None)
        assert evaluate(choices, predictions=list(predict(choices)), settings=QUICK).scores["accuracy"] == 1


def test_baselines_by_rules(write: Write) -> None:
    tagged = load_examples(write("t.jsonl", [{"tokens": ["in", "New", "York"], "tags": ["O", "B-LOC", "I-LOC"]}] * 2))
    learned = find_baseline("token-majority", "token-classification").fit(tagged, None)
    first, _ = learned(tagged)
    assert first.answer == ((3, 11, "LOC"),)
    japanese = load_examples(write("j.jsonl", [{"text": "私は京都へ行く", "spans": [[2, 4, "地"]]}]))
    (found,) = find_baseline("token-majority", "token-classification").fit(japanese, None)(japanese)
    assert found.answer == ((2, 4, "地"),)
    question = {"question": "When was Ada born?", "context": "It rained. Ada was born in 1815. She wrote."}
    asked = load_examples(write("q.jsonl", [{**question, "answers": {"text": ["1815"], "answer_start": [27]}}]))
    (answer,) = find_baseline("overlap", "question-answering").fit(asked, None)(asked)
    assert answer.answer == "Ada was born in 1815."
    texts = load_examples(write("d.jsonl", [{"document": "First. Second.", "summary": "x"}]))
    assert next(iter(find_baseline("lead", "text-to-text").fit(texts, None)(texts))).answer == "First."
    assert next(iter(find_baseline("copy", "text-to-text").fit(texts, None)(texts))).answer == "First. Second."
    told = [
        {"document": "The moon is far. Cats like milk. Cats like fish and milk.", "summary": "cats"},
        {"document": "Rain fell on Oslo. Oslo was wet.", "summary": "rain"},
    ]
    texts = load_examples(write("n.jsonl", told))
    assert next(iter(find_baseline("lexrank", "text-to-text").fit(texts, None)(texts))).answer.startswith("Cats like")
    nearest = find_baseline("nearest", "text-to-text").fit(texts, None)
    asked = load_examples(write("a.jsonl", [{"document": "It was wet in Oslo.", "summary": "x"}]))
    assert [each.answer for each in nearest(asked)] == ["rain"]


def test_sentences() -> None:
    assert sentences("It costs 3.5 yen. Really?! Yes, e.g. this") == [
        "It costs 3.5 yen.",
        "Really?!",
        "Yes, e.g.",
        "this",
    ]
    assert sentences("良い。本当に？はい！\n次") == ["良い。", "本当に？", "はい！", "次"]
    assert sentences("") == []


def test_every_baseline_names_kinds_that_are() -> None:
    from tsumugu.data.labelled.examples import KINDS

    learnt_only = {"conversation", "preference"}  # there is no score of theirs that a baseline could have
    assert {kind for each in BASELINES.values() for kind in each.kinds} == set(KINDS) - learnt_only


# Models -----------------------------------------------------------------------------------------------


def test_a_task_solves_pairs_and_choices(sentence_folder: Path, write: Write) -> None:
    task = tg.pipeline("sentence-similarity", sentence_folder)
    pairs = [{"text1": "the module", "text2": text, "score": at} for at, text in enumerate(["a class", "the module"])]
    found = evaluate(write("s.jsonl", pairs), model=task, settings=QUICK)
    expected = [task((each["text1"], each["text2"]))["score"] for each in pairs]
    assert [item.prediction.answer for item in found.items] == pytest.approx(expected, abs=1e-5)
    choices = [{"question": "the module", "choices": ["the class", "the module", "import"], "label": 1}]
    assert evaluate(write("c.jsonl", choices), model=task, settings=QUICK).scores["accuracy"] == 1


def test_a_task_writes_texts(decoder_folder: Path, write: Write) -> None:
    data = write("d.jsonl", [{"source": "The module", "target": "x"}, {"source": "A class", "target": "y"}])
    task = tg.pipeline("text-generation", decoder_folder)
    done: list[int] = []
    found = evaluate(data, model=task, options={"max_new_tokens": 4}, settings=QUICK, progress=done.append)
    expected = task(["The module", "A class"], max_new_tokens=4, return_full_text=False)
    assert [item.prediction.answer for item in found.items] == [each[0]["generated_text"] for each in expected]
    assert sum(done) == 2
    assert found.results.seconds is not None


def test_labels_of_a_model_are_matched() -> None:
    assert match_labels(["POSITIVE", "NEGATIVE"], ["negative", "positive"], {}) == {
        "POSITIVE": "positive",
        "NEGATIVE": "negative",
    }
    assert match_labels(["LABEL_0", "LABEL_1"], ["a", "b"], {}) == {"LABEL_0": "a", "LABEL_1": "b"}
    assert match_labels(["X", "Y"], ["a", "b"], {"X": "b"}) == {"X": "b", "Y": "Y"}
    with pytest.raises(InputError, match=r"the model's labels \(X, Y\) are none of the data's \(a, b\)"):
        match_labels(["X", "Y"], ["a", "b"], {})


# Results that are kept --------------------------------------------------------------------------------


def test_what_is_saved_is_what_is_loaded(reviews: Path, write: Write, tmp_path: Path) -> None:
    rows = [{"text": "京都", "spans": [[0, 2, "地"]]}, {"text": "何も", "spans": []}]
    for number, found in enumerate(
        (
            evaluate(reviews, baseline="tfidf", slice_by=["source"], settings=QUICK),
            evaluate(write("q.jsonl", QUESTIONS), predictions=["Ada", ""], settings=QUICK),
            evaluate(write("s.jsonl", rows), predictions=[((0, 2, "地"),), ()], settings=QUICK),
            evaluate(write("n.jsonl", [{"text1": "a", "text2": "b", "score": 1.0}] * 2), predictions=[1.0, 1.0]),
        )
    ):
        folder = tmp_path / f"out{number}"
        found.save(folder)
        results, items = load(folder)
        assert results.to_dict() == found.results.to_dict()
        assert tuple(items) == found.items
        again = summarize(items, results.scoring, system="again", settings=results.settings)
        assert json.dumps(again.to_dict()["scores"]) == json.dumps(results.to_dict()["scores"])
    assert sorted(path.name for path in folder.iterdir()) == ["predictions.jsonl", "report.html", "results.json"]
    assert "NaN" not in (folder / "results.json").read_text()


def test_results_of_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        load(tmp_path)
    for text in ("[]", "{}", "{", '{"scores": {}, "slices": []}'):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(InputError, match="these are no results of ours"):
            load(tmp_path)


# Comparison -------------------------------------------------------------------------------------------


def evaluated(name: str, answers: list[str], gold: str = "ab" * 20) -> tuple[Any, list[Item]]:
    items = [
        Item(str(at), ("text",), right, Prediction(answer))
        for at, (right, answer) in enumerate(zip(gold, answers, strict=True))
    ]
    return summarize(
        items, Scoring("text-classification", ("a", "b")), system=name, source="x/test.jsonl", settings=QUICK
    ), items


def test_systems_are_ranked_and_differences_tested() -> None:
    good, bad, worse = (
        evaluated("good", ["a", "b"] * 20),
        evaluated("bad", ["a"] * 40),
        evaluated("worse", ["b", "a"] * 20),
    )
    found = rank([bad, worse, good])
    assert [each.system for each in found.ranks] == ["good", "bad", "worse"]
    assert (found.against, found.metric, found.examples) == ("good", "accuracy", 40)
    first, second, third = found.ranks
    assert first.difference is None
    assert second.difference is not None
    assert second.difference.value == pytest.approx(-0.5)
    assert second.difference.p < 0.01
    assert second.mcnemar == pytest.approx(2 / 2**20)
    assert third.adjusted == pytest.approx(2 / 1001)
    assert rank([good, bad], against="bad").ranks[1].difference is None
    twice = rank([good, evaluated("copy", ["a", "b"] * 20)])
    assert twice.ranks[1].difference is not None
    assert (twice.ranks[1].difference.p, twice.ranks[1].mcnemar) == (1, 1)
    assert json.loads(json.dumps(found.to_dict()))["ranks"][0]["system"] == "good"
    table = markdown(found).splitlines()
    assert table[0] == "### x/test.jsonl: text-classification, 40 examples"
    assert table[4].startswith("| 1 | good | 1.000 [1.000, 1.000] | 1.000 |")
    assert table[5].endswith("| -0.500 | < 0.001 | 0.002 |")


def test_lower_is_better_for_losses() -> None:
    gold = "ab" * 20
    sure, unsure = (
        (summarize(items, Scoring("text-classification", ("a", "b")), system=name, settings=QUICK), items)
        for name, share in (("sure", 0.9), ("unsure", 0.6))
        for items in [
            [
                Item(str(at), ("t",), each, Prediction(each, share, {each: share, "ab".replace(each, ""): 1 - share}))
                for at, each in enumerate(gold)
            ]
        ]
    )
    assert [each.system for each in rank([unsure, sure], metric="log_loss").ranks] == ["sure", "unsure"]


def test_different_data_are_told_apart() -> None:
    first, second = evaluated("one", ["a", "b"] * 20), evaluated("two", ["a"] * 40, gold="ba" * 20)
    with pytest.raises(InputError, match="one and two: the examples differ, first at '0' and '0'"):
        rank([first, second])
    with pytest.raises(InputError, match="there is no system 'three'; one of one"):
        rank([first], against="three")
    other = (replace(second[0], source="y/test.jsonl"), second[1])
    assert [each.source for each in compare_all([first, other])] == ["x/test.jsonl", "y/test.jsonl"]


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


# Reports ----------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Reads a page, and fails where tags do not close each other."""

    VOID = ("meta", "line", "rect", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("language", list(WORDS))
def test_a_report_is_one_sound_page(reviews: Path, tmp_path: Path, language: str) -> None:
    found = evaluate(reviews, baseline="majority", settings=QUICK)
    found.save(tmp_path / "out", language=language)
    text = (tmp_path / "out" / "report.html").read_text("utf-8")
    page = Page(text)
    assert dict(page.tags)["html"] == {"lang": language}
    assert WORDS[language]["confusion"] in page.words
    assert {tag for tag, _ in page.tags} >= {"svg", "table", "style"}
    assert not {tag for tag, _ in page.tags} & {"script", "img", "link", "iframe"}
    assert not re.search(r"https?:|url\(|@import|src=", text)
    assert "prefers-color-scheme: dark" in text
    japanese = [attributes for tag, attributes in page.tags if tag == "span" and attributes.get("lang") == "ja"]
    assert japanese


def test_hostile_texts_stay_texts(write: Write, tmp_path: Path) -> None:
    bad = "</td><script>alert(1)</script>\x00\x1b[31m"
    data = write("a.jsonl", [{"id": bad, "text": bad, "label": bad}, {"id": "2", "text": "x", "label": "<b>"}])
    found = evaluate(data, predictions=["<b>", bad], name=bad, settings=QUICK)
    write_report(found.results, found.items, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    Page(text)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "\x00" not in text
    assert "\x1b" not in text


def test_the_worst_errors_come_first(write: Write, tmp_path: Path) -> None:
    data = write("a.jsonl", [{"text": f"text {at}", "label": "a"} for at in range(4)] + [{"text": "z", "label": "b"}])
    predictions = [
        Prediction(label, sure) for label, sure in (("b", 0.6), ("a", 0.9), ("b", 0.9), ("b", 0.7), ("b", 0.8))
    ]
    found = evaluate(data, predictions=predictions, settings=QUICK)
    write_report(found.results, found.items, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert re.findall(r"text \d", text) == ["text 2", "text 3", "text 0"]
    right = evaluate(data, predictions=["a"] * 4 + ["b"], settings=QUICK)
    write_report(right.results, right.items, tmp_path / "report.html")
    assert WORDS["en"]["no_errors"] in (tmp_path / "report.html").read_text("utf-8")


def test_every_kind_has_a_report(write: Write, tmp_path: Path) -> None:
    rows = [{"text": "京都と東京", "spans": [[0, 2, "地"]]}]
    pairs = [{"text1": "a", "text2": "b", "score": each} for each in (0.0, 1.0, 2.0)]
    reports: list[Evaluation] = [
        evaluate(write("s.jsonl", rows), predictions=[((3, 5, "地"),)], settings=QUICK),
        evaluate(write("q.jsonl", QUESTIONS), predictions=["", "it"], settings=QUICK),
        evaluate(write("n.jsonl", pairs), predictions=[3.0, 2.0, 1.0], settings=QUICK),
        evaluate(
            write("c.jsonl", [{"question": "?", "choices": ["x", "y"], "label": 1}]), predictions=[0], settings=QUICK
        ),
        evaluate(write("d.jsonl", [{"document": "a b", "summary": "b" * 1000}]), predictions=["a"], settings=QUICK),
    ]
    for found in reports:
        write_report(found.results, found.items, tmp_path / "report.html", language="ja")
        Page((tmp_path / "report.html").read_text("utf-8"))
    with pytest.raises(InputError, match="there is no report in 'fr'; one of en, ja"):
        write_report(found.results, found.items, tmp_path / "report.html", language="fr")


@pytest.mark.parametrize("language", list(WORDS))
def test_comparisons_have_a_report(tmp_path: Path, language: str) -> None:
    found = compare_all([evaluated("<good>", ["a", "b"] * 20), evaluated("悪い", ["a"] * 40)])
    write_comparison(found, tmp_path / "c.html", language=language)
    page = Page((tmp_path / "c.html").read_text("utf-8"))
    assert "<good>" in page.words
    assert "< 0.001" in page.words


def test_the_words_are_level() -> None:
    assert set(WORDS["en"]) == set(WORDS["ja"])
    templates = Path(tg.__file__).parent / "evaluation" / "templates"
    text = "".join(path.read_text("utf-8") for path in templates.iterdir())
    used = set(re.findall(r"words\.(\w+)", text)) | {"by_length", "by_label", "by_answer", "range"}
    assert used == set(WORDS["en"])
