"""``tsumugu run``: a task on a text, on many, on a file, or on standard input."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from tsumugu.cli.console import progress
from tsumugu.cli.dash import DASH
from tsumugu.cli.downloads import downloads
from tsumugu.cli.inputs import (
    EncodingErrors,
    InputFormat,
    InputPath,
    Inputs,
    TextColumn,
    Texts,
    in_batches,
    one_text,
    read_inputs,
)
from tsumugu.cli.options import (
    Adapter,
    Device,
    DType,
    Engine,
    GenerationFlags,
    Model,
    Quantize,
    Quiet,
    TaskFlags,
    quantization,
)
from tsumugu.core.errors import InputError
from tsumugu.core.registry import TASKS
from tsumugu.data.rows import Row

if TYPE_CHECKING:
    from tsumugu.tasks.base import Task

STREAMING = ("text-generation", "chat")
"""Tasks that may show a text while they write it."""

PIPED = 8
"""Rows of standard input that are read before they are answered."""

Write = Callable[["type[Task]", dict[str, Any], Any], None]


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
    dtype: DType = "float32",
    device: Device = "cpu",
    engine: Engine = "auto",
    quantize: Quantize = "auto",
    quiet: Quiet = False,
    asked: TaskFlags | None = None,
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
    options = (flags or GenerationFlags()).chosen() | (asked or TaskFlags()).chosen()
    if name == "text-generation":
        options["return_full_text"] = full_text
    if texts and texts != ("-",) and input is None:
        inputs = None
    else:
        inputs = read_inputs(texts, input, format=input_format, encoding_errors=encoding_errors)
    beside = {} if context is None else {"context": _whole(context, encoding_errors)}
    writer = None if output is None else _writer(output, input)
    from tsumugu.tasks.pipeline import pipeline

    with downloads(quiet=quiet) as watch:
        searched: dict[str, Any] = {} if reranker is None else {"reranker": reranker}
        if corpus is not None:
            read = read_inputs((), corpus, encoding_errors=encoding_errors).rows
            searched["corpus"] = [one_text(row, text_column) for row in read]
        computing = {
            "dtype": dtype,
            "device": device,
            "engine": engine,
            "quantize": quantization(quantize),
            "adapter": adapter,
        }
        solver = pipeline(task, model, batch_size=batch_size, progress=watch, **computing, **searched)
    kind = type(solver)
    if "candidate_labels" in options and "candidate_labels" not in kind.options and "labels" in kind.options:
        options["labels"] = options.pop("candidate_labels")
    if inputs is None:
        inputs = _typed(kind, texts, pair=pair, beside=beside)
    rows = ((row, kind.read(replace(row, values=row.values | beside), text_column)) for row in inputs.rows)
    if inputs.total == 1 and not json and writer is None and name in STREAMING and _streams(options):
        for _, text in rows:
            _stream(solver, text, options)
        return
    # What comes through a pipe is answered as it comes; of a file, texts of like length are computed together.
    window = solver.window if inputs.total is not None else min(solver.window, batch_size or PIPED)
    show = _print_json if json else _Lines().show
    with writer or nullcontext(show) as write, progress(quiet=quiet) as display:
        bar = display.add_task(name, total=inputs.total)
        for batch in in_batches(rows, window):
            results = solver([each for _, each in batch], **options)
            for (row, _), result in zip(batch, results, strict=True):
                write(kind, row.values, result)
            display.advance(bar, len(batch))


def _typed(kind: type[Task], texts: Sequence[str], *, pair: bool, beside: dict[str, Any]) -> Inputs:
    """The rows that texts of the command line make."""
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


def _streams(options: dict[str, Any]) -> bool:
    return bool(options.get("num_beams", 1) == 1 and options.get("num_return_sequences", 1) == 1)


def _stream(solver: Any, text: str, options: dict[str, Any]) -> None:
    full = options.pop("return_full_text", False)
    if full:
        print(text, end="", flush=True)
    prompt: Any = [{"role": "user", "content": text}] if solver.name == "chat" else text
    for piece in solver.stream(prompt, **options):
        print(piece, end="", flush=True)
    print()


@contextmanager
def _written(writer: Any) -> Iterator[Write]:
    """Rows with their results into a file, which appears when all are there."""
    with writer as file:
        yield lambda kind, values, result: file.write(_record(kind, values, result))


def _writer(path: Path, input: Path | None) -> AbstractContextManager[Write]:
    from tsumugu.data.writers import open_writer

    return _written(open_writer(path, input_path=input))


def _record(kind: type[Task], values: dict[str, Any], result: Any) -> dict[str, Any]:
    """A row as it is written: what was read, and the result beside it; a column that was there stays as it was."""
    found = kind.record(result)
    return values | {f"predicted_{name}" if name in values else name: value for name, value in found.items()}


def _print_json(kind: type[Task], values: dict[str, Any], result: Any) -> None:
    print(jsonlib.dumps(_record(kind, values, result), ensure_ascii=False), flush=True)


class _Lines:
    """Results as a terminal shows them, with an empty line between those of several lines."""

    def __init__(self) -> None:
        self.before = 0

    def show(self, kind: type[Task], values: dict[str, Any], result: Any) -> None:
        lines = list(kind.lines(result))
        if self.before and max(self.before, len(lines)) > 1:
            print()
        for line in lines:
            print(line, flush=True)
        self.before = len(lines) or 1
