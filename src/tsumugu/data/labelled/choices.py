"""A question with choices, as the well-known sets of such questions write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tsumugu.data.labelled.examples import ChoiceExample
from tsumugu.data.labelled.labels import as_label
from tsumugu.data.rows import Row

if TYPE_CHECKING:
    from tsumugu.data.labelled.checks import Reader

SERIES = {"choice0": 0, "ending0": 0, "choice1": 0, "sol1": 0, "option1": 1, "answerA": 1}
"""The first of the columns that hold a choice each, and from what the right one is counted there: JCommonsenseQA, SWAG,
COPA, PIQA, WinoGrande, Social IQa."""
ASKED = {
    "cause": ("What was the cause of this?", "これの原因は何ですか。"),
    "effect": ("What happened as a result?", "その結果、何が起きましたか。"),
}
"""What COPA asks of a premise by a word, in English and Japanese. Source: Roemmele et al. 2011, section 3."""


def series_of(row: Row, first: str) -> list[Any]:
    """The values of all columns that are called as `first` is, but for the number or letter at the end."""
    form = re.compile(re.escape(first[:-1]) + (r"\d+" if first[-1].isdigit() else "[A-Z]"))
    return [value for name, value in row.values.items() if form.fullmatch(name) and value is not None]


def choice_example(reader: Reader, row: Row, common: dict[str, Any], parsed: Any) -> ChoiceExample:
    """The row as an example.

    Args:
        reader: what is read from which column.
        row: the row.
        common: what every example has.
        parsed: the value of the choices' column, read where it is JSON.

    Raises:
        InputError: there are no two choices, or none of them is right.
    """
    names, base = None, SERIES.get(reader.columns["choices"])
    if base is not None and not isinstance(parsed, list | dict):
        texts: Any = series_of(row, reader.columns["choices"])
    else:
        base = 0
        texts = parsed.get("text") if isinstance(parsed, dict) else parsed
        names = parsed.get("label") if isinstance(parsed, dict) else None
    if not isinstance(texts, list) or len(texts) < 2:
        raise reader.refuse(row, "choices", "holds no two choices")
    choices = tuple(reader.checked_text(row, "choices", each) for each in texts)
    given = reader.get(row, "label")
    if isinstance(names, list) and len(names) == len(choices) and as_label(given) in map(as_label, names):
        label: int | None = [as_label(each) for each in names].index(as_label(given))  # as ARC calls its choices
    else:
        label = _choice(given, choices, base)
    if label is None:
        said = f"{given!r} is none of the {len(choices)} choices"
        raise reader.refuse(row, "label", said, f"count from {base}, write a letter from A, or the choice itself")
    context = reader.text(row, "context", empty=True) if "context" in reader.columns else ""
    question = reader.text(row, "question")
    if question in ASKED and context:
        question = ASKED[question][bool(re.search("[぀-ヿ]", context))]
    return ChoiceExample(question=question, choices=choices, label=label, context=context, **common)


def _choice(value: Any, choices: Sequence[str], base: int) -> int | None:
    """Which choice is meant: a number from `base`, the choice's own text, or a letter from A."""
    if value in choices and isinstance(value, str):
        return choices.index(value)
    word = as_label(value) if not isinstance(value, bool) else ""
    if re.fullmatch(r"[A-Za-z]", word):
        return at if (at := ord(word.upper()) - ord("A")) < len(choices) else None
    if not re.fullmatch(r"\d{1,4}", word):
        return None
    return at if 0 <= (at := int(word) - base) < len(choices) else None
