"""Labelled data as the examples that prompts show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsumugu.data.labelled.examples import Examples
from tsumugu.data.labelled.load import load_examples

if TYPE_CHECKING:
    from tsumugu.tasks.prompting.base import Prompted

KINDS = {
    "zero-shot-classification": "text-classification",
    "sentence-similarity": "similarity",
    "summarization": "text-to-text",
    "translation": "text-to-text",
}
"""The kind of data that a task learns from, where it is not called as the task."""


def read_examples(task: Prompted, source: str | Path) -> list[dict[str, Any]]:
    """The examples of a file of labelled data, in any format that `tsumugu data` reads.

    Raises:
        InputError: they cannot be read, or are not for this task; the file, the row and the column are named.
    """
    paired = task.name == "text-classification" and len(task.fields) == 2
    return as_shots(task, load_examples(source, "pair-classification" if paired else KINDS.get(task.name, task.name)))


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
