"""``tsumugu embed``: texts to vectors."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from tsumugu.cli.console import progress
from tsumugu.cli.downloads import downloads
from tsumugu.cli.inputs import (
    EncodingErrors,
    InputFormat,
    InputPath,
    TextColumn,
    Texts,
    in_batches,
    one_text,
    read_inputs,
)
from tsumugu.cli.options import Device, DType, Engine, Model, Quantize, Quiet, quantization

CHUNK = 1024
"""Texts that are sorted by length and computed together."""


def embed(
    *texts: Texts,
    model: Model = "minilm",
    input: InputPath = None,
    input_format: InputFormat = None,
    output: Annotated[
        Path | None, Parameter(("--output", "-o"), help=".npy for one array, else .jsonl, .csv or .parquet.")
    ] = None,
    text_column: TextColumn = None,
    encoding_errors: EncodingErrors = "strict",
    pooling: Annotated[str | None, Parameter(help="mean, cls, max or last, instead of the checkpoint's own.")] = None,
    normalize: Annotated[
        bool | None, Parameter(help="Scale to length 1, or not, whatever the checkpoint says.")
    ] = None,
    dtype: DType = "float32",
    device: Device = "cpu",
    engine: Engine = "auto",
    quantize: Quantize = "auto",
    quiet: Quiet = False,
) -> None:
    """Print one JSON object a text, with its `embedding`, or write them to a file."""
    inputs = read_inputs(texts, input, format=input_format, encoding_errors=encoding_errors)
    sink = _Sink(output, input)
    from tsumugu.tasks.sentence_embedding import SentenceEmbedding

    with downloads(quiet=quiet) as watch:
        computing: Any = {"dtype": dtype, "device": device, "engine": engine, "quantize": quantization(quantize)}
        task = SentenceEmbedding.load(model or "minilm", progress=watch, **computing)
    with sink as write, progress(quiet=quiet) as display:
        bar = display.add_task("embedding", total=inputs.total)
        for chunk in in_batches(((row, one_text(row, text_column)) for row in inputs.rows), CHUNK):
            vectors = task.encode(
                [text for _, text in chunk],
                pooling=pooling,
                normalize=normalize,
                progress=lambda count: display.advance(bar, count),
            )
            for (row, _), vector in zip(chunk, vectors, strict=True):
                write(row.values, vector)


class _Sink:
    """Where vectors go: standard output, an array file, or a table."""

    def __init__(self, path: Path | None, input: Path | None) -> None:
        from tsumugu.data.target import Target
        from tsumugu.data.writers import open_writer

        self.vectors: list[Any] = []
        array = path is not None and path.suffix == ".npy"
        self.array = Target(path, input_path=input) if array else None
        self.writer = None if path is None or array else open_writer(path, input_path=input)

    def __enter__(self) -> Any:
        if self.array is not None:
            return lambda values, vector: self.vectors.append(vector)
        if self.writer is None:
            return lambda values, vector: print(_json(values, vector), flush=True)
        writer = self.writer.__enter__()
        return lambda values, vector: writer.write({**values, "embedding": vector.tolist()})

    def __exit__(self, *error: Any) -> None:
        if self.writer is not None:
            self.writer.__exit__(*error)
        elif self.array is not None and error[0] is None:
            import numpy as np

            stacked = np.stack(self.vectors) if self.vectors else np.empty((0, 0), np.float32)
            np.save(self.array.open(), stacked, allow_pickle=False)
            self.array.finish()


def _json(values: dict[str, Any], vector: Any) -> str:
    return jsonlib.dumps({**values, "embedding": vector.tolist()}, ensure_ascii=False)
