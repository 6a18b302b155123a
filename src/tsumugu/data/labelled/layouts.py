"""Formats that nest: SQuAD, Label Studio, spaCy and its kin, each laid out flat, a row for each example.

Doccano's lines are mostly flat already. Pickles and spaCy's binary files are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tsumugu.core.errors import InputError
from tsumugu.data.labelled.tags import tags_to_spans
from tsumugu.data.rows import Row

Layout = Callable[[Row], Iterator[Row]]

PRODIGY = ("accept", "reject", "ignore")
"""What people answer in Prodigy."""


def find_layout(row: Row) -> Layout | None:
    """The layout that a file's first record shows; None where rows are flat already."""
    values = row.values
    if isinstance(values.get("data"), list) and all(isinstance(each, dict) for each in values["data"]):
        return squad_rows
    notes = values.get("annotations", values.get("completions"))
    if isinstance(notes, list) and isinstance(values.get("data"), dict):
        return label_studio_rows
    if isinstance(notes, list) and isinstance(values.get("text"), str):
        return lambda each: iter([_doccano_row(each)])
    if isinstance(notes, list) and isinstance(values.get("classes"), list):
        return lambda each: spacy_pairs((pair for pair in each.values["annotations"] if pair), each.source)
    if values.get("answer") in PRODIGY and {"spans", "label", "accept"} & set(values):
        return lambda each: iter([_prodigy_row(each)])
    if isinstance(values.get("paragraphs"), list):
        first = next(iter(values["paragraphs"]), None)
        if isinstance(first, dict) and "qas" in first:
            return lambda each: _article_rows(each, each.values)
        return spacy_rows
    if "ents" in values and isinstance(values.get("spans"), dict):
        return lambda each: iter([_with_groups(each)])
    if isinstance(values.get("cats"), dict) and isinstance(values.get("text"), str) and values["cats"]:
        return lambda each: iter([_with_category(each)])
    return None


def squad_rows(record: Row) -> Iterator[Row]:
    """The questions of SQuAD 1.1 and 2.0, and of JSQuAD.

    Source: Rajpurkar et al. 2016 and 2018, the files of the data set.
    """
    for number, article in enumerate(_objects(record, "data"), start=1):
        yield from _article_rows(Row(number, article, record.source, "article"), article)


def _article_rows(article: Row, values: Mapping[str, Any]) -> Iterator[Row]:
    for at, paragraph in enumerate(_objects(article, "paragraphs"), start=1):
        place = Row(at, paragraph, article.where, "paragraph")
        context = paragraph.get("context")
        for number, question in enumerate(_objects(place, "qas"), start=1):
            answers = [] if question.get("is_impossible") is True else question.get("answers")
            flat: dict[str, Any] = {name: question[name] for name in ("id", "question") if name in question}
            flat.update(title=values.get("title", ""), context=context, answers=answers)
            yield Row(number, flat, place.where, "question")


def label_studio_rows(record: Row) -> Iterator[Row]:
    """A task of Label Studio's JSON export: the first annotation that was not cancelled.

    Regions with labels become spans, a choice (of a taxonomy its whole path) becomes the label, written text the
    target. Older exports say `completions` for annotations.
    """
    data: dict[str, Any] = record.values["data"]
    task: dict[str, Any] = {str(key): value for key, value in data.items() if isinstance(value, str)}
    values: dict[str, Any] = {**task, "id": record.values.get("id", record.number)}
    column = "annotations" if "annotations" in record.values else "completions"
    done = [each for each in _objects(record, column) if not each.get("was_cancelled")]
    if not done:
        raise InputError("the task is not annotated", where=f"{record.where}, column {column!r}")
    spans: list[Any] = []
    text: Any = None
    unread: list[str] = []
    for region in done[0].get("result", []):
        if not isinstance(region, dict) or not isinstance(region.get("value"), dict):
            continue
        value, kind = region["value"], region.get("type")
        if kind in ("labels", "hypertextlabels"):
            text = region.get("to_name") if region.get("to_name") in task else text
            spans.append({**value, "labels": value.get("labels", value.get("hypertextlabels"))})
        elif kind == "choices":
            values["label"] = value.get("choices")
        elif kind in ("rating", "number"):
            values["score"] = value.get(str(kind))
        elif kind == "textarea":
            values["target"] = value.get("text")
        elif kind == "taxonomy":
            paths = value.get("taxonomy")
            values["label"] = ["/".join(map(str, each)) for each in paths] if isinstance(paths, list) else paths
        elif kind != "relation":
            unread.append(str(kind))
    if "label" not in values and "score" not in values and "target" not in values:
        if unread and not spans:
            said = f"regions of type {unread[0]!r} are not read"
            raise InputError(said, where=f"{record.where}, column {column!r}", mend="label texts, spans or choices")
        values["spans"] = spans
        if task:
            values["text"] = task[text or _text_of(task, spans)]
    yield Row(record.number, values, record.source, record.unit)


def _text_of(task: Mapping[str, str], spans: Iterable[Mapping[str, Any]]) -> str:
    """The field of a task that spans are marked in, which only the labelling's configuration names.

    It is the one in which they stand as they say; else the one called text, else the longest.
    """
    usual = sorted(task, key=lambda name: (name != "text", -len(task[name])))
    marked = [(each.get("start"), each.get("end"), each.get("text")) for each in spans]

    def fits(name: str) -> bool:
        return all(
            isinstance(start, int) and isinstance(end, int) and task[name][start:end] == said
            for start, end, said in marked
        )

    return next((name for name in usual if marked and fits(name)), usual[0])


