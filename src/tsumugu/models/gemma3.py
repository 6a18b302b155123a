"""Gemma 3 (text): a decoder whose layers look near and far in turn.

Beside LLaMA's parts it has norms on queries and keys, norms before and after each half of a layer, norms that scale by
one plus their weight, embeddings multiplied by the root of the width, a tanh-GELU gate, and two rotary bases: a small
one in layers that see a window, a large one in those that see everything.

Loads Gemma 3 270M and 1B, and the text half of what was converted to GGUF.

Source: Gemma Team 2025, Gemma 3 Technical Report, section 2; Gemma Team 2024, Gemma 2, section 2 (the norms).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tsumugu.blocks.attention import Attention
from tsumugu.blocks.embeddings import Embedding, Embeddings
from tsumugu.blocks.feedforward import GatedFeedForward
from tsumugu.blocks.feedforward import activation as find_activation
from tsumugu.blocks.layer import Layer
from tsumugu.blocks.normalization import RMSNorm
from tsumugu.blocks.positions import LinearScaling, RotaryPositions
from tsumugu.blocks.stack import Stack
from tsumugu.checkpoints.keymap import KeyMap, Readable, Rule, Shifted, both, same
from tsumugu.core.config import Config, limits
from tsumugu.core.errors import CheckpointError, ConfigError
from tsumugu.models.base import GGUF, Family, label_names, label_tables, translate
from tsumugu.models.decoder import Decoder

PERIOD = 6
"""Of so many layers the last sees everything, where nothing else is said."""
ROPE_THETA, LOCAL_ROPE_THETA = 1e6, 1e4


@dataclass(frozen=True, kw_only=True)
class Gemma3Config(Config):
    """Hyperparameters of Gemma 3; the defaults are those of the 270M model.

    Attributes:
        window: how many tokens, itself included, a token sees in a layer that looks near.
        full_layers: for each layer whether it sees everything before it; empty: each sixth does.
        rope_theta, rope_scaling: of the layers that see everything.
        local_rope_theta, local_rope_scaling: of those that look near.
        query_scale: queries are divided by its root; `head_dim` in most models.
        logit_softcap: bounds the logits.
    """

    vocab_size: int = limits(262144, low=1)
    hidden_size: int = limits(640, low=1)
    num_layers: int = limits(18, low=0)
    num_heads: int = limits(4, low=1)
    num_kv_heads: int = limits(1, low=1)
    head_dim: int = limits(256, low=1)
    intermediate_size: int = limits(2048, low=1)
    activation: str = "gelu_pytorch_tanh"
    max_positions: int = limits(32768, low=1)
    norm_eps: float = limits(1e-6, low=0.0)
    window: int = limits(512, low=1)
    full_layers: tuple[bool, ...] = ()
    rope_theta: float = limits(ROPE_THETA, low=1.0)
    rope_scaling: LinearScaling | None = None
    local_rope_theta: float = limits(LOCAL_ROPE_THETA, low=1.0)
    local_rope_scaling: LinearScaling | None = None
    query_scale: float = limits(256.0, low=1e-6)
    logit_softcap: float | None = limits(None, low=1e-6)
    attention_bias: bool = False
    attention_dropout: float = limits(0.0, low=0.0, high=1.0)
    initializer_range: float = limits(0.02, low=0.0)
    tie_embeddings: bool = True
    bos_token_id: int | None = 2
    eos_token_id: int | tuple[int, ...] | None = 1
    pad_token_id: int | None = 0
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")

    def check(self) -> None:
        if not self.full_layers:
            object.__setattr__(self, "full_layers", _each(PERIOD, self.num_layers))
        if len(self.full_layers) != self.num_layers:
            self.refuse("full_layers", f"{len(self.full_layers)} kinds for {self.num_layers} layers")
        if self.num_heads % self.num_kv_heads:
            self.refuse("num_kv_heads", f"{self.num_kv_heads} do not divide {self.num_heads} heads")
        if self.head_dim % 2:
            self.refuse("head_dim", f"{self.head_dim} is odd", mend="rotary positions turn pairs of dimensions")
        find_activation(self.activation)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """For each layer how many tokens a token sees, itself included; None for all before it."""
        return tuple(None if full else self.window for full in self.full_layers)


def _each(period: int, layers: int) -> tuple[bool, ...]:
    return tuple((layer + 1) % period == 0 for layer in range(layers))


def build(config: Gemma3Config, head: str) -> Decoder:
    """A Gemma 3 with fresh weights."""
    width = config.hidden_size

    def norm(size: int = width) -> RMSNorm:
        return RMSNorm(size, eps=config.norm_eps, offset=1.0)

    layers = [
        Layer(
            attention=Attention(
                width,
                config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                bias=config.attention_bias,
                dropout=config.attention_dropout,
                scale=config.query_scale**-0.5,
                query_norm=norm(config.head_dim),
                key_norm=norm(config.head_dim),
            ),
            feed_forward=GatedFeedForward(width, config.intermediate_size, activation=config.activation, bias=False),
            attention_norm=norm(),
            attention_output_norm=norm(),
            feed_forward_norm=norm(),
            feed_forward_output_norm=norm(),
            norm_first=True,
        )
        for _ in range(config.num_layers)
    ]
    far = RotaryPositions(config.head_dim, theta=config.rope_theta, scaling=config.rope_scaling)
    near = RotaryPositions(config.head_dim, theta=config.local_rope_theta, scaling=config.local_rope_scaling)
    return Decoder(
        FAMILY,
        config,
        head,
        embeddings=Embeddings(Embedding(config.vocab_size, width), scale=width**0.5),
        decoder=Stack(layers, norm=norm()),
        rotary=[far if full else near for full in config.full_layers],
    )


def keymap(config: Gemma3Config, head: str) -> KeyMap:
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
            rules += both(f"{theirs}.mlp.{part}_proj", f"{ours}.feed_forward.{part}", bias=False)
        for old, new in NORMS:
            rules.append(same(f"{theirs}.{old}.weight", f"{ours}.{new}.weight"))
    tied: dict[str, str] = {}
    match head:
        case "causal-lm" if config.tie_embeddings:
            tied = {"lm_head.weight": "model.embed_tokens.weight"}
        case "causal-lm":
            rules.append(same("lm_head.weight", "head.weight"))
        case "sequence-classification":
            rules.append(same("score.weight", "head.classifier.weight"))
    return KeyMap(tuple(rules), tied=tied, prefix="model.", other_heads=(r"^lm_head\.", r"^score\."))


NORMS = (
    ("self_attn.q_norm", "attention.query_norm"),
    ("self_attn.k_norm", "attention.key_norm"),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "attention_output_norm"),
    ("pre_feedforward_layernorm", "feed_forward_norm"),
    ("post_feedforward_layernorm", "feed_forward_output_norm"),
)
"""The norms of a layer: the hub's names and ours."""

NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "hidden_activation": "activation",
    "max_position_embeddings": "max_positions",
    "rms_norm_eps": "norm_eps",
    "sliding_window": "window",
    "query_pre_attn_scalar": "query_scale",
    "final_logit_softcapping": "logit_softcap",
    "attention_bias": "attention_bias",
    "attention_dropout": "attention_dropout",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "tie_embeddings",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
"""config.json's names and ours."""

FULL, NEAR = "full_attention", "sliding_attention"


def from_hub(data: Mapping[str, Any]) -> Gemma3Config:
    """The content of config.json -> configuration; rotary settings and kinds of layers in older and newer spelling."""
    for key in ("attn_logit_softcapping", "use_bidirectional_attention"):
        if data.get(key):
            raise ConfigError(f"{key} is not known here", where="config.json", mend="Gemma 3 itself has none")
    values = translate(data, NAMES, Gemma3Config)
    layers = values.get("num_layers", Gemma3Config.num_layers)
    kinds = data.get("layer_types")
    if kinds is None:
        period = data.get("sliding_window_pattern", PERIOD)
        if not isinstance(period, int) or period < 1 or not isinstance(layers, int):
            raise ConfigError(f"expected a number of layers, found {period!r}", where="sliding_window_pattern")
        kinds = [FULL if full else NEAR for full in _each(period, layers)]
    if not isinstance(kinds, list) or set(kinds) - {FULL, NEAR}:
        raise ConfigError(f"expected {FULL} or {NEAR} for each layer", where="config.json layer_types")
    values["full_layers"] = [kind == FULL for kind in kinds]
    for prefix, kind, older in (("", FULL, "rope_theta"), ("local_", NEAR, "rope_local_base_freq")):
        rope = (data.get("rope_parameters") or {}).get(kind) or {}
        if kind == FULL:
            rope = {**(data.get("rope_scaling") or {}), **rope}
        default = ROPE_THETA if kind == FULL else LOCAL_ROPE_THETA
        values[f"{prefix}rope_theta"] = rope.get("rope_theta", data.get(older, default))
        values[f"{prefix}rope_scaling"] = _scaling(rope)
    values["labels"] = label_names(data)
    return Gemma3Config.from_dict(values, where="config.json")


