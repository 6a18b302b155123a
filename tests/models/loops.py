"""GPT-2's network, which GPT-3 and Megatron share, as plain loops in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from tests.blocks import loops


def gpt2(ids: list[list[int]], p: dict[str, loops.Array], config: Any, windows: list[int | None]) -> loops.Array:
    """Logits `[batch, time, vocab]`; `windows` says for each layer how many tokens a token sees, itself included."""
    embedded = p["embeddings.token.weight"][np.array(ids)]
    x = embedded + p["embeddings.position.weight"][: embedded.shape[1]]
    for layer, window in enumerate(windows):
        prefix = f"decoder.layers.{layer}."

        def sees(row: int, query: int, key: int, window: int | None = window) -> bool:
            return key <= query and (window is None or query - key < window)

        x = x + loops.attention(
            loops.layer_norm(x, p, f"{prefix}attention_norm", config.norm_eps),
            p,
            heads=config.num_heads,
            kv_heads=config.num_heads,
            head_dim=config.head_dim,
            sees=sees,
            prefix=f"{prefix}attention.",
        )
        normed = loops.layer_norm(x, p, f"{prefix}feed_forward_norm", config.norm_eps)
        x = x + loops.feed_forward(normed, p, config.activation, prefix=f"{prefix}feed_forward.")
    states = loops.layer_norm(x, p, "decoder.norm", config.norm_eps)
    table = p["head.weight"] if "head.weight" in p else p["embeddings.token.weight"]
    return loops.linear(states, {"head.weight": table}, "head")
