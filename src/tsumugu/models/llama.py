"""LLaMA: a decoder with RMSNorm, rotary positions, gated feed-forward and grouped queries.

Loads LLaMA 1 to 3.3, SmolLM2, TinyLlama, Mistral (with and without its window) and whatever else calls itself `llama`,
from the hub's files and from GGUF.

Source: Touvron et al. 2023, LLaMA and LLaMA 2; Dubey et al. 2024, The Llama 3 Herd of Models; Jiang et al. 2023,
Mistral 7B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsumugu.blocks.attention import Attention
from tsumugu.blocks.embeddings import Embedding, Embeddings
from tsumugu.blocks.feedforward import GatedFeedForward
from tsumugu.blocks.feedforward import activation as find_activation
from tsumugu.blocks.layer import Layer
from tsumugu.blocks.normalization import RMSNorm
from tsumugu.blocks.positions import LinearScaling, Llama3Scaling, RotaryPositions
from tsumugu.blocks.stack import Stack
from tsumugu.checkpoints.keymap import InterleavedRotary, KeyMap, Readable, Rule, both, same
from tsumugu.core.config import Config, limits
from tsumugu.core.errors import CheckpointError, ConfigError
from tsumugu.models.base import GGUF, Family, label_names, label_tables, translate
from tsumugu.models.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(Config):
    """Hyperparameters of LLaMA; the defaults are those of the first 7B model.

    `num_kv_heads` and `head_dim` of 0 stand for `num_heads` and `hidden_size / num_heads`.
    """

    vocab_size: int = limits(32000, low=1)
    hidden_size: int = limits(4096, low=1)
    num_layers: int = limits(32, low=0)
    num_heads: int = limits(32, low=1)
    num_kv_heads: int = limits(0, low=0)
    head_dim: int = limits(0, low=0)
    intermediate_size: int = limits(11008, low=1)
    activation: str = "silu"
    max_positions: int = limits(2048, low=1)
    norm_eps: float = limits(1e-6, low=0.0)
    rope_theta: float = limits(10000.0, low=1.0)
    rope_scaling: LinearScaling | Llama3Scaling | None = None
    attention_bias: bool = False
    feed_forward_bias: bool = False
    attention_dropout: float = limits(0.0, low=0.0, high=1.0)
    window: int | None = limits(None, low=1)
    initializer_range: float = limits(0.02, low=0.0)
    tie_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | None = None
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")

    def check(self) -> None:
        if self.num_kv_heads == 0:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.head_dim == 0:
            if self.hidden_size % self.num_heads:
                self.refuse("num_heads", f"{self.num_heads} heads do not divide a width of {self.hidden_size}")
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        if self.num_heads % self.num_kv_heads:
            self.refuse("num_kv_heads", f"{self.num_kv_heads} do not divide {self.num_heads} heads")
        if self.head_dim % 2:
            self.refuse("head_dim", f"{self.head_dim} is odd", mend="rotary positions turn pairs of dimensions")
        find_activation(self.activation)


def build(config: LlamaConfig, head: str) -> Decoder:
    """A LLaMA with fresh weights."""
    width = config.hidden_size
    layers = [
        Layer(
            attention=Attention(
                width,
                config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                bias=config.attention_bias,
                dropout=config.attention_dropout,
            ),
            feed_forward=GatedFeedForward(
                width, config.intermediate_size, activation=config.activation, bias=config.feed_forward_bias
            ),
            attention_norm=RMSNorm(width, eps=config.norm_eps),
            feed_forward_norm=RMSNorm(width, eps=config.norm_eps),
            norm_first=True,
        )
        for _ in range(config.num_layers)
    ]
    return Decoder(
        FAMILY,
        config,
        head,
        embeddings=Embeddings(Embedding(config.vocab_size, width)),
        decoder=Stack(layers, norm=RMSNorm(width, eps=config.norm_eps)),
        rotary=RotaryPositions(config.head_dim, theta=config.rope_theta, scaling=config.rope_scaling),
        dropout=0.1,
    )


def keymap(config: LlamaConfig, head: str) -> KeyMap:
    """The names on the hub."""
    rules: list[Rule] = [
        same("model.embed_tokens.weight", "embeddings.token.weight"),
        same("model.norm.weight", "decoder.norm.weight"),
    ]
    for i in range(config.num_layers):
        theirs, ours = f"model.layers.{i}", f"decoder.layers.{i}"
        for old, new in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
            rules += both(f"{theirs}.self_attn.{old}_proj", f"{ours}.attention.{new}", bias=config.attention_bias)
        for part in ("gate", "up", "down"):
            rules += both(f"{theirs}.mlp.{part}_proj", f"{ours}.feed_forward.{part}", bias=config.feed_forward_bias)
        rules.append(same(f"{theirs}.input_layernorm.weight", f"{ours}.attention_norm.weight"))
        rules.append(same(f"{theirs}.post_attention_layernorm.weight", f"{ours}.feed_forward_norm.weight"))
    tied: dict[str, str] = {}
    match head:
        case "causal-lm" if config.tie_embeddings:
            tied = {"lm_head.weight": "model.embed_tokens.weight"}
        case "causal-lm":
            rules.append(same("lm_head.weight", "head.weight"))
        case "sequence-classification":
            rules.append(same("score.weight", "head.classifier.weight"))
        case "token-classification":
            rules += both("score", "head.classifier")
    return KeyMap(
        tuple(rules),
        tied=tied,
        prefix="model.",
        ignored=(r"rotary_emb\.inv_freq$",),
        other_heads=(r"^lm_head\.", r"^score\."),
    )


NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "hidden_act": "activation",
    "max_position_embeddings": "max_positions",
    "rms_norm_eps": "norm_eps",
    "attention_bias": "attention_bias",
    "mlp_bias": "feed_forward_bias",
    "attention_dropout": "attention_dropout",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "tie_embeddings",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
"""config.json's names and ours."""


