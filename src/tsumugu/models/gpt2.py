"""GPT-2: a decoder with pre-norm layers and learned positions. Loads gpt2 to gpt2-xl, DistilGPT-2 and their kin.

Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tsumugu.blocks.attention import Attention
from tsumugu.blocks.embeddings import Embedding, Embeddings
from tsumugu.blocks.feedforward import FeedForward
from tsumugu.blocks.feedforward import activation as find_activation
from tsumugu.blocks.layer import Layer
from tsumugu.blocks.normalization import LayerNorm
from tsumugu.blocks.positions import LearnedPositions
from tsumugu.blocks.stack import Stack
from tsumugu.checkpoints.keymap import Chain, KeyMap, Rule, Split, Transpose, both, same
from tsumugu.core.config import Config, limits
from tsumugu.core.errors import ConfigError
from tsumugu.models.base import Family, label_names, label_tables, translate
from tsumugu.models.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class GPT2Config(Config):
    """Hyperparameters of GPT-2; the defaults are those of the 124M model."""

    vocab_size: int = limits(50257, low=1)
    hidden_size: int = limits(768, low=1)
    num_layers: int = limits(12, low=0)
    num_heads: int = limits(12, low=1)
    intermediate_size: int | None = limits(None, low=1)
    activation: str = "gelu_new"
    max_positions: int = limits(1024, low=1)
    norm_eps: float = limits(1e-5, low=0.0)
    embedding_dropout: float = limits(0.1, low=0.0, high=1.0)
    residual_dropout: float = limits(0.1, low=0.0, high=1.0)
    attention_dropout: float = limits(0.1, low=0.0, high=1.0)
    classifier_dropout: float | None = limits(None, low=0.0, high=1.0)
    scale_attention: bool = True
    scale_attention_by_layer: bool = False
    initializer_range: float = limits(0.02, low=0.0)
    tie_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | tuple[int, ...] | None = 50256
    pad_token_id: int | None = None
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")

    def check(self) -> None:
        if self.hidden_size % self.num_heads:
            self.refuse("num_heads", f"{self.num_heads} heads do not divide a width of {self.hidden_size}")
        find_activation(self.activation)

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def attention_scale(self, layer: int) -> float:
        """The factor on the scores of the layer numbered `layer` from 0."""
        scale = self.head_dim**-0.5 if self.scale_attention else 1.0
        return scale / (layer + 1) if self.scale_attention_by_layer else scale


def build(config: GPT2Config, head: str) -> Decoder:
    """A GPT-2 with fresh weights."""
    return assemble(FAMILY, config, head)


def assemble(family: Family, config: GPT2Config, head: str) -> Decoder:
    """GPT-2's network for a family that has it."""
    width = config.hidden_size
    layers = [
        Layer(
            attention=Attention(
                width,
                config.num_heads,
                head_dim=config.head_dim,
                dropout=config.attention_dropout,
                scale=config.attention_scale(index),
            ),
            feed_forward=FeedForward(
                width,
                config.intermediate_size or 4 * width,
                activation=config.activation,
                dropout=config.residual_dropout,
            ),
            attention_norm=_norm(config),
            feed_forward_norm=_norm(config),
            norm_first=True,
            dropout=config.residual_dropout,
        )
        for index in range(config.num_layers)
    ]
    return Decoder(
        family,
        config,
        head,
        embeddings=Embeddings(
            Embedding(config.vocab_size, width),
            position=LearnedPositions(config.max_positions, width),
            dropout=config.embedding_dropout,
        ),
        decoder=Stack(layers, norm=_norm(config)),
        dropout=0.1 if config.classifier_dropout is None else config.classifier_dropout,
    )


