"""``tsumugu run``: a task on a text, on many, on a file, or on standard input."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from tsumugu.cli.dash import DASH
from tsumugu.cli.downloads import downloads
from tsumugu.cli.inputs import (
    EncodingErrors,
    InputFormat,
    InputPath,
    Inputs,
    TextColumn,
    TextReader,
    Texts,
    one_text,
    read_inputs,
    require_texts,
)
from tsumugu.cli.options import (
    Adapter,
    Device,
    DType,
    GenerationFlags,
    KVCache,
    Model,
    PromptFlags,
    Quantize,
    Quiet,
    TaskFlags,
    quantization,
)
from tsumugu.cli.running import Running, beside, plain
from tsumugu.cli.windows import Problem
from tsumugu.core.errors import InputError
from tsumugu.core.registry import TASKS
from tsumugu.data.resumable import Output
from tsumugu.data.rows import Row
from tsumugu.hub.resolve import resolve

if TYPE_CHECKING:
    from tsumugu.tasks.answers import Alone
    from tsumugu.tasks.base import Task
    from tsumugu.tasks.workers import Workers

STREAMING = ("text-generation", "chat")
"""Tasks that may show a text while they write it."""

PIPED = 8
"""Rows of standard input that are read before they are answered."""


def run(
    task: str,
    /,
    *texts: Texts,
    model: Model = None,
    adapter: Adapter = None,
    input: InputPath = None,
    input_format: InputFormat = None,
    output: Annotated[
        Path | None, DASH, Parameter(("--output", "-o"), help="Write results here instead; the name says the format.")
    ] = None,
    json: Annotated[bool, Parameter(negative="", help="Results as JSON Lines.")] = False,
    text_column: TextColumn = None,
    encoding_errors: EncodingErrors = "strict",
    pair: Annotated[bool, Parameter(negative="", help="text-classification: two texts are one pair.")] = False,
    context: Annotated[Path | None, Parameter(help="question-answering: a file with what is asked about.")] = None,
    corpus: Annotated[Path | None, Parameter(help="semantic-search: a file of texts to search in.")] = None,
    reranker: Annotated[str | None, Parameter(help="semantic-search: a model that ranks what was found.")] = None,
    full_text: Annotated[bool, Parameter(negative="", help="text-generation: put the prompt in front.")] = False,
    batch_size: Annotated[int | None, Parameter(help="Rows computed together at most.")] = None,
    workers: Annotated[
        int | None, Parameter(("--workers", "-w"), help="Processes, each with a model and one thread.")
    ] = None,
    whole_files: Annotated[bool, Parameter(negative="", help="Each file of the input is one text.")] = False,
    skip_errors: Annotated[bool, Parameter(negative="", help="Pass over rows that cannot be answered.")] = False,
    error_report: Annotated[Path | None, DASH, Parameter(help="As --skip-errors; such rows go into this file.")] = None,
    restart: Annotated[bool, Parameter(negative="", help="Do not go on with an unfinished output.")] = False,
    dtype: DType = "float32",
    device: Device = "cpu",
    engine: Annotated[
        Literal["auto", "torch", "onnx", "native", "ray"],
        Parameter(help="What computes, as of other verbs; ray: workers of a cluster, each with what auto takes."),
    ] = "auto",
    quantize: Quantize = "auto",
    kv_cache: KVCache = "float32",
    quiet: Quiet = False,
    asked: TaskFlags | None = None,
    prompt: PromptFlags | None = None,
    flags: GenerationFlags | None = None,
) -> None:
    """Solve TASK for every text.

    Parameters
    ----------
    task
        text-generation, chat, fill-mask, text-classification (sentiment-analysis, nli), token-classification (ner),
        question-answering, zero-shot-classification, summarization, translation (translation_en_to_de),
        text2text-generation, extractive-summarization, semantic-search, text-ranking, feature-extraction,
        sentence-embedding or sentence-similarity.
    """
    name = TASKS.canonical(task)
    prompted = (prompt or PromptFlags()).chosen()
    options = (flags or GenerationFlags()).chosen() | (asked or TaskFlags()).chosen() | prompted
    if name == "text-generation":
        options["return_full_text"] = full_text
    problems: list[Problem] | None = [] if skip_errors or error_report is not None else None
    inputs: Inputs | None = None
    if not texts or texts == ("-",) or input is not None:
        told = None if problems is None else lambda error: problems.append(Problem(error))
        reading: dict[str, Any] = {"format": input_format, "encoding_errors": encoding_errors}
        inputs = read_inputs(texts, input, whole=whole_files, on_error=told, **reading)
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers do nothing", where="--workers", mend="at least 1")
    given = {} if context is None else {"context": _whole(context, encoding_errors)}
    loading: dict[str, Any] = {"dtype": dtype, "device": device, "quantize": quantization(quantize)}
    loading["engine"] = "auto" if engine == "ray" else engine
    loading["adapter"] = adapter
    loading |= {} if kv_cache == "float32" else {"kv_cache": kv_cache}
    loading |= {} if batch_size is None else {"batch_size": batch_size}
    loading |= {} if reranker is None else {"reranker": reranker}
    settings = {"task": task, "model": model, "the model's files": _changed(model), **loading, **options, **given}
    settings |= {"text column": text_column, "encoding errors": encoding_errors, "skip errors": problems is not None}
    settings |= {"corpus": corpus, "whole files": whole_files}
    settings |= {f"the file of {each}": _changed(prompted.get(each)) for each in ("examples", "template")}
    if corpus is not None:
        searched = read_inputs((), corpus, encoding_errors=encoding_errors).rows
        loading["corpus"] = [one_text(row, text_column) for row in searched]
    _require_other(output, inputs)
    with (
        Output(output, error_report, settings=settings, restart=restart, input_path=input) as file,
        _solver(task, model, loading, workers, ray=engine == "ray", quiet=quiet) as solver,
    ):
        kind = solver.kind
        for given_as, other in (("candidate_labels", "labels"), ("labels", "candidate_labels")):
            if given_as in options and given_as not in kind.options and other in kind.options:
                options[other] = options.pop(given_as)
        inputs = inputs or _typed(kind, texts, pair=pair, beside=given)
        if inputs.total == 1 and output is None and not json and name in STREAMING and _streams(solver, options):
            for row in inputs.rows:
                _stream(solver.task, kind.read(row, text_column), options)  # type: ignore[union-attr]
            return
        read = TextReader(kind, text_column)
        # What comes through a pipe is answered as it comes; of a file, texts of like length are computed together.
        piped = output is None and inputs.total is None
        show = None if output is not None else _print_json if json else _Lines().show
        Running(
            name=name,
            solver=solver,
            options=options,
            file=file,
            show=show,
            lines=show is not None and not json,
            problems=problems,
            reported=error_report is not None,
            quiet=quiet,
        ).answer(
            inputs,
            lambda row: read(replace(row, values=row.values | given)),
            min(solver.window, batch_size or PIPED) if piped else solver.window,
        )


@contextmanager
def _solver(
    task: str, model: str | None, loading: dict[str, Any], workers: int | None, *, ray: bool, quiet: bool
) -> Iterator[Alone | Workers]:
    """What answers: a task in this process, or in several others."""
    from tsumugu.tasks.answers import Alone
    from tsumugu.tasks.pipeline import pipeline

    with downloads(quiet=quiet) as watch:
        if not ray and workers in (None, 1):
            solver = Alone(pipeline(task, model, progress=watch, **loading))
        elif model is not None:
            resolve(model, progress=watch)
    if not ray and workers in (None, 1):
        yield solver
        return
    from tsumugu.tasks.workers import Workers

    with Workers(workers, task, {"model": model, **loading}, ray=ray) as several:
        yield several


def _changed(source: str | None) -> int | None:
    """When a file, or what is in a folder, was changed last."""
    path = Path(source or "")
    files = [path, *path.iterdir()] if source and path.is_dir() else [path] if source and path.is_file() else []
    return max((each.stat().st_mtime_ns for each in files), default=None)


def _require_other(output: Path | None, inputs: Inputs | None) -> None:
    """Refuse to write a file that a folder or a pattern stands for."""
    if output is not None and inputs is not None and output.exists():
        for each in inputs.files:
            if each.samefile(output):
                raise InputError("the output is one of the input files", where=str(output), mend="choose another name")


def _typed(kind: type[Task], texts: Sequence[str], *, pair: bool, beside: dict[str, Any]) -> Inputs:
    """The rows that texts of the command line make."""
    require_texts(texts)
    if pair:
        if len(texts) != 2:
            raise InputError(f"{len(texts)} texts are no pair", where="text", mend="give two")
        made = [dict(zip(kind.columns[0] if kind.columns else ("text", "text_pair"), texts, strict=True))]
    elif beside:
        made = [{"question": text} for text in texts]
    else:
        made = kind.rows(texts)
    return Inputs((Row(number, values) for number, values in enumerate(made, 1)), len(made))


def _whole(path: Path, errors: Literal["strict", "replace"]) -> str:
    """The text of a whole file."""
    try:
        return path.read_text("utf-8", errors)
    except UnicodeDecodeError as error:
        mend = "or pass --encoding-errors replace"
        raise InputError(f"byte {error.start} is not UTF-8", where=str(path), mend=mend) from None


def _streams(solver: Alone | Workers, options: dict[str, Any]) -> bool:
    from tsumugu.tasks.answers import Alone

    single = options.get("num_beams", 1) == 1 and options.get("num_return_sequences", 1) == 1
    return single and isinstance(solver, Alone)


def _stream(solver: Any, text: str, options: dict[str, Any]) -> None:
    full = options.pop("return_full_text", False)
    if full:
        print(text, end="", flush=True)
    prompt: Any = [{"role": "user", "content": text}] if solver.name == "chat" else text
    for piece in solver.stream(prompt, **options):
        print(piece, end="", flush=True)
    print()


def _print_json(values: dict[str, Any], found: dict[str, Any]) -> None:
    print(jsonlib.dumps(beside(values, found), ensure_ascii=False, default=plain), flush=True)


class _Lines:
    """Results as a terminal shows them, with an empty line between those of several lines."""

    def __init__(self) -> None:
        self.before = 0

    def show(self, values: dict[str, Any], lines: list[str]) -> None:
        if self.before and max(self.before, len(lines)) > 1:
            print()
        for line in lines:
            print(line, flush=True)
        self.before = len(lines) or 1