def _doccano_row(row: Row) -> Row:
    """A row of Doccano's older JSON: annotations that are spans, or the number of a label."""
    notes = _objects(row, "annotations")
    values = {name: value for name, value in row.values.items() if name not in ("annotations", "meta")}
    if notes and all("start_offset" not in each for each in notes):
        values["label"] = [each.get("label", each.get("text")) for each in notes]
    else:
        values["spans"] = notes
    return Row(row.number, values, row.source, row.unit)


def _prodigy_row(row: Row) -> Row:
    """A row of Prodigy: what was accepted, with the option that was chosen as its label."""
    values = {name: value for name, value in row.values.items() if name not in ("tokens", "options", "answer")}
    if row.values.get("answer") != "accept":
        said = f"was answered {row.values.get('answer')!r}, not 'accept'"
        raise InputError(said, where=f"{row.where}, column 'answer'", mend="pass over such rows")
    if isinstance(values.get("accept"), list):
        values["label"] = values.pop("accept")
    return Row(row.number, values, row.source, row.unit)


def _with_groups(row: Row) -> Row:
    """A row of `Doc.to_json` with groups of spans: its entities, or where there are none the spans of its one group.

    Raises:
        InputError: there are several groups, and no entities.
    """
    groups = {name: spans for name, spans in row.values["spans"].items() if spans}
    values = {name: value for name, value in row.values.items() if name not in ("spans", "tokens")}
    if not values["ents"] and groups:
        if len(groups) > 1:
            said = f"there are {len(groups)} groups of spans ({', '.join(groups)})"
            raise InputError(said, where=f"{row.where}, column 'spans'", mend="keep one of them, or write doc.ents")
        (values["ents"],) = groups.values()
    return Row(row.number, values, row.source, row.unit)


def spacy_rows(record: Row) -> Iterator[Row]:
    """The paragraphs of spaCy's JSON training format (version 2): raw text, tokens with BILUO tags, categories."""
    for number, paragraph in enumerate(_objects(record, "paragraphs"), start=1):
        place = Row(number, paragraph, record.where, "paragraph")
        tokens, tags = [], []
        for sentence in _objects(place, "sentences") if "sentences" in paragraph else ():
            for token in sentence.get("tokens", ()):
                tokens.append(token.get("orth"))
                tags.append("O" if token.get("ner", "O") in ("-", "") else token.get("ner", "O"))
        raw = paragraph.get("raw")
        values: dict[str, Any] = {"text": raw} if isinstance(raw, str) else {}
        if tokens and raw is None:
            values |= {"tokens": tokens, "tags": tags}
        elif tokens:
            values["spans"] = _spans_in(str(raw), tokens, tags, place)
        cats = paragraph.get("cats")
        if isinstance(cats, list):
            values["cats"] = {each.get("label"): each.get("value") for each in cats if isinstance(each, dict)}
        here = Row(place.number, values, place.source, place.unit)
        yield _with_category(here) if values.get("cats") else here


def spacy_pairs(pairs: Iterable[tuple[str, Any]], source: str) -> Iterator[Row]:
    """The rows of ``[["text", {"entities": [[0, 5, "LABEL"]], "cats": {…}}], …]``, as spaCy's lessons write them."""
    for number, (text, notes) in enumerate(pairs, start=1):
        row = Row(number, {"text": text}, source)
        if not isinstance(notes, dict):
            raise InputError("the second of a pair is not an object", where=row.where)
        if notes.get("cats"):
            yield _with_category(Row(number, {"text": text, "cats": notes["cats"]}, source))
        else:
            yield Row(number, {"text": text, "spans": notes.get("entities", [])}, source)


def _spans_in(raw: str, tokens: list[Any], tags: list[Any], place: Row) -> list[list[Any]]:
    """Spans over tokens as spans over the raw text, in which the tokens stand in order."""
    offsets, at = [], 0
    for token in tokens:
        found = raw.find(token, at) if isinstance(token, str) else -1
        if found < 0:
            raise InputError(f"the token {token!r} is not in the raw text", where=f"{place.where}, column 'sentences'")
        at = found + len(token)
        offsets.append((found, at))
    try:
        spans = tags_to_spans(tags)
    except InputError as error:
        raise InputError(error.what, where=f"{place.where}, column 'ner'", mend=error.mend) from error
    return [[offsets[each.start][0], offsets[each.end - 1][1], each.label] for each in spans]


def _with_category(row: Row) -> Row:
    """A row whose label is the one category of spaCy that holds."""
    cats = row.values["cats"]
    chosen = [name for name, value in cats.items() if isinstance(value, int | float) and value > 0.5]
    values = {name: value for name, value in row.values.items() if name not in ("cats", "ents", "tokens", "spans")}
    return Row(row.number, {**values, "label": chosen}, row.source, row.unit)


def _objects(row: Row, column: str) -> list[dict[str, Any]]:
    value = row.values.get(column)
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise InputError("is not a list of objects", where=f"{row.where}, column {column!r}")
    return value
