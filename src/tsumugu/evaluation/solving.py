"""Have a task's pipeline solve labelled examples: each kind of data in the form that its task expects."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from tsumugu.core.errors import InputError
from tsumugu.core.registry import PROMPTED, TASKS
from tsumugu.data.labelled.examples import Examples
from tsumugu.evaluation.scoring import Prediction
from tsumugu.tasks.base import Task
from tsumugu.tasks.prompting.base import Prompted

_WINDOW = 256
"""Examples handed to a task at once."""

TASKS_OF = {
    "text-classification": ("text-classification", "sentiment-analysis", "zero-shot-classification"),
    "pair-classification": ("natural-language-inference", "text-classification"),
    "similarity": ("sentence-similarity", "text-classification"),
    "token-classification": ("token-classification",),
    "question-answering": ("question-answering",),
    "multiple-choice": ("multiple-choice", "text-ranking", "sentence-similarity"),
    "text-to-text": ("text2text-generation", "summarization", "translation", "text-generation", "chat"),
}
"""The tasks that solve each kind of data, the usual one first."""


def solve(
    task: Task,
    examples: Examples,
    *,
    label_map: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Prediction]:
    """The predictions of a task, in the order of the examples.

    Args:
        task: one of `TASKS_OF` the kind.
        examples: what to solve.
        label_map: the model's label to the data's, where they differ by more than case.
        options: of the task's calls.
        progress: called with how many examples were solved.

    Raises:
        InputError: the task does not solve this kind, or its labels are none of the data's.
    """
    task_for(examples.kind, task.name)
    call = _CALLS[task.name]
    rename = _renamed(task, examples, label_map or {})
    rows = iter(examples)
    while batch := list(islice(rows, _WINDOW)):
        found = list(call(task, batch, examples, dict(options or {})))
        yield from map(rename, found)
        if progress is not None:
            progress(len(batch))


def task_for(kind: str, name: str | None = None) -> str:
    """The task that solves this kind of data: the one that is asked for, by any of its names, or the usual one.

    Raises:
        InputError: the task does not solve this kind.
        UnknownNameError: there is no such task.
    """
    if kind not in TASKS_OF:
        raise InputError(f"there is no score for {kind}", where="data", mend="it is for tsumugu finetune")
    name = TASKS_OF[kind][0] if name is None else name
    chosen = (
        TASKS.canonical(name)
        if name in TASKS
        else PROMPTED.canonical(re.sub(r"^translation[-_].+", "translation", name))
    )
    if chosen not in TASKS_OF[kind]:
        raise InputError(f"{chosen} does not solve {kind}", where="task", mend=f"use {', '.join(TASKS_OF[kind])}")
    return chosen


def _classify(task: Task, rows: Sequence[Any], examples: Examples, options: dict[str, Any]) -> Iterator[Prediction]:
    prompted = isinstance(task, Prompted)
    first, second = (task.fields[0], task.fields[-1]) if isinstance(task, Prompted) else ("text", "text_pair")
    texts: list[Any] = [
        row.text if examples.kind == "text-classification" else {first: row.text1, second: row.text2} for row in rows
    ]
    if prompted and examples.kind == "pair-classification" and first == second:
        raise InputError(f"{task.name} asks of one text", where="task", mend="use natural-language-inference")
    if prompted:
        options = _asked_labels(task, examples, options)
    for answers in task(texts, **{"top_k": None, **options}):
        table = {each["label"]: float(each["score"]) for each in answers}
        if examples.kind == "similarity":
            yield Prediction(next(iter(table.values())))
            continue
        best = max(table, key=table.__getitem__)
        proper = 0.99 < sum(table.values()) < 1.01
        yield Prediction(best, table[best] if 0 <= table[best] <= 1 else None, table if proper else None)


def _asked_labels(task: Any, examples: Examples, options: dict[str, Any]) -> dict[str, Any]:
    """The data's labels, for a prompt that has no words of its own for them."""
    known = task.words.get(options.get("language", task.defaults.get("language", "en")), {})
    told = "labels" in options or "labels" in task.defaults or set(examples.labels or ()) <= set(known)
    return options if told else {**options, "labels": list(examples.labels or ())}


def _zero_shot(task: Task, rows: Sequence[Any], examples: Examples, options: dict[str, Any]) -> Iterator[Prediction]:
    chosen = {"candidate_labels": list(examples.labels or ()), **task.defaults, **options}
    for answer in task([row.text for row in rows], **chosen):
        table = dict(zip(answer["labels"], map(float, answer["scores"]), strict=True))
        yield Prediction(answer["labels"][0], float(answer["scores"][0]), None if chosen.get("multi_label") else table)


