"""Targets: what each position is to predict, summed over those where something is asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tsumugu.blocks.heads import IGNORE
from tsumugu.core.errors import InputError
from tsumugu.core.tensors import to_torch
from tsumugu.models.base import Model

TOKEN_HEADS = ("causal-lm", "masked-lm", "pretraining", "seq2seq-lm")
"""The heads that predict tokens."""
ROUND = 64
"""What numbers of states are rounded up to where each new number costs."""


def read_targets(model: Model, given: Any, labels: Any, like: Tensor | None) -> Tensor | None:
    """Targets from any tensor kind or lists, on the model's device; None stays None.

    Args:
        model: its head must predict tokens.
        given: `[batch, time]`, `IGNORE` where nothing is asked for.
        labels: must be None where targets are given.
        like: the tokens that they are aligned with, `[batch, time]`.

    Raises:
        InputError: they are of another shape or outside the vocabulary, the head predicts no tokens, or there are
            labels too.
    """
    if given is None:
        return None
    if labels is not None:
        raise InputError("labels and targets say the same in two ways", where="targets", mend="give one of them")
    if model.head_name not in TOKEN_HEADS:
        what = f"the head {model.head_name} predicts no tokens"
        raise InputError(what, where="targets", mend=f"build the model with one of {', '.join(TOKEN_HEADS)}")
    targets = to_torch(given)
    if like is not None and targets.shape != like.shape:
        what = f"shape {list(targets.shape)} is not {list(like.shape)}, that of the tokens"
        raise InputError(what, where="targets")
    if targets.device.type != "meta" and targets.numel():
        strange = targets[(targets < 0) & (targets != IGNORE) | (targets >= model.config.vocab_size)]
        if len(strange):
            vocab = model.config.vocab_size
            raise InputError(f"target {int(strange[0])} is outside the vocabulary of {vocab}", where="targets")
    return targets.to(model.device)


def summed_loss(head: Any, states: Tensor, targets: Tensor) -> Tensor:
    """The sum of cross-entropies over the targets `[batch, time]` that are asked for.

    The head sees only the states, of `[batch, time, dim]`, where they are. Nothing is copied where all are asked for.
    On a CPU in bfloat16 their number is rounded up, with places that ask for nothing: products there are compiled for
    each shape, which costs more than to compute them, and what is compiled is kept.
    """
    flat, wanted = states.flatten(0, -2), targets.flatten().long()
    asked = wanted != IGNORE
    if not bool(asked.all()):
        places = asked.nonzero().squeeze(1)
        wanted = wanted[places]
        if flat.is_cpu and torch.is_autocast_enabled("cpu"):
            more = (0, -len(places) % ROUND)
            places, wanted = functional.pad(places, more), functional.pad(wanted, more, value=IGNORE)
        flat = flat.index_select(0, places)
    return head.loss(flat, wanted)
