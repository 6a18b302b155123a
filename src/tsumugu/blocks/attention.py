"""The one attention of the house: multi-head, grouped-query, cross; masked and positioned by what it is handed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tsumugu.blocks.dropout import dropout, quick
from tsumugu.blocks.kv_cache import CacheLayer, KeysValues
from tsumugu.blocks.mask import EVERYTHING, Mask
from tsumugu.blocks.positions import Rotation

SHORT = 128
"""Keys up to which a CPU that learns attends in float32, where all else is bfloat16: the way back through bfloat16
computes each head of each text by a product of its own, and takes 1.3 to 5 times as long."""


class Attention(nn.Module):
    """Scaled dot-product attention over `num_heads` queries that share `num_kv_heads` keys and values.

    Args:
        hidden_size: width of the states that come and go.
        num_heads: query heads.
        num_kv_heads: key and value heads; `num_heads` for multi-head, 1 for multi-query, between for grouped-query.
        head_dim: width of one head; `hidden_size / num_heads` when left out.
        bias: biases on the query, key and value projections.
        output_bias: a bias on the output projection; as `bias` when left out.
        dropout: on the attention weights while training.
        scale: factor on the scores; `head_dim ** -0.5` when left out.
        context_size: width of the context in cross-attention; `hidden_size` when left out.
        query_norm, key_norm: on each head's queries and keys, `[..., head_dim]`, before they are rotated.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.2; Ainslie et al. 2023, GQA, section 2.2; the
    norms: Dehghani et al. 2023, Scaling Vision Transformers to 22 Billion Parameters, section 2.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        output_bias: bool | None = None,
        dropout: float = 0.0,
        scale: float | None = None,
        context_size: int | None = None,
        query_norm: nn.Module | None = None,
        key_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        self.head_dim = head_dim or hidden_size // num_heads
        self.dropout, self.scale = dropout, scale
        context_size = context_size or hidden_size
        self.query = nn.Linear(hidden_size, self.num_heads * self.head_dim, bias=bias)
        self.key = nn.Linear(context_size, self.num_kv_heads * self.head_dim, bias=bias)
        self.value = nn.Linear(context_size, self.num_kv_heads * self.head_dim, bias=bias)
        self.output = nn.Linear(
            self.num_heads * self.head_dim, hidden_size, bias=bias if output_bias is None else output_bias
        )
        self.query_norm, self.key_norm = query_norm, key_norm

    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask = EVERYTHING,
        rotation: Rotation | None = None,
        context: Tensor | KeysValues | None = None,
        cache: CacheLayer | None = None,
    ) -> Tensor:
        """States `[batch, time, dim]` -> `[batch, time, dim]`.

        Args:
            x: what asks.
            mask: which keys each query sees.
            rotation: turns queries and keys by their positions (rotary).
            context: what is asked, `[batch, keys, context_size]`, or what `keys_values` made of that; else `x` itself.
            cache: keys and values of earlier steps; the new ones are written to it.
        """
        query = self._heads(self.query(x))
        if self.query_norm is not None:
            query = self.query_norm(query)
        key, value = context if isinstance(context, tuple) else self.keys_values(x if context is None else context)
        if rotation is not None:
            query, key = rotation(query), rotation(key)
        if cache is not None:
            key, value = cache.update(key, value)
        return self.output(self._attend(query, key, value, mask))

    def weights(
        self,
        x: Tensor,
        *,
        mask: Mask = EVERYTHING,
        rotation: Rotation | None = None,
        context: Tensor | KeysValues | None = None,
    ) -> Tensor:
        """How much each query looks at each key, `[batch, heads, queries, keys]`: what `forward` does not keep."""
        query = self._heads(self.query(x))
        if self.query_norm is not None:
            query = self.query_norm(query)
        key, _ = context if isinstance(context, tuple) else self.keys_values(x if context is None else context)
        if rotation is not None:
            query, key = rotation(query), rotation(key)
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = query @ key.transpose(-2, -1) * (self.head_dim**-0.5 if self.scale is None else self.scale)
        hidden = mask.scores(query.dtype)
        if mask.causal:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if hidden is not None:
            scores = scores.masked_fill(~hidden, float("-inf")) if hidden.dtype == torch.bool else scores + hidden
        return scores.softmax(-1)

    def keys_values(self, context: Tensor) -> KeysValues:
        """What is asked of `context` `[batch, keys, context_size]`, to be kept where it is asked again and again."""
        key = self._heads(self.key(context))
        return key if self.key_norm is None else self.key_norm(key), self._heads(self.value(context))

    def _heads(self, x: Tensor) -> Tensor:
        # As many heads as there are: under tensor parallelism a rank computes its share of them.
        return x.view(*x.shape[:2], x.shape[-1] // self.head_dim, self.head_dim).transpose(1, 2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
        """`[batch, heads, time, head_dim]` of queries -> `[batch, time, heads * head_dim]`."""
        batch, heads, time, dim = query.shape
        kv_heads = key.shape[1]
        if self.training and self.dropout and mask.bias is None and quick(query):
            attended = self._dropped(query, key, value, mask)
            return attended.transpose(1, 2).reshape(batch, time, heads * dim)
        if _narrow(query) and key.shape[2] <= SHORT:
            with torch.autocast("cpu", enabled=False):
                return self._attend(query.float(), key.float(), value.float(), mask).to(value.dtype)
        scores = mask.scores(query.dtype)
        grouped = kv_heads < heads
        one_step = grouped and time == 1 and (scores is None or scores.dim() < 3 or scores.shape[-3] == 1)
        if one_step:
            # Decoding: the heads of a group become queries of one head, and keys and values need no copies.
            query = query.view(batch, kv_heads, heads // kv_heads, dim)
        attended = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=scores,
            is_causal=mask.causal and time > 1,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
            enable_gqa=grouped and not one_step,
        )
        if one_step:
            attended = attended.reshape(batch, heads, 1, dim)
        return attended.transpose(1, 2).reshape(batch, time, heads * dim)

    def _dropped(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
        """Attention with dropout, in the steps that torch takes too, without its search for queries that see nothing.

        Those, which only padding can be, get the mean of all values.
        """
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
        scores = query * (self.head_dim**-0.5 if self.scale is None else self.scale) @ key.transpose(-2, -1)
        allowed = mask.allowed
        if mask.causal and query.shape[2] > 1:
            allowed = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
        if allowed is not None:
            scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        return dropout(scores.softmax(-1), self.dropout) @ value


def _narrow(query: Tensor) -> bool:
    """Whether a CPU would go back through attention in bfloat16."""
    if not (query.is_cpu and query.requires_grad and torch.is_grad_enabled()):
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return query.dtype == torch.bfloat16
