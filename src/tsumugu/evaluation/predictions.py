"""Predictions that some system wrote into a file, brought beside the examples they are for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tsumugu.core.errors import InputError
from tsumugu.data.labelled.examples import ChoiceExample, Example, Examples, SpanExample
from tsumugu.data.labelled.labels import as_label
from tsumugu.data.labelled.tags import tags_to_spans
from tsumugu.data.readers import read_rows
from tsumugu.data.rows import Row, listed
from tsumugu.evaluation.scoring import Prediction

_USUAL: dict[str, tuple[str, ...]] = {
    "text-classification": ("prediction", "predicted", "pred", "result", "label", "answer"),
    "pair-classification": ("prediction", "predicted", "pred", "result", "label", "answer"),
    "similarity": ("prediction", "predicted", "pred", "score", "similarity", "result"),
    "token-classification": ("prediction", "predicted", "entities", "spans", "tags", "pred_tags", "result"),
    "question-answering": ("prediction", "prediction_text", "predicted", "answer", "result"),
    "multiple-choice": ("prediction", "predicted", "pred", "label", "answer", "result"),
    "text-to-text": (
        *("prediction", "predicted", "generated_text", "summary_text", "translation_text", "completion"),
        *("answer", "result", "summary", "translation", "text"),
    ),
}
_NO_ANSWER = ("no_answer_probability", "no_answer", "na_prob")


def read_predictions(path: str | Path, examples: Examples, *, column: str | None = None) -> list[Prediction]:
    """The prediction for each example.

    Rows are found by their ``id`` where both have one, else they stand in the order of the examples. Read are the
    formats of `read_rows`, what ``tsumugu run --output`` writes, and SQuAD's ``{"id": "answer", …}``.

    Args:
        path: the file.
        examples: what was predicted.
        column: the one with the predictions; found by usual names when left out.

    Raises:
        InputError: a prediction is missing, for no example, or not of the kind; the row and the column are named.
    """
    rows = list(_rows(path, examples))
    first = rows[0]
    names = [column] if column is not None else [each for each in _USUAL[examples.kind] if each in first.values]
    if not names or names[0] not in first.values:
        raise InputError(
            f"no column is known for the predictions (columns: {listed(first.values)})",
            where=first.where,
            mend="name it with --column",
        )
    ordered = _ordered(rows, examples, str(path))
    return [_prediction(row, names[0], example, examples) for row, example in zip(ordered, examples, strict=True)]


def _rows(path: str | Path, examples: Examples) -> Iterator[Row]:
    """The rows; of one object from ids to answers, a row for each."""
    rows = read_rows(path)
    first = next(rows, None)
    if first is None:
        raise InputError("there are no rows", where=str(path))
    second = next(rows, None)
    ids = {example.id for example in examples}
    if second is None and set(first.values) & ids and examples.kind == "question-answering":
        for number, (key, answer) in enumerate(first.values.items(), start=1):
            yield Row(number, {"id": key, "prediction": answer}, first.source, "entry")
        return
    yield first
    if second is not None:
        yield second
    yield from rows


def _ordered(rows: list[Row], examples: Examples, path: str) -> list[Row]:
    ids = [example.id for example in examples]
    by_id: dict[str, Row] = {}
    if all("id" in row.values for row in rows):
        for row in rows:
            key = as_label(row.values["id"])
            if key in by_id:
                raise InputError(f"{key!r} is also the id of {by_id[key].where}", where=f"{row.where}, column 'id'")
            by_id[key] = row
    if set(by_id) & set(ids):
        missing = next((each for each in ids if each not in by_id), None)
        if missing is not None:
            raise InputError(f"there is no prediction for the example {missing!r}", where=path)
        known = set(ids)
        extra = next((row for key, row in by_id.items() if key not in known), None)
        if extra is not None:
            raise InputError(
                f"there is no example {as_label(extra.values['id'])!r}", where=f"{extra.where}, column 'id'"
            )
        return [by_id[each] for each in ids]
    if len(rows) != len(ids):
        raise InputError(f"{len(rows)} predictions for {len(ids)} examples, and no ids in common", where=path)
    return rows


def _prediction(row: Row, column: str, example: Example, examples: Examples) -> Prediction:
    where = f"{row.where}, column {column!r}"
    if column not in row.values:
        raise InputError(f"there is no column {column!r} (columns: {listed(row.values)})", where=row.where)
    value = row.values[column]
    if isinstance(value, str) and value[:1] in "[{" and examples.kind != "text-to-text":
        try:
            value = json.loads(value)
        except ValueError:
            value = row.values[column]
    match examples.kind:
        case "text-classification" | "pair-classification":
            return _class(value, row, where)
        case "similarity":
            value = value.get("score") if isinstance(value, Mapping) else value
            return Prediction(_number(value, where))
        case "token-classification":
            return Prediction(_spans(value, example, where))
        case "question-answering":
            value = value.get("answer") if isinstance(value, Mapping) else value
            sure = next((row.values[each] for each in _NO_ANSWER if row.values.get(each) is not None), None)
            return Prediction(_text(value or "", where), no_answer=None if sure is None else _number(sure, where))
        case "multiple-choice":
            return Prediction(_choice(value, example, where), _confidence(row))
        case _:
            return Prediction(_text(value, where))


def _class(value: Any, row: Row, where: str) -> Prediction:
    """A label; a list or an object of labels with their scores: the best of them."""
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        value = {each.get("label"): each.get("score") for each in value}
    if isinstance(value, Mapping) and "label" in value:
        return Prediction(as_label(value["label"]), _probability(value.get("score")))
    if isinstance(value, Mapping) and value:
        scores = {as_label(label): _number(each, where) for label, each in value.items()}
        best = max(scores, key=scores.__getitem__)
        return Prediction(best, _probability(scores[best]), scores if 0.99 < sum(scores.values()) < 1.01 else None)
    if value is None or isinstance(value, list | Mapping):
        raise InputError("holds no label", where=where)
    probabilities = row.values.get("probabilities")
    table = {as_label(k): float(v) for k, v in probabilities.items()} if isinstance(probabilities, dict) else None
    return Prediction(as_label(value), _confidence(row), table)


def _confidence(row: Row) -> float | None:
    return next((_probability(row.values[each]) for each in ("confidence", "score") if each in row.values), None)


def _probability(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number <= 1 else None


def _number(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{value!r} is not a finite number", where=where)
    return number


def _text(value: Any, where: str) -> str:
    """A text; of a pipeline's result, the text in it."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping) and len(value) == 1:
        value = next(iter(value.values()))
    if not isinstance(value, str):
        raise InputError("holds no text", where=where)
    return value


