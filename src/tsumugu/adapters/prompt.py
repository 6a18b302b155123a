"""Soft prompts: trained vectors that stand before every text of a decoder, whose own weights stay as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tsumugu.adapters.config import PrefixTuningConfig, PromptTuningConfig
from tsumugu.blocks.kv_cache import KeysValues
from tsumugu.models.decoder import Decoder


class SoftPrompt(nn.Module):
    """Vectors in place of a text's first tokens, or the keys and values that each layer would keep of such tokens.

    As no token of a decoder sees what follows it, what the layers make of the vectors is the same before every text:
    it is computed once for a batch, and where a text is written, once at all.

    Args:
        table: `[tokens, dim]` for vectors; `[tokens, layers * 2 * kv_heads * head_dim]`, each layer's keys before its
            values, for keys and values.
        deep: whether the table holds keys and values.
    """

    def __init__(self, table: nn.Parameter, *, deep: bool) -> None:
        super().__init__()
        self.table, self.deep = table, deep

    def forward(self, model: Decoder) -> list[KeysValues]:
        """Each layer's keys and values, `[1, kv_heads, tokens, head_dim]` each."""
        table = self.table.to(model.embeddings.token.weight.dtype)
        if not self.deep:
            return model.begin(table)
        config = model.config
        shape = (len(table), 2 * config.num_layers, config.num_kv_heads, config.head_dim)
        parts = table.view(shape).permute(1, 2, 0, 3)[:, None]
        return [(parts[2 * index], parts[2 * index + 1]) for index in range(config.num_layers)]


def fresh_prompt(
    model: Decoder, config: PromptTuningConfig | PrefixTuningConfig, generator: torch.Generator
) -> SoftPrompt:
    """A prompt that begins as tokens drawn from the vocabulary, or as what the layers keep of them.

    Source: Lester et al. 2021, section 3.2 (sampled vocabulary); Li & Liang 2021, section 7.4 (real activations).
    """
    ids = torch.randint(model.config.vocab_size, (config.tokens,), generator=generator).to(model.device)
    with torch.no_grad():
        vectors: Tensor = model.embeddings.token(ids) * model.embeddings.scale
        deep = isinstance(config, PrefixTuningConfig)
        if deep:
            training = model.training
            kept = model.eval().begin(vectors)
            model.train(training)
            parts = torch.stack([each[0] for pair in kept for each in pair])
            vectors = parts.permute(2, 0, 1, 3).flatten(1)
    wide = torch.promote_types(vectors.dtype, torch.float32)
    return SoftPrompt(nn.Parameter(vectors.to(wide).clone()), deep=deep)
