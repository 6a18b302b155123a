"""Evaluate a model, a file of predictions or a baseline on labelled data: the whole way in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tsumugu.core.errors import InputError, did_you_mean
from tsumugu.corpus.documents import Division, Reading, read_documents
from tsumugu.corpus.inputs import find_sources
from tsumugu.data.hub_datasets import DATASET
from tsumugu.data.labelled.examples import Examples
from tsumugu.data.labelled.load import load_examples, load_splits
from tsumugu.evaluation.answers import Rules
from tsumugu.evaluation.baselines import UNTAUGHT, Embed, find_baseline
from tsumugu.evaluation.predictions import read_predictions
from tsumugu.evaluation.report import write_report
from tsumugu.evaluation.results import REPORT, Results, Settings, save, summarize
from tsumugu.evaluation.scoring import Item, Prediction, Scoring
from tsumugu.evaluation.texts import Tokens

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Evaluation:
    """What was found, and the examples with their predictions."""

    results: Results
    items: tuple[Item, ...]

    @property
    def scores(self) -> dict[str, float]:
        """Every metric's value."""
        return {name: score.value for name, score in self.results.scores.items()}

    def save(self, folder: str | Path, *, language: str = "en") -> None:
        """Write ``results.json``, ``predictions.jsonl`` and ``report.html``; each appears whole or not at all.

        Args:
            folder: where; made if need be.
            language: of the report, "en" or "ja".
        """
        save(self.results, self.items, folder)
        write_report(self.results, self.items, Path(folder) / REPORT, language=language)


def evaluate(
    data: str | Path | Examples,
    *,
    model: Any = None,
    task: str | None = None,
    predictions: str | Path | Sequence[Any] | None = None,
    baseline: str | None = None,
    train: str | Path | Examples | None = None,
    split: str = "test",
    kind: str | None = None,
    limit: int | None = None,
    name: str | None = None,
    metric: str | None = None,
    slice_by: Sequence[str] = (),
    column: str | None = None,
    label_map: Mapping[str, str] | None = None,
    shots: int = 0,
    options: Mapping[str, Any] | None = None,
    embedder: str | Path = "minilm",
    rules: Rules | None = None,
    tokens: Tokens = "auto",
    document: Division = "auto",
    settings: Settings | None = None,
    adapter: str | Path | None = None,
    progress: Progress | None = None,
    **reading: Any,
) -> Evaluation:
    """Score what one of a model, predictions or a baseline answers to labelled data.

    Args:
        data: a file, a folder of splits, ``hf:NAME``, or examples.
        model: a source as `load_model` takes it, or a task as `pipeline` gives it.
        task: which task the model solves; the usual one of the kind when left out. "language-modeling" says how well
            a decoder predicts the documents of a file of raw text.
        predictions: a file, or an answer for each example.
        baseline: majority, tfidf, embeddings, token-majority, overlap, lead, lexrank, nearest or copy.
        train: what a baseline learns from, and whose labels hold; the folder's own training split when left out.
        split: of a folder or a data set.
        kind, reading: as `load_examples` takes them.
        limit: only so many examples, the first.
        name: what the system is called; the model's or the file's name when left out.
        metric: the one that ranks.
        slice_by: columns whose values make slices of the report.
        column: of the file of predictions.
        label_map: the model's label to the data's.
        shots: examples of training that a prompt shows, of every label in turn.
        options: of the task's calls, such as `max_new_tokens`.
        embedder: the model whose vectors the baseline "embeddings" uses.
        rules: how answers are compared, "squad" or "japanese"; by their language when left out.
        tokens: how texts are cut: auto, words, characters or mecab.
        document: what a document of raw text is: the "file" ("auto" too), a "paragraph", a "line".
        settings: resamples, confidence, seed.
        adapter: of the model, where that is a source; merged into it.
        progress: called with how many examples were solved.

    Raises:
        InputError: data, predictions or labels do not fit.
    """
    systems = [each for each in (model, predictions, baseline) if each is not None]
    if len(systems) != 1:
        said = "nothing to evaluate is named" if not systems else "several things to evaluate are named"
        raise InputError(said, mend="name one of a model, predictions, a baseline")
    reading = {**reading, "keep": tuple(dict.fromkeys((*reading.get("keep", ()), *slice_by)))}
    if task is not None and task.lower().replace("_", "-") in ("language-modeling", "perplexity"):
        return _language_modeling(data, model, adapter, document, limit, name, metric, settings, progress)
    examples, learned = read_data(data, split=split, train=train, kind=kind, reading=reading)
    skipped = len(examples.problems)
    if limit is not None:
        if limit < 1:
            raise InputError(f"{limit} examples are none", where="limit", mend="at least 1")
        examples = examples[:limit]
    began = time.perf_counter()
    if predictions is not None and not isinstance(predictions, str | Path):
        answers = [each if isinstance(each, Prediction) else Prediction(each) for each in predictions]
    elif predictions is not None:
        answers = read_predictions(predictions, examples, column=column)
    elif baseline is not None:
        answers = list(_baseline(baseline, examples, learned, embedder, progress))
    else:
        answers = list(_model(model, adapter, task, examples, learned, shots, label_map, options, progress))
    seconds = time.perf_counter() - began
    if len(answers) != len(examples):
        raise InputError(f"{len(answers)} predictions for {len(examples)} examples", where="predictions")
    items = tuple(Item.of(example, answer) for example, answer in zip(examples, answers, strict=True))
    results = summarize(
        items,
        Scoring(examples.kind, tuple(examples.labels or ()), rules, tokens),
        system=name or _name(model, predictions, baseline),
        source=examples.source,
        primary=metric,
        slice_by=slice_by,
        settings=settings,
        seconds=seconds if predictions is None else None,
        skipped=skipped,
    )
    return Evaluation(results, items)


