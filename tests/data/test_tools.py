"""What tools for labelling write, in its older and rarer forms too: read as it was meant, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tsumugu as tg
from tsumugu.core.errors import InputError

TEXT = "Kyoto is old."
REGION = {"start": 0, "end": 5, "text": "Kyoto", "labels": ["LOC"]}
SPAN = [(0, 5, "LOC")]


def studio(value: dict[str, Any], kind: str = "labels", data: dict[str, Any] | None = None) -> dict[str, Any]:
    """A task of Label Studio with one region."""
    result = [{"from_name": "x", "to_name": "shown", "type": kind, "value": value}]
    return {"id": 1, "data": data or {"text": TEXT}, "annotations": [{"result": result}]}


def read(folder: Path, rows: Any, suffix: str = "jsonl", **options: Any) -> Any:
    file = folder / f"data.{suffix}"
    lines = rows if isinstance(rows, str) else "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_text(lines, "utf-8")
    return tg.load_examples(file, **options)


@pytest.mark.parametrize(
    "row",
    [
        {"text": TEXT, "labels": [[0, 5, "LOC"]]},
        {"text": TEXT, "annotations": [{"label": "LOC", "start_offset": 0, "end_offset": 5, "user": 1}], "meta": {}},
        {"id": 1, "data": {"text": TEXT}, "completions": studio(REGION)["annotations"]},
        studio(REGION, data={"body": TEXT, "note": "a remark that is much longer than the text itself"}),
        {"id": 1, "text": TEXT, "label": [REGION], "annotator": 1, "lead_time": 2.5},
        {"text": TEXT, "ents": [], "tokens": [], "spans": {"sc": [{"start": 0, "end": 5, "label": "LOC"}]}},
        {"text": TEXT, "ents": [{"start": 0, "end": 5, "label": "LOC"}], "spans": {"sc": [], "other": []}},
        {"text": TEXT, "spans": [{"start": 0, "end": 5, "label": "LOC", "token_start": 0}], "answer": "accept"},
        {"classes": ["LOC"], "annotations": [None, [TEXT, {"entities": [[0, 5, "LOC"]]}]]},
    ],
    ids=[
        "doccano-1",
        "doccano-json",
        "studio-old",
        "studio-field",
        "studio-min",
        "group",
        "ents",
        "prodigy",
        "annotator",
    ],
)
def test_spans(row: dict[str, Any], tmp_path: Path) -> None:
    (found,) = read(tmp_path, [row])
    assert (found.text, [tuple(span) for span in found.spans]) == (TEXT, SPAN)


@pytest.mark.parametrize(
    ("rows", "label"),
    [
        ([{"text": TEXT, "annotations": [{"label": 3, "user": 1}]}], "3"),
        ([studio({"taxonomy": [["place", "city"]]}, "taxonomy")], "place/city"),
        ([{"text": TEXT, "options": [{"id": "old"}, {"id": "new"}], "accept": ["old"], "answer": "accept"}], "old"),
    ],
    ids=["doccano", "studio", "prodigy"],
)
def test_labels(rows: Any, label: str, tmp_path: Path) -> None:
    (found,) = read(tmp_path, rows)
    assert (found.text, found.label) == (TEXT, label)


def test_fasttext(tmp_path: Path) -> None:
    found = read(tmp_path, "__label__good a fine film\n\n__label__bad 退屈だ\nno label\n", "txt", on_problem="skip")
    assert [(row.text, row.label) for row in found] == [("a fine film", "good"), ("退屈だ", "bad")]
    assert [str(each) for each in found.problems] == [
        f"{tmp_path}/data.txt, line 4: does not begin with __label__LABEL"
    ]


def test_what_was_not_meant_is_not_learnt(tmp_path: Path) -> None:
    """A label that was rejected, and the sign of those who did not agree."""
    rows = [{"text": text, "label": text.upper(), "answer": text} for text in ("accept", "reject", "ignore")]
    found = read(tmp_path, rows, on_problem="skip")
    assert [row.label for row in found] == ["ACCEPT"]
    assert len(found.problems) == 2
    pairs = [{"sentence1": "a", "sentence2": each, "gold_label": each} for each in ("neutral", "-")]
    found = read(tmp_path, pairs, on_problem="skip")
    assert found.labels.names == ("neutral",)
    assert "did not agree" in str(found.problems[0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (studio({"brushlabels": ["x"]}, "brushlabels"), "regions of type 'brushlabels' are not read"),
        (
            {"text": TEXT, "ents": [], "spans": {"a": [{"start": 0, "end": 1, "label": "X"}], "b": [{"start": 0}]}},
            r"there are 2 groups of spans \(a, b\)",
        ),
    ],
)
def test_nothing_is_lost_in_silence(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, [row])


def test_answers_that_are_plain_texts(tmp_path: Path) -> None:
    asked = {"question": "What is old?", "context": TEXT}
    found = read(
        tmp_path, [{**asked, "answer": "Kyoto"}, {**asked, "answer": "old", "answer_start": 9}, {**asked, "answer": ""}]
    )
    assert found.kind == "question-answering"
    assert [[tuple(each) for each in row.answers] for row in found] == [[("Kyoto", 0)], [("old", 9)], []]
    with pytest.raises(InputError, match="line 1, column 'answer': the context does not have 'Osaka'"):
        read(tmp_path, [{**asked, "answer": "Osaka"}], kind="qa")
    chosen = read(tmp_path, [{**asked, "choices": ["Kyoto", "old"], "answer": "old"}])
    assert (chosen.kind, chosen[0].label) == ("multiple-choice", 1)


def test_choices_by_their_own_names(tmp_path: Path) -> None:
    """ARC calls some choices A, B and others 1, 2."""
    rows = [
        {"question": "q", "choices": {"text": ["x", "y"], "label": names}, "answerKey": key}
        for names, key in ((["A", "B"], "B"), (["1", "2"], "1"))
    ]
    assert [row.label for row in read(tmp_path, rows)] == [1, 0]
