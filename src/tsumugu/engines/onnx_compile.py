"""Compiling a checkpoint: its family's network, built without weights, is written as a graph or for the kernels.

This is the one part of the engine that needs torch, and it runs once for a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import torch

from tsumugu.checkpoints.keymap import Plan
from tsumugu.checkpoints.load import open_checkpoint
from tsumugu.core.errors import ConfigError
from tsumugu.engines import onnx_store
from tsumugu.engines.native.compile import Writer
from tsumugu.engines.native.compile import write_network as write_native
from tsumugu.engines.native.compile_encoder import write_encoder
from tsumugu.engines.native.network import WEIGHTS
from tsumugu.engines.onnx_graph import Graph
from tsumugu.engines.onnx_network import interface_of, write_network
from tsumugu.engines.onnx_store import Request
from tsumugu.engines.onnx_weights import Scheme
from tsumugu.engines.planned_weights import PlannedWeights
from tsumugu.engines.torch import end_tokens, recognise, usage_of
from tsumugu.hub.progress import Progress, Silent
from tsumugu.models.base import Model
from tsumugu.models.encoder import Encoder


def compile_model(request: Request, *, progress: Progress | None = None) -> Path:
    """The folder of the compiled checkpoint; it is compiled now if it was not before.

    The folder appears whole or not at all; a compilation that was interrupted begins anew.

    Raises:
        CheckpointError: the files are broken or do not fit.
        ConfigError: the model has no form in an ONNX graph.
        InputError: the environment names no room for compiled models.
    """
    progress = progress or Silent()
    if found := onnx_store.find(request):
        return found
    room = onnx_store.room()
    checkpoint = open_checkpoint(request.path)
    already = any(each.form.unit > 1 for each in checkpoint.tensors.values())
    scheme = Scheme.parse(request.quantize, request.group, quantized_already=already)
    family, config, head, keymap = recognise(checkpoint, request.task)
    with torch.device("meta"):
        model = family.build(config, head)
    plan = keymap.plan(checkpoint.tensors, {name: tuple(each.shape) for name, each in model.named_parameters()})
    plan.report.require(str(checkpoint.path))
    for module in plan.report.absent:
        setattr(model, module, None)
    key = onnx_store.key_of(request, [request.engine, head, *astuple(scheme)])
    folder = onnx_store.compiled() / key
    with onnx_store.locked(key):
        if not (folder / onnx_store.RECORD).is_file():
            work = _compile_native if request.engine == "native" else _compile
            with onnx_store.new_folder(key) as partial, _refusal_noted(request):
                interface = work(model, plan, scheme, partial, progress, request.path.name)
                onnx_store.write_record(
                    partial,
                    _record(model, scheme, end_tokens(checkpoint), interface) | {"usage": usage_of(checkpoint.config)},
                )
    onnx_store.remember(request, key)
    onnx_store.make_room(key, room)
    return folder


@contextmanager
def _refusal_noted(request: Request) -> Iterator[None]:
    """A model that has no form here is not looked at again until it changes."""
    try:
        yield
    except ConfigError as error:
        onnx_store.remember_refusal(request, error.what)
        raise


def _compile(model: Model, plan: Plan, scheme: Scheme, folder: Path, progress: Progress, name: str) -> dict[str, Any]:
    graph = Graph(folder, progress=_counted(model, scheme, progress, name))
    try:
        write_network(graph, model, PlannedWeights(plan), scheme)
        graph.finish()
    finally:
        graph.close()
    return asdict(interface_of(model))


def _compile_native(
    model: Model, plan: Plan, scheme: Scheme, folder: Path, progress: Progress, name: str
) -> dict[str, Any]:
    writer = Writer(folder / WEIGHTS, PlannedWeights(plan), scheme, _counted(model, scheme, progress, name))
    try:
        if isinstance(model, Encoder):
            interface: dict[str, Any] = {"kind": "native-encoder", **write_encoder(writer, model)}
        else:
            interface = {"kind": "native", "network": write_native(writer, model)}
    finally:
        writer.close()
    size = (folder / WEIGHTS).stat().st_size
    if isinstance(model, Encoder):
        return interface | {"bytes": size}
    return interface | {"network": interface["network"] | {"bytes": size}}


def _counted(model: Model, scheme: Scheme, progress: Progress, name: str) -> Callable[[int], None]:
    """Counts the bytes that are written and shows them."""
    written = 0

    def wrote(count: int) -> None:
        nonlocal written
        written += count
        progress.done(written)

    progress.stage(f"compiling {name}", _estimate(model, scheme))
    return wrote


def _record(model: Model, scheme: Scheme, ends: tuple[int, ...], interface: dict[str, Any]) -> dict[str, Any]:
    """What is asked of a compiled model while it runs."""
    config: dict[str, Any] = model.config.to_dict()
    config["max_positions"] = getattr(model, "longest", model.config.max_positions)
    return {
        "family": model.family.name,
        "head": model.head_name,
        "config": config,
        "end_tokens": list(ends),
        "interface": interface,
        "bits": scheme.bits,
    }


def _estimate(model: Model, scheme: Scheme) -> int:
    """About how many bytes will be written."""
    head = sum(p.numel() for name, p in model.named_parameters() if "head" in name or "embeddings" in name)
    rest = model.num_parameters() - head
    return (head * scheme.head_bits + rest * scheme.bits) // 8
