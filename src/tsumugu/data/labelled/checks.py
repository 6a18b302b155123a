"""One row into one example, or an error that names the row, the column and the mend."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tsumugu.core.errors import InputError
from tsumugu.data.labelled.choices import choice_example
from tsumugu.data.labelled.columns import value_of
from tsumugu.data.labelled.conversations import conversation_example, preference_example
from tsumugu.data.labelled.examples import (
    Answer,
    ChoiceExample,
    Example,
    PairExample,
    QuestionExample,
    SimilarityExample,
    Span,
    SpanExample,
    TargetExample,
    TextExample,
)
from tsumugu.data.labelled.labels import as_label
from tsumugu.data.labelled.tags import tags_to_spans
from tsumugu.data.rows import Row

_SPAN_STARTS = ("start", "start_offset", "begin")
_SPAN_ENDS = ("end", "end_offset", "stop")
_SPAN_LABELS = ("label", "labels", "entity_group", "entity", "polarity", "type", "tag", "category")
_SPAN_TEXTS = ("text", "word", "name", "target", "surface")
_LEGACY = ("cp932", "euc_jp", "cp1252")


@dataclass(frozen=True)
class Reader:
    """Makes examples of rows.

    Attributes:
        kind: of the examples.
        columns: part to column.
        keep: columns to keep as `extra`.
        max_characters: longer texts are refused.
        joiner: what stands between tokens; None: a space, but nothing between Japanese or Chinese ones.
        names: the labels behind numbers, where the data has numbers.
        scheme: of tags; None reads all, leniently.
    """

    kind: str
    columns: Mapping[str, str]
    keep: tuple[str, ...] = ()
    max_characters: int = 1_000_000
    joiner: str | None = None
    names: Sequence[str] | None = None
    scheme: str | None = None

    def example(self, row: Row) -> Example:
        """The row as an example.

        Raises:
            InputError: the row cannot be used; the row and the column are named.
        """
        common: dict[str, Any] = {"id": self._id(row), "extra": {name: value_of(row, name) for name in self.keep}}
        if not self.keep:
            common.pop("extra")
        return _MAKERS[self.kind](self, row, common)

    def refuse(self, row: Row, part: str, what: str, mend: str | None = None) -> InputError:
        """The error for a part of a row."""
        return InputError(what, where=f"{row.where}, column {self.columns.get(part, part)!r}", mend=mend)

    def get(self, row: Row, part: str) -> Any:
        """The value of a part; JSON in a field of CSV is read."""
        value = value_of(row, self.columns[part])
        if value is None:
            raise self.refuse(row, part, "is empty (null)")
        return value

    def text(self, row: Row, part: str, *, empty: bool = False) -> str:
        """A text that says something."""
        return self.checked_text(row, part, self.get(row, part), empty=empty)

    def checked_text(self, row: Row, part: str, value: Any, *, empty: bool = False) -> str:
        """`value`, when it is a text that can be used."""
        if not isinstance(value, str):
            raise self.refuse(row, part, f"holds {json_kind(value)}, not a text")
        if not empty and not value.strip():
            raise self.refuse(row, part, "is empty")
        if len(value) > self.max_characters:
            raise self.refuse(
                row,
                part,
                f"has {len(value):,} characters, more than {self.max_characters:,}",
                "divide it, or raise the limit (max_characters)",
            )
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.refuse(row, part, *_encoding(value, error)) from error
        return value

    def label(self, row: Row, part: str = "label") -> str:
        """A label: text, or a number or a truth as text."""
        value = self.get(row, part)
        if isinstance(value, list):
            if len(value) != 1:
                raise self.refuse(row, part, f"holds {len(value)} labels, not one")
            value = value[0]
        if value == "-" and self.columns.get(part) == "gold_label":
            raise self.refuse(row, part, "is '-': those who were asked did not agree", "pass over such rows")
        return self.checked_label(row, part, value)

    def checked_label(self, row: Row, part: str, value: Any) -> str:
        """`value` as a label."""
        if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            raise self.refuse(row, part, f"holds {json_kind(value)}, not a label")
        if self.names is not None and isinstance(value, int):
            if not 0 <= value < len(self.names):
                raise self.refuse(row, part, f"holds {value}, which is none of the {len(self.names)} labels' numbers")
            return self.names[value]
        return self.checked_text(row, part, as_label(value)).strip()

    def listed(self, row: Row, part: str) -> list[Any]:
        """A list, which CSV has as JSON."""
        value = _parsed(self.get(row, part))
        if callable(getattr(value, "tolist", None)):
            value = value.tolist()
        if not isinstance(value, list):
            raise self.refuse(row, part, f"holds {json_kind(value)}, not a list")
        return value

    def _id(self, row: Row) -> str:
        value = value_of(row, self.columns["id"]) if "id" in self.columns else None
        return str(row.number) if value is None or value == "" else str(value)


def _text_example(reader: Reader, row: Row, common: dict[str, Any]) -> TextExample:
    return TextExample(text=reader.text(row, "text"), label=reader.label(row), **common)


def _pair_example(reader: Reader, row: Row, common: dict[str, Any]) -> PairExample:
    return PairExample(
        text1=reader.text(row, "text1"), text2=reader.text(row, "text2"), label=reader.label(row), **common
    )


def _similarity_example(reader: Reader, row: Row, common: dict[str, Any]) -> SimilarityExample:
    value = reader.get(row, "score")
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if isinstance(value, bool) or not math.isfinite(score):
        raise reader.refuse(row, "score", f"holds {json_kind(value)}, not a finite number")
    return SimilarityExample(text1=reader.text(row, "text1"), text2=reader.text(row, "text2"), score=score, **common)


def _span_example(reader: Reader, row: Row, common: dict[str, Any]) -> SpanExample:
    return _tagged(reader, row, common) if "tokens" in reader.columns else _spanned(reader, row, common)


def _tagged(reader: Reader, row: Row, common: dict[str, Any]) -> SpanExample:
    tokens = [reader.checked_text(row, "tokens", each) for each in reader.listed(row, "tokens")]
    tags = [reader.checked_label(row, "tags", each) for each in reader.listed(row, "tags")]
    if not tokens:
        raise reader.refuse(row, "tokens", "has no tokens")
    if len(tokens) != len(tags):
        raise reader.refuse(row, "tags", f"has {len(tags)} tags for {len(tokens)} tokens")
    try:
        found = tags_to_spans(tags, reader.scheme)
    except InputError as error:
        raise reader.refuse(row, "tags", error.what, error.mend) from error
    text, offsets = join_tokens(tokens, reader.joiner)
    spans = tuple(Span(offsets[each.start][0], offsets[each.end - 1][1], each.label) for each in found)
    return SpanExample(text=text, spans=spans, tokens=tuple(offsets), **common)


def _spanned(reader: Reader, row: Row, common: dict[str, Any]) -> SpanExample:
    text = reader.text(row, "text")
    spans = sorted({_span(reader, row, text, each) for each in reader.listed(row, "spans")})
    for before, here in pairwise(spans):
        if here.start < before.end:
            said = f"the span {here.start} to {here.end} overlaps {before.start} to {before.end}"
            raise reader.refuse(row, "spans", said, "keep one of them: spans that overlap are not read")
    return SpanExample(text=text, spans=tuple(spans), **common)


def _span(reader: Reader, row: Row, text: str, value: Any) -> Span:
    stated = None
    if isinstance(value, dict):
        pair = value.get("span")
        start, end = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
        start, end = _first(value, _SPAN_STARTS, start), _first(value, _SPAN_ENDS, end)
        label = _first(value, _SPAN_LABELS, None)
        stated = _first(value, _SPAN_TEXTS, None)
        label = label[0] if isinstance(label, list) and len(label) == 1 else label
    elif isinstance(value, list) and len(value) == 3:
        start, end, label = value
    else:
        raise reader.refuse(
            row, "spans", f"a span is {json_kind(value)}", 'write [start, end, "label"] or {"start", "end", "label"}'
        )
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in (start, end)):
        raise reader.refuse(row, "spans", f"the span {start!r} to {end!r} has no whole numbers as start and end")
    if label is None:
        raise reader.refuse(row, "spans", f"the span {start} to {end} has no label")
    name = reader.checked_label(row, "spans", label)
    if isinstance(stated, str) and text[start:end] != stated and not text.isascii():
        start, end = _from_utf16(text, start, end, stated)  # what was marked in a browser counts so
    if not 0 <= start < end <= len(text):
        said = f"the span {start} to {end} lies outside the text, which has {len(text)} characters"
        raise reader.refuse(row, "spans", said if start < end else f"the span {start} to {end} is empty")
    if isinstance(stated, str) and text[start:end] != stated:
        said = f"the span {start} to {end} is {text[start:end]!r} in the text, not {stated!r}"
        raise reader.refuse(row, "spans", said, "offsets count characters from 0, the end behind the last")
    return Span(start, end, name)


def _from_utf16(text: str, start: int, end: int, stated: str) -> tuple[int, int]:
    """Offsets that count UTF-16 units as offsets of characters, where that gives what is stated."""
    units = text.encode("utf-16-le", "surrogatepass")
    if units[2 * max(start, 0) : 2 * max(end, 0)] != stated.encode("utf-16-le", "surrogatepass"):
        return start, end
    begin = len(units[: 2 * start].decode("utf-16-le", "surrogatepass"))
    return begin, begin + len(stated)


def _question_example(reader: Reader, row: Row, common: dict[str, Any]) -> QuestionExample:
    context = reader.text(row, "context")
    found: list[Answer] = []
    for text, start in _answers(reader, row, context):
        if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
            raise reader.refuse(row, "answers", "an answer is not a text with a whole number where it starts")
        if not text:
            raise reader.refuse(row, "answers", "an answer is empty", "a question without answer has no answers at all")
        if start < 0 or start + len(text) > len(context):
            said = f"the answer at {start} leaves the context, which has {len(context)} characters"
            raise reader.refuse(row, "answers", said)
        if context[start : start + len(text)] != text:
            said = f"the context has {context[start : start + len(text)]!r} at {start}, not {text!r}"
            raise reader.refuse(row, "answers", said, "answer_start counts characters from 0")
        found.append(Answer(text, start))
    title = value_of(row, reader.columns["title"]) if "title" in reader.columns else None
    return QuestionExample(
        question=reader.text(row, "question"), context=context, answers=tuple(found), title=title or "", **common
    )


def _answers(reader: Reader, row: Row, context: str) -> list[tuple[Any, Any]]:
    """Answers as ``{"text": […], "answer_start": […]}`` or as a list of ``{"text": …, "answer_start": …}``.

    A plain text starts where its column says, or where the context has it first.
    """
    value = _parsed(reader.get(row, "answers"))
    if isinstance(value, dict):
        texts, starts = (value.get(name) for name in ("text", "answer_start"))
        texts, starts = ([texts], [starts]) if isinstance(texts, str) else (texts, starts)
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            return list(zip(texts, starts, strict=True))
    elif isinstance(value, list) and all(isinstance(each, dict) for each in value):
        return [(each.get("text"), each.get("answer_start", each.get("start"))) for each in value]
    elif isinstance(value, str):
        start = value_of(row, reader.columns["start"]) if "start" in reader.columns else context.find(value)
        if start == -1:
            said = f"the context does not have {value[:40]!r}"
            raise reader.refuse(row, "answers", said, "where answers are in other words, the kind is text-to-text")
        return [(value, int(start) if str(start).isdecimal() else start)] if value else []
    raise reader.refuse(row, "answers", "holds no answers", 'write {"text": ["…"], "answer_start": [0]}')


def _choice_example(reader: Reader, row: Row, common: dict[str, Any]) -> ChoiceExample:
    return choice_example(reader, row, common, _parsed(reader.get(row, "choices")))


def _target_example(reader: Reader, row: Row, common: dict[str, Any]) -> TargetExample:
    value = reader.get(row, "target")
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise reader.refuse(row, "target", "has no text")
    targets = tuple(reader.checked_text(row, "target", each) for each in texts)
    return TargetExample(source=reader.text(row, "source"), targets=targets, **common)


_MAKERS: dict[str, Callable[[Reader, Row, dict[str, Any]], Example]] = {
    "text-classification": _text_example,
    "pair-classification": _pair_example,
    "similarity": _similarity_example,
    "token-classification": _span_example,
    "question-answering": _question_example,
    "multiple-choice": _choice_example,
    "text-to-text": _target_example,
    "conversation": conversation_example,
    "preference": preference_example,
}


def join_tokens(tokens: Sequence[str], joiner: str | None = None) -> tuple[str, list[tuple[int, int]]]:
    """The text of tokens, and their offsets in it.

    Args:
        tokens: none empty.
        joiner: what stands between them; None: a space, but nothing where signs of Japanese or Chinese meet.
    """
    pieces: list[str] = []
    offsets: list[tuple[int, int]] = []
    at, before = 0, ""
    for token in tokens:
        between = ""
        if before:
            between = joiner if joiner is not None else "" if _wide(before[-1]) and _wide(token[0]) else " "
        pieces += [between, token]
        at += len(between)
        offsets.append((at, at + len(token)))
        at, before = at + len(token), token
    return "".join(pieces), offsets


def _wide(sign: str) -> bool:
    """Whether a sign is written without spaces: kana, Chinese characters, full-width signs, CJK punctuation."""
    return sign >= "\u2e80" and not "\uac00" <= sign <= "\ud7a3"


def _first(values: Mapping[str, Any], names: Sequence[str], otherwise: Any) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), otherwise)


def _parsed(value: Any) -> Any:
    """JSON in a text field, as CSV keeps lists and objects; anything else as it is."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def json_kind(value: Any) -> str:
    """What a value is, in words of the file and not of Python."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return f"{value[:40]!r}"
    if isinstance(value, int | float):
        return f"the number {value}"
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else type(value).__name__


def _encoding(value: str, error: UnicodeEncodeError) -> tuple[str, str]:
    """What is wrong with a text whose bytes were no UTF-8, and which encoding they may be in."""
    mend = "save it as UTF-8"
    try:
        raw = value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "holds half of a surrogate pair", mend
    sign = raw[len(value[: error.start].encode("utf-8", "surrogateescape"))]
    for name in _LEGACY:
        try:
            read = raw.decode(name)
        except UnicodeDecodeError:
            continue
        return f"byte 0x{sign:02x} is not UTF-8", f"read as {name} it is {read[:20]!r}: {mend}"
    return f"byte 0x{sign:02x} is not UTF-8", mend
