"""GPT: the first of the line, a decoder with post-norm layers and learned positions. Loads openai-gpt.

It is GPT-2 with each norm after its residual path and none at the end, so the pieces are GPT-2's.

Source: Radford et al. 2018, Improving Language Understanding by Generative Pre-Training, section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tsumugu.blocks.attention import Attention
from tsumugu.blocks.embeddings import Embedding, Embeddings
from tsumugu.blocks.feedforward import FeedForward
from tsumugu.blocks.layer import Layer
from tsumugu.blocks.normalization import LayerNorm
from tsumugu.blocks.positions import LearnedPositions
from tsumugu.blocks.stack import Stack
from tsumugu.checkpoints.keymap import Chain, KeyMap, Rule, Split, Transpose, both, same
from tsumugu.core.config import Config, limits
from tsumugu.core.errors import did_you_mean
from tsumugu.models.base import Family, label_names, label_tables, translate
from tsumugu.models.decoder import Decoder

ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "silu"}
"""config.json's `afn` and our names: its gelu is the one that tanh approximates."""


@dataclass(frozen=True, kw_only=True)
class GPTConfig(Config):
    """Hyperparameters of GPT; the defaults are those of the published model."""

    vocab_size: int = limits(40478, low=1)
    hidden_size: int = limits(768, low=1)
    num_layers: int = limits(12, low=0)
    num_heads: int = limits(12, low=1)
    activation: str = "gelu_new"
    max_positions: int = limits(512, low=1)
    norm_eps: float = limits(1e-5, low=0.0)
    embedding_dropout: float = limits(0.1, low=0.0, high=1.0)
    residual_dropout: float = limits(0.1, low=0.0, high=1.0)
    attention_dropout: float = limits(0.1, low=0.0, high=1.0)
    initializer_range: float = limits(0.02, low=0.0)
    tie_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")

    def check(self) -> None:
        if self.hidden_size % self.num_heads:
            self.refuse("num_heads", f"{self.num_heads} heads do not divide a width of {self.hidden_size}")
        known = ACTIVATIONS.values()
        if self.activation not in known:
            self.refuse("activation", f"GPT has no {self.activation!r}", mend=did_you_mean(self.activation, known))

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


def build(config: GPTConfig, head: str) -> Decoder:
    """A GPT with unset weights."""
    width = config.hidden_size
    layers = [
        Layer(
            attention=Attention(width, config.num_heads, dropout=config.attention_dropout),
            feed_forward=FeedForward(width, 4 * width, activation=config.activation, dropout=config.residual_dropout),
            attention_norm=_norm(config),
            feed_forward_norm=_norm(config),
            norm_first=False,
            dropout=config.residual_dropout,
        )
        for _ in range(config.num_layers)
    ]
    return Decoder(
        FAMILY,
        config,
        head,
        embeddings=Embeddings(
            Embedding(config.vocab_size, width),
            position=LearnedPositions(config.max_positions, width),
            dropout=config.embedding_dropout,
        ),
        decoder=Stack(layers),
    )


def _norm(config: GPTConfig) -> nn.Module:
    return LayerNorm(config.hidden_size, eps=config.norm_eps)


def keymap(config: GPTConfig, head: str) -> KeyMap:
    """The names on the hub. Matrices are transposed there, and query, key and value are one."""
    rules: list[Rule] = [
        same("transformer.tokens_embed.weight", "embeddings.token.weight"),
        same("transformer.positions_embed.weight", "embeddings.position.weight"),
    ]
    thirds = Split((config.hidden_size,) * 3)
    for i in range(config.num_layers):
        theirs, ours = f"transformer.h.{i}", f"decoder.layers.{i}"
        rules += both(f"{theirs}.ln_1", f"{ours}.attention_norm")
        rules += both(f"{theirs}.ln_2", f"{ours}.feed_forward_norm")
        for part, operation in (("weight", Chain((Transpose(), thirds))), ("bias", thirds)):
            names = tuple(f"{ours}.attention.{each}.{part}" for each in ("query", "key", "value"))
            rules.append(Rule((f"{theirs}.attn.c_attn.{part}",), names, operation))
        for old, new in (
            ("attn.c_proj", "attention.output"),
            ("mlp.c_fc", "feed_forward.up"),
            ("mlp.c_proj", "feed_forward.down"),
        ):
            rules.append(Rule((f"{theirs}.{old}.weight",), (f"{ours}.{new}.weight",), Transpose()))
            rules.append(same(f"{theirs}.{old}.bias", f"{ours}.{new}.bias"))
    tied: dict[str, str] = {}
    match head:
        case "causal-lm" if config.tie_embeddings:
            tied = {"lm_head.weight": "transformer.tokens_embed.weight"}
        case "causal-lm":
            rules.append(same("lm_head.weight", "head.weight"))
        case "sequence-classification":
            rules.append(same("score.weight", "head.classifier.weight"))
    return KeyMap(
        tuple(rules),
        tied=tied,
        prefix="transformer.",
        ignored=(r"\.attn\.bias$", r"position_ids$"),
        other_heads=(r"^lm_head\.", r"^score\.", r"^multiple_choice_head\."),
    )


NAMES = {
    "vocab_size": "vocab_size",
    "n_embd": "hidden_size",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_positions": "max_positions",
    "layer_norm_epsilon": "norm_eps",
    "embd_pdrop": "embedding_dropout",
    "resid_pdrop": "residual_dropout",
    "attn_pdrop": "attention_dropout",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "tie_embeddings",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
"""config.json's names and ours, where the values are the same."""


def from_hub(data: Mapping[str, Any]) -> GPTConfig:
    """The content of config.json -> configuration."""
    values = translate(data, NAMES, GPTConfig)
    activation = data.get("afn", "gelu")
    known = ACTIVATIONS.get(activation, activation) if isinstance(activation, str) else activation
    return GPTConfig.from_dict({**values, "activation": known, "labels": label_names(data)}, where="config.json")


def to_hub(config: GPTConfig, head: str) -> dict[str, Any]:
    """Configuration and head -> the content of config.json."""
    values = {theirs: getattr(config, ours) for theirs, ours in NAMES.items()}
    afn = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)
    return {
        "architectures": [FAMILY.architecture(head)],
        "model_type": "openai-gpt",
        **values,
        "afn": afn,
        **label_tables(config.labels),
    }


FAMILY = Family(
    name="gpt",
    summary="decoder: text generation, as GPT-2 with norms last (openai-gpt)",
    model_types=("openai-gpt",),
    config_class=GPTConfig,
    build=build,
    keymap=keymap,
    from_hub=from_hub,
    to_hub=to_hub,
    architectures={
        "OpenAIGPTLMHeadModel": "causal-lm",
        "OpenAIGPTModel": "base",
        "OpenAIGPTForSequenceClassification": "sequence-classification",
    },
)
