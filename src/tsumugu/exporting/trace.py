"""One graph of a model by torch.export, with any number of rows and tokens: what every other tongue is made from.

What a graph takes and gives are tensors alone, under the names that the reference library uses. Values are not checked
in a graph: ids outside the vocabulary, and texts that are too long, must be kept out before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from tsumugu.core.errors import ConfigError, InputError
from tsumugu.models.base import Model
from tsumugu.models.decoder import Decoder
from tsumugu.models.encoder import Encoder
from tsumugu.models.encoder_decoder import EncoderDecoder

MOST_ROWS = 4096
MOST_TOKENS = 2**31 - 1
"""Where a family sets no limit: other runtimes count in 32 bits."""


@dataclass(frozen=True)
class Traced:
    """A graph, and what goes in and comes out, in order.

    Attributes:
        program: the graph; weights are its parameters, under our names after `model.`.
        inputs, outputs: names.
        examples: what it was traced with; another shape is as good.
        longest: tokens that fit.
    """

    program: ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    examples: tuple[Tensor, ...]
    longest: int


def trace(model: Model, *, cache: bool = False) -> Traced:
    """The graph of a model.

    Args:
        model: in eval mode; its type and device stay what they are.
        cache: of a decoder: take the keys and values of earlier tokens and give them back with the new ones, so that a
            text is written a token at a time. Without it, take a mask of padding.

    Raises:
        InputError: a cache is asked for, and the model writes no text from left to right.
        ConfigError: the family is of no kind that is known here.
    """
    if cache and not (isinstance(model, Decoder) and model.head_name == "causal-lm"):
        raise InputError("only decoders that predict the next token have a cache", where="cache", mend="leave it out")
    wrapped = _wrapped(model, cache)
    given = wrapped.examples()
    with torch.no_grad(), plain_attention():
        outputs = wrapped.names_of(model, given)
        program = torch.export.export(
            wrapped,
            tuple(given.values()),
            dynamic_shapes=wrapped.shapes(given),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    return Traced(program, tuple(given), outputs, tuple(given.values()), wrapped.longest)


def words_of(name: str) -> dict[int, str]:
    """The axes of an input that may have any size, and their words."""
    if name.startswith("past_key_values"):
        return {0: "batch", 2: "past"}
    return {0: "batch", 1: "steps" if name == "decoder_input_ids" else "time"}


def plain_attention() -> AbstractContextManager[None]:
    """Attention as matrix products and a softmax, while a graph is made or taken apart.

    The strides of what a fused kernel gives would get into the graph, and other runtimes have other kernels.
    """
    return sdpa_kernel(SDPBackend.MATH)


def _wrapped(model: Model, cache: bool) -> _Graph:
    if isinstance(model, Encoder):
        return _EncoderGraph(model)
    if isinstance(model, EncoderDecoder):
        return _EncoderDecoderGraph(model) if model.decoder is not None else _EncoderGraph(model)
    if isinstance(model, Decoder):
        return _CachedGraph(model) if cache else _EncoderGraph(model)
    raise ConfigError(
        f"the {model.family.name} family cannot be exported", mend="only encoders and decoders of text can"
    )


class _Graph(nn.Module):
    """A model that takes and gives tensors in a fixed order."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        found = getattr(model, "longest", None) or getattr(model.config, "max_positions", None) or 4096
        self.longest = min(int(found), MOST_TOKENS)

    def examples(self) -> dict[str, Tensor]:
        """Inputs of 2 rows."""
        ids = torch.arange(12, device=self.model.device).reshape(2, 6) % (self.model.config.vocab_size - 1) + 1
        real = torch.ones_like(ids)
        real[1, 4:] = 0
        return {"input_ids": ids, "attention_mask": real}

    def shapes(self, given: dict[str, Tensor]) -> tuple[Any, ...]:
        """What may vary of each input."""
        rows, time = Dim("batch", min=1, max=MOST_ROWS), Dim("time", min=1, max=self.longest)
        return ({0: rows, 1: time},) * len(given)

    def names_of(self, model: Model, given: dict[str, Tensor]) -> tuple[str, ...]:
        """The names of what it gives."""
        return tuple(model(**given).keys())


class _EncoderGraph(_Graph):
    """Ids and their mask, and for pairs of texts the segments."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.segments = getattr(model.config, "num_segments", 1) > 1

    def examples(self) -> dict[str, Tensor]:
        given = super().examples()
        return {**given, "token_type_ids": torch.zeros_like(given["input_ids"])} if self.segments else given

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids, attention_mask=attention_mask, **more).to_tuple()


class _EncoderDecoderGraph(_Graph):
    """What is read with its mask, and what was written so far."""

    def examples(self) -> dict[str, Tensor]:
        given = super().examples()
        return {**given, "decoder_input_ids": given["input_ids"][:, :5]}

    def shapes(self, given: dict[str, Tensor]) -> tuple[Any, ...]:
        rows, time = Dim("batch", min=1, max=MOST_ROWS), Dim("time", min=1, max=self.longest)
        return ({0: rows, 1: time}, {0: rows, 1: time}, {0: rows, 1: Dim("steps", min=1, max=self.longest)})

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Any:
        return self.model(input_ids, attention_mask, decoder_input_ids).to_tuple()


class _CachedGraph(_Graph):
    """New ids, and keys and values of earlier ones, `[batch, kv_heads, past, head_dim]`; all rows are equally long."""

    def examples(self) -> dict[str, Tensor]:
        config = self.model.config
        shape = (2, config.num_kv_heads, 3, config.head_dim)
        past = {
            f"past_key_values.{layer}.{part}": torch.zeros(shape, dtype=self.model.dtype, device=self.model.device)
            for layer in range(config.num_layers)
            for part in ("key", "value")
        }
        return {"input_ids": super().examples()["input_ids"], **past}

    def shapes(self, given: dict[str, Tensor]) -> tuple[Any, ...]:
        rows = Dim("batch", min=1, max=MOST_ROWS)
        new, past = Dim("time", min=1, max=self.longest), Dim("past", min=0, max=self.longest)
        return ({0: rows, 1: new}, ({0: rows, 2: past},) * (len(given) - 1))

    def names_of(self, model: Model, given: dict[str, Tensor]) -> tuple[str, ...]:
        return ("logits", *(name.replace("past_key_values", "present") for name in list(given)[1:]))

    def forward(self, input_ids: Tensor, *past: Tensor) -> Any:
        cache = _Growing(list(zip(past[::2], past[1::2], strict=True)))
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None] + cache.offset
        logits = self.model(input_ids, position_ids=positions, cache=cache).logits
        return (logits, *(each for pair in cache.layers for each in pair))


class _Growing:
    """A cache that is longer after each step, where `KVCache` writes into room that is there; for graphs."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.layers = list(layers)
        self.offset = self.filled = self.layers[0][0].shape[2]

    def layer(self, index: int) -> _GrowingLayer:
        return _GrowingLayer(self, index)

    def advance(self, tokens: int) -> None:
        """Every layer has grown by itself."""


class _GrowingLayer:
    def __init__(self, cache: _Growing, index: int) -> None:
        self.cache, self.index = cache, index

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        old_keys, old_values = self.cache.layers[self.index]
        grown = torch.cat((old_keys, keys), dim=2), torch.cat((old_values, values), dim=2)
        self.cache.layers[self.index] = grown
        return grown