def keymap(config: GPT2Config, head: str) -> KeyMap:
    """The names on the hub. Matrices are transposed there, and query, key and value are one."""
    rules: list[Rule] = [
        same("transformer.wte.weight", "embeddings.token.weight"),
        same("transformer.wpe.weight", "embeddings.position.weight"),
        *both("transformer.ln_f", "decoder.norm"),
    ]
    thirds = Split((config.num_heads * config.head_dim,) * 3)
    for i in range(config.num_layers):
        theirs, ours = f"transformer.h.{i}", f"decoder.layers.{i}"
        rules += both(f"{theirs}.ln_1", f"{ours}.attention_norm")
        rules += both(f"{theirs}.ln_2", f"{ours}.feed_forward_norm")
        for part, operation in (("weight", Chain((Transpose(), thirds))), ("bias", thirds)):
            names = tuple(f"{ours}.attention.{each}.{part}" for each in ("query", "key", "value"))
            rules.append(Rule((f"{theirs}.attn.c_attn.{part}",), names, operation))
        for old, new in (("attn.c_proj", "attention.output"), ("mlp.c_fc", "feed_forward.up")):
            rules += _transposed(f"{theirs}.{old}", f"{ours}.{new}")
        rules += _transposed(f"{theirs}.mlp.c_proj", f"{ours}.feed_forward.down")
    tied: dict[str, str] = {}
    match head:
        case "causal-lm" if config.tie_embeddings:
            tied = {"lm_head.weight": "transformer.wte.weight"}
        case "causal-lm":
            rules.append(same("lm_head.weight", "head.weight"))
        case "sequence-classification":
            rules.append(same("score.weight", "head.classifier.weight"))
        case "token-classification":
            rules += both("classifier", "head.classifier")
    return KeyMap(
        tuple(rules),
        tied=tied,
        prefix="transformer.",
        ignored=(r"\.attn\.(bias|masked_bias)$",),
        other_heads=(r"^lm_head\.", r"^score\.", r"^classifier\.", r"^multiple_choice_head\.", r"^qa_outputs\."),
    )


def spread(config: GPT2Config, name: str) -> float:
    """How widely first weights are drawn: what writes into the residual path less so, the more layers do.

    Source: Radford et al. 2019, GPT-2, section 2.3 (1 / sqrt of how many residual layers there are: two in each).
    """
    writes = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
    return config.initializer_range / ((2 * config.num_layers) ** 0.5 if writes else 1.0)


NAMES = {
    "vocab_size": "vocab_size",
    "n_embd": "hidden_size",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_inner": "intermediate_size",
    "activation_function": "activation",
    "n_positions": "max_positions",
    "layer_norm_epsilon": "norm_eps",
    "embd_pdrop": "embedding_dropout",
    "resid_pdrop": "residual_dropout",
    "attn_pdrop": "attention_dropout",
    "classifier_dropout": "classifier_dropout",
    "scale_attn_weights": "scale_attention",
    "scale_attn_by_inverse_layer_idx": "scale_attention_by_layer",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "tie_embeddings",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
"""config.json's names and ours."""


def from_hub(data: Mapping[str, Any]) -> GPT2Config:
    """The content of config.json -> configuration."""
    if data.get("add_cross_attention"):
        raise ConfigError("GPT-2 with cross-attention is not known", where="config.json add_cross_attention")
    return GPT2Config.from_dict(
        {**translate(data, NAMES, GPT2Config), "labels": label_names(data)}, where="config.json"
    )


def to_hub(config: GPT2Config, head: str) -> dict[str, Any]:
    """Configuration and head -> the content of config.json."""
    values = {theirs: getattr(config, ours) for theirs, ours in NAMES.items()}
    return {"architectures": [FAMILY.architecture(head)], "model_type": "gpt2", **values, **label_tables(config.labels)}


def _norm(config: GPT2Config) -> nn.Module:
    return LayerNorm(config.hidden_size, eps=config.norm_eps)


def _transposed(theirs: str, ours: str) -> list[Rule]:
    return [Rule((f"{theirs}.weight",), (f"{ours}.weight",), Transpose()), same(f"{theirs}.bias", f"{ours}.bias")]


FAMILY = Family(
    name="gpt2",
    summary="decoder: text generation",
    model_types=("gpt2",),
    config_class=GPT2Config,
    build=build,
    keymap=keymap,
    from_hub=from_hub,
    to_hub=to_hub,
    architectures={
        "GPT2LMHeadModel": "causal-lm",
        "GPT2Model": "base",
        "GPT2ForSequenceClassification": "sequence-classification",
        "GPT2ForTokenClassification": "token-classification",
    },
    spread=spread,
)
