"""What each part of a decoder adds to the score of the next token: direct logit attribution.

The residual stream is a sum: embeddings, each attention head's output, each feed-forward's output. With the statistics
of the last norm held as they are, the norm and the head are linear, so the score is a sum over these parts too. What a
part does through later parts is theirs and not counted here.

Sources: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Wang et al. 2022, "Interpretability in
the Wild", section 3.1 (the difference of two tokens' scores).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from tsumugu.blocks.layer import Layer
from tsumugu.blocks.normalization import RMSNorm
from tsumugu.core.errors import InputError
from tsumugu.models.base import Model
from tsumugu.models.decoder import Decoder

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Contributions:
    """A score as a sum over parts.

    Attributes:
        score: the logit of a token before any cap, or how far it is above another's.
        embeddings: of the last token, with its position.
        heads: `[layers][heads]`; `feed_forward`: `[layers]`.
        biases: `[layers]`, of the attentions' outputs; `constant`: of the last norm and the head.
        missed: how far the sum of all is from the score.
    """

    score: float
    embeddings: float
    heads: list[list[float]]
    biases: list[float]
    feed_forward: list[float]
    constant: float
    missed: float

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return dict(vars(self))

    def ranked(self) -> list[tuple[str, float]]:
        """The parts by name, those that add or take the most first."""
        found = [("embeddings", self.embeddings), ("biases of the last norm and the head", self.constant)]
        for layer, heads in enumerate(self.heads, 1):
            found += [(f"layer {layer}, head {head}", value) for head, value in enumerate(heads, 1)]
            found.append((f"layer {layer}, feed-forward", self.feed_forward[layer - 1]))
            found.append((f"layer {layer}, bias of attention", self.biases[layer - 1]))
        return sorted((each for each in found if each[1]), key=lambda each: -abs(each[1]))


@torch.no_grad()
def contributions(
    model: Model, ids: Tensor, *, token: int, against: int | None = None, place: int = -1
) -> Contributions:
    """What each part adds to the score of a token.

    Args:
        model: a decoder that predicts tokens, in eval mode, its norms before its parts.
        ids: `[1, time]`, what was read.
        token: whose score; `against`: another token whose score is taken off.
        place: after which token of those read.

    Raises:
        InputError: the model is no such decoder.
    """
    layers = [each for each in model.decoder.layers if _adds(each)] if isinstance(model, Decoder) else []
    if not isinstance(model, Decoder) or model.head_name != "causal-lm" or len(layers) < len(model.decoder.layers):
        raise InputError(
            f"the score of a {model.family.name} model with the head {model.head_name} is no sum over its layers",
            where="model",
            mend="take a decoder that predicts the next token",
        )
    head: Any = model.head
    seen: dict[Any, Tensor] = {}
    watched: list[tuple[Any, nn.Module]] = [("start", model.embeddings), ("last", head)]
    for index, layer in enumerate(layers):
        watched += [((index, "heads"), layer.attention.output), ((index, "feed"), layer.feed_forward)]
        for name in ("attention_output_norm", "feed_forward_output_norm"):
            if (norm := getattr(layer, name)) is not None:
                watched.append(((index, name), norm))
    if model.decoder.norm is not None:
        watched.append(("end", model.decoder.norm))
    given_is_kept = ("last", "end", "heads", "attention_output_norm", "feed_forward_output_norm")
    handles = [
        _keep(seen, key, each, (key[1] if isinstance(key, tuple) else key) in given_is_kept, place)
        for key, each in watched
    ]
    try:
        logits = model(ids).logits[0, place].double()
    finally:
        for handle in handles:
            handle.remove()
    weight = head.weight.double()
    towards = weight[token] if against is None else weight[token] - weight[against]
    to_end, shift = _held(model.decoder.norm, seen.get("end"))

    def added(states: Tensor) -> Tensor:
        return to_end(states) @ towards

    heads, biases, feed_forward = [], [], []
    for index, layer in enumerate(layers):
        apart, bias = _by_head(layer, seen[index, "heads"])
        after, offset = _held(layer.attention_output_norm, seen.get((index, "attention_output_norm")))
        heads.append(added(after(apart)).tolist())
        biases.append(float(added(after(bias) + offset)))
        fed = seen[index, "feed"]
        after, offset = _held(layer.feed_forward_output_norm, seen.get((index, "feed_forward_output_norm")))
        feed_forward.append(float(added(after(fed) + offset)))
    cap = getattr(head, "softcap", None)
    logits = logits if cap is None else cap * torch.atanh(logits / cap)
    score = float(logits[token] - (0 if against is None else logits[against]))
    ends = 0.0
    if head.bias is not None:
        ends = float(head.bias[token] - (0 if against is None else head.bias[against]))
    constant = float(shift @ towards) + ends
    embeddings = float(added(seen["start"]))
    total = embeddings + sum(map(sum, heads)) + sum(biases) + sum(feed_forward) + constant
    return Contributions(score, embeddings, heads, biases, feed_forward, constant, total - score)


def _adds(layer: nn.Module) -> TypeGuard[Layer]:
    return isinstance(layer, Layer) and layer.norm_first and layer.cross_attention is None


def _keep(seen: dict[Any, Tensor], key: Any, module: nn.Module, given: bool, place: int) -> Any:
    """Keep what goes into a module, or what comes out of it, at one place, in float64."""

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        states = inputs[0] if given else output
        seen[key] = states[0, place].double()

    return module.register_forward_hook(look)


def _held(norm: nn.Module | None, states: Tensor | None) -> tuple[Linear, Tensor]:
    """A norm as a linear function, its statistics those of the states that it saw, and what it adds at the end."""
    if norm is None or states is None:
        return (lambda x: x), torch.zeros(1, dtype=torch.float64)
    weight: Any = norm.weight
    if isinstance(norm, RMSNorm):
        scale = torch.rsqrt(states.square().mean() + norm.eps) * (norm.offset + weight.double())
        return (lambda x: x * scale), torch.zeros_like(states)
    assert isinstance(norm, nn.LayerNorm)
    scale = torch.rsqrt(states.var(correction=0) + norm.eps) * weight.double()
    bias = torch.zeros_like(states) if norm.bias is None else norm.bias.double()
    return (lambda x: (x - x.mean(-1, keepdim=True)) * scale), bias


def _by_head(layer: Layer, values: Tensor) -> tuple[Tensor, Tensor]:
    """What each head writes, `[heads, dim]`, and the bias of the projection, `[dim]`."""
    project = layer.attention.output
    count = len(values) // layer.attention.head_dim
    apart = torch.zeros(count + 1, len(values), dtype=torch.float64)
    for head in range(count):
        some = slice(head * layer.attention.head_dim, (head + 1) * layer.attention.head_dim)
        apart[head, some] = values[some]
    written = project(apart.to(next(project.parameters()))).double()
    return written[:-1] - written[-1], written[-1]


def in_text(found: Contributions, token: str, *, top: int = 12) -> Iterator[str]:
    """The parts that count the most, a line each."""
    yield f"what each part adds to {token}: {found.score:.4f} (the sum misses by {abs(found.missed):.1e})"
    for name, value in found.ranked()[:top]:
        yield f"  {value:>+9.4f}  {name}"
    rest = found.ranked()[top:]
    if rest:
        yield f"  {sum(value for _, value in rest):>+9.4f}  {len(rest)} other parts"
