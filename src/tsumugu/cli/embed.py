"""``tsumugu embed``: texts to vectors."""

from __future__ import annotations

import json as jsonlib
import sys
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from tsumugu.cli.console import progress
from tsumugu.cli.downloads import downloads
from tsumugu.cli.options import Device, DType, Model, Quiet
from tsumugu.core.errors import InputError

CHUNK = 1024
"""Texts that are sorted by length and computed together."""


def embed(
    texts: Annotated[
        list[str] | None, Parameter(name="text", negative="", help="Texts; - reads standard input.")
    ] = None,
    /,
    *,
    model: Model = "minilm",
    input: Annotated[Path | None, Parameter(("--input", "-i"), help="A file with one text a row, or -.")] = None,
    output: Annotated[
        Path | None, Parameter(("--output", "-o"), help=".npy for one array, else .jsonl, .csv or .parquet.")
    ] = None,
    text_column: Annotated[str | None, Parameter(help="The column with the text.")] = None,
    encoding_errors: Annotated[
        Literal["strict", "replace"], Parameter(help="What to do with invalid UTF-8.")
    ] = "strict",
    pooling: Annotated[str | None, Parameter(help="mean, cls, max or last, instead of the checkpoint's own.")] = None,
    normalize: Annotated[
        bool | None, Parameter(help="Scale to length 1, or not, whatever the checkpoint says.")
    ] = None,
    dtype: DType = "float32",
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Print one JSON object a text, with its `embedding`, or write them to a file."""
    from tsumugu.data.readers import count_rows, read_rows
    from tsumugu.data.readers import text_column as pick
    from tsumugu.tasks.sentence_embedding import SentenceEmbedding

    if texts and input is not None:
        raise InputError("both a text and --input are given", where="embed", mend="choose one")
    source = input or (Path("-") if texts == ["-"] or not texts else None)
    if source is not None and str(source) == "-" and sys.stdin.isatty():
        raise InputError("there is no text", where="embed", mend="give one, or --input FILE, or - for standard input")
    if source is None:
        total: int | None = len(texts or [])
        rows = iter([({"text": text}, text) for text in texts or []])
    else:
        total = count_rows(source)
        read = read_rows(source, encoding_errors=encoding_errors)
        rows = ((row.values, _text(row.values, pick(row, text_column), f"{source}, row {row.number}")) for row in read)
    with downloads(quiet=quiet) as watch:
        task = SentenceEmbedding.load(model or "minilm", dtype=dtype, device=device, progress=watch)
    with _sink(output) as write, progress(quiet=quiet) as display:
        bar = display.add_task("embedding", total=total)
        while chunk := list(islice(rows, CHUNK)):
            vectors = task.encode(
                [text for _, text in chunk],
                pooling=pooling,
                normalize=normalize,
                progress=lambda count: display.advance(bar, count),
            )
            for (values, _), vector in zip(chunk, vectors, strict=True):
                write(values, vector)


def _text(values: dict[str, Any], column: str, where: str) -> str:
    value = values.get(column)
    if not isinstance(value, str):
        raise InputError(f"column {column!r} holds no text", where=where)
    return value


class _sink:
    """Where vectors go: standard output, an array file, or a table."""

    def __init__(self, path: Path | None) -> None:
        from tsumugu.data.writers import open_writer

        self.path = path
        self.array = path is not None and path.suffix == ".npy"
        self.vectors: list[Any] = []
        self.writer = None if path is None or self.array else open_writer(path)

    def __enter__(self) -> Any:
        if self.path is None:
            return lambda values, vector: print(_json(values, vector), flush=True)
        if self.array:
            return lambda values, vector: self.vectors.append(vector)
        assert self.writer is not None
        writer = self.writer.__enter__()
        return lambda values, vector: writer.write({**values, "embedding": vector.tolist()})

    def __exit__(self, *error: Any) -> None:
        if self.writer is not None:
            self.writer.__exit__(*error)
        elif self.path is not None and error[0] is None:
            import numpy as np

            from tsumugu.checkpoints.atomic import replacing

            stacked = np.stack(self.vectors) if self.vectors else np.empty((0, 0), np.float32)
            with replacing(self.path) as file:
                np.save(file, stacked, allow_pickle=False)


def _json(values: dict[str, Any], vector: Any) -> str:
    return jsonlib.dumps({**values, "embedding": vector.tolist()}, ensure_ascii=False)
