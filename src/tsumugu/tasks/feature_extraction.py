"""Feature extraction: the hidden state of every token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tsumugu.core.errors import InputError
from tsumugu.core.tensors import TensorFormat, convert_tensor
from tsumugu.tasks.base import Task
from tsumugu.tasks.batching import outputs


class FeatureExtraction(Task):
    """Hidden states of the last layer, `[1, time, dim]` for each text, as nested lists or as a tensor.

    Options of a call:
        return_tensors: pt (or True), tf, jax or np for tensors; nested lists when left out.
        truncation: cut texts that are too long for the model (True).
        max_length: cut them here instead.
        tokenize_kwargs: these two as a mapping.

    For one vector a text see `sentence-embedding`.
    """

    name = "feature-extraction"
    default_model = "minilm"
    engines = ("torch", "onnx", "native")
    options = frozenset({"return_tensors", "truncation", "max_length", "tokenize_kwargs"})
    sorts = True

    @property
    def window(self) -> int:
        return max(32, self.batch_size or 0)  # results are large

    @torch.inference_mode()
    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        wanted, inner = options.get("return_tensors"), options.get("tokenize_kwargs") or {}
        to = TensorFormat.parse("pt" if wanted is True else wanted) if wanted else None
        if not isinstance(inner, Mapping) or inner.keys() - {"truncation", "max_length", "padding"}:
            raise InputError("truncation and max_length are known", where="tokenize_kwargs")
        options = {**options, **inner}
        cut: dict[str, Any] = {"truncation": True, "max_length": options.get("max_length") or self.longest}
        encoded = self.tokenizer(rows, **(cut if options.get("truncation", True) else {}))
        results: list[Any] = [None] * len(rows)
        for group, output, _ in outputs(self.model, self.tokenizer, encoded, rows=self.batch_size):
            for place, row in enumerate(group):
                mine = output.last_hidden_state[place, : len(encoded["input_ids"][row])][None]
                results[row] = mine.tolist() if to is None else convert_tensor(mine, to)
        return results

    @classmethod
    def record(cls, result: Any) -> dict[str, Any]:
        return {"features": result}
