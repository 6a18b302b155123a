"""Tasks as a user types them: texts, pairs, files in and out, JSON Lines, what a terminal shows."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.tasks.conftest import ENGLISH_SENTENCES, JAPANESE_SENTENCES, ModelMaker
from tests.tasks.test_classifiers import FEELINGS, INFERENCE, TAGS, alike

import tsumugu as tg
from tsumugu.cli import main

Typed = Callable[..., str]


@pytest.fixture
def typed(capfd: pytest.CaptureFixture[str]) -> Typed:
    """Run the program in this process; give its standard output."""

    def run(*arguments: object) -> str:
        capfd.readouterr()  # what making models printed
        with pytest.raises(SystemExit) as leaving:
            main([str(each) for each in arguments])
        printed = capfd.readouterr()
        assert not leaving.value.code, printed.err
        return printed.out

    return run


def lines(out: str) -> list[Any]:
    return [json.loads(line) for line in out.splitlines()]


def test_labels(typed: Typed, make: ModelMaker, tmp_path: Path) -> None:
    folder = make("bert", "sequence-classification", FEELINGS)
    pipe = tg.pipeline("text-classification", model=str(folder))
    texts = [*ENGLISH_SENTENCES, *JAPANESE_SENTENCES]
    wanted = pipe(texts)
    out = typed("run", "sentiment-analysis", *texts[:2], "-m", folder)
    assert out == "".join(f"{each['score']:.4f}  {each['label']}\n" for each in wanted[:2])
    assert typed("run", "sentiment-analysis", *texts[:2], "-m", folder, "--top-k", 3).count("\n") == 7
    given, result = tmp_path / "reviews.csv", tmp_path / "labelled.csv"
    with given.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([["text", "label"], *([text, "gold"] for text in texts)])
    typed("run", "sentiment-analysis", "-i", given, "-o", result, "-m", folder)
    with result.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [each["text"] for each in found] == texts
    assert {each["label"] for each in found} == {"gold"}
    assert [each["predicted_label"] for each in found] == [each["label"] for each in wanted]


def test_pairs(typed: Typed, make: ModelMaker, tmp_path: Path) -> None:
    folder = make("bert", "sequence-classification", INFERENCE)
    pipe = tg.pipeline("nli", model=str(folder))
    [first, second] = ENGLISH_SENTENCES[:2]
    wanted = pipe({"text": first, "text_pair": second})
    out = typed("run", "nli", "--pair", first, second, "-m", folder, "--json")
    alike(lines(out), [{"text": first, "text_pair": second, **wanted}])
    given = tmp_path / "pairs.jsonl"
    given.write_text(json.dumps({"premise": first, "hypothesis": second}) + "\n", "utf-8")
    alike(lines(typed("run", "nli", "-i", given, "-m", folder, "--json"))[0]["score"], wanted["score"])
    given.write_text(json.dumps({"a": first, "b": second}) + "\n", "utf-8")
    named = typed("run", "nli", "-i", given, "-m", folder, "--json", "--text-column", "a,b")
    alike(lines(named)[0]["score"], wanted["score"])


def test_labels_of_ones_own(typed: Typed, make: ModelMaker) -> None:
    folder = make("bert", "sequence-classification", INFERENCE)
    pipe = tg.pipeline("zero-shot-classification", model=str(folder))
    text, labels = JAPANESE_SENTENCES[1], ["映画", "food"]
    wanted = pipe(text, labels, multi_label=True)
    options = ("--label", labels[0], "--label", labels[1], "--multi-label", "-m", folder)
    out = typed("run", "zero-shot-classification", text, *options)
    pairs = zip(wanted["labels"], wanted["scores"], strict=True)
    assert out == "".join(f"{score:.4f}  {label}\n" for label, score in pairs)
    row = lines(typed("run", "zero-shot-classification", text, *options, "--json"))[0]
    assert list(row) == ["text", "labels", "scores"]


def test_entities(typed: Typed, make: ModelMaker) -> None:
    folder = make("bert", "token-classification", TAGS)
    ner = tg.pipeline("ner", model=str(folder), aggregation_strategy="simple")
    text = JAPANESE_SENTENCES[0]
    [row] = lines(typed("run", "ner", text, "--aggregation", "simple", "-m", folder, "--json"))
    assert list(row) == ["text", "entities"]
    alike(row["entities"], ner(text))
    shown = typed("run", "ner", text, "--aggregation", "simple", "-m", folder).splitlines()
    assert [line.rsplit("\t")[-1] for line in shown] == [each["word"] for each in ner(text)]


def test_answers(typed: Typed, make: ModelMaker, tmp_path: Path) -> None:
    folder = make("bert", "question-answering")
    ask = tg.pipeline("qa", model=str(folder))
    question, context = "Where do I work?", ENGLISH_SENTENCES[0]
    wanted = ask(question=question, context=context)
    shown = f"{wanted['score']:.4f}  {wanted['answer']}\n"
    assert typed("run", "question-answering", question, context, "-m", folder) == shown
    book = tmp_path / "book.txt"
    book.write_text(context, "utf-8")
    assert typed("run", "qa", question, "--context", book, "-m", folder) == shown
    rows = tmp_path / "questions.jsonl"
    rows.write_text(json.dumps({"id": 7, "question": question, "context": context}) + "\n", "utf-8")
    [row] = lines(typed("run", "qa", "-i", rows, "-m", folder, "--json"))
    assert list(row) == ["id", "question", "context", "score", "start", "end", "answer"]
    alike({key: row[key] for key in wanted}, wanted)
    rows.write_text(json.dumps({"question": question}) + "\n", "utf-8")
    [row] = lines(typed("run", "qa", "-i", rows, "--context", book, "-m", folder, "--json", "--top-k", 2))
    assert list(row) == ["question", "answers"]


def test_written_texts(typed: Typed, make: ModelMaker, tmp_path: Path) -> None:
    folder = make("t5", "seq2seq-lm")
    asked, options = {"max_new_tokens": 6, "num_beams": 2}, ("-m", folder, "-n", 6, "--num-beams", 2)
    [first] = tg.pipeline("translation_en_to_de", model=str(folder))(ENGLISH_SENTENCES[:1], **asked)
    assert typed("run", "translation_en_to_de", ENGLISH_SENTENCES[0], *options) == f"{first['translation_text']}\n"
    task = "summarization"
    wanted = tg.pipeline(task, model=str(folder))(ENGLISH_SENTENCES, **asked)
    given, result = tmp_path / "in.txt", tmp_path / "out.parquet"
    given.write_text("".join(f"{text}\n" for text in ENGLISH_SENTENCES), "utf-8")
    typed("run", task, "-i", given, "-o", result, *options)
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(result).to_pylist() == [
        {"text": text, **each} for text, each in zip(ENGLISH_SENTENCES, wanted, strict=True)
    ]


def test_many_rows_keep_their_order(typed: Typed, make: ModelMaker, texts: list[str], tmp_path: Path) -> None:
    """More rows than are sorted at once, with padding of all kinds between them."""
    folder = make("roberta", "sequence-classification", FEELINGS)
    many = [text.replace("\n", " ").replace("\r", " ") for text in texts * 15]
    given = tmp_path / "in.jsonl"
    given.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(many)), "utf-8")
    found = lines(typed("run", "text-classification", "-i", given, "-m", folder, "--json"))
    assert [each["id"] for each in found] == list(range(len(many)))
    alone = tg.pipeline("text-classification", model=str(folder), batch_size=1)(many[: len(texts)])
    for start in range(0, len(many), len(texts)):
        some = [{key: each[key] for key in ("label", "score")} for each in found[start : start + len(texts)]]
        alike(some, alone)


def test_search_extracts_and_choices(typed: Typed, encoder_folder: Path, decoder_folder: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"{text}\n" for text in ENGLISH_SENTENCES), "utf-8")
    search = tg.pipeline("semantic-search", model=str(encoder_folder), corpus=ENGLISH_SENTENCES)
    [row] = lines(typed("run", "search", "A fox", "--corpus", corpus, "--top-k", 2, "-m", encoder_folder, "--json"))
    alike(row, {"text": "A fox", "found": search("A fox", top_k=2)})
    story = "".join(JAPANESE_SENTENCES)
    out = typed("run", "extractive-summarization", story, "--num-sentences", 1, "--method", "lead")
    assert out == JAPANESE_SENTENCES[0] + "\n"
    choose = tg.pipeline("multiple-choice", model=str(decoder_folder))
    asked = {"question": "Which?", "choices": ["one", "two", "three"]}
    wanted = choose(asked)
    assert typed("run", "multiple-choice", "Which?", "one", "two", "three", "-m", decoder_folder) == (
        f"{wanted['score']:.4f}  {wanted['answer']}\n"
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "Which?", "choice0": "one", "choice1": "two", "choice2": "three"}), "utf-8")
    [row] = lines(typed("run", "multiple-choice", "-i", rows, "-m", decoder_folder, "--json"))
    assert row["answer"] == wanted["answer"]
