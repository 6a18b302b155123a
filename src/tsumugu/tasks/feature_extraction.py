"""Feature extraction: the hidden state of every token."""

from __future__ import annotations

from typing import Any

import torch

from tsumugu.core.tensors import TensorFormat, convert_tensor
from tsumugu.tasks.base import Task


class FeatureExtraction(Task):
    """Hidden states of the last layer, `[1, time, dim]` for each text, as nested lists or as a tensor.

    Options of a call:
        return_tensors: pt, tf, jax or np for tensors; nested lists when left out.
        truncation: cut texts that are too long for the model (True).
        max_length: cut them here instead.

    For one vector a text see `sentence-embedding`.
    """

    name = "feature-extraction"
    default_model = "minilm"
    engines = ("torch", "onnx")
    options = frozenset({"return_tensors", "truncation", "max_length"})

    @torch.inference_mode()
    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        wanted = options.get("return_tensors")
        to = None if wanted is None else TensorFormat.parse(wanted)
        limit = options.get("max_length") or self.model.config.max_positions
        cut = {"truncation": True, "max_length": limit} if options.get("truncation", True) else {}
        encoded = self.tokenizer(rows, padding=True, return_tensors="pt", **cut)
        states = self.model(**encoded).last_hidden_state
        results = []
        for row, real in enumerate(encoded["attention_mask"].bool()):
            mine = states[row, real][None]
            results.append(mine.tolist() if to is None else convert_tensor(mine, to))
        return results