def _spans(value: Any, example: Example, where: str) -> tuple[tuple[int, int, str], ...]:
    if not isinstance(value, list):
        raise InputError("holds no list of spans", where=where)
    if value and all(isinstance(each, str) for each in value):
        return spans_of_tags(value, example, where)
    found = []
    for each in value:
        label: Any
        if isinstance(each, Mapping):
            label = next((each[name] for name in ("label", "entity_group", "entity", "type") if name in each), None)
            start, end = each.get("start"), each.get("end")
        elif isinstance(each, list) and len(each) == 3:
            start, end, label = each
        else:
            raise InputError("a span is no [start, end, label]", where=where)
        if not isinstance(start, int) or not isinstance(end, int) or label is None:
            raise InputError("a span has no start, end and label", where=where)
        found.append((start, end, as_label(label)))
    return tuple(found)


def spans_of_tags(tags: Sequence[str], example: Example, where: str) -> tuple[tuple[int, int, str], ...]:
    """Tags of the example's own tokens as spans of its text.

    Raises:
        InputError: the example did not come in tokens, or in another number of them.
    """
    tokens = example.tokens if isinstance(example, SpanExample) else None
    if tokens is None or len(tokens) != len(tags):
        said = "the data did not come in tokens" if tokens is None else f"{len(tags)} tags for {len(tokens)} tokens"
        raise InputError(said, where=where, mend="write spans as [start, end, label]")
    return tuple((tokens[each.start][0], tokens[each.end - 1][1], each.label) for each in tags_to_spans(tags))


def _choice(value: Any, example: Example, where: str) -> int:
    choices: tuple[str, ...] = example.choices if isinstance(example, ChoiceExample) else ()
    if isinstance(value, str) and value in choices:
        return choices.index(value)
    word = as_label(value)
    if len(word) == 1 and word.isascii() and word.isalpha():
        word = str(ord(word.upper()) - ord("A"))
    if not word.isdecimal() or int(word) >= len(choices):
        raise InputError(f"{value!r} is none of the {len(choices)} choices", where=where)
    return int(word)