def _compare(task: Task, rows: Sequence[Any], examples: Examples, options: dict[str, Any]) -> Iterator[Prediction]:
    if examples.kind == "similarity":
        for answer in task([(row.text1, row.text2) for row in rows], **options):
            yield Prediction(float(answer["score"]))
        return
    if isinstance(task, Prompted):
        asked = [{"question": row.question, "choices": list(row.choices), "context": row.context} for row in rows]
        for answer in task(asked, **options):
            yield Prediction(int(answer["label"]), float(answer["score"]))
        return
    if task.name == "text-ranking":
        for row in rows:
            ranked = task({"query": " ".join(row.texts), "texts": list(row.choices)}, **options)
            yield Prediction(int(ranked[0]["index"]), float(ranked[0]["score"]))
        return
    pairs = [(" ".join(row.texts), choice) for row in rows for choice in row.choices]
    scores = iter(task(pairs, **options))
    for row in rows:
        found = [float(each["score"]) for each in islice(scores, len(row.choices))]
        yield Prediction(max(range(len(found)), key=found.__getitem__))


def _tag(task: Task, rows: Sequence[Any], examples: Examples, options: dict[str, Any]) -> Iterator[Prediction]:
    usual = _asked_labels(task, examples, {}) if isinstance(task, Prompted) else {"aggregation_strategy": "simple"}
    for entities in task([row.text for row in rows], **{**usual, **options}):
        yield Prediction(tuple((int(each["start"]), int(each["end"]), each["entity_group"]) for each in entities))


def _answer(task: Task, rows: Sequence[Any], examples: Examples, options: dict[str, Any]) -> Iterator[Prediction]:
    asked = [{"question": row.question, "context": row.context} for row in rows]
    chosen = {"handle_impossible_answer": any(not row.answers for row in examples), **options}
    for answer in task.each(asked, **chosen):
        yield Prediction(answer["answer"])


def _write(task: Task, rows: Sequence[Any], examples: Examples, options: dict[str, Any]) -> Iterator[Prediction]:
    chosen = {**({"return_full_text": False} if task.name == "text-generation" else {}), **options}
    for answer in task([row.source for row in rows], **chosen):
        first = answer[0] if isinstance(answer, list) else answer
        text = (
            first if isinstance(first, str) else next(value for name, value in first.items() if name.endswith("_text"))
        )
        yield Prediction(text)


_CALLS: dict[str, Callable[[Any, Sequence[Any], Examples, dict[str, Any]], Iterable[Prediction]]] = {
    "text-classification": _classify,
    "zero-shot-classification": _zero_shot,
    "sentence-similarity": _compare,
    "multiple-choice": _compare,
    "text-ranking": _compare,
    "token-classification": _tag,
    "question-answering": _answer,
    "text2text-generation": _write,
    "summarization": _write,
    "translation": _write,
    "text-generation": _write,
    "chat": _write,
}


def _renamed(task: Task, examples: Examples, label_map: Mapping[str, str]) -> Callable[[Prediction], Prediction]:
    """How the model's labels become the data's."""
    if task.name == "token-classification":
        return lambda each: Prediction(
            tuple((start, end, label_map.get(label, label)) for start, end, label in each.answer)
        )
    if (
        isinstance(task, Prompted)
        or task.name != "text-classification"
        or examples.kind == "similarity"
        or examples.labels is None
    ):
        return lambda each: each
    theirs = tuple(task.model.config.labels)
    names = match_labels(theirs, examples.labels, label_map)

    def rename(each: Prediction) -> Prediction:
        table = None if each.probabilities is None else {names[k]: v for k, v in each.probabilities.items()}
        return Prediction(names[each.answer], each.confidence, table)

    return rename


def match_labels(theirs: Sequence[str], ours: Sequence[str], label_map: Mapping[str, str]) -> dict[str, str]:
    """The data's label for each label of a model: as a map says, by name in any case, or LABEL_0 and the like by place.

    Raises:
        InputError: none of the model's labels is one of the data's.
    """
    lowered = {label.lower(): label for label in ours}
    found = {each: label_map.get(each, lowered.get(each.lower(), each)) for each in theirs}
    if any(label in ours for label in found.values()):
        return found
    if len(theirs) == len(ours) and all(each == f"LABEL_{at}" for at, each in enumerate(theirs)):
        return dict(zip(theirs, ours, strict=True))
    raise InputError(
        f"the model's labels ({', '.join(theirs[:5])}) are none of the data's ({', '.join(ours[:5])})",
        where="labels",
        mend="say which is which: --label-map THEIRS=OURS",
    )
