"""``tsumugu evaluate``: how well a model, a file of predictions or a baseline solves labelled data."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from tsumugu.cli.console import progress, stderr, stdout
from tsumugu.cli.downloads import downloads
from tsumugu.cli.options import Adapter, Device, DType, GenerationFlags, Model, Quiet
from tsumugu.core.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from tsumugu.evaluation.evaluate import Evaluation

_DATA = Group("Data", sort_key=1)
_SCORES = Group("Scores", sort_key=2)
_PROGRAMS = Group("Programs", sort_key=3)
Pairs = Annotated[list[str] | None, Parameter(negative="")]


def evaluate(
    data: str,
    /,
    *,
    model: Model = None,
    adapter: Adapter = None,
    task: Annotated[str | None, Parameter(help="What the model solves; the usual task of the data.")] = None,
    predictions: Annotated[Path | None, Parameter(("--predictions", "-p"), help="A file of answers.")] = None,
    column: Annotated[str | None, Parameter(help="The column of the predictions.")] = None,
    baseline: Annotated[
        str | None,
        Parameter(help="majority, tfidf, embeddings, token-majority, overlap, nearest, lead, lexrank or copy."),
    ] = None,
    embedder: Annotated[str, Parameter(help="The model of the baseline embeddings.")] = "minilm",
    label_map: Annotated[
        list[str] | None, Parameter(negative="", help="THEIRS=OURS: the data's name for a label of the model.")
    ] = None,
    shots: Annotated[int, Parameter(help="Examples of --train that a prompt shows.")] = 0,
    prompt_language: Annotated[Literal["en", "ja"] | None, Parameter(help="Of the prompt.")] = None,
    calibration: Annotated[Literal["none", "contextual", "pmi"] | None, Parameter(help="Of prompted labels.")] = None,
    name: Annotated[str | None, Parameter(help="What the system is called.")] = None,
    output: Annotated[
        Path | None, Parameter(("--output", "-o"), help="A folder for results.json, predictions.jsonl, report.html.")
    ] = None,
    language: Annotated[Literal["en", "ja"], Parameter(help="Of the report.")] = "en",
    json: Annotated[bool, Parameter(negative="", help="The results as JSON.")] = False,
    split: Annotated[str, Parameter(group=_DATA, help="Of a folder or a data set.")] = "test",
    train: Annotated[
        str | None, Parameter(group=_DATA, help="What a baseline learns from, shots are of, and whose labels hold.")
    ] = None,
    kind: Annotated[str | None, Parameter(group=_DATA, help="Of the data; guessed from its columns.")] = None,
    format: Annotated[str | None, Parameter(group=_DATA, help="Overrules the suffix: jsonl, conll, glue, …")] = None,
    columns: Annotated[
        list[str] | None, Parameter(group=_DATA, negative="", help="PART=COLUMN, such as text=review.")
    ] = None,
    skip: Annotated[bool, Parameter(group=_DATA, negative="", help="Pass over bad rows, and say which.")] = False,
    limit: Annotated[int | None, Parameter(group=_DATA, help="Only so many examples.")] = None,
    document: Annotated[
        Literal["auto", "file", "paragraph", "line"], Parameter(group=_DATA, help="What one is in raw text.")
    ] = "auto",
    metric: Annotated[str | None, Parameter(group=_SCORES, help="The one that ranks.")] = None,
    slice_by: Annotated[
        list[str] | None, Parameter(group=_SCORES, negative="", help="A column whose values make slices.")
    ] = None,
    rules: Annotated[
        Literal["squad", "japanese"] | None, Parameter(group=_SCORES, help="How answers are compared.")
    ] = None,
    tokens: Annotated[
        Literal["auto", "words", "characters", "mecab"], Parameter(group=_SCORES, help="How texts are cut.")
    ] = "auto",
    confidence: Annotated[float, Parameter(group=_SCORES, help="Of intervals.")] = 0.95,
    resamples: Annotated[int, Parameter(group=_SCORES, help="Of the bootstrap.")] = 1000,
    resample_seed: Annotated[int, Parameter(group=_SCORES, help="Of the bootstrap.")] = 0,
    execute: Annotated[
        bool, Parameter(group=_PROGRAMS, negative="", help="Allow --task code-generation to run what a model wrote.")
    ] = False,
    samples: Annotated[int | None, Parameter(group=_PROGRAMS, help="Programs for each problem; 1.")] = None,
    k: Annotated[str | None, Parameter(group=_PROGRAMS, help="Of pass@k; several with commas: 1,10.")] = None,
    time_limit: Annotated[float | None, Parameter(group=_PROGRAMS, help="Seconds for each program; 5.")] = None,
    batch_size: Annotated[int | None, Parameter(help="Rows computed together.")] = None,
    dtype: DType = "float32",
    device: Device = "cpu",
    quiet: Quiet = False,
    flags: GenerationFlags | None = None,
) -> None:
    """Score what a model, a file of predictions or a baseline answers to DATA.

    Parameters
    ----------
    data
        A file, a folder with train, validation and test files, or hf:NAME.
    """
    from tsumugu.evaluation.evaluate import evaluate as run
    from tsumugu.evaluation.evaluate import read_data
    from tsumugu.evaluation.results import Settings

    settings = Settings(resamples, confidence, resample_seed)
    if task is not None and task.lower().replace("_", "-") in ("language-modeling", "perplexity"):
        with progress(quiet=quiet) as display:
            bar = display.add_task("reading", total=limit)
            texts = run(
                data,
                model=model,
                adapter=adapter,
                task=task,
                document=document,
                limit=limit,
                name=name,
                metric=metric,
                settings=settings,
                progress=lambda count: display.advance(bar, count),
            )
        _show(texts, output, language, json=json, quiet=quiet)
        return
    if task is not None and task.lower().replace("_", "-") in ("code-generation", "pass@k"):
        programs = _programs(
            data,
            model,
            predictions,
            execute=execute,
            samples=1 if samples is None else samples,
            shots=shots,
            train=train,
            k=k or "1",
            seconds=5.0 if time_limit is None else time_limit,
            loading={"dtype": dtype, "device": device, "engine": "auto" if device == "cpu" else "torch"},
            limit=limit,
            name=name or model,
            options=(flags or GenerationFlags()).chosen(),
            settings=settings,
            quiet=quiet,
        )
        _show(programs, output, language, json=json, quiet=quiet)
        return
    if execute or samples is not None or k is not None or time_limit is not None:
        mend = "add --task code-generation"
        raise InputError("--execute, --samples, --k and --time-limit are of programs", mend=mend)
    reading = reading_options(format, columns, skip=skip)
    reading["keep"] = tuple(slice_by or ())
    examples, learned = read_data(data, split=split, train=train, kind=kind, reading=reading)
    for problem in examples.problems:
        stderr().print(f"passed over: {problem}", style="dim", markup=False)
    options = (flags or GenerationFlags()).chosen()
    options |= {
        key: value for key, value in (("language", prompt_language), ("calibration", calibration)) if value is not None
    }
    solver: Any = None
    if model is not None or (predictions is None and baseline is None and task is not None):
        from tsumugu.evaluation.solving import task_for
        from tsumugu.tasks.pipeline import pipeline

        chosen = task_for(examples.kind, task)
        with downloads(quiet=quiet) as watch:
            rows: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
            solver = pipeline(
                task or chosen, model, adapter=adapter, dtype=dtype, device=device, progress=watch, **rows
            )
    with progress(quiet=quiet) as display:
        bar = display.add_task("evaluating", total=len(examples) if limit is None else min(limit, len(examples)))
        found = run(
            examples,
            model=solver,
            predictions=predictions,
            column=column,
            baseline=baseline,
            train=learned,
            limit=limit,
            name=name or (model if solver is not None else None),
            metric=metric,
            slice_by=slice_by or (),
            label_map=pairs(label_map, "--label-map"),
            shots=shots,
            options=options,
            embedder=embedder,
            rules=rules,
            tokens=tokens,
            settings=settings,
            progress=lambda count: display.advance(bar, count),
        )
    _show(found, output, language, json=json, quiet=quiet)


def _programs(
    data: str,
    model: str | None,
    completions: Path | None,
    *,
    k: str,
    execute: bool,
    samples: int,
    loading: dict[str, Any],
    quiet: bool,
    **asked: Any,
) -> Evaluation:
    from tsumugu.evaluation.evaluate import evaluate_programs
    from tsumugu.evaluation.isolation import walls

    if not all(each.strip().isdigit() and int(each) for each in k.split(",")):
        raise InputError(f"{k!r} is no list of numbers", where="--k", mend="such as 1,10")
    solver: Any = None
    if model is not None and execute:
        from tsumugu.tasks.pipeline import pipeline

        with downloads(quiet=quiet) as watch:
            solver = pipeline("text-generation", model, progress=watch, **loading)
    if execute and (open_to := [each for each, stands in walls().items() if not stands]):
        stderr().print(f"this system does not shut programs off from: {', '.join(open_to)}", style="yellow")
    with progress(quiet=quiet) as display:
        bar = display.add_task("writing and running programs" if solver else "running programs", total=None)
        return evaluate_programs(
            data,
            model=solver if execute else model,
            completions=completions,
            k=[int(each) for each in k.split(",")],
            execute=execute,
            samples=samples,
            progress=lambda count: display.advance(bar, count),
            **asked,
        )


def _show(found: Evaluation, output: Path | None, language: str, *, json: bool, quiet: bool) -> None:
    if output is not None:
        found.save(output, language=language)
    if json:
        print(jsonlib.dumps(found.results.to_dict(), ensure_ascii=False, indent=2))
    else:
        stdout().print(_table(found))
        if output is not None and not quiet:
            stderr().print(f"wrote {output / 'results.json'}, predictions.jsonl and report.html", markup=False)


def reading_options(format: str | None, columns: Sequence[str] | None, *, skip: bool) -> dict[str, Any]:
    """What `load_examples` takes, from the flags of a verb."""
    return {
        "format": format,
        "columns": pairs(columns, "--columns"),
        "on_problem": "skip" if skip else "raise",
    }


def pairs(given: Sequence[str] | None, option: str) -> dict[str, str] | None:
    """``NAME=VALUE`` flags as a mapping; several may stand in one, divided by commas."""
    if not given:
        return None
    found: dict[str, str] = {}
    for each in (part for one in given for part in one.split(",")):
        key, equals, value = each.partition("=")
        if not equals or not key or not value:
            raise InputError(f"{each!r} is no NAME=VALUE", where=option)
        found[key.strip()] = value.strip()
    return found


def _table(found: Evaluation) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    results = found.results
    title = f"{results.system}: {results.kind}, {results.examples:,} examples of {results.source}"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("metric", "value", f"{results.settings.confidence:.0%} interval"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, score in results.scores.items():
        digits = 2 if name in ("bleu", "chrf") else 4
        interval = f"{score.low:.{digits}f} to {score.high:.{digits}f}"
        table.add_row(name, f"{score.value:.{digits}f}", interval, style="bold" if name == results.primary else None)
    return table