def read_data(
    data: str | Path | Examples,
    *,
    split: str = "test",
    train: str | Path | Examples | None = None,
    kind: str | None = None,
    reading: Mapping[str, Any] | None = None,
) -> tuple[Examples, Examples | None]:
    """The examples to solve, and those to learn from, where there are any; the labels of the latter hold for both.

    Raises:
        InputError: there is no such split, or as `load_examples` says.
    """
    options = dict(reading or {})
    learned = train if isinstance(train, Examples) else None
    if isinstance(data, Examples):
        return data, learned
    if isinstance(train, str | Path):
        rest = {name: value for name, value in options.items() if name != "keep"}
        learned = _one(train, "train", kind, rest)
    if _is_one_file(data):
        return load_examples(data, kind, labels=None if learned is None else learned.labels, **options), learned
    splits = load_splits(data, kind, labels=None if learned is None else learned.labels, **options)
    if split not in splits:
        raise InputError(f"there is no split {split!r}", where=str(data), mend=did_you_mean(split, splits))
    return splits[split], learned if learned is not None else splits.get("train")


def _one(source: str | Path, split: str, kind: str | None, options: Mapping[str, Any]) -> Examples:
    """A file, or one split of a folder."""
    if _is_one_file(source):
        return load_examples(source, kind, **options)
    splits = load_splits(source, kind, **options)
    if split not in splits:
        raise InputError(f"there is no split {split!r}", where=str(source), mend=did_you_mean(split, splits))
    return splits[split]


def _is_one_file(source: str | Path) -> bool:
    named = str(source).removeprefix(DATASET)
    if str(source).startswith(DATASET):
        return ":" in named
    return not Path(source).is_dir()


def _language_modeling(
    data: str | Path | Examples,
    model: Any,
    adapter: str | Path | None,
    document: Division,
    limit: int | None,
    name: str | None,
    metric: str | None,
    settings: Settings | None,
    progress: Progress | None,
) -> Evaluation:
    from tsumugu.checkpoints.load import load_tokenizer
    from tsumugu.engines.load import load_merged
    from tsumugu.evaluation.likelihood import KIND, likelihoods

    if isinstance(data, Examples) or model is None:
        raise InputError("language modelling needs a model and raw text", where="data", mend="name a file and a model")
    sources = find_sources([data])
    solver, tokenizer = load_merged(model, task="text-generation", adapter=adapter), load_tokenizer(model)
    documents = (each for source in sources for each in read_documents(source, Reading(document)))
    began = time.perf_counter()
    items = tuple(likelihoods(solver, tokenizer, islice(documents, limit), progress=progress))
    results = summarize(
        items,
        Scoring(KIND),
        system=name or str(model),
        source=str(data),
        primary=metric,
        settings=settings,
        seconds=time.perf_counter() - began,
    )
    return Evaluation(results, items)


