"""Compiling a checkpoint: its family's network, built without weights, is written as a graph, its weights beside it.

This is the one part of the engine that needs torch, and it runs once for a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsumugu.checkpoints.entries import TensorEntry
from tsumugu.checkpoints.keymap import Chain, InterleavedRotary, MegatronHeads, Operation, Plan, Rule, Same, Split
from tsumugu.checkpoints.load import open_checkpoint
from tsumugu.engines import onnx_store
from tsumugu.engines.onnx_graph import Graph
from tsumugu.engines.onnx_network import interface_of, write_network
from tsumugu.engines.onnx_store import Request
from tsumugu.engines.onnx_weights import Floats, Packed, Scheme, from_gguf
from tsumugu.engines.torch import end_tokens, recognise
from tsumugu.hub.progress import Progress, Silent
from tsumugu.models.base import Model

TAKEN_OVER = ("Q8_0", "Q4_0")
"""GGUF's blocks that are used number by number."""


def compile_model(request: Request, *, progress: Progress | None = None) -> Path:
    """The folder of the compiled checkpoint; it is compiled now if it was not before.

    The folder appears whole or not at all; a compilation that was interrupted begins anew.

    Raises:
        CheckpointError: the files are broken or do not fit.
        ConfigError: the model has no form in an ONNX graph.
    """
    progress = progress or Silent()
    if found := onnx_store.find(request):
        return found
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
    key = onnx_store.key_of(request, [head, *astuple(scheme)])
    folder = onnx_store.compiled() / key
    with onnx_store.locked(key):
        if not (folder / onnx_store.RECORD).is_file():
            with onnx_store.new_folder(key) as partial:
                _compile(model, plan, scheme, partial, progress, request.path.name)
                onnx_store.write_record(partial, _record(model, scheme, end_tokens(checkpoint)))
    onnx_store.remember(request, key)
    return folder


def _compile(model: Model, plan: Plan, scheme: Scheme, folder: Path, progress: Progress, name: str) -> None:
    written = 0

    def wrote(count: int) -> None:
        nonlocal written
        written += count
        progress.done(written)

    progress.stage(f"compiling {name}", _estimate(model, scheme))
    graph = Graph(folder, progress=wrote)
    try:
        write_network(graph, model, PlannedWeights(plan), scheme)
        graph.finish()
    finally:
        graph.close()


def _record(model: Model, scheme: Scheme, ends: tuple[int, ...]) -> dict[str, Any]:
    """What is asked of a compiled model while it runs."""
    config: dict[str, Any] = model.config.to_dict()
    config["max_positions"] = getattr(model, "longest", config["max_positions"])
    return {
        "family": model.family.name,
        "head": model.head_name,
        "config": config,
        "end_tokens": list(ends),
        "interface": asdict(interface_of(model)),
        "bits": scheme.bits,
    }


class PlannedWeights:
    """Parameters by our names, read one rule at a time as a checkpoint's plan says."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rules = {name: rule for rule in plan.rules for name in rule.ours}
        self._last: tuple[Rule, Sequence[torch.Tensor]] | None = None

    def read(self, name: str) -> Floats:
        """A parameter as float32."""
        rule = self.rules[name]
        if self._last is None or self._last[0] is not rule:
            given = [self.plan.entries[theirs].read(torch.float32) for theirs in rule.theirs]
            self._last = (rule, rule.operation.forward(given))
        array: Floats = self._last[1][rule.ours.index(name)].numpy()
        return array

    def blocks(self, name: str) -> Packed | None:
        """The checkpoint's own blocks, rows in our order; None where they are of another kind."""
        rule = self.rules[name]
        entries = [self.plan.entries[theirs] for theirs in rule.theirs]
        kinds = {each.storage for each in entries if isinstance(each, TensorEntry)}
        if len(kinds) != 1 or not kinds <= set(TAKEN_OVER) or not _moves_rows(rule.operation):
            return None
        raw = [torch.from_numpy(each.raw().copy()) for each in entries if isinstance(each, TensorEntry)]
        rows = rule.operation.forward(raw)[rule.ours.index(name)]
        return from_gguf(kinds.pop(), np.ascontiguousarray(rows.numpy()))


def _moves_rows(operation: Operation) -> bool:
    """Whether an operation changes nothing but which row is where."""
    if isinstance(operation, Chain):
        return all(_moves_rows(each) for each in operation.operations)
    return isinstance(operation, Same | Split | InterleavedRotary | MegatronHeads)


def _estimate(model: Model, scheme: Scheme) -> int:
    """About how many bytes will be written."""
    head = sum(p.numel() for name, p in model.named_parameters() if "head" in name or "embeddings" in name)
    rest = model.num_parameters() - head
    return (head * scheme.head_bits + rest * scheme.bits) // 8
