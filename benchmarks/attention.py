"""Attention in bfloat16, there and back, on one core: our block, and torch's attention between the same projections.

Up to `tsumugu.blocks.attention.SHORT` keys ours attends in float32 while it learns. Both get the same states in the
same autocast, and their gradients must agree.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.harness import Report, precision, seconds
from tsumugu.blocks.attention import Attention

SHAPES = ((160, 16, 8, 32), (32, 128, 8, 32), (16, 128, 12, 64))
"""Texts, tokens of each, heads, and the width of a head."""


def run(report: Report) -> None:
    """Nothing where a processor has no units for bfloat16."""
    if precision() != "bf16" and not report.smoke:
        report.skip("attention in bfloat16", "this processor has no units for it")
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for texts, tokens, heads, width in SHAPES[:1] if report.smoke else SHAPES:
        block = Attention(heads * width, heads)
        states = torch.randn(texts, tokens, heads * width)
        ours, theirs = (gradient(each, states) for each in (block, plain(block)))
        assert float((ours - theirs).norm() / theirs.norm()) < 0.02
        report.compare(
            f"bfloat16, {texts} x {tokens} tokens, {heads} heads of {width}",
            lambda block=block, states=states: seconds(lambda: gradient(block, states)),
            lambda block=block, states=states: seconds(lambda: gradient(plain(block), states)),
            peer_name="torch",
            limit="a head's products: overhead in bfloat16, arithmetic in float32",
        )
    torch.set_num_threads(before)


def plain(block: Attention) -> Callable[[Tensor], Tensor]:
    """The same from torch's parts."""

    def attend(states: Tensor) -> Tensor:
        shape = (*states.shape[:2], block.num_heads, block.head_dim)
        query, key, value = (each(states).view(shape).transpose(1, 2) for each in (block.query, block.key, block.value))
        found = functional.scaled_dot_product_attention(query, key, value)
        return block.output(found.transpose(1, 2).flatten(2))

    return attend


def gradient(attend: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """Of the sum of squares, by the states `[texts, tokens, dim]`."""
    given = states.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(given)
    found.float().square().sum().backward()
    assert given.grad is not None
    return given.grad