def evaluate_programs(
    data: str | Path,
    *,
    execute: bool = False,
    model: Any = None,
    completions: str | Path | None = None,
    samples: int = 1,
    shots: int = 0,
    train: str | Path | None = None,
    k: Sequence[int] = (1,),
    seconds: float = 5.0,
    limit: int | None = None,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score programs by pass@k: those that a model writes, or those of a file.

    Args:
        data: problems in the form of HumanEval or MBPP.
        execute: run them; they come from a model, and nothing is run without this word.
        model: a source, or a task of text generation.
        completions: a file of rows with `task_id` and `completion`, in place of a model.
        samples: programs of each problem that the model writes; 0 judges the solutions of the data.
        shots: how many solved problems stand before each, the first of `train`, a file in the same form.
        k: of pass@k.
        seconds: that a program may take.
        limit, name, options, settings, progress: as of `evaluate`.

    Raises:
        InputError: nothing may be run, or there are fewer samples than k.
    """
    from tsumugu.evaluation.code_generation import KIND, complete, judge, read_completions, read_problems, read_shown
    from tsumugu.evaluation.metrics import pass_at_k

    if not execute:
        raise InputError("pass@k runs programs that nobody has read", where="execute", mend="allow it: --execute")
    if (model is None) == (completions is None) and samples:
        raise InputError("name one of a model and a file of completions")
    if seconds <= 0:
        raise InputError(f"{seconds:g} seconds are no time", where="seconds")
    problems = read_problems(data, limit=limit)
    began = time.perf_counter()
    if completions is not None:
        written = read_completions(completions, problems)
    elif not samples:
        written = [[each.solution] for each in problems]
    else:
        from tsumugu.tasks.base import Task
        from tsumugu.tasks.pipeline import pipeline

        pass_at_k(samples, 0, max(k))
        task = model if isinstance(model, Task) else pipeline("text-generation", model)
        written = []
        for each in complete(task, problems, samples, options or {}, read_shown(train, shots)):
            written.append(each)
            if progress is not None:
                progress(1)
    took = time.perf_counter() - began
    items = tuple(judge(problems, written, seconds=seconds, progress=None if samples and model else progress))
    usual = "the data's solutions" if completions is None and model is None else _name(model, completions, None)
    results = summarize(
        items,
        Scoring(KIND, k=tuple(k)),
        system=name or usual,
        source=str(data),
        primary=f"pass@{k[0]}",
        settings=settings,
        seconds=took if model is not None else None,
    )
    return Evaluation(results, items)


def _model(
    model: Any,
    adapter: str | Path | None,
    task: str | None,
    examples: Examples,
    learned: Examples | None,
    shots: int,
    label_map: Mapping[str, str] | None,
    options: Mapping[str, Any] | None,
    progress: Progress | None,
) -> Iterable[Prediction]:
    from tsumugu.evaluation.solving import solve, task_for
    from tsumugu.tasks.base import Task
    from tsumugu.tasks.pipeline import pipeline

    solver = model
    if not isinstance(model, Task):
        chosen = task_for(examples.kind, task)
        solver = pipeline(
            task or chosen, model, adapter=adapter
        )  # the name as given may say more, such as two languages
    if shots:
        from tsumugu.evaluation.shots import pick
        from tsumugu.tasks.prompting.base import Prompted
        from tsumugu.tasks.prompting.examples import as_shots

        if not isinstance(solver, Prompted):
            raise InputError("only prompts show examples", where="shots", mend="name a model that goes on with texts")
        if learned is None:
            raise InputError("there are no examples of training to show", where="shots", mend="name them with train")
        options = {**(options or {}), "examples": as_shots(solver, pick(learned, shots))}
    return solve(solver, examples, label_map=label_map, options=options, progress=progress)


def _baseline(
    name: str, examples: Examples, learned: Examples | None, embedder: str | Path, progress: Progress | None
) -> Iterable[Prediction]:
    baseline = find_baseline(name, examples.kind)
    if learned is None and name not in UNTAUGHT:
        raise InputError(f"the baseline {name} learns from examples", where="train", mend="name those of training")
    predict = baseline.fit(learned if learned is not None else examples, embeds(embedder) if baseline.embeds else None)
    for prediction in predict(examples):
        yield prediction
        if progress is not None:
            progress(1)


def embeds(source: str | Path) -> Embed:
    """What makes vectors of texts with a model."""
    from tsumugu.tasks.sentence_embedding import SentenceEmbedding

    task = SentenceEmbedding.load(source)
    return lambda texts: task.encode(list(texts), normalize=True)


def _name(model: Any, predictions: Any, baseline: str | None) -> str:
    if baseline is not None:
        return baseline
    if model is not None:
        return str(getattr(model, "name", model))
    return Path(predictions).stem if isinstance(predictions, str | Path) else "predictions"
