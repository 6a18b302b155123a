"""One layer of a transformer: attention and feed-forward, each with its residual path and its norm."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from tsumugu.blocks.attention import Attention
from tsumugu.blocks.dropout import Dropout
from tsumugu.blocks.kv_cache import CacheLayer, KeysValues
from tsumugu.blocks.mask import EVERYTHING, Mask
from tsumugu.blocks.positions import Rotation


class Layer(nn.Module):
    """States `[batch, time, dim]` -> `[batch, time, dim]`.

    Args:
        attention: self-attention.
        feed_forward: the position-wise network.
        attention_norm, feed_forward_norm: one norm for each part.
        norm_first: True: `x + part(norm(x))` (pre-norm: GPT-2, LLaMA); False: `norm(x + part(x))` (post-norm: BERT).
        dropout: on what attention gives.
        cross_attention, cross_norm: for decoders that read an encoder.
        attention_output_norm, feed_forward_output_norm: on what a part gives, before it is added: `x + norm(part(…))`.

    Source: Vaswani et al. 2017, section 3.1; pre-norm: Xiong et al. 2020, On Layer Normalization, section 3.
    """

    def __init__(
        self,
        *,
        attention: Attention,
        feed_forward: nn.Module,
        attention_norm: nn.Module,
        feed_forward_norm: nn.Module,
        norm_first: bool,
        dropout: float = 0.0,
        cross_attention: Attention | None = None,
        cross_norm: nn.Module | None = None,
        attention_output_norm: nn.Module | None = None,
        feed_forward_output_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.attention, self.attention_norm = attention, attention_norm
        self.cross_attention, self.cross_norm = cross_attention, cross_norm
        self.feed_forward, self.feed_forward_norm = feed_forward, feed_forward_norm
        self.attention_output_norm, self.feed_forward_output_norm = attention_output_norm, feed_forward_output_norm
        self.norm_first = norm_first
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask = EVERYTHING,
        rotation: Rotation | None = None,
        cache: CacheLayer | None = None,
        context: Tensor | KeysValues | None = None,
        context_mask: Mask = EVERYTHING,
        among: Tensor | None = None,
    ) -> Tensor:
        """States `[batch, time, dim]` -> as many.

        Args:
            x: what asks, and goes on.
            mask: which states each of `x` sees.
            rotation, cache: see `Attention`.
            context, context_mask: what cross-attention asks.
            among: `[batch, others, dim]`, what self-attention asks where only some of these states go on; else `x`.
                Not with a rotation, which would turn both by the same positions.
        """

        def attend(states: Tensor) -> Tensor:
            asked = self.attention_norm(among) if among is not None and self.norm_first else among
            return self.dropout(self.attention(states, mask=mask, rotation=rotation, context=asked, cache=cache))

        x = self._residual(x, attend, self.attention_norm, self.attention_output_norm)
        if self.cross_attention is not None and self.cross_norm is not None:
            cross = self.cross_attention
            x = self._residual(
                x,
                lambda states: self.dropout(cross(states, mask=context_mask, context=context)),
                self.cross_norm,
            )
        return self._residual(x, self.feed_forward, self.feed_forward_norm, self.feed_forward_output_norm)

    def _residual(
        self, x: Tensor, part: Callable[[Tensor], Tensor], norm: nn.Module, output_norm: nn.Module | None = None
    ) -> Tensor:
        given = part(norm(x) if self.norm_first else x)
        if output_norm is not None:
            given = output_norm(given)
        if self.norm_first:
            return x + given
        normed: Tensor = norm(x + given)
        return normed
