"""Which columns play which part: as a mapping says, or by the names that columns usually have."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tsumugu.core.errors import InputError, did_you_mean
from tsumugu.data.labelled.choices import SERIES
from tsumugu.data.rows import Row, listed


@dataclass(frozen=True)
class Part:
    """A part that a column plays.

    Attributes:
        name: as a mapping calls it.
        usual: names that columns for it have, the likeliest first; a dot leads into an object.
        needed: whether a row cannot do without.
        looks: whether a value could be this; asked only where the kind of data is guessed.
    """

    name: str
    usual: tuple[str, ...]
    needed: bool = True
    looks: Callable[[Any], bool] = lambda value: value is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_label(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) == 1 and isinstance(value[0], str | int)
    return isinstance(value, str | int) or (isinstance(value, float) and value.is_integer())


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"-?\d+(\.\d+)?", value) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_fraction(value: Any) -> bool:
    """A number that is no class: JSTS calls its scores labels."""
    return (isinstance(value, float) and not isinstance(value, bool)) or (
        isinstance(value, str) and re.fullmatch(r"-?\d+\.\d+", value) is not None
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.startswith("["))


def _is_tags(value: Any) -> bool:
    return _is_list(value) and (isinstance(value, str) or not any(isinstance(each, list | dict) for each in value))


def _is_said(value: Any) -> bool:
    """A text, or messages."""
    return _is_text(value) or _is_list(value)


def _is_spans(value: Any) -> bool:
    return _is_list(value) and (isinstance(value, str) or all(isinstance(each, list | dict) for each in value))


def _is_texts(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list) and bool(value) and all(map(_is_text, value)))


def _is_answers(value: Any) -> bool:
    return isinstance(value, dict | list) or (isinstance(value, str) and bool(value))


_ID = Part(
    "id",
    ("id", "guid", "idx", "uid", "_id", "q_id", "qid", "sentence_pair_id", "review_id", "task_id", "pairID", "index"),
    needed=False,
)
_TEXT = ("text", "sentence", "content", "body", "review", "document", "data", "comment", "source")
_LABEL = Part(
    "label",
    ("label", "gold_label", "labels", "category", "class", "sentiment", "topic", "intent", "quality", "is_duplicate"),
    looks=_is_label,
)
_FIRST = (
    *("text1", "sentence1", "premise", "text_a", "sentence_a", "#1 String", "question1", "sentence_A"),
    *("anchor", "query", "question"),
)
_SECOND = (
    *("text2", "sentence2", "hypothesis", "text_b", "sentence_b", "#2 String", "question2", "sentence_B"),
    *("positive", "passage", "sentence", "text_pair"),
)
_MESSAGES = ("messages", "conversations", "conversation")
_SCORE = ("score", "similarity", "similarity_score", "relatedness_score", "sim_score", "stars")

PARTS: dict[str, tuple[Part, ...]] = {
    "question-answering": (
        _ID,
        Part("question", ("question", "query"), looks=_is_text),
        Part("context", ("context", "passage", "paragraph"), looks=_is_text),
        Part("answers", ("answers", "answer"), looks=_is_answers),
        Part("start", ("answer_start",), needed=False),
        Part("title", ("title",), needed=False),
    ),
    "multiple-choice": (
        _ID,
        Part(
            "question",
            ("question", "query", "prompt", "question_stem", "goal", "sentence", "ctx", "startphrase"),
            looks=_is_text,
        ),
        Part("choices", ("choices", "options", "endings", "candidates", *SERIES), looks=lambda each: bool(each)),
        Part("label", ("label", "answer", "answerKey", "answer_index", "gold"), looks=_is_label),
        Part("context", ("context", "passage", "article", "premise"), needed=False),
    ),
    "token-classification": (
        _ID,
        Part("tokens", ("tokens", "words"), needed=False, looks=_is_list),
        Part("tags", ("tags", "ner_tags", "labels", "ner", "bio", "pos_tags"), needed=False, looks=_is_tags),
        Part("text", _TEXT, needed=False, looks=_is_text),
        Part("spans", ("spans", "entities", "ents", "label", "labels"), needed=False, looks=_is_spans),
    ),
    "similarity": (
        _ID,
        Part("text1", _FIRST, looks=_is_text),
        Part("text2", _SECOND, looks=_is_text),
        Part("score", (*_SCORE, "label"), looks=_is_number),
    ),
    "pair-classification": (
        _ID,
        Part("text1", _FIRST, looks=_is_text),
        Part("text2", _SECOND, looks=_is_text),
        Part("label", (*_LABEL.usual, "answer"), looks=_is_label),
    ),
    "text-classification": (_ID, Part("text", _TEXT, looks=_is_text), _LABEL),
    "preference": (
        _ID,
        Part("prompt", ("prompt", "question", "instruction", "input"), needed=False, looks=_is_said),
        Part("chosen", ("chosen", "better", "preferred"), looks=_is_said),
        Part("rejected", ("rejected", "worse", "dispreferred"), looks=_is_said),
    ),
    "conversation": (
        _ID,
        Part("messages", _MESSAGES, needed=False, looks=_is_list),
        Part("prompt", ("instruction", "prompt", "question"), needed=False, looks=_is_said),
        Part("input", ("input", "context"), needed=False, looks=_is_text),
        Part("answer", ("output", "completion", "response", "answer"), needed=False, looks=_is_said),
        Part("system", ("system", "system_prompt"), needed=False, looks=_is_text),
    ),
    "text-to-text": (
        _ID,
        Part(
            "source",
            ("source", "document", "article", "input", "prompt", "dialogue", "question", "src", "text"),
            looks=_is_text,
        ),
        Part(
            "target",
            (
                *("references", "targets", "target", "summary", "highlights", "output", "response", "completion"),
                *("canonical_solution", "code", "answer", "tgt", "abstract", "label"),
            ),
            looks=_is_texts,
        ),
    ),
}
"""The parts of each kind, in the order in which kinds are tried."""


def find_columns(kind: str, row: Row, wanted: Mapping[str, str] | None = None) -> dict[str, str]:
    """Part to column, for data of this kind, as the first row suggests.

    Args:
        kind: one of the kinds of labelled data.
        row: the first row.
        wanted: part to column, as a user says; a dot leads into an object: ``{"target": "translation.en"}``.

    Raises:
        InputError: there is no such part or column, or a part has no column.
    """
    wanted = {**(_languages(row) if kind == "text-to-text" else {}), **(wanted or {})}
    names = [part.name for part in PARTS[kind]]
    for name in wanted:
        if name not in names:
            raise InputError(f"{kind} has no part {name!r}", where="columns", mend=did_you_mean(name, names))
    found: dict[str, str] = {}
    for part in PARTS[kind]:
        if part.name in wanted:
            if not has_column(row, wanted[part.name]):
                raise _no_column(row, wanted[part.name])
            found[part.name] = wanted[part.name]
        elif (column := _usual(part, row, taken=set(found.values()))) is not None:
            found[part.name] = column
        elif part.needed:
            raise InputError(
                f"no column is known for the {part.name} of {kind} (columns: {listed(row.values)})",
                where=row.where,
                mend=f'name it: {part.name}=COLUMN (in Python columns={{"{part.name}": "COLUMN"}})',
            )
    if kind == "token-classification":
        return _either(found, row, wanted)
    return _said(found, row) if kind == "conversation" else found


def guess_kind(row: Row, wanted: Mapping[str, str] | None = None) -> str:
    """The first kind that the first row fits.

    Raises:
        InputError: none fits.
    """
    for kind in PARTS:
        try:
            columns = find_columns(kind, row, wanted)
        except InputError:
            continue
        parts = {part.name: part for part in PARTS[kind]}
        if not all(parts[name].looks(value_of(row, column)) for name, column in columns.items()):
            continue
        if kind == "question-answering" and not _answered(row, columns):
            continue
        if kind == "similarity" and not _scores(row, columns["score"]):
            continue
        if kind == "conversation" and not {*_MESSAGES, "instruction"} & set(columns.values()):
            continue  # a prompt and what completes it may be any two texts
        return kind
    raise InputError(
        f"it is not clear what kind of data this is (columns: {listed(row.values)})",
        where=row.where,
        mend=f"name one of {', '.join(PARTS)}, and columns if need be",
    )


def value_of(row: Row, column: str) -> Any:
    """What a row has in a column, or in an object's field behind a dot.

    Raises:
        InputError: there is no such column.
    """
    if column in row.values:
        return row.values[column]
    head, _, rest = column.partition(".")
    inner = row.values.get(head)
    if rest and isinstance(inner, dict) and rest in inner:
        return inner[rest]
    raise _no_column(row, column)


def has_column(row: Row, column: str) -> bool:
    """Whether `value_of` finds it."""
    try:
        value_of(row, column)
    except InputError:
        return False
    return True


def _no_column(row: Row, column: str) -> InputError:
    return InputError(
        f"there is no column {column!r} (columns: {listed(row.values)})",
        where=row.where,
        mend=did_you_mean(column, row.values) if row.values else None,
    )


def _usual(part: Part, row: Row, taken: set[str]) -> str | None:
    lowered = {name.lower(): name for name in reversed(row.values)}
    candidates = [
        found
        for name in part.usual
        if (found := name if name in row.values else lowered.get(name.lower())) is not None and found not in taken
    ]
    fitting = [each for each in candidates if part.looks(row.values[each])]
    if part.needed:
        return next(iter(fitting or candidates), None)
    return next(iter(fitting), None)


def _answered(row: Row, columns: Mapping[str, str]) -> bool:
    """Whether an answer that is a plain text stands in its context, and is no choice among others."""
    answer, context = (value_of(row, columns[name]) for name in ("answers", "context"))
    choices = next(part for part in PARTS["multiple-choice"] if part.name == "choices")
    plain = isinstance(answer, str) and answer[:1] not in ("[", "{")
    return not plain or (answer in context and not any(has_column(row, name) for name in choices.usual))


def _either(found: dict[str, str], row: Row, wanted: Mapping[str, str]) -> dict[str, str]:
    """Tokens with tags, or a text with spans: what is there."""
    in_tokens = "tokens" in found and "tags" in found and not {"text", "spans"} & set(wanted)
    if in_tokens:
        return {name: column for name, column in found.items() if name in ("id", "tokens", "tags")}
    if "text" in found and "spans" in found:
        return {name: column for name, column in found.items() if name in ("id", "text", "spans")}
    raise InputError(
        f"no columns are known for tokens with tags, or a text with spans (columns: {listed(row.values)})",
        where=row.where,
        mend="name them: tokens= and tags=, or text= and spans=",
    )


def _said(found: dict[str, str], row: Row) -> dict[str, str]:
    """Messages, or an instruction with its answer: what is there."""
    if "messages" in found:
        return {name: column for name, column in found.items() if name in ("id", "messages")}
    if "prompt" in found and "answer" in found:
        return found
    raise InputError(
        f"no columns are known for messages, or a prompt with its answer (columns: {listed(row.values)})",
        where=row.where,
        mend="name them: messages=, or prompt= and answer=",
    )


def _languages(row: Row) -> dict[str, str]:
    """A translation written as an object of two languages goes from the first to the second."""
    both = row.values.get("translation")
    if not isinstance(both, dict) or len(both) != 2:
        return {}
    source, target = both
    return {"source": f"translation.{source}", "target": f"translation.{target}"}


def _scores(row: Row, column: str) -> bool:
    return column.lower() in _SCORE or _is_fraction(value_of(row, column))
