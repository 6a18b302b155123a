"""`export`: a model written for another runtime, with the files that say what it is and how its texts are cut."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch

from tsumugu.checkpoints.atomic import new_file, said_clearly, sync
from tsumugu.checkpoints.load import load_tokenizer
from tsumugu.core.errors import InputError, MissingExtraError, TsumuguError, UnknownNameError, did_you_mean
from tsumugu.core.frameworks import load
from tsumugu.engines.torch import load_model
from tsumugu.exporting.program import take_apart
from tsumugu.exporting.trace import Traced, plain_attention, trace, words_of
from tsumugu.models.base import Model
from tsumugu.text.tokenizer import Tokenizer

INLINE_BYTES = 1_800_000_000
"""Weights above this lie in a file of their own: one ONNX file ends at 2 GiB."""


@overload
def export(
    model: Model | str | Path,
    path: str | Path,
    to: str = "onnx",
    *,
    tokenizer: Tokenizer | None = None,
    cache: bool = False,
    force: bool = False,
) -> Path: ...


@overload
def export(
    model: Model | str | Path, path: None = None, to: str = "jax", *, tokenizer: None = None, cache: bool = False
) -> Any: ...


def export(
    model: Any,
    path: str | Path | None = None,
    to: str = "onnx",
    *,
    tokenizer: Tokenizer | None = None,
    cache: bool = False,
    force: bool = False,
) -> Any:
    """Write a model as a graph for another runtime, with any number of rows and tokens.

    ONNX: a plain graph of standard operators, which ONNX Runtime and others run. torch-export: a `.pt2` file that
    `torch.export.load` reads without this package. jax: StableHLO with its derivative, which `jax.export.deserialize`
    reads, and its parameters. tf: a TensorFlow SavedModel. A path with the suffix .onnx or .pt2 becomes that file
    alone; any other a folder with the graph, config.json, and the tokenizer's files.

    Args:
        model: a model, or what `load_model` takes.
        path: the file, or the folder. For jax and tf it may be left out.
        to: "onnx", "torch-export", "jax" or "tf".
        tokenizer: the model's own; found beside its files when left out.
        cache: of a decoder, for onnx and torch-export: a graph that takes the keys and values of earlier tokens
            (`past_key_values.0.key`, of length 0 at the start) and gives them back with the new ones (`present.0.key`).
        force: write into a folder that holds something, or over a file that is there.

    Returns:
        The file or folder that was written; it appears whole. Without a path: for jax a pair, a function for
        `jax.jit` and `jax.grad` and its parameters; for tf a `tf.Module` whose weights are variables.

    Raises:
        UnknownNameError: no such target; it names the nearest.
        MissingExtraError: the target's library is not installed.
        InputError: the model cannot be exported so.
    """
    path = None if path is None else Path(path).expanduser()
    target = ready(path, to, cache=cache, force=force)
    if not isinstance(model, Model | str | Path):
        what = f"a model of {type(model).__module__} cannot be exported"
        raise InputError(what, where="model", mend="load it for torch, or give its path")
    if not isinstance(model, Model):
        tokenizer = tokenizer or _tokenizer(model)
        model = load_model(model)
    elif tokenizer is None and model.path is not None:
        tokenizer = _tokenizer(model.path)
    if path is None:
        assert target.build is not None
        return target.build(traced_quietly(model, cache))
    if path.suffix == target.suffix:
        traced = traced_quietly(model, cache)
        if to == "onnx" and _bytes(model) > INLINE_BYTES:
            raise InputError("the weights do not fit one ONNX file", where=str(path), mend="give a folder")
        with said_clearly(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as partial:
            target.write(traced, partial)
        return path
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with said_clearly(path):
        try:
            partial.mkdir(parents=True)
            target.write(
                traced_quietly(model, cache), partial if target.suffix is None else partial / f"model{target.suffix}"
            )
            config = model.family.to_hub(model.config, model.head_name)
            (partial / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
            if tokenizer is not None:
                tokenizer.save(partial)
            _move(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return path


def ready(path: Path | None, to: str, *, cache: bool = False, force: bool = False) -> Target:
    """The target, before a model is loaded: what can be known to go wrong is said here.

    Raises:
        UnknownNameError, MissingExtraError, InputError: as `export`.
    """
    if to not in TARGETS:
        raise UnknownNameError(f"unknown target {to!r}", where="to", mend=did_you_mean(to, TARGETS))
    target = TARGETS[to]
    if path is None and target.build is None:
        raise InputError(f"a graph for {to} is written to a file or a folder", where="path", mend="name one")
    if cache and target.build is not None:
        raise InputError(f"a graph for {to} has no cache", where="cache", mend="use onnx or torch-export")
    if path is not None:
        _fits(path, to, target, force=force)
    target.need()
    return target


def _fits(path: Path, to: str, target: Target, *, force: bool) -> None:
    """Refuse the suffix of another target, what is there already, and a place where nothing can be written."""
    where, alone = str(path), path.suffix == target.suffix
    if path.suffix in {each.suffix for each in TARGETS.values()} - {None, target.suffix}:
        wanted = "is a folder" if target.suffix is None else f"ends in {target.suffix}"
        raise InputError(f"a graph for {to} {wanted}, not {path.suffix}", where=where)
    if path.exists() and path.is_dir() == alone:
        kind, other = ("a folder", "a file") if alone else ("a file", "a folder")
        raise InputError(f"is {kind}", where=where, mend=f"name {other}")
    if not force and path.exists() and (alone or any(path.iterdir())):
        raise InputError(f"the {'file' if alone else 'folder'} is there already", where=where, mend=_ANOTHER)
    near = next(each for each in (path, *path.absolute().parents) if each.is_dir() or each.is_file())
    if near != path and near.is_file():
        raise InputError(f"{near} is a file", where=where, mend="name another folder")
    if not os.access(near, os.W_OK):
        raise InputError(f"nothing can be written to {near}", where=where, mend="name another folder")


_ANOTHER = "choose another, or pass --force"


def _tokenizer(source: str | Path) -> Tokenizer | None:
    try:
        return load_tokenizer(source)
    except TsumuguError:
        return None


def _bytes(model: Model) -> int:
    return sum(each.nbytes for each in model.parameters())


def _move(partial: Path, path: Path) -> None:
    """Put what was written in its place: the folder as a whole, or, where there is one, part by part."""
    if path.exists():
        for each in sorted(partial.iterdir()):
            old = path / each.name
            if old.is_dir():
                shutil.rmtree(old)
            each.replace(old)
    else:
        partial.rename(path)
    sync(path)


def traced_quietly(model: Model, cache: bool) -> Traced:
    """The graph of a model, without torch's own warnings."""
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