def from_hub(data: Mapping[str, Any]) -> LlamaConfig:
    """The content of config.json -> configuration; rotary settings in their older and newer spelling."""
    rope = {**_object(data, "rope_scaling"), **_object(data, "rope_parameters")}
    values = translate(data, NAMES, LlamaConfig)
    values["rope_theta"] = rope.pop("rope_theta", data.get("rope_theta", 10000.0))
    values["rope_scaling"] = _scaling(rope)
    values["labels"] = label_names(data)
    if data.get("model_type") == "mistral":
        values["window"] = data.get("sliding_window", 4096)
    return LlamaConfig.from_dict(values, where="config.json")


def to_hub(config: LlamaConfig, head: str) -> dict[str, Any]:
    """Configuration and head -> the content of config.json; with a window it is Mistral's."""
    values = {theirs: getattr(config, ours) for theirs, ours in NAMES.items()}
    rope: dict[str, Any] | None = None
    match config.rope_scaling:
        case LinearScaling(factor=factor):
            rope = {"rope_type": "linear", "factor": factor}
        case Llama3Scaling() as scaling:
            rope = {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_positions,
            }
    if isinstance(config.eos_token_id, tuple):
        values["eos_token_id"] = list(config.eos_token_id)
    window = {} if config.window is None else {"sliding_window": config.window}
    return {
        "architectures": [FAMILY.architecture(head, prefix="Llama" if config.window is None else "Mistral")],
        "model_type": "llama" if config.window is None else "mistral",
        **values,
        **window,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope,
        **label_tables(config.labels),
    }


def _object(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key) or {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"expected an object, found {value!r}", where=f"config.json {key}")
    return value


def _scaling(rope: Mapping[str, Any]) -> LinearScaling | Llama3Scaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    where = "config.json rope_scaling"
    try:
        if kind == "default":
            return None
        if kind == "linear":
            return LinearScaling(factor=rope["factor"])
        if kind == "llama3":
            return Llama3Scaling(
                factor=rope["factor"],
                low_freq_factor=rope["low_freq_factor"],
                high_freq_factor=rope["high_freq_factor"],
                original_max_positions=rope["original_max_position_embeddings"],
            )
    except KeyError as error:
        raise ConfigError(f"{kind} scaling lacks {error.args[0]!r}", where=where) from None
    raise ConfigError(f"rotary scaling {kind!r} is not known", where=where, mend="known: default, linear, llama3")


def gguf_keymap(config: LlamaConfig) -> KeyMap:
    """The names in a GGUF file; queries and keys have their rotary pairs side by side there."""
    rules: list[Rule] = [
        same("token_embd.weight", "embeddings.token.weight"),
        same("output_norm.weight", "decoder.norm.weight"),
    ]
    for i in range(config.num_layers):
        theirs, ours = f"blk.{i}", f"decoder.layers.{i}"
        for part in ("weight", "bias") if config.attention_bias else ("weight",):
            for old, new, heads in (("q", "query", config.num_heads), ("k", "key", config.num_kv_heads)):
                names = (f"{theirs}.attn_{old}.{part}",), (f"{ours}.attention.{new}.{part}",)
                rules.append(Rule(*names, InterleavedRotary(heads)))
        rules += both(f"{theirs}.attn_v", f"{ours}.attention.value", bias=config.attention_bias)
        rules += both(f"{theirs}.attn_output", f"{ours}.attention.output", bias=config.attention_bias)
        for part in ("gate", "up", "down"):
            rules += both(f"{theirs}.ffn_{part}", f"{ours}.feed_forward.{part}", bias=config.feed_forward_bias)
        rules.append(same(f"{theirs}.attn_norm.weight", f"{ours}.attention_norm.weight"))
        rules.append(same(f"{theirs}.ffn_norm.weight", f"{ours}.feed_forward_norm.weight"))
    tied = {"output.weight": "token_embd.weight"} if config.tie_embeddings else {}
    if not config.tie_embeddings:
        rules.append(same("output.weight", "head.weight"))
    return KeyMap(tuple(rules), tied=tied, ignored=(r"^rope_freqs\.weight$", r"rot_embd$"))