def _scaling(rope: Mapping[str, Any]) -> LinearScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear" and "factor" in rope:
        return LinearScaling(factor=rope["factor"])
    what = "linear scaling lacks 'factor'" if kind == "linear" else f"rotary scaling {kind!r} is not known"
    raise ConfigError(what, where="config.json rope_parameters", mend="known: default, linear")


def to_hub(config: Gemma3Config, head: str) -> dict[str, Any]:
    """Configuration and head -> the content of config.json."""
    values = {theirs: getattr(config, ours) for theirs, ours in NAMES.items()}
    if isinstance(config.eos_token_id, tuple):
        values["eos_token_id"] = list(config.eos_token_id)
    if config.query_scale == int(config.query_scale):
        values["query_pre_attn_scalar"] = int(config.query_scale)
    return {
        "architectures": [FAMILY.architecture(head)],
        "model_type": "gemma3_text",
        **values,
        "layer_types": [FULL if full else NEAR for full in config.full_layers],
        "rope_parameters": {
            FULL: _rope(config.rope_theta, config.rope_scaling),
            NEAR: _rope(config.local_rope_theta, config.local_rope_scaling),
        },
        **label_tables(config.labels),
    }


def _rope(theta: float, scaling: LinearScaling | None) -> dict[str, Any]:
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    return {"rope_type": "linear", "rope_theta": theta, "factor": scaling.factor}


GGUF_NORMS = (
    ("attn_q_norm", "attention.query_norm"),
    ("attn_k_norm", "attention.key_norm"),
    ("attn_norm", "attention_norm"),
    ("post_attention_norm", "attention_output_norm"),
    ("ffn_norm", "feed_forward_norm"),
    ("post_ffw_norm", "feed_forward_output_norm"),
)
"""The norms of a layer: GGUF's names and ours."""


def gguf_keymap(config: Gemma3Config) -> KeyMap:
    """The names in a GGUF file; its norms hold what is multiplied, one plus our weight."""

    def norm(theirs: str, ours: str) -> Rule:
        return Rule((f"{theirs}.weight",), (f"{ours}.weight",), Shifted())

    rules = [same("token_embd.weight", "embeddings.token.weight"), norm("output_norm", "decoder.norm")]
    for i in range(config.num_layers):
        theirs, ours = f"blk.{i}", f"decoder.layers.{i}"
        for old, new in (("q", "query"), ("k", "key"), ("v", "value"), ("output", "output")):
            rules += both(f"{theirs}.attn_{old}", f"{ours}.attention.{new}", bias=False)
        for part in ("gate", "up", "down"):
            rules += both(f"{theirs}.ffn_{part}", f"{ours}.feed_forward.{part}", bias=False)
        rules += [norm(f"{theirs}.{old}", f"{ours}.{new}") for old, new in GGUF_NORMS]
    if config.tie_embeddings:
        return KeyMap(tuple(rules), tied={"output.weight": "token_embd.weight"})
    return KeyMap((*rules, same("output.weight", "head.weight")))