def _need(package: str, extra: str, purpose: str) -> None:
    try:
        load(package)
    except MissingExtraError:
        raise MissingExtraError(package, extra=extra, purpose=purpose) from None


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
                optimize=False,
            )
    finally:
        for each, level in zip(quiet, levels, strict=True):
            each.setLevel(level)
    _tidy(program.model)
    _name_dimensions(program.model, traced)
    size = sum(each.nbytes for each in traced.program.state_dict.values())
    program.save(path, external_data=size > INLINE_BYTES)


def _tidy(model: Any) -> None:
    """Compute what is known, drop what is not used, and say once what is said twice.

    The exporter's own optimiser also looks for patterns, in a time that grows with the square of the layers, and finds
    hardly any here; a runtime looks for its own when it loads a graph.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer

    optimizer.fold_constants(model)
    _weigh_nothing(model.graph)
    for each in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        each(model)


def _weigh_nothing(graph: Any) -> None:
    """Where a query sees no key, weights of 0, as PyTorch has them.

    The exporter hides keys by the least number or by -inf, and a softmax of these alone is 1/keys, or NaN, or what the
    runtime likes.
    """
    import ml_dtypes
    import onnx_ir as ir

    dtype = graph.outputs[0].dtype
    for softmax in [node for node in graph if node.op_type == "Softmax"]:
        scores, weights = softmax.inputs[0], softmax.outputs[0]
        checks = [use.node.outputs[0] for use in weights.uses() if use.node.op_type == "IsNaN"]
        old = [use.node.outputs[0] for check in checks for use in check.uses()] or [weights]
        last = ir.node("Constant", [], {"value_ints": [-1]})
        least, zero = (
            ir.node("Constant", [], {"value": ir.tensor([value], dtype)})
            for value in (float(ml_dtypes.finfo(dtype.numpy()).min) / 2, 0.0)
        )
        largest = ir.node("ReduceMax", [scores, *last.outputs])
        hidden = ir.node("Less", [*largest.outputs, *least.outputs])
        kept = ir.node("Where", [*hidden.outputs, *zero.outputs, weights])
        ir.convenience.replace_all_uses_with(old, [*kept.outputs] * len(old))
        kept.replace_input_with(2, weights)
        graph.insert_after(softmax, [last, least, zero, largest, hidden, kept])


def _name_dimensions(model: Any, traced: Traced) -> None:
    """Call what varies `batch`, `time`, `past` and `steps` instead of by the tracer's numbers."""
    import onnx_ir as ir

    words: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, word in words_of(str(value.name)).items():
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


def _to_jax(traced: Traced) -> Any:
    from tsumugu.exporting.jax import to_jax

    return to_jax(take_apart(traced))


def _write_jax(traced: Traced, folder: Path) -> None:
    from tsumugu.exporting.jax import write_jax

    write_jax(take_apart(traced), folder)


def _to_tensorflow(traced: Traced) -> Any:
    from tsumugu.exporting.tensorflow import to_tensorflow

    return to_tensorflow(take_apart(traced))


def _write_tensorflow(traced: Traced, folder: Path) -> None:
    from tsumugu.exporting.tensorflow import write_tensorflow

    write_tensorflow(take_apart(traced), folder)


@dataclass(frozen=True)
class Target:
    """A runtime.

    Attributes:
        suffix: of its file; None where a graph is a folder.
        write: a graph to that file, or into that folder.
        build: a graph as an object of that framework, where it has one of its own.
        need: fails clearly when its library is not installed.
    """

    suffix: str | None
    write: Callable[[Traced, Path], None]
    build: Callable[[Traced], Any] | None = None
    need: Callable[[], object] = lambda: None


TARGETS: Mapping[str, Target] = {
    "onnx": Target(".onnx", _write_onnx, need=_need_onnx),
    "torch-export": Target(".pt2", _write_torch),
    "jax": Target(None, _write_jax, _to_jax, need=lambda: _need("jax", "jax", "a model for JAX")),
    "tf": Target(
        None, _write_tensorflow, _to_tensorflow, need=lambda: _need("tensorflow", "tf", "a model for TensorFlow")
    ),
}
"""What a model can be written for, by name."""
