"""What a forward pass gives, on whatever engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from tsumugu.core.tensors import TensorFormat, convert_tensor


@dataclass
class Output:
    """What a forward pass gives; only what the model has is set. Also read as a mapping or, without None, as a tuple.

    Attributes:
        loss: mean over the labels, when labels were given; sum over the targets, when those were.
        logits: `[batch, time, vocab or labels]`, or `[batch, labels]`.
        start_logits, end_logits: `[batch, time]`, for spans.
        next_sentence_logits: `[batch, 2]`, from a pre-training head.
        last_hidden_state: `[batch, time, dim]`, from a model without a head.
        pooler_output: `[batch, dim]`.
        hidden_states: what enters each layer and what leaves the last, `[batch, time, dim]` each, when asked for; of
            the decoder where there are two stacks.
        encoder_last_hidden_state, encoder_hidden_states: the same of the encoder where there are two stacks.
    """

    loss: Any = None
    logits: Any = None
    start_logits: Any = None
    end_logits: Any = None
    next_sentence_logits: Any = None
    last_hidden_state: Any = None
    pooler_output: Any = None
    hidden_states: tuple[Any, ...] | None = None
    encoder_last_hidden_state: Any = None
    encoder_hidden_states: tuple[Any, ...] | None = None

    def keys(self) -> list[str]:
        return [each.name for each in fields(self) if getattr(self, each.name) is not None]

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.keys())

    def converted(self, to: TensorFormat | str | None) -> Output:
        """The same with every tensor as pt, tf, jax or np; as it is for None."""
        if to is None:
            return self
        wanted = TensorFormat.parse(to)
        for name in self.keys():
            value = getattr(self, name)
            several = isinstance(value, tuple)
            new = tuple(convert_tensor(each, wanted) for each in value) if several else convert_tensor(value, wanted)
            setattr(self, name, new)
        return self

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, int):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()