def gguf_config(metadata: Mapping[str, Any], tensors: Mapping[str, Readable]) -> Gemma3Config:
    """A GGUF file's metadata -> configuration."""

    def value(key: str, default: Any = None) -> Any:
        found = metadata.get(f"gemma3.{key}", default)
        if found is None:
            raise CheckpointError(f"the metadata lacks gemma3.{key}", mend="the file is no complete gemma3 model")
        return found

    if "token_embd.weight" not in tensors:
        raise CheckpointError("there is no tensor token_embd.weight", mend="the file is no complete gemma3 model")
    scaling = value("rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise CheckpointError(f"rotary scaling {scaling!r} is not known", where="gemma3.rope.scaling.type")
    period = value("attention.sliding_window_pattern", PERIOD)
    if not isinstance(period, int) or period < 1:
        raise CheckpointError(f"expected a number, found {period!r}", where="gemma3.attention.sliding_window_pattern")
    config = Gemma3Config.from_dict(
        {
            "vocab_size": tensors["token_embd.weight"].shape[0],
            "hidden_size": value("embedding_length"),
            "num_layers": value("block_count"),
            "num_heads": value("attention.head_count"),
            "num_kv_heads": value("attention.head_count_kv"),
            "head_dim": value("attention.key_length"),
            "intermediate_size": value("feed_forward_length"),
            "max_positions": value("context_length", 131072),
            "norm_eps": value("attention.layer_norm_rms_epsilon"),
            "window": value("attention.sliding_window"),
            "rope_theta": value("rope.freq_base", ROPE_THETA),
            "rope_scaling": {"factor": value("rope.scaling.factor", 1.0)} if scaling == "linear" else None,
            "local_rope_theta": value("rope.freq_base_swa", LOCAL_ROPE_THETA),
            "logit_softcap": metadata.get("gemma3.final_logit_softcapping"),
            "tie_embeddings": "output.weight" not in tensors,
            "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
            "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        },
        where="GGUF metadata",
    )
    return config.replace(query_scale=_gguf_query_scale(config), full_layers=_each(period, config.num_layers))


def _gguf_query_scale(config: Gemma3Config) -> float:
    """Not in the file: llama.cpp knows the one model, 27B, that has another than `head_dim` by its layers."""
    return float(config.hidden_size // config.num_heads if config.num_layers == 62 else config.head_dim)


def gguf_metadata(config: Gemma3Config) -> dict[str, Any]:
    """Configuration -> a GGUF file's metadata, without the tokenizer's."""
    for name, holds in (
        ("query_scale", config.query_scale == _gguf_query_scale(config)),
        ("full_layers", config.full_layers == _each(PERIOD, config.num_layers)),
        ("local_rope_scaling", config.local_rope_scaling is None),
        ("attention_bias", not config.attention_bias),
    ):
        if not holds:
            what = f"{getattr(config, name)!r} has no place in GGUF's gemma3 architecture"
            raise CheckpointError(what, where=name)
    values: dict[str, Any] = {
        "general.architecture": "gemma3",
        "gemma3.vocab_size": config.vocab_size,
        "gemma3.context_length": config.max_positions,
        "gemma3.embedding_length": config.hidden_size,
        "gemma3.block_count": config.num_layers,
        "gemma3.feed_forward_length": config.intermediate_size,
        "gemma3.attention.head_count": config.num_heads,
        "gemma3.attention.head_count_kv": config.num_kv_heads,
        "gemma3.attention.key_length": config.head_dim,
        "gemma3.attention.value_length": config.head_dim,
        "gemma3.attention.layer_norm_rms_epsilon": config.norm_eps,
        "gemma3.attention.sliding_window": config.window,
        "gemma3.rope.freq_base": config.rope_theta,
        "gemma3.rope.freq_base_swa": config.local_rope_theta,
    }
    if config.rope_scaling is not None:
        values |= {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": config.rope_scaling.factor}
    if config.logit_softcap is not None:
        values["gemma3.final_logit_softcapping"] = config.logit_softcap
    return values


def gguf_tensors(config: Gemma3Config) -> dict[str, Tensor]:
    """Tensors of a GGUF file that are no parameters: none."""
    return {}


FAMILY = Family(
    name="gemma3",
    summary="decoder: text generation, chat, in many languages (Gemma 3, text)",
    model_types=("gemma3_text",),
    config_class=Gemma3Config,
    build=build,
    keymap=keymap,
    from_hub=from_hub,
    to_hub=to_hub,
    architectures={
        "Gemma3ForCausalLM": "causal-lm",
        "Gemma3TextModel": "base",
        "Gemma3TextForSequenceClassification": "sequence-classification",
    },
    gguf=GGUF("gemma3", gguf_config, gguf_metadata, gguf_keymap, gguf_tensors),
)
