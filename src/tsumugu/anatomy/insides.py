"""What goes on inside while a text is read: attention by layer and head, its rollout, and what each layer would answer.

Sources: Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers" (rollout); nostalgebraist 2020,
"interpreting GPT: the logit lens".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tsumugu.blocks.attention import Attention
from tsumugu.core.errors import InputError
from tsumugu.models.base import Model
from tsumugu.models.decoder import Decoder
from tsumugu.text.tokenizer import Tokenizer


@torch.no_grad()
def attentions(model: Model, ids: Tensor, **arguments: Any) -> Tensor:
    """How much each token looks at each: `[layers, heads, queries, keys]` of one text `[1, time]`; rows sum up to 1."""
    found: list[Tensor] = []
    layers = [each for each in model.modules() if isinstance(each, Attention)]

    def look(module: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        assert isinstance(module, Attention)
        mask = {key: named[key] for key in ("mask", "rotation", "context") if key in named}
        found.append(module.weights(given[0], **mask)[0])

    handles = [each.register_forward_pre_hook(look, with_kwargs=True) for each in layers]
    try:
        model(ids, output_hidden_states=True, **arguments)  # all states, not only those that the head asks for
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise InputError(f"models of the {model.family.name} family have no attention", where="model")
    return torch.stack(found)


def rollout(weights: Tensor) -> Tensor:
    """How much of each token is in each at the end, by attention and the residual paths: `[queries, keys]`.

    Args:
        weights: `[layers, heads, queries, keys]`.
    """
    time = weights.shape[-1]
    mixed = 0.5 * weights.mean(1) + 0.5 * torch.eye(time, device=weights.device, dtype=weights.dtype)
    flow = mixed[0]
    for layer in mixed[1:]:
        flow = layer @ flow
    return flow


@torch.no_grad()
def lens(
    model: Model, tokenizer: Tokenizer, ids: Tensor, *, place: int = -1, top: int = 5
) -> list[list[dict[str, Any]]]:
    """What the head would say after each layer at one place: for each depth the likeliest tokens with their chances.

    Depth 0 is the embeddings. The last norm is applied at each depth, as it is before the head.

    Raises:
        InputError: the model predicts no tokens.
    """
    output = model(ids, output_hidden_states=True)
    states = [each[:, place] for each in output.hidden_states]
    if isinstance(model, Decoder) and model.head_name == "causal-lm":
        norm = model.decoder.norm
        states = [each if norm is None else norm(each) for each in states[:-1]] + [states[-1]]
    elif model.head_name not in ("masked-lm", "pretraining"):
        raise InputError("the lens needs a model that predicts tokens", where="model")
    head: Any = model.head
    found = []
    for each in states:
        chances = head(each)[0].float().softmax(-1)
        best = chances.topk(top)
        found.append(
            [
                {"token": tokenizer.decode([int(number)]), "id": int(number), "chance": float(chance)}
                for chance, number in zip(best.values, best.indices, strict=True)
            ]
        )
    return found
