"""Examples of training as prompted tasks show them: few, and of every label in turn."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain, zip_longest
from typing import Any

from tsumugu.core.errors import InputError
from tsumugu.data.labelled.examples import Examples
from tsumugu.tasks.prompting.base import Prompted


def pick(train: Examples, count: int) -> Examples:
    """The first `count` examples, of classes one of each label in turn.

    Raises:
        InputError: there are not so many.
    """
    if not 0 <= count <= len(train):
        raise InputError(f"{count} of {len(train)} examples cannot be shown", where="shots")
    if train.kind not in ("text-classification", "pair-classification"):
        return train[:count]
    by_label: dict[str, list[Any]] = defaultdict(list)
    for row in train:
        by_label[row.label].append(row)
    turns = chain.from_iterable(zip_longest(*(by_label[label] for label in sorted(by_label))))
    return Examples(train.kind, tuple([row for row in turns if row is not None][:count]), train.labels)


def as_shots(task: Prompted, chosen: Examples) -> list[dict[str, Any]]:
    """Examples as mappings with the fields and the answer that a prompted task knows."""
    field, answer = task.fields[0], task.answer_field
    match chosen.kind:
        case "text-classification":
            return [{field: row.text, answer: row.label} for row in chosen]
        case "pair-classification":
            return [{task.fields[0]: row.text1, task.fields[-1]: row.text2, answer: row.label} for row in chosen]
        case "similarity":
            most = max(row.score for row in chosen) or 1.0
            return [{"text1": row.text1, "text2": row.text2, answer: row.score / most} for row in chosen]
        case "token-classification":
            return [
                {
                    field: row.text,
                    answer: [{"word": row.text[start:end], "entity_group": label} for start, end, label in row.spans],
                }
                for row in chosen
            ]
        case "question-answering":
            return [
                {"question": row.question, "context": row.context, answer: row.answers[0].text if row.answers else ""}
                for row in chosen
            ]
        case "multiple-choice":
            return [{"question": row.question, "choices": list(row.choices), answer: row.label} for row in chosen]
        case _:
            return [{field: row.source, answer: row.targets[0]} for row in chosen]
