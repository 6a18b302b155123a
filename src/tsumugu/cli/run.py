"""``tsumugu run``: a task on a text, on many, on a file, or on standard input."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from tsumugu.cli.console import progress
from tsumugu.cli.downloads import downloads
from tsumugu.cli.options import Device, DType, GenerationFlags, Model, Quiet
from tsumugu.core.errors import InputError
from tsumugu.core.registry import TASKS

PAIR_COLUMNS = (("sentence1", "sentence2"), ("text1", "text2"), ("text_a", "text_b"), ("premise", "hypothesis"))


def run(
    task: str,
    texts: Annotated[
        list[str] | None, Parameter(name="text", negative="", help="Texts; - reads standard input.")
    ] = None,
    /,
    *,
    model: Model = None,
    input: Annotated[
        Path | None, Parameter(("--input", "-i"), help="A .txt, .jsonl, .csv, .tsv or .parquet file (also .gz), or -.")
    ] = None,
    output: Annotated[
        Path | None, Parameter(("--output", "-o"), help="Write results here instead; the name says the format.")
    ] = None,
    json: Annotated[bool, Parameter(negative="", help="Results as JSON Lines.")] = False,
    text_column: Annotated[
        str | None, Parameter(help="The column with the text; two, with a comma, for pairs.")
    ] = None,
    encoding_errors: Annotated[
        Literal["strict", "replace"], Parameter(help="What to do with invalid UTF-8.")
    ] = "strict",
    targets: Annotated[list[str] | None, Parameter(negative="", help="fill-mask: choose among these words.")] = None,
    pooling: Annotated[str | None, Parameter(help="Vectors: mean, cls, max or last, not the checkpoint's own.")] = None,
    full_text: Annotated[bool, Parameter(negative="", help="text-generation: put the prompt in front.")] = False,
    batch_size: Annotated[int, Parameter(help="Rows computed together.")] = 8,
    dtype: DType = "float32",
    device: Device = "cpu",
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
    rows = _rows(name, texts or [], input, text_column, encoding_errors)
    options = (flags or GenerationFlags()).chosen(drawing=name in ("text-generation", "chat"))
    options |= {key: value for key, value in (("targets", targets), ("pooling", pooling)) if value is not None}
    if name == "text-generation":
        options["return_full_text"] = full_text
    from tsumugu.tasks.pipeline import pipeline

    with downloads(quiet=quiet) as watch:
        solver = pipeline(task, model, dtype=dtype, device=device, batch_size=batch_size, progress=watch)
    one = input is None and len(texts or []) == 1 and texts != ["-"]
    if one and not json and output is None and name in ("text-generation", "chat") and _streams(options):
        _stream(solver, next(rows)[1], options)
        return
    writer = _writer(name, output, as_json=json)
    total = None if input is None or str(input) == "-" else _count(input)
    with writer as write, progress(quiet=quiet or one) as display:
        bar = display.add_task(name, total=total or (len(texts or []) if input is None else None))
        while batch := list(islice(rows, batch_size)):
            results = solver([row for _, row in batch], **options)
            for (values, _), result in zip(batch, results, strict=True):
                write(values, result)
            display.advance(bar, len(batch))


def _rows(
    task: str, texts: list[str], path: Path | None, column: str | None, errors: Literal["strict", "replace"]
) -> Iterator[tuple[dict[str, Any], Any]]:
    """What was read, and what the task gets of it."""
    pairs = task == "sentence-similarity"
    if texts and path is not None:
        raise InputError("both a text and --input are given", where="run", mend="choose one")
    if path is None and texts not in ([], ["-"]):
        if pairs:
            if len(texts) != 2:
                raise InputError(f"{len(texts)} texts are no pair", where="text", mend="give two, or see similarity")
            return iter([({"text1": texts[0], "text2": texts[1]}, (texts[0], texts[1]))])
        return iter([({"text": text}, text) for text in texts])
    if path is None and not texts and sys.stdin.isatty():
        raise InputError("there is no text", where="run", mend="give one, or --input FILE, or - for standard input")
    return _file_rows(path or Path("-"), pairs, column, errors)


def _file_rows(
    path: Path, pairs: bool, column: str | None, errors: Literal["strict", "replace"]
) -> Iterator[tuple[dict[str, Any], Any]]:
    from tsumugu.data.readers import read_rows, text_column

    for row in read_rows(path, encoding_errors=errors):
        where = f"{path}, row {row.number}"
        if pairs:
            first, second = _pair(row.values, column, where)
            yield row.values, (_text(row.values, first, where), _text(row.values, second, where))
        else:
            yield row.values, _text(row.values, text_column(row, column), where)


def _pair(values: dict[str, Any], column: str | None, where: str) -> tuple[str, str]:
    if column is not None:
        first, comma, second = column.partition(",")
        if not comma or first not in values or second not in values:
            raise InputError(
                f"{column!r} does not name two columns", where=where, mend=f"there are: {', '.join(values)}"
            )
        return first, second
    for names in PAIR_COLUMNS:
        if all(name in values for name in names):
            return names
    raise InputError("there are no two text columns", where=where, mend="name them: --text-column first,second")


def _text(values: dict[str, Any], column: str, where: str) -> str:
    value = values.get(column)
    if not isinstance(value, str):
        raise InputError(f"column {column!r} holds no text", where=where)
    return value


def _count(path: Path) -> int | None:
    from tsumugu.data.readers import count_rows

    return count_rows(path)


def _streams(options: dict[str, Any]) -> bool:
    return options.get("num_beams", 1) == 1 and options.get("num_return_sequences", 1) == 1


def _stream(solver: Any, text: str, options: dict[str, Any]) -> None:
    full = options.pop("return_full_text", False)
    if full:
        print(text, end="", flush=True)
    prompt: Any = [{"role": "user", "content": text}] if solver.name == "chat" else text
    for piece in solver.stream(prompt, **options):
        print(piece, end="", flush=True)
    print()


def _writer(task: str, output: Path | None, *, as_json: bool) -> Any:
    """A context manager that gives `write(row, result)`."""
    if output is not None:
        return _FileWriter(task, output)
    show = _print_json if as_json else SHOW.get(task, _print_json)
    return nullcontext(lambda values, result: show(task, values, result))


class _FileWriter:
    """Rows with their results into a file, which appears when all are there."""

    def __init__(self, task: str, path: Path) -> None:
        from tsumugu.data.writers import open_writer

        self.task, self.writer = task, open_writer(path)

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
        case "sentence-embedding" | "feature-extraction":
            return {**values, "embedding": result}
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
