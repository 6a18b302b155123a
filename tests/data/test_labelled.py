"""Labelled data in the formats people have, and what is said of data that cannot be used."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsumugu.core.errors import InputError
from tsumugu.data.labelled.checks import join_tokens
from tsumugu.data.labelled.examples import Answer, Span, find_kind
from tsumugu.data.labelled.labels import LabelSet
from tsumugu.data.labelled.load import find_splits, load_examples, load_splits
from tsumugu.data.labelled.report import Lengths, describe, normalized

SHARED = Path(__file__).parents[3] / "shared" / "data"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list) and name.endswith(".jsonl"):
            content = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in content)
        elif not isinstance(content, str | bytes):
            content = json.dumps(content, ensure_ascii=False)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def refused(path: Path, *arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_examples(path, *arguments, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line.removeprefix(f"{path.parent}/")


# Formats ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz"])
def test_the_same_rows_in_every_container(tmp_path: Path, name: str) -> None:
    rows = [{"review": 'a "good", film', "stars": 1}, {"review": "ひどい\n映画", "stars": 0}]
    path = tmp_path / name
    if name.endswith(("csv", "tsv")):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["review", "stars"], delimiter="\t" if name == "a.tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        text = json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows))
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    found = load_examples(path, "sentiment-analysis", columns={"text": "review", "label": "stars"})
    assert [(row.text, row.label) for row in found] == [('a "good", film', "1"), ("ひどい\n映画", "0")]
    assert found.labels == LabelSet(("0", "1"))
    assert (found.kind, found.read, found.problems) == ("text-classification", 2, ())


def test_squad_1_and_2(write: Write) -> None:
    qas = [
        {"id": "q1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]},
        {"id": "q2", "question": "When?", "is_impossible": True, "answers": [], "plausible_answers": []},
    ]
    path = write(
        "dev-v2.0.json",
        {"version": "v2.0", "data": [{"title": "T", "paragraphs": [{"context": "Ada wrote.", "qas": qas}]}]},
    )
    first, second = load_examples(path)
    assert (first.id, first.title, first.answers) == ("q1", "T", (Answer("Ada", 0),))
    assert (second.id, second.context, second.answers) == ("q2", "Ada wrote.", ())
    qas[0]["answers"][0]["answer_start"] = 4  # type: ignore[index]
    write("dev-v2.0.json", {"data": [{"title": "T", "paragraphs": [{"context": "Ada wrote.", "qas": qas}]}]})
    assert refused(path) == (
        "dev-v2.0.json, article 1, paragraph 1, question 1, column 'answers': the context has 'wro' at 4, not 'Ada'; "
        "answer_start counts characters from 0"
    )


def test_jglue(write: Write) -> None:
    pair = {"sentence_pair_id": "0", "yjcaptions_id": "1-2-3", "sentence1": "犬がいる。", "sentence2": "猫がいる。"}
    nli = load_examples(write("jnli/train-v1.3.json", json.dumps({**pair, "label": "neutral"})))
    sts = load_examples(write("jsts/train-v1.3.json", json.dumps({**pair, "label": 2.0})))
    assert (nli.kind, nli[0].id, nli[0].label) == ("pair-classification", "0", "neutral")
    assert (sts.kind, sts[0].text2, sts[0].score) == ("similarity", "猫がいる。", 2.0)
    choices = {f"choice{number}": word for number, word in enumerate(["犬", "猫", "鳥", "魚", "虫"])}
    question = {"q_id": 7, "question": "飛ぶのは？", **choices, "label": 2}
    (found,) = load_examples(write("jcommonsenseqa/train-v1.3.json", json.dumps(question)))
    assert (found.id, found.choices, found.label) == ("7", ("犬", "猫", "鳥", "魚", "虫"), 2)
    cola = load_examples(write("jcola.json", json.dumps({"uid": 1, "source": "BFP", "label": 0, "sentence": "良い。"})))
    assert (cola.kind, cola[0].text, cola[0].label) == ("text-classification", "良い。", "0")


def test_glue_is_not_quoted(write: Write) -> None:
    cola = load_examples(write("CoLA/train.tsv", 'gj04\t1\t\tHe said "go.\ngj04\t0\t*\tHim said.\n'))
    assert [(row.text, row.label) for row in cola] == [('He said "go.', "1"), ("Him said.", "0")]
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    mrpc = load_examples(write("MRPC/train.tsv", "\ufeff" + header + '1\t7\t8\tA "b\tC d"\n'))
    assert (mrpc.kind, mrpc[0].text1, mrpc[0].text2, mrpc[0].label) == ("pair-classification", 'A "b', 'C d"', "1")
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    stsb = load_examples(write("STS-B/dev.tsv", header + "0\tm\tf\t2\t1\tn\tn\tA plane.\tAn air plane.\t5.000\n"))
    assert (stsb.kind, stsb[0].score) == ("similarity", 5.0)
    qnli = load_examples(write("QNLI/dev.tsv", "index\tquestion\tsentence\tlabel\n0\tWhy?\tSo.\tentailment\n"))
    assert (qnli.kind, qnli[0].text1, qnli[0].text2) == ("pair-classification", "Why?", "So.")


def test_conll(write: Write) -> None:
    text = "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\n# NN I-NP O\nrejects VB O I-MISC\n\n"
    text += "# sent_id = 2\n東京\tB-LOC\nへ\tO\nBob\tB-PER\n"
    found = load_examples(write("train.conll", text))
    assert [row.text for row in found] == ["EU # rejects", "東京へ Bob"]
    assert found[0].spans == (Span(0, 2, "ORG"), Span(5, 12, "MISC"))
    assert found[1].spans == (Span(0, 2, "LOC"), Span(4, 7, "PER"))
    assert found[1].token_spans == [("LOC", 0, 1), ("PER", 2, 3)]
    assert found.labels == LabelSet(("LOC", "MISC", "ORG", "PER"))
    chunks = load_examples(write("again.txt", text.partition("# sent")[0]), format="conll", columns={"tags": "2"})
    assert [span.label for span in chunks[0].spans] == ["NP"]
    strict = load_examples(write("train.bio", text), scheme="IOB2")
    assert strict[0].spans == (Span(0, 2, "ORG"),)


def test_doccano(write: Write) -> None:
    spans = load_examples(write("old.jsonl", [{"id": 3, "text": "太郎は京都", "label": [[0, 2, "人"], [3, 5, "地"]]}]))
    assert (spans[0].id, spans[0].spans) == ("3", (Span(0, 2, "人"), Span(3, 5, "地")))
    entities = [{"id": 9, "label": "地", "start_offset": 3, "end_offset": 5}]
    relations = load_examples(
        write("new.jsonl", [{"id": 3, "text": "太郎は京都", "entities": entities, "relations": []}])
    )
    assert relations[0].spans == (Span(3, 5, "地"),)
    classes = load_examples(write("class.jsonl", [{"id": 1, "text": "良い", "label": ["pos"]}]))
    assert (classes.kind, classes[0].label) == ("text-classification", "pos")
    texts = load_examples(write("texts.jsonl", [{"id": 1, "text": "良い", "label": ["good", "nice"]}]), "translation")
    assert texts[0].targets == ("good", "nice")


def test_label_studio(write: Write) -> None:
    region = {"value": {"start": 4, "end": 6, "text": "京都", "labels": ["地"]}, "type": "labels", "to_name": "body"}
    tasks = [
        {
            "id": 1,
            "data": {"body": "😀太郎京都"},
            "annotations": [{"was_cancelled": True, "result": []}, {"result": [region]}],
        },
        {"id": 2, "data": {"body": "何もない"}, "annotations": [{"result": []}]},
    ]
    found = load_examples(write("export.json", tasks), "ner")
    assert found[0].spans == (Span(3, 5, "地"),)  # a browser counts the smiley twice
    assert found[1].spans == ()
    choice = {"value": {"choices": ["Positive"]}, "type": "choices"}
    (text,) = load_examples(
        write("b.json", [{"id": 1, "data": {"text": "fine"}, "annotations": [{"result": [choice]}]}])
    )
    assert text.label == "Positive"
    path = write("c.json", [{"id": 1, "data": {"text": "fine"}, "annotations": []}])
    assert refused(path) == "c.json, row 1, column 'annotations': the task is not annotated"


def test_spacy(write: Write) -> None:
    tokens = [{"orth": "I", "ner": "O"}, {"orth": "love", "ner": "-"}, {"orth": "Kyoto", "ner": "U-GPE"}]
    training = [{"id": 0, "paragraphs": [{"raw": "I love  Kyoto", "sentences": [{"tokens": tokens}]}]}]
    assert load_examples(write("v2.json", training))[0].spans == (Span(8, 13, "GPE"),)
    document = {"text": "I love Kyoto", "ents": [{"start": 7, "end": 12, "label": "GPE"}], "tokens": [{"id": 0}]}
    assert load_examples(write("docs.jsonl", [document]))[0].spans == (Span(7, 12, "GPE"),)
    cats = load_examples(write("cats.jsonl", [{"text": "fine", "ents": [], "cats": {"POS": 1.0, "NEG": 0.0}}]))
    assert (cats.kind, cats[0].label) == ("text-classification", "POS")
    pairs = load_examples(write("pairs.json", [["I love Kyoto", {"entities": [[7, 12, "GPE"]]}], ["Nothing", {}]]))
    assert [row.spans for row in pairs] == [(Span(7, 12, "GPE"),), ()]
    assert "a .spacy file is not read; export JSON" in refused(write("a.spacy", b"\x00"))
    assert "a .pkl file is not read; export JSON Lines" in refused(write("a.pkl", b"\x80\x04."))


def test_datasets_on_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    train = datasets.Dataset.from_dict({"text": ["good", "fine"], "label": [1, 1]}, features=features)
    datasets.DatasetDict({"train": train, "test": train}).save_to_disk(str(tmp_path / "set"))
    found = load_splits(f"hf:{tmp_path}/set")
    assert list(found) == ["train", "test"]
    assert [row.label for row in found["test"]] == ["pos", "pos"]
    assert found["test"].labels == LabelSet(("neg", "pos"))  # the data set's own, in its order
    tags = datasets.Sequence(datasets.ClassLabel(names=["O", "B-LOC", "I-LOC"]))
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": tags})
    words = datasets.Dataset.from_dict({"tokens": [["New", "York"]], "ner_tags": [[1, 2]]}, features=features)
    words.save_to_disk(str(tmp_path / "words"))
    found_words = load_examples(f"hf:{tmp_path}/words")
    assert found_words[0].spans == (Span(0, 8, "LOC"),)
    assert found_words.labels == LabelSet(("LOC",))


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "a", "label": "b"}, "text-classification"),
        ({"sentence": "a", "label": 1}, "text-classification"),
        ({"premise": "a", "hypothesis": "b", "label": "c"}, "pair-classification"),
        ({"question": "a", "passage": "b", "answer": True}, "pair-classification"),
        ({"sentence1": "a", "sentence2": "b", "score": 3}, "similarity"),
        ({"tokens": ["a"], "ner_tags": ["O"]}, "token-classification"),
        ({"text": "a", "entities": []}, "token-classification"),
        ({"question": "a", "context": "b", "answers": {"text": [], "answer_start": []}}, "question-answering"),
        ({"question": "a", "choices": ["b", "c"], "answer": "B"}, "multiple-choice"),
        ({"document": "a", "summary": "b"}, "text-to-text"),
        ({"translation": {"ja": "犬", "en": "dog"}}, "text-to-text"),
        ({"prompt": "a", "canonical_solution": "b", "task_id": "HumanEval/0"}, "text-to-text"),
        ({"question": "a", "answer": "b"}, "text-to-text"),
    ],
)
def test_the_kind_is_found(write: Write, row: dict[str, Any], kind: str) -> None:
    assert load_examples(write("a.jsonl", [row])).kind == kind


_PAIR = ("一つ", "二つ")


@pytest.mark.parametrize(
    ("row", "question", "context", "label"),
    [
        ({"goal": "q", "sol1": _PAIR[0], "sol2": _PAIR[1], "label": 1}, "q", "", 1),
        ({"sentence": "q _", "option1": _PAIR[0], "option2": _PAIR[1], "answer": "1"}, "q _", "", 0),
        ({"startphrase": "q", "sent1": "a", "ending0": _PAIR[0], "ending1": _PAIR[1], "label": 0}, "q", "", 0),
        ({"context": "c", "question": "q", "answerA": _PAIR[0], "answerB": _PAIR[1], "label": "2"}, "q", "c", 1),
        ({"context": "c", "question": "q", "answerA": _PAIR[0], "answerB": _PAIR[1], "label": "A"}, "q", "c", 0),
        ({"question_stem": "q", "choices": {"text": [*_PAIR], "label": [*"AB"]}, "answerKey": "B"}, "q", "", 1),
        (
            {"premise": "They left.", "choice1": _PAIR[0], "choice2": _PAIR[1], "question": "cause", "label": 0},
            "What was the cause of this?",
            "They left.",
            0,
        ),
        (
            {"premise": "晴れた。", "choice1": _PAIR[0], "choice2": _PAIR[1], "question": "effect", "label": 1},
            "その結果、何が起きましたか。",
            "晴れた。",
            1,
        ),
    ],
    ids=("piqa", "winogrande", "swag", "siqa", "siqa-letter", "openbookqa", "copa", "copa-ja"),
)
def test_choices_of_the_known_sets(write: Write, row: dict[str, Any], question: str, context: str, label: int) -> None:
    found = load_examples(write("a.jsonl", [row]))
    assert found.kind == "multiple-choice"
    assert (found[0].question, found[0].context, found[0].choices, found[0].label) == (question, context, _PAIR, label)


def test_a_choice_beyond_the_last_is_refused(write: Write) -> None:
    row = {"sentence": "q _", "option1": "a", "option2": "b", "answer": "0"}
    with pytest.raises(InputError, match="column 'answer': '0' is none of the 2 choices; count from 1"):
        load_examples(write("a.jsonl", [row]))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize(
    ("name", "kind", "test"),
    [
        ("jnli", "pair-classification", 1508),
        ("jsts", "similarity", 960),
        ("ner_wikipedia_ja", "token-classification", 500),
        ("jsquad", "question-answering", 1000),
        ("jcommonsenseqa", "multiple-choice", 618),
        ("chabsa", "text-classification", 303),
        ("wnut17", "token-classification", 787),
        ("stsb_captions_en", "similarity", 200),
        ("snli_small_en", "pair-classification", 1200),
        ("xquad_en", "question-answering", 366),
        ("qed_en", "question-answering", 120),
        ("scitldr_en", "text-to-text", 318),
        ("sib200_ja", "text-classification", 100),
        ("ami_meeting_parallel", "text-to-text", 527),
        ("mbpp", "text-to-text", 250),
    ],
)
def test_each_of_the_shared_sets_is_read_with_one_call(name: str, kind: str, test: int) -> None:
    found = load_splits(SHARED / name)["test"]
    assert (found.kind, len(found), found.problems) == (kind, test, ())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
def test_aspects_are_spans_when_asked_for() -> None:
    path = SHARED / "chabsa" / "test.jsonl"
    spans = load_examples(path, "ner", columns={"spans": "opinions"}, on_problem="skip")
    assert spans.labels == LabelSet(("negative", "neutral", "positive"))
    assert (spans.read, len(spans.problems)) == (303, 16)
    assert all("overlaps" in each.what for each in spans.problems)
    columns = {"text1": "text", "text2": "opinions.target", "label": "opinions.polarity"}
    pairs = load_examples(path, "pair-classification", columns=columns)
    assert (len(pairs), pairs.labels) == (740, spans.labels)
    assert all(pair.text2 in pair.text1 for pair in pairs)


# Splits -----------------------------------------------------------------------------------------------


def test_splits_by_the_names_of_files(write: Write, tmp_path: Path) -> None:
    names = [
        "train-v1.3.json",
        "valid-v1.3.json",
        "dev_matched.tsv",
        "dev_mismatched.tsv",
        "test.jsonl.gz",
        "README.md",
    ]
    names += ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "retest.csv", "my-test.csv", "train.txt"]
    for name in names:
        write(name, "x")
    found = {split: [Path(path).name for path in paths] for split, paths in find_splits(tmp_path).items()}
    assert found == {
        "train": ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "train-v1.3.json", "train.txt"],
        "validation": ["valid-v1.3.json"],
        "validation_matched": ["dev_matched.tsv"],
        "validation_mismatched": ["dev_mismatched.tsv"],
        "test": ["my-test.csv", "test.jsonl.gz"],
    }


def test_labels_are_frozen_by_training(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", [{"text": "a", "label": "positive"}, {"text": "b", "label": "negative"}])
    write("test.jsonl", [{"text": "c", "label": "positive"}, {"text": "d", "label": "Positive"}])
    with pytest.raises(InputError) as caught:
        load_splits(tmp_path)
    assert str(caught.value).endswith(
        "test.jsonl, line 2, column 'label': the label 'Positive' is unseen in training; did you mean 'positive'?"
    )
    found = load_splits(tmp_path, on_problem="skip")
    assert [(name, len(part), len(part.problems)) for name, part in found.items()] == [("train", 2, 0), ("test", 1, 1)]
    assert found["test"].labels == LabelSet(("negative", "positive"))


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file is named after a split"):
        load_splits(tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        load_splits(tmp_path / "none")


# What cannot be used ----------------------------------------------------------------------------------

TEXT = {"text": "fine", "label": "a"}
QUESTION = {"question": "Who?", "context": "Ada wrote.", "answers": {"text": ["Ada"], "answer_start": [0]}}
CHOICE = {"question": "Who?", "choices": ["x", "y"], "label": 0}
PLACE = "a.jsonl, line 2, column "


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (TEXT, {"text": "fine"}, "a.jsonl, line 2: there is no column 'label' (columns: 'text'); known: text"),
        (TEXT, {"text": "", "label": "a"}, PLACE + "'text': is empty"),
        (TEXT, {"text": " \u3000\n", "label": "a"}, PLACE + "'text': is empty"),
        (TEXT, {"text": None, "label": "a"}, PLACE + "'text': is empty (null)"),
        (TEXT, {"text": 3, "label": "a"}, PLACE + "'text': holds the number 3, not a text"),
        (TEXT, {"text": "b", "label": ["a", "b"]}, PLACE + "'label': holds 2 labels, not one"),
        (TEXT, {"text": "b", "label": {}}, PLACE + "'label': holds an object, not a label"),
        (TEXT, {"text": "b", "label": " "}, PLACE + "'label': is empty"),
        (
            TEXT,
            {"text": "x" * 10_000_000, "label": "a"},
            PLACE
            + "'text': has 10,000,000 characters, more than 1,000,000; divide it, or raise the limit (max_characters)",
        ),
        (
            {"text": "abc", "spans": []},
            {"text": "abc", "spans": [[1, 9, "X"]]},
            PLACE + "'spans': the span 1 to 9 lies outside the text, which has 3 characters",
        ),
        (
            {"text": "abc", "spans": []},
            {"text": "abc", "spans": [[2, 2, "X"]]},
            PLACE + "'spans': the span 2 to 2 is empty",
        ),
        (
            {"text": "abc", "spans": []},
            {"text": "abc", "spans": [[-1, 2, "X"]]},
            PLACE + "'spans': the span -1 to 2 lies outside the text, which has 3 characters",
        ),
        (
            {"text": "abc", "spans": []},
            {"text": "abc", "spans": [[0, 2, "X"], [1, 3, "X"]]},
            PLACE + "'spans': the span 1 to 3 overlaps 0 to 2; keep one of them: spans that overlap are not read",
        ),
        (
            {"text": "abc", "spans": []},
            {"text": "東京都", "spans": [{"start": 0, "end": 1, "label": "X", "text": "東京"}]},
            PLACE + "'spans': the span 0 to 1 is '東' in the text, not '東京'; "
            "offsets count characters from 0, the end behind the last",
        ),
        (
            {"text": "abc", "spans": []},
            {"text": "abc", "spans": [["0", 2, "X"]]},
            "has no whole numbers as start and end",
        ),
        ({"text": "abc", "spans": []}, {"text": "abc", "spans": [{"start": 0, "end": 1}]}, "span 0 to 1 has no label"),
        (
            {"tokens": ["a"], "tags": ["O"]},
            {"tokens": ["a", "b"], "tags": ["O"]},
            PLACE + "'tags': has 1 tags for 2 tokens",
        ),
        ({"tokens": ["a"], "tags": ["O"]}, {"tokens": ["a"], "tags": ["PER"]}, "the tag 'PER' is of no scheme"),
        ({"tokens": ["a"], "tags": ["O"]}, {"tokens": [""], "tags": ["O"]}, PLACE + "'tokens': is empty"),
        (
            {"sentence1": "a", "sentence2": "b", "score": 1},
            {"sentence1": "a", "sentence2": "b", "score": "high"},
            PLACE + "'score': holds 'high', not a finite number",
        ),
        (
            QUESTION,
            {**QUESTION, "answers": {"text": ["wrote."], "answer_start": [6]}},
            PLACE + "'answers': the answer at 6 leaves the context, which has 10 characters",
        ),
        (
            QUESTION,
            {**QUESTION, "answers": {"text": ["a"], "answer_start": []}},
            PLACE + "'answers': holds no answers; ",
        ),
        (
            CHOICE,
            {**CHOICE, "label": 2},
            PLACE + "'label': 2 is none of the 2 choices; count from 0, write a letter from A, or the choice itself",
        ),
        (CHOICE, {**CHOICE, "choices": ["x"]}, PLACE + "'choices': holds no two choices"),
        ({"id": 1, **TEXT}, {"id": 1, **TEXT}, "line 2, column 'id': '1' is also the id of "),
        ({"document": "a", "summary": "b"}, {"document": "a", "summary": []}, PLACE + "'summary': has no text"),
    ],
)
def test_row_and_column_are_named(write: Write, first: Any, second: Any, message: str) -> None:
    path = write("a.jsonl", [first, second, {**first, "id": "another"}])
    assert message in refused(path)
    found = load_examples(path, on_problem="skip")
    assert len(found) == 2
    (problem,) = found.problems
    assert message in str(problem)
    assert found.read == 3


def test_nothing_is_lost_when_rows_are_passed_over(write: Write) -> None:
    lines = [
        json.dumps(TEXT),
        "{broken",
        '{"text": "日本", "label": "a"}'.encode("cp932").decode("latin-1"),
        '{"text": "half \\ud83d", "label": "a"}',
        json.dumps({"text": "good", "label": "b"}),
        "[1]",
    ]
    path = write("a.jsonl", "\n".join(lines).encode("latin-1"))
    found = load_examples(path, on_problem="skip")
    assert [row.text for row in found] == ["fine", "good"]
    said = [str(each).removeprefix(f"{path.parent}/") for each in found.problems]
    assert said[0].startswith("a.jsonl, line 2: broken JSON")
    assert (
        said[1]
        == "a.jsonl, line 3, column 'text': byte 0x93 is not UTF-8; read as cp932 it is '日本': save it as UTF-8"
    )
    assert said[2].startswith("a.jsonl, line 4: a \\u escape is half of a surrogate pair")
    assert said[3].startswith("a.jsonl, line 6: not a JSON object")
    assert found.read == 6
    table = write("a.csv", "text,label\nfine,a\nfine,a,b\n,a\ngood,b\n")
    found = load_examples(table, on_problem="skip")
    assert ([row.text for row in found], found.read) == (["fine", "good"], 4)
    words = write("a.conll", "a B-X\n\nb\nc O\n\nd Y-X\n\ne O\n")
    found = load_examples(words, on_problem="skip")
    assert ([row.text for row in found], found.read) == (["a", "e"], 4)
    assert [str(each).removeprefix(f"{words.parent}/")[:40] for each in found.problems] == [
        "a.conll, line 3: 1 field, but a token an",
        "a.conll, line 6, column 'tags': the tag ",
    ]


def test_what_cannot_be_read_at_all(write: Write) -> None:
    assert "no row can be used; the first: " in refused(write("a.jsonl", [{"text": "", "label": 1}]), on_problem="skip")
    assert "plain text has no labels" in refused(write("a.txt", "text"))
    assert "it is not clear what kind of data this is (columns: 'x')" in refused(write("b.jsonl", [{"x": 1}]))
    path = write("c.jsonl", [{"sentnce": "a", "label": 1}])
    assert refused(path, "text-classification") == (
        "c.jsonl, line 1: no column is known for the text of text-classification (columns: 'sentnce', 'label'); "
        'name it: text=COLUMN (in Python columns={"text": "COLUMN"})'
    )
    assert "there is no column 'text' (columns" in refused(path, "text-classification", columns={"text": "text"})
    assert "text-classification has no part 'txt'; did you mean 'text'?" in refused(
        path, "text-classification", columns={"txt": "sentnce"}
    )
    assert "unknown kind of data 'nerd'; did you mean 'ner'?" in refused(path, "nerd")
    assert "unknown format 'conl'; did you mean 'conll'?" in refused(path, format="conl")


# Parts ------------------------------------------------------------------------------------------------


@given(
    st.lists(st.text("ab漢かー。ｱ한", min_size=1, max_size=3), min_size=1, max_size=8),
    st.sampled_from([None, "", " ", "_"]),
)
def test_offsets_of_joined_tokens(tokens: list[str], joiner: str | None) -> None:
    text, offsets = join_tokens(tokens, joiner)
    assert [text[start:end] for start, end in offsets] == tokens
    if joiner is not None:
        assert text == joiner.join(tokens)


def test_japanese_is_joined_without_spaces() -> None:
    assert join_tokens(["私", "は", "NLP", "と", "AI", "ML", "。"])[0] == "私は NLP と AI ML 。"


def test_labels() -> None:
    assert LabelSet.infer(["10", "9", "-1"]).names == ("-1", "9", "10")
    assert LabelSet.infer(["b", "a", "b"]).names == ("a", "b")
    found = LabelSet(("b", "a"))
    assert (found.id2label, found.label2id, found.index("a")) == ({0: "b", 1: "a"}, {"b": 0, "a": 1}, 1)
    with pytest.raises(InputError, match="the label 'A' is not among the 2; did you mean 'a'"):
        found.index("A")
    with pytest.raises(InputError, match="a label is there twice"):
        LabelSet(("a", "a"))
    assert find_kind("translation_ja_to_en") == "text-to-text"


def test_the_report(write: Write, tmp_path: Path) -> None:
    train = [{"text": f"text {number}", "label": "a"} for number in range(20)] + [{"text": "TEXT　１。", "label": "b"}]
    test = [{"text": "text 3", "label": "a"}, {"text": "Ｔext, 4!", "label": "a"}, {"text": "new", "label": "a"}]
    write("train.jsonl", train)
    write("test.jsonl", test)
    report = describe(load_splits(tmp_path), count_tokens=lambda text: len(text.split()), language=lambda text: "en")
    first, second = report.splits["train"], report.splits["test"]
    assert (first.labels, second.labels) == ({"a": 20, "b": 1}, {"a": 3, "b": 0})
    assert (first.duplicates, first.conflicts, first.examples) == ((0, 1), 1, [("21", "2")])
    assert first.characters == Lengths(6, 7, 7, 7)
    assert first.tokens == Lengths(2, 2, 2, 2)
    assert second.languages == {"en": 3}
    (leak,) = report.leaks
    assert (leak.split, leak.of, leak.exact, leak.normalized, leak.examples) == (
        "test",
        "train",
        1,
        2,
        [("1", "4"), ("2", "5")],
    )
    assert report.warnings == [
        "train: the commonest label is 20 times as frequent as the rarest",
        "train: 1 duplicate with another answer than the earlier example",
        "test: 1 of 2 labels never occur (b)",
        "test: 2 examples (66.7%) also in train",
    ]
    assert json.loads(json.dumps(report.to_dict()))["splits"]["train"]["rows"] == 21


def test_a_shared_context_is_told_apart_from_a_leak(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", [QUESTION])
    write("test.jsonl", [{**QUESTION, "question": "What did Ada do?"}])
    (leak,) = describe(load_splits(tmp_path)).leaks
    assert (leak.exact, leak.normalized, leak.shared) == (0, 0, 1)


@given(st.text())
def test_the_normal_form_is_stable(text: str) -> None:
    assert normalized(normalized(text)) == normalized(text)