def gguf_config(metadata: Mapping[str, Any], tensors: Mapping[str, Readable]) -> LlamaConfig:
    """A GGUF file's metadata -> configuration. Ties and biases show in which tensors there are."""

    def value(key: str, default: Any = None) -> Any:
        found = metadata.get(f"llama.{key}", default)
        if found is None:
            raise CheckpointError(f"the metadata lacks llama.{key}", mend="the file is no complete llama model")
        return found

    if value("expert_count", 0):
        raise CheckpointError("mixtures of experts are not known", where="llama.expert_count")
    if "token_embd.weight" not in tensors:
        raise CheckpointError("there is no tensor token_embd.weight", mend="the file is no complete llama model")
    heads = value("attention.head_count")
    plain = LlamaConfig.from_dict(
        {
            "vocab_size": tensors["token_embd.weight"].shape[0],
            "hidden_size": value("embedding_length"),
            "num_layers": value("block_count"),
            "num_heads": heads,
            "num_kv_heads": value("attention.head_count_kv", heads),
            "head_dim": value("attention.key_length", 0),
            "intermediate_size": value("feed_forward_length"),
            "max_positions": value("context_length"),
            "norm_eps": value("attention.layer_norm_rms_epsilon"),
            "rope_theta": value("rope.freq_base", 10000.0),
            "attention_bias": "blk.0.attn_q.bias" in tensors,
            "feed_forward_bias": "blk.0.ffn_up.bias" in tensors,
            "tie_embeddings": "output.weight" not in tensors,
            "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
            "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        },
        where="GGUF metadata",
    )
    return plain.replace(rope_scaling=_gguf_scaling(metadata, tensors, plain.head_dim, plain.rope_theta))


def _gguf_scaling(
    metadata: Mapping[str, Any], tensors: Mapping[str, Readable], head_dim: int, theta: float
) -> LinearScaling | Llama3Scaling | None:
    kind = metadata.get("llama.rope.scaling.type", "none")
    if kind == "linear":
        return LinearScaling(factor=metadata.get("llama.rope.scaling.factor", 1.0))
    if kind != "none":
        raise CheckpointError(f"rotary scaling {kind!r} is not known", where="llama.rope.scaling.type")
    if "rope_freqs.weight" not in tensors:
        return None
    # Llama 3.1's scaling is kept as its effect, one divisor a frequency: find the setting that has this effect.
    divisors = tensors["rope_freqs.weight"].read(torch.float32)
    scaling = Llama3Scaling(factor=float(divisors.max()))
    wanted = _divisors(head_dim, theta, scaling)
    if divisors.shape != wanted.shape or not torch.allclose(wanted, divisors, rtol=1e-3):
        raise CheckpointError("the rotary divisors are not those of Llama 3.1", where="rope_freqs.weight")
    return scaling


def _divisors(head_dim: int, theta: float, scaling: Llama3Scaling) -> Tensor:
    """What `scaling` divides each frequency by, `[head_dim / 2]`."""
    cpu = torch.device("cpu")
    plain = RotaryPositions(head_dim, theta=theta).frequencies(dtype=torch.float32, device=cpu)
    return plain / scaling.scale(plain)


def gguf_metadata(config: LlamaConfig) -> dict[str, Any]:
    """Configuration -> a GGUF file's metadata, without the tokenizer's."""
    if config.window is not None:
        raise CheckpointError("a windowed model has no place in GGUF's llama architecture", where="window")
    values = {
        "general.architecture": "llama",
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.max_positions,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_heads,
        "llama.attention.head_count_kv": config.num_kv_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
    }
    if isinstance(config.rope_scaling, LinearScaling):
        values |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": config.rope_scaling.factor}
    return values


def gguf_tensors(config: LlamaConfig) -> dict[str, Tensor]:
    """Tensors of a GGUF file that are no parameters: the divisors of Llama 3.1's rotary frequencies."""
    if not isinstance(config.rope_scaling, Llama3Scaling):
        return {}
    return {"rope_freqs.weight": _divisors(config.head_dim, config.rope_theta, config.rope_scaling)}


FAMILY = Family(
    name="llama",
    summary="decoder: text generation, chat (also SmolLM2, TinyLlama, Mistral)",
    model_types=("llama", "mistral"),
    config_class=LlamaConfig,
    build=build,
    keymap=keymap,
    from_hub=from_hub,
    to_hub=to_hub,
    architectures={
        f"{prefix}{suffix}": head
        for head, suffix in {
            "causal-lm": "ForCausalLM",
            "base": "Model",
            "sequence-classification": "ForSequenceClassification",
            "token-classification": "ForTokenClassification",
        }.items()
        for prefix in ("Llama", "Mistral")
    },
    gguf=GGUF("llama", gguf_config, gguf_metadata, gguf_keymap, gguf_tensors),
)
