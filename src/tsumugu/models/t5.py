"""T5: an encoder-decoder that turns every task into text from text, with relative positions and nothing absolute.

Version 1.0 has a plain feed-forward with ReLU and one table for embeddings and output, whose input is scaled down by
the root of the width; version 1.1, FLAN-T5 and mT5 have a gated one and an output table of their own. Attention is not
scaled: the first weights make up for it. The relative bias of a stack is one for all of its layers; UmT5 has one for
each. Loads t5-small to t5-11b, T5 v1.1, FLAN-T5, mT5, UmT5 and their kin.

Source: Raffel et al. 2020, Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, section
2.1; v1.1: Shazeer 2020, GLU Variants Improve Transformer, section 3, and the released checkpoints' notes; Xue et al.
2021, mT5, section 3; Chung et al. 2023, UniMax (UmT5).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tsumugu.blocks.attention import Attention
from tsumugu.blocks.embeddings import Embedding, Embeddings
from tsumugu.blocks.feedforward import FeedForward, GatedFeedForward
from tsumugu.blocks.feedforward import activation as find_activation
from tsumugu.blocks.layer import Layer
from tsumugu.blocks.normalization import RMSNorm
from tsumugu.blocks.positions import RelativePositions
from tsumugu.blocks.stack import Stack
from tsumugu.checkpoints.keymap import KeyMap, Readable, Rule, same
from tsumugu.core.config import Config, limits
from tsumugu.core.errors import ConfigError
from tsumugu.models.base import Family, translate
from tsumugu.models.encoder_decoder import EncoderDecoder


@dataclass(frozen=True, kw_only=True)
class T5Config(Config):
    """Hyperparameters of T5; the defaults are those of t5-small.

    `num_decoder_layers` of None stands for `num_layers`. With `gated`, `activation` is that of the gate.
    """

    vocab_size: int = limits(32128, low=1)
    hidden_size: int = limits(512, low=1)
    num_layers: int = limits(6, low=0)
    num_decoder_layers: int | None = limits(None, low=0)
    num_heads: int = limits(8, low=1)
    head_dim: int = limits(64, low=1)
    intermediate_size: int = limits(2048, low=1)
    activation: str = "relu"
    gated: bool = False
    buckets: int = limits(32, low=4)
    max_distance: int = limits(128, low=2)
    bias_in_each_layer: bool = False
    norm_eps: float = limits(1e-6, low=0.0)
    dropout: float = limits(0.1, low=0.0, high=1.0)
    initializer_factor: float = limits(1.0, low=0.0)
    tie_embeddings: bool = True
    scale_outputs: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 1
    decoder_start_token_id: int = limits(0, low=0)
    model_type: Literal["t5", "mt5", "umt5"] = "t5"

    def check(self) -> None:
        if self.num_decoder_layers is None:
            object.__setattr__(self, "num_decoder_layers", self.num_layers)
        find_activation(self.activation)
        if self.gated and self.activation == "gelu":
            self.refuse("activation", "a gate's GELU is gelu_new in T5", mend="choose gelu_new")
        if self.max_distance <= self.buckets // 2:
            self.refuse("max_distance", f"{self.buckets} buckets reach {self.buckets // 2} tokens one by one already")
        if self.decoder_start_token_id >= self.vocab_size:
            self.refuse("decoder_start_token_id", f"outside the vocabulary of {self.vocab_size}")

    @property
    def max_positions(self) -> int:
        """Relative positions set no limit."""
        return sys.maxsize


def spread(config: T5Config, name: str) -> float:
    """How widely first weights are drawn: each matrix by what it reads, so that attention needs no scale.

    Source: Raffel et al. 2020 (released code: Mesh TensorFlow's initialisers, also of an output table of its own).
    """
    heads = config.num_heads * config.head_dim
    spreads = {
        "token": 1.0,
        "query": (config.hidden_size * config.head_dim) ** -0.5,
        "output": heads**-0.5,
        "down": config.intermediate_size**-0.5,
    }
    return config.initializer_factor * spreads.get(name.split(".")[-2], config.hidden_size**-0.5)


def build(config: T5Config, head: str) -> EncoderDecoder:
    """A T5 with unset weights."""
    decodes = head != "encoder"
    assert config.num_decoder_layers is not None
    return EncoderDecoder(
        FAMILY,
        config,
        head,
        embeddings=Embeddings(Embedding(config.vocab_size, config.hidden_size), dropout=config.dropout),
        encoder=_stack(config, config.num_layers, decoder=False),
        encoder_positions=_positions(config, config.num_layers, bidirectional=True),
        decoder=_stack(config, config.num_decoder_layers, decoder=True) if decodes else None,
        decoder_positions=_positions(config, config.num_decoder_layers, bidirectional=False) if decodes else [],
        output_scale=config.hidden_size**-0.5 if config.scale_outputs else 1.0,
    )


def _stack(config: T5Config, layers: int, *, decoder: bool) -> Stack:
    width = config.hidden_size

    def attention() -> Attention:
        return Attention(
            width, config.num_heads, head_dim=config.head_dim, bias=False, dropout=config.dropout, scale=1.0
        )

    return Stack(
        (
            Layer(
                attention=attention(),
                attention_norm=_norm(config),
                cross_attention=attention() if decoder else None,
                cross_norm=_norm(config) if decoder else None,
                feed_forward=(GatedFeedForward if config.gated else FeedForward)(
                    width,
                    config.intermediate_size,
                    activation=config.activation,
                    bias=False,
                    dropout=config.dropout,
                    inner_dropout=config.dropout,
                ),
                feed_forward_norm=_norm(config),
                norm_first=True,
                dropout=config.dropout,
            )
            for _ in range(layers)
        ),
        norm=_norm(config),
        dropout=config.dropout,
    )


def _positions(config: T5Config, layers: int, *, bidirectional: bool) -> list[RelativePositions]:
    return [
        RelativePositions(
            config.num_heads, buckets=config.buckets, max_distance=config.max_distance, bidirectional=bidirectional
        )
        for _ in range(layers if config.bias_in_each_layer else 1)
    ]


def _norm(config: T5Config) -> RMSNorm:
    return RMSNorm(config.hidden_size, eps=config.norm_eps)


def keymap(config: T5Config, head: str) -> KeyMap:
    """The names on the hub, as `T5ForConditionalGeneration` and its siblings write them."""
    rules = [same("shared.weight", "embeddings.token.weight"), *_names(config, "encoder", config.num_layers)]
    tied = {"encoder.embed_tokens.weight": "shared.weight"}
    if head != "encoder":
        assert config.num_decoder_layers is not None
        rules += _names(config, "decoder", config.num_decoder_layers)
        tied["decoder.embed_tokens.weight"] = "shared.weight"
    if head == "seq2seq-lm" and config.tie_embeddings:
        tied["lm_head.weight"] = "shared.weight"
    elif head == "seq2seq-lm":
        rules.append(same("lm_head.weight", "head.weight"))
    return KeyMap(
        tuple(rules),
        tied=tied,
        ignored=(r"\.EncDecAttention\.relative_attention_bias\.weight$",),
        other_heads=(r"^lm_head\.", *([r"^decoder\."] if head == "encoder" else [])),
    )


def _names(config: T5Config, stack: str, layers: int) -> list[Rule]:
    """The names of one stack."""
    wide = (("wi_0", "gate"), ("wi_1", "up")) if config.gated else (("wi", "up"),)
    parts = [("attention", "SelfAttention"), ("feed_forward", "DenseReluDense")]
    if stack == "decoder":
        parts.insert(1, ("cross_attention", "EncDecAttention"))
    rules = [same(f"{stack}.final_layer_norm.weight", f"{stack}.norm.weight")]
    for i in range(layers if config.bias_in_each_layer else 1):
        bias = f"{stack}.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight"
        rules.append(same(bias, f"{stack}_positions.{i}.embedding.weight"))
    for i in range(layers):
        for number, (ours, theirs) in enumerate(parts):
            old, new = f"{stack}.block.{i}.layer.{number}", f"{stack}.layers.{i}.{ours}"
            names = (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output"))
            for before, after in (*wide, ("wo", "down")) if ours == "feed_forward" else names:
                rules.append(same(f"{old}.{theirs}.{before}.weight", f"{new}.{after}.weight"))
            rules.append(same(f"{old}.layer_norm.weight", f"{new.replace('cross_attention', 'cross')}_norm.weight"))
    return rules


NAMES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "num_layers": "num_layers",
    "num_decoder_layers": "num_decoder_layers",
    "num_heads": "num_heads",
    "d_kv": "head_dim",
    "d_ff": "intermediate_size",
    "relative_attention_num_buckets": "buckets",
    "relative_attention_max_distance": "max_distance",
    "layer_norm_epsilon": "norm_eps",
    "dropout_rate": "dropout",
    "initializer_factor": "initializer_factor",
    "tie_word_embeddings": "tie_embeddings",
    "scale_decoder_outputs": "scale_outputs",
    "pad_token_id": "pad_token_id",
    "eos_token_id": "eos_token_id",
    "decoder_start_token_id": "decoder_start_token_id",
    "model_type": "model_type",
}
"""config.json's names and ours."""


def from_hub(data: Mapping[str, Any]) -> T5Config:
    """The content of config.json -> configuration.

    Outputs are scaled where config.json ties them to the embeddings, unless it says otherwise, and never in mT5.
    """
    kind = data.get("model_type", "t5")
    scaled = kind != "mt5" and data.get("tie_word_embeddings") is not False
    words = str(data.get("feed_forward_proj", "relu" if kind == "t5" else "gated-gelu")).split("-")
    if len(words) > 2 or (len(words) == 2 and words[0] != "gated"):
        raise ConfigError(
            f"{'-'.join(words)!r} is not an activation, nor gated- and an activation",
            where="config.json feed_forward_proj",
        )
    gated = len(words) == 2
    values = {
        "scale_outputs": scaled,
        **translate(data, NAMES, T5Config),
        "gated": gated,
        "activation": "gelu_new" if gated and words[1] == "gelu" else words[-1],
        "bias_in_each_layer": kind == "umt5",
    }
    return T5Config.from_dict(values, where="config.json")


def fit(config: T5Config, tensors: Mapping[str, Readable], beside: Mapping[str, Any]) -> T5Config:
    """The configuration that the checkpoint shows: config.json often does not tell whether the tables are one.

    Version 1.1's says that they are two, copies by newer tools that they are one, whether they are or not.
    """
    own, shared = tensors.get("lm_head.weight"), tensors.get("shared.weight")
    if own is None and shared is not None:
        return config.replace(tie_embeddings=True)
    if own is not None and shared is not None and config.tie_embeddings and own.shape == shared.shape:
        return config.replace(tie_embeddings=torch.equal(own.read(), shared.read()))
    return config


PREFIXES = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}
"""What class names begin with for each model_type."""


def to_hub(config: T5Config, head: str) -> dict[str, Any]:
    """Configuration and head -> the content of config.json."""
    activation = "gelu" if config.gated and config.activation == "gelu_new" else config.activation
    return {
        "architectures": [FAMILY.architecture(head, prefix=PREFIXES[config.model_type])],
        **{theirs: getattr(config, ours) for theirs, ours in NAMES.items()},
        "feed_forward_proj": f"gated-{activation}" if config.gated else activation,
        "is_encoder_decoder": head != "encoder",
    }


FAMILY = Family(
    name="t5",
    summary="encoder-decoder: text from text (also T5 v1.1, FLAN-T5, mT5, UmT5)",
    model_types=tuple(PREFIXES),
    config_class=T5Config,
    build=build,
    keymap=keymap,
    from_hub=from_hub,
    to_hub=to_hub,
    fit=fit,
    architectures={
        f"{prefix}{suffix}": head
        for head, suffix in {
            "seq2seq-lm": "ForConditionalGeneration",
            "base": "Model",
            "encoder": "EncoderModel",
        }.items()
        for prefix in PREFIXES.values()
    },
    spread=spread,
)
