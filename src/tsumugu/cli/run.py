"""``tsumugu run``: a task on a text, on many, on a file, or on standard input."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

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
    two_texts,
)
from tsumugu.cli.options import Device, DType, Engine, GenerationFlags, Model, Quantize, Quiet, quantization
from tsumugu.core.errors import InputError
from tsumugu.core.registry import TASKS
from tsumugu.data.rows import Row

WRITING = ("text-generation", "chat")
"""Tasks that write text, and may show it while it is written."""


def run(
    task: str,
    texts: Texts = None,
    /,
    *,
    model: Model = None,
    input: InputPath = None,
    input_format: InputFormat = None,
    output: Annotated[
        Path | None, DASH, Parameter(("--output", "-o"), help="Write results here instead; the name says the format.")
    ] = None,
    json: Annotated[bool, Parameter(negative="", help="Results as JSON Lines.")] = False,
    text_column: TextColumn = None,
    encoding_errors: EncodingErrors = "strict",
    targets: Annotated[list[str] | None, Parameter(negative="", help="fill-mask: choose among these words.")] = None,
    pooling: Annotated[str | None, Parameter(help="Vectors: mean, cls, max or last, not the checkpoint's own.")] = None,
    full_text: Annotated[bool, Parameter(negative="", help="text-generation: put the prompt in front.")] = False,
    batch_size: Annotated[int, Parameter(help="Rows computed together.")] = 8,
    dtype: DType = "float32",
    device: Device = "cpu",
    engine: Engine = "auto",
    quantize: Quantize = "auto",
    quiet: Quiet = False,
    flags: GenerationFlags | None = None,
) -> None:
    """Solve TASK for every text.

    Parameters
    ----------
    task
        text-generation, chat, fill-mask, feature-extraction, sentence-embedding or sentence-similarity.
    """
    name = TASKS.canonical(task)
    if name == "sentence-similarity" and texts and texts != ["-"]:
        if len(texts) != 2:
            raise InputError(f"{len(texts)} texts are no pair", where="text", mend="give two, or see similarity")
        inputs = Inputs(iter([Row(1, {"text1": texts[0], "text2": texts[1]})]), 1)
    else:
        inputs = read_inputs(texts or [], input, format=input_format, encoding_errors=encoding_errors)
    writer = _writer(name, output, input, as_json=json)
    options = (flags or GenerationFlags()).chosen()
    options |= {key: value for key, value in (("targets", targets), ("pooling", pooling)) if value is not None}
    if name == "text-generation":
        options["return_full_text"] = full_text
    from tsumugu.tasks.pipeline import pipeline

    with downloads(quiet=quiet) as watch:
        computing = {"dtype": dtype, "device": device, "engine": engine, "quantize": quantization(quantize)}
        solver = pipeline(task, model, batch_size=batch_size, progress=watch, **computing)
    rows = _rows(name, inputs, text_column)
    if inputs.total == 1 and not json and output is None and name in WRITING and _streams(options):
        for _, text in rows:
            _stream(solver, text, options)
        return
    with writer as write, progress(quiet=quiet) as display:
        bar = display.add_task(name, total=inputs.total)
        for batch in in_batches(rows, batch_size):
            results = solver([text for _, text in batch], **options)
            for (row, _), result in zip(batch, results, strict=True):
                write(row.values, result)
            display.advance(bar, len(batch))


def _rows(task: str, inputs: Inputs, column: str | None) -> Iterator[tuple[Row, Any]]:
    """Each row with what the task gets of it."""
    if task == "sentence-similarity":
        return ((row, two_texts(row, column)) for row in inputs.rows)
    return ((row, one_text(row, column)) for row in inputs.rows)


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


def _writer(task: str, output: Path | None, input: Path | None, *, as_json: bool) -> Any:
    """A context manager that gives `write(values, result)`."""
    if output is not None:
        return _FileWriter(task, output, input)
    show = _print_json if as_json else SHOW.get(task, _print_json)
    return nullcontext(lambda values, result: show(task, values, result))


class _FileWriter:
    """Rows with their results into a file, which appears when all are there."""

    def __init__(self, task: str, path: Path, input: Path | None) -> None:
        from tsumugu.data.writers import open_writer

        self.task, self.writer = task, open_writer(path, input_path=input)

    def __enter__(self) -> Callable[[dict[str, Any], Any], None]:
        writer = self.writer.__enter__()
        return lambda values, result: writer.write(_record(self.task, values, result))

    def __exit__(self, *error: Any) -> None:
        self.writer.__exit__(*error)


def _record(task: str, values: dict[str, Any], result: Any) -> dict[str, Any]:
    """A row as it is written: what was read, and the result beside it."""
    match task:
        case "text-generation":
            texts = [each["generated_text"] for each in result]
            return {**values, "generated_text": texts[0] if len(texts) == 1 else texts}
        case "chat":
            return {**values, "answer": result}
        case "sentence-similarity":
            return {**values, **result}
        case "sentence-embedding":
            return {**values, "embedding": result}
        case "feature-extraction":
            return {**values, "features": result}
        case _:
            return {**values, "result": result}


def _print_json(task: str, values: dict[str, Any], result: Any) -> None:
    print(jsonlib.dumps(_record(task, values, result), ensure_ascii=False), flush=True)


def _print_texts(task: str, values: dict[str, Any], result: Any) -> None:
    for each in result if isinstance(result, list) else [result]:
        print(each["generated_text"] if isinstance(each, dict) else each, flush=True)


def _print_masks(task: str, values: dict[str, Any], result: Any) -> None:
    for answers in result if result and isinstance(result[0], list) else [result]:
        for answer in answers:
            print(f"{answer['score']:.4f}  {answer['token_str']}\t{answer['sequence']}", flush=True)


def _print_score(task: str, values: dict[str, Any], result: Any) -> None:
    print(f"{result['score']:.4f}", flush=True)


SHOW: dict[str, Callable[[str, dict[str, Any], Any], None]] = {
    "text-generation": _print_texts,
    "chat": _print_texts,
    "fill-mask": _print_masks,
    "sentence-similarity": _print_score,
}
"""How results look in a terminal; JSON Lines for the others."""
