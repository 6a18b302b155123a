"""Texts of like length are computed together, so that little is spent on padding; results keep the texts' order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsumugu.engines.onnx_model import OnnxModel
from tsumugu.text.encoding import Encoding
from tsumugu.text.tokenizer import Tokenizer

TOKEN_BUDGET = 4096
"""Tokens, padding included, computed together: enough for large matrix products, small enough for the caches."""


ALIKE, LEAST = 0.9, 512
"""A row that is shorter than this part of its group's longest begins a group of its own, unless the group has fewer
tokens than the least. Of film reviews, 1,024 at a time, 5 % of what is computed is padding then, without it 12 %."""


def longest_first(lengths: Sequence[int], *, rows: int | None = None, budget: int = TOKEN_BUDGET) -> list[list[int]]:
    """Row numbers, the longest first, grouped so that a group's padded size keeps to the budget, and little is padding.

    Args:
        lengths: tokens of each row.
        rows: at most so many in a group.
        budget: tokens of a group, padding included; a longer row is a group by itself.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        last = groups[-1] if groups else []
        longest = lengths[last[0]] if last else 0
        alike = lengths[row] >= ALIKE * longest or len(last) * longest < LEAST
        if last and len(last) != rows and (len(last) + 1) * longest <= budget and alike:
            last.append(row)
        else:
            groups.append([row])
    return groups


def padded(rows: Sequence[Sequence[int]], fill: int, width: int = 0) -> NDArray[np.int64]:
    """Rows of different lengths as one array `[rows, longest]`, or `[rows, width]` if wider, filled up on the right."""
    filled = np.full((len(rows), max(width, *map(len, rows))), fill, np.int64)
    for place, row in enumerate(rows):
        filled[place, : len(row)] = row
    return filled


def outputs(
    model: Any,
    tokenizer: Tokenizer,
    encoded: Encoding,
    *,
    rows: int | None = None,
    call: Callable[..., Any] | None = None,
) -> Iterator[tuple[list[int], Any, NDArray[np.int64]]]:
    """What the model makes of encoded texts, group by group.

    Args:
        encoded: of several texts, without padding.
        rows: at most so many computed together; as many as the token budget allows when left out.
        call: what is called with them; the model when left out.

    Returns:
        For each group its row numbers, the output for those rows, and `[rows, longest]`: 1 where a token of theirs is
        real, else 0.
    """
    pad = next((each for each in (tokenizer.pad_token_id, model.config.pad_token_id) if each is not None), 0)
    # A model with one kind of segment has learned nothing from the second.
    types = "token_type_ids" in encoded and getattr(model.config, "num_segments", 1) > 1
    ids = encoded["input_ids"]
    for group in longest_first([len(row) for row in ids], rows=rows):
        given = {"input_ids": padded([ids[row] for row in group], pad)}
        given["attention_mask"] = padded([[1] * len(ids[row]) for row in group], 0)
        if types:
            given["token_type_ids"] = padded([encoded["token_type_ids"][row] for row in group], 0)
        with _without_gradients(model):
            output = (call or model)(**given)
        yield group, output, given["attention_mask"]


def numbers(values: Any) -> NDArray[np.float32]:
    """What a model gives as float32 in NumPy, wherever and of whatever type it is."""
    found: NDArray[np.float32] = values if isinstance(values, np.ndarray) else values.float().cpu().numpy()
    return found


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Shares along the last axis."""
    wide = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    found: NDArray[np.float64] = wide / wide.sum(-1, keepdims=True)
    return found


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Each number by itself between 0 and 1."""
    found: NDArray[np.float64] = 0.5 * (1 + np.tanh(logits.astype(np.float64) / 2))
    return found


def _without_gradients(model: Any) -> AbstractContextManager[Any]:
    """Where nothing is remembered for training; a compiled model remembers nothing."""
    if isinstance(model, OnnxModel):
        return nullcontext()
    import torch

    return torch.inference_mode()
