"""`export`: a model written for another runtime, with the files that say what it is and how its texts are cut."""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tsumugu.checkpoints.atomic import new_file, said_clearly, sync
from tsumugu.checkpoints.load import load_tokenizer
from tsumugu.core.errors import InputError, MissingExtraError, TsumuguError, UnknownNameError, did_you_mean
from tsumugu.engines.torch import load_model
from tsumugu.export.trace import Traced, plain_attention, trace
from tsumugu.models.base import Model
from tsumugu.text.tokenizer import Tokenizer

INLINE_BYTES = 1_800_000_000
"""Weights above this lie in a file of their own: one ONNX file ends at 2 GiB."""


def export(
    model: Model | str | Path,
    path: str | Path,
    to: str = "onnx",
    *,
    tokenizer: Tokenizer | None = None,
    cache: bool = False,
) -> Path:
    """Write a model as a graph for another runtime, with any number of rows and tokens.

    ONNX: a plain graph of standard operators, which ONNX Runtime and others run. torch-export: a `.pt2` file that
    `torch.export.load` reads without this package. A path with the suffix .onnx or .pt2 becomes that file alone; any
    other a folder with the graph, config.json, and the tokenizer's files.

    Args:
        model: a model, or what `load_model` takes.
        path: the file, or the folder.
        to: "onnx" or "torch-export".
        tokenizer: the model's own; found beside its files when left out.
        cache: of a decoder: a graph that takes the keys and values of earlier tokens (`past_key_values.0.key`, of
            length 0 at the start) and gives them back with the new ones (`present.0.key`).

    Returns:
        The file or folder that was written; it appears whole.

    Raises:
        UnknownNameError: no such target; it names the nearest.
        MissingExtraError: the target's library is not installed.
        InputError: the model cannot be exported so.
    """
    if to not in TARGETS:
        raise UnknownNameError(f"unknown target {to!r}", where="to", mend=did_you_mean(to, TARGETS))
    suffix, write = TARGETS[to]
    path = Path(path).expanduser()
    others = {each for each, _ in TARGETS.values()} - {suffix}
    if path.suffix in others:
        raise InputError(f"a file for {to} ends in {suffix}, not {path.suffix}", where=str(path))
    if to == "onnx":
        _need_onnx()
    if not isinstance(model, Model):
        tokenizer = tokenizer or _tokenizer(model)
        model = load_model(model)
    elif tokenizer is None and model.path is not None:
        tokenizer = _tokenizer(model.path)
    if path.suffix == suffix:
        path.parent.mkdir(parents=True, exist_ok=True)
        traced = _traced(model, cache)
        if to == "onnx" and _bytes(model) > INLINE_BYTES:
            raise InputError("the weights do not fit one ONNX file", where=str(path), mend="give a folder")
        with new_file(path) as partial:
            write(traced, partial)
        return path
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with said_clearly(path):
        try:
            partial.mkdir(parents=True)
            write(_traced(model, cache), partial / f"model{suffix}")
            config = model.family.to_hub(model.config, model.head_name)
            (partial / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
            if tokenizer is not None:
                tokenizer.save(partial)
            _move(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return path


def _tokenizer(source: str | Path) -> Tokenizer | None:
    try:
        return load_tokenizer(source)
    except TsumuguError:
        return None


def _bytes(model: Model) -> int:
    return sum(each.nbytes for each in model.parameters())


def _move(partial: Path, path: Path) -> None:
    """Put what was written in its place: the folder as a whole, or, where there is one, file by file."""
    if path.exists():
        if not path.is_dir():
            raise InputError("is a file", where=str(path), mend="name a folder")
        for each in sorted(partial.iterdir()):
            each.replace(path / each.name)
    else:
        partial.rename(path)
    sync(path)


def _traced(model: Model, cache: bool) -> Traced:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on what it will change in later versions
        return trace(model, cache=cache)


def _write_torch(traced: Traced, path: Path) -> None:
    final = path.with_name(f".{path.name.removeprefix('.')}.pt2")  # the package refuses other suffixes
    try:
        torch.export.save(traced.program, final)
        final.replace(path)
    finally:
        final.unlink(missing_ok=True)


def _need_onnx() -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise MissingExtraError("onnxscript", extra="onnx", purpose="writing ONNX") from None


def _write_onnx(traced: Traced, path: Path) -> None:
    quiet = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript")
    levels = [each.level for each in quiet]
    for each in quiet:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), plain_attention(), torch.no_grad():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                traced.program,
                (),
                input_names=list(traced.inputs),
                output_names=list(traced.outputs),
                dynamo=True,
                verbose=False,
            )
    finally:
        for each, level in zip(quiet, levels, strict=True):
            each.setLevel(level)
    _name_dimensions(program.model, traced)
    size = sum(each.nbytes for each in traced.program.state_dict.values())
    program.save(path, external_data=size > INLINE_BYTES)


def _name_dimensions(model: Any, traced: Traced) -> None:
    """Call what varies `batch`, `time`, `past` and `steps` instead of by the tracer's numbers."""
    import onnx_ir as ir

    words: dict[str, str] = {}
    for value in model.graph.inputs:
        kinds = {"decoder_input_ids": {0: "batch", 1: "steps"}}.get(value.name, {0: "batch", 1: "time"})
        if str(value.name).startswith("past_key_values"):
            kinds = {0: "batch", 2: "past"}
        for axis, word in kinds.items():
            if value.shape is not None and isinstance(value.shape[axis], ir.SymbolicDim):
                words.setdefault(str(value.shape[axis].value), word)

    def renamed(dimension: Any) -> Any:
        if not isinstance(dimension, ir.SymbolicDim) or dimension.value is None:
            return dimension
        return ir.SymbolicDim(re.sub(r"\b\w+\b", lambda found: words.get(found[0], found[0]), str(dimension.value)))

    values = [*model.graph.inputs, *model.graph.outputs]
    values += [output for node in model.graph.all_nodes() for output in node.outputs]
    for value in values:
        if value.shape is not None and not value.shape.frozen:
            value.shape = ir.Shape([renamed(each) for each in value.shape])
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces of this machine
    model.metadata_props.clear()
    model.producer_name, model.doc_string = "tsumugu", None


Writer = Callable[[Traced, Path], None]
TARGETS: Mapping[str, tuple[str, Writer]] = {
    "onnx": (".onnx", _write_onnx),
    "torch-export": (".pt2", _write_torch),
}
"""Name of a target -> the suffix of its file, and what writes it."""
