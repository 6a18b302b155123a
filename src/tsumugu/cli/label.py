"""``tsumugu label``: make labelled data out of raw text, in the terminal."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from tsumugu.cli.cache_text import count_text
from tsumugu.cli.console import progress, stderr
from tsumugu.cli.dash import DASH
from tsumugu.cli.downloads import downloads
from tsumugu.cli.inputs import EncodingErrors, InputFormat, TextColumn, one_text, read_inputs
from tsumugu.cli.options import Device, Model, Quiet
from tsumugu.core.errors import InputError, did_you_mean

TASKS = {"text-classification": "label", "token-classification": "entities"}
ALIASES = {"ner": "token-classification", "classification": "text-classification"}
ALIASES |= {"sentiment-analysis": "text-classification", "document-classification": "text-classification"}


@dataclass
class Suggestion:
    """What a model says of a text.

    Attributes:
        scores: of each label, the likeliest first.
        spans: start, end and label of each name.
        doubt: how unsure the model is; the entropy of the scores, or one less the least sure name's score.
    """

    scores: dict[str, float] = field(default_factory=dict)
    spans: list[tuple[int, int, str]] = field(default_factory=list)
    doubt: float = 0.0


Suggest = Callable[[Sequence[str]], list[Suggestion]]


def label(
    input: Annotated[Path, DASH, Parameter(help="Texts: a file, a folder, a 'pattern', or - for standard input.")],
    /,
    *,
    output: Annotated[Path, Parameter(("--output", "-o"), help="The .jsonl file that grows; it is gone on with.")],
    labels: Annotated[
        list[str] | None, Parameter(("--labels", "-l"), negative="", help="The labels, with commas between them.")
    ] = None,
    task: Annotated[str, Parameter(help="text-classification, or token-classification (ner).")] = "text-classification",
    model: Model = None,
    order: Annotated[
        Literal["input", "uncertain"], Parameter(help="Which text comes first; uncertain: what the model knows least.")
    ] = "input",
    text_column: TextColumn = None,
    input_format: InputFormat = None,
    encoding_errors: EncodingErrors = "strict",
    whole_files: Annotated[bool, Parameter(negative="", help="Each file of the input is one text.")] = False,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Show one text after another and write down what you say of each.

    A class is one key. A name is marked with the arrows and Shift, character by character, then one key. Each row is
    on the disk at once: quit at any time, and the same command goes on.
    """
    task = ALIASES.get(task.lower().replace("_", "-"), task.lower().replace("_", "-"))
    if task not in TASKS:
        raise InputError(f"{task!r} cannot be labelled", where="--task", mend=did_you_mean(task, [*TASKS, *ALIASES]))
    if order == "uncertain" and model is None:
        raise InputError("only a model knows how sure it is", where="--order uncertain", mend="name one with --model")
    from tsumugu.data.labelling import LabelFile

    with LabelFile(output, TASKS[task]) as file:
        if input != Path("-") and input.is_file() and input.samefile(output):
            raise InputError("the output is the input file", where=str(output), mend="choose another name")
        inputs = read_inputs((), input, format=input_format, encoding_errors=encoding_errors, whole=whole_files)
        known = set(file.texts)
        texts = [one_text(row, text_column) for row in inputs.rows]
        texts = [text for text in dict.fromkeys(texts) if text.strip() and text not in known]
        if input == Path("-"):
            _hear_the_keyboard()
        names = _labels(labels, output, TASKS[task])
        suggest: Suggest | None = None
        if model is not None:
            suggest, names = _suggester(task, model, names, device, quiet=quiet)
        if not names:
            raise InputError(
                "there are no labels to choose from", where="--labels", mend="give them: --labels good,bad"
            )
        if not texts:
            stderr().print(
                f"nothing is left to label; {count_text(len(known), 'row')} in {output}", markup=False, soft_wrap=True
            )
            return
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise InputError("labels are given in a terminal", mend="start it in one")
        ready: dict[str, Suggestion] = {}
        if order == "uncertain" and suggest is not None:
            ready = _all(texts, suggest, quiet=quiet)
            texts.sort(key=lambda text: -ready[text].doubt)
        from tsumugu.cli.label_screen import Labeller

        Labeller(texts, names, file, suggest=suggest, ready=ready).run()
        stderr().print(f"{count_text(len(file.texts), 'row')} in {output}", style="dim", markup=False, soft_wrap=True)


def _labels(given: list[str] | None, output: Path, answer: str) -> list[str]:
    """The labels that are asked for, else those of the rows that are there."""
    if given:
        return list(dict.fromkeys(each.strip() for one in given for each in one.split(",") if each.strip()))
    found: dict[str, None] = {}
    with output.open(encoding="utf-8") as file:
        for line in file:
            value = json.loads(line)[answer]
            for each in [value] if isinstance(value, str) else value:
                found[each if isinstance(each, str) else each["label"]] = None
    return list(found)


def _suggester(task: str, model: str, labels: list[str], device: str, *, quiet: bool) -> tuple[Suggest, list[str]]:
    """What asks a model, and the labels: its own where none are named."""
    from tsumugu.tasks.pipeline import pipeline
    from tsumugu.tasks.prompting.base import Prompted

    with downloads(quiet=quiet) as watch:
        solver = pipeline(task, model, device=device, progress=watch)
    prompted = isinstance(solver, Prompted)
    if not labels and not prompted:
        labels = list(dict.fromkeys(each.removeprefix("B-").removeprefix("I-") for each in solver.model.config.labels))
        labels = [each for each in labels if each != "O"]
    options: dict[str, Any] = {"labels": labels} if prompted and labels else {}

    def classes(texts: Sequence[str]) -> list[Suggestion]:
        found = []
        for answers in solver(list(texts), top_k=None, **options):
            scores = {each["label"]: float(each["score"]) for each in answers}
            known = {name: scores[name] for name in scores if name in labels}
            found.append(Suggestion(known, doubt=_entropy(scores)))
        return found

    def names(texts: Sequence[str]) -> list[Suggestion]:
        asked = options if prompted else {"aggregation_strategy": "simple"}
        found = []
        for entities in solver(list(texts), **asked):
            kept = [each for each in entities if each["entity_group"] in labels]
            spans = [(int(each["start"]), int(each["end"]), each["entity_group"]) for each in kept]
            sure = min((float(each["score"]) for each in entities), default=1.0)
            found.append(Suggestion(spans=spans, doubt=1.0 - sure))
        return found

    return (classes if task == "text-classification" else names), labels


def _entropy(scores: Mapping[str, float]) -> float:
    """How unsure a model is. Source: Settles 2009, Active Learning Literature Survey, section 3.1."""
    total = sum(scores.values())
    shares = [each / total for each in scores.values() if each > 0]
    return -sum(share * math.log(share) for share in shares)


def _all(texts: Sequence[str], suggest: Suggest, *, quiet: bool) -> dict[str, Suggestion]:
    """What a model says of all texts."""
    found: dict[str, Suggestion] = {}
    with progress(quiet=quiet) as display:
        bar = display.add_task("asking the model", total=len(texts))
        for start in range(0, len(texts), 64):
            some = texts[start : start + 64]
            found |= zip(some, suggest(some), strict=True)
            display.advance(bar, len(some))
    return found


def _hear_the_keyboard() -> None:
    """Texts came through standard input; keys come from the terminal."""
    try:
        os.dup2(os.open("/dev/tty", os.O_RDWR), 0)
    except OSError:
        raise InputError("labels are given in a terminal", mend="start it in one") from None
    #
