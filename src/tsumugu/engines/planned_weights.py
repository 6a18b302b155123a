"""Parameters by our names, read from a checkpoint while it is compiled."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from tsumugu.checkpoints.entries import TensorEntry
from tsumugu.checkpoints.keymap import Chain, InterleavedRotary, MegatronHeads, Operation, Plan, Rule, Same, Split
from tsumugu.engines.onnx_weights import Bytes, Floats, Packed, from_gguf

TAKEN_OVER = ("Q8_0", "Q4_0")
"""GGUF's blocks that ONNX Runtime uses number by number."""


class PlannedWeights:
    """Read one rule at a time, as a checkpoint's plan says."""

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
        found = self.rows(name, TAKEN_OVER)
        return None if found is None else from_gguf(*found)

    def rows(self, name: str, kinds: Collection[str]) -> tuple[str, Bytes] | None:
        """The kind of a parameter's blocks and their bytes `[out, bytes]`; None where it is not among `kinds`."""
        rule = self.rules[name]
        entries = [self.plan.entries[theirs] for theirs in rule.theirs]
        found = {each.storage for each in entries if isinstance(each, TensorEntry)}
        if len(found) != 1 or not found <= set(kinds) or not _moves_rows(rule.operation):
            return None
        raw = [torch.from_numpy(each.raw().copy()) for each in entries if isinstance(each, TensorEntry)]
        rows = rule.operation.forward(raw)[rule.ours.index(name)]
        return found.pop(), np.ascontiguousarray(rows.numpy())


def _moves_rows(operation: Operation) -> bool:
    """Whether an operation changes nothing but which row is where."""
    if isinstance(operation, Chain):
        return all(_moves_rows(each) for each in operation.operations)
    return isinstance(operation, Same | Split | InterleavedRotary | MegatronHeads)
