"""Megatron-LM's GPT and Megatron-Turing NLG: GPT-2's network, in the names and the order of rows that Megatron writes.

Query, key and value are one matrix whose rows are ordered by `checkpoint_version`; versions up to 2 say `transformer`
and `attention` where version 3 says `encoder` and `self_attention`, and all are read whatever they say. The vocabulary
is padded so that it divides among devices. A file of Megatron's own, unsplit, loads with a config.json beside it that
names its arguments as `NAMES` does; a version that the file states is the one that counts, and none stated means 0.
Files that hold Megatron's arguments as a Python object too are refused as every pickled object is: save their `model`
and `checkpoint_version` alone.

Source: Shoeybi et al. 2019, Megatron-LM, tables 1 and 2; Narayanan et al. 2021, Efficient Large-Scale Language Model
Training on GPU Clusters, table 1; Smith et al. 2022, Using DeepSpeed and Megatron to Train Megatron-Turing NLG 530B,
section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from tsumugu.checkpoints.keymap import KeyMap, MegatronHeads, Readable, Rule, both, same
from tsumugu.core.config import limits
from tsumugu.core.errors import ConfigError
from tsumugu.models import gpt2
from tsumugu.models.base import Family, preset, translate
from tsumugu.models.decoder import Decoder

PRESETS: dict[str, tuple[int, int, int, int]] = {
    "345m": (24, 1024, 16, 1024),
    "1.2b": (40, 1536, 16, 1024),
    "2.5b": (54, 1920, 20, 1024),
    "4.2b": (64, 2304, 24, 1024),
    "8.3b": (72, 3072, 24, 1024),
    "1.7b": (24, 2304, 24, 2048),
    "3.6b": (30, 3072, 32, 2048),
    "7.5b": (36, 4096, 32, 2048),
    "18.4b": (40, 6144, 48, 2048),
    "39.1b": (48, 8192, 64, 2048),
    "76.1b": (60, 10240, 80, 2048),
    "145.6b": (80, 12288, 96, 2048),
    "310.1b": (96, 16384, 128, 2048),
    "530b": (105, 20480, 128, 2048),
    "1008b": (128, 25600, 160, 2048),
}
"""Layers, width, heads and context. The first five are Shoeybi et al.'s, of 2019; 530b is Megatron-Turing NLG, which
Narayanan et al. list as 529.6B; the others are theirs. All have GPT-2's vocabulary, padded to 51,200."""
PRESETS |= {"355m": PRESETS["345m"], "529.6b": PRESETS["530b"], "1t": PRESETS["1008b"]}


def padded_vocab_size(vocab_size: int, *, tensor_parallel: int = 1, divisible_by: int = 128) -> int:
    """Rows of the table of `vocab_size` tokens when it is cut for `tensor_parallel` devices.

    Source: Megatron-LM, `--make-vocab-size-divisible-by`.
    """
    step = divisible_by * tensor_parallel
    return -(-vocab_size // step) * step


@dataclass(frozen=True, kw_only=True)
class MegatronConfig(gpt2.GPT2Config):
    """Hyperparameters of Megatron's GPT; the defaults are those of the 345M model.

    `vocab_size` counts the padding's rows, which no text ever uses.
    """

    vocab_size: int = limits(padded_vocab_size(50257, tensor_parallel=8), low=1)
    hidden_size: int = limits(1024, low=1)
    num_layers: int = limits(24, low=0)
    num_heads: int = limits(16, low=1)
    checkpoint_version: Literal[0, 1, 2, 3] = 3

    @classmethod
    def preset(cls, name: str) -> Self:
        """One of the published models, by its number of parameters: 345m, 8.3b, 530b…

        Raises:
            UnknownNameError: there is no such model; it names the nearest.
        """
        layers, width, heads, context = preset(PRESETS, name, family="megatron")
        return cls(num_layers=layers, hidden_size=width, num_heads=heads, max_positions=context)


def build(config: MegatronConfig, head: str) -> Decoder:
    """A Megatron GPT with fresh weights."""
    return gpt2.assemble(FAMILY, config, head)


def keymap(config: MegatronConfig, head: str) -> KeyMap:
    """Megatron's names, as its checkpoint of this version writes them."""
    newer = config.checkpoint_version >= 3
    stack, attention = ("encoder", "self_attention") if newer else ("transformer", "attention")
    trunk = f"language_model.{stack}"
    words = "language_model.embedding.word_embeddings.weight"
    rules: list[Rule] = [
        same(words, "embeddings.token.weight"),
        same("language_model.embedding.position_embeddings.weight", "embeddings.position.weight"),
        *both(f"{trunk}.final_layernorm", "decoder.norm"),
    ]
    fused = MegatronHeads(config.num_heads, config.checkpoint_version)
    for i in range(config.num_layers):
        theirs, ours = f"{trunk}.layers.{i}", f"decoder.layers.{i}"
        rules += both(f"{theirs}.input_layernorm", f"{ours}.attention_norm")
        for part in ("weight", "bias"):
            names = tuple(f"{ours}.attention.{each}.{part}" for each in ("query", "key", "value"))
            rules.append(Rule((f"{theirs}.{attention}.query_key_value.{part}",), names, fused))
        rules += both(f"{theirs}.{attention}.dense", f"{ours}.attention.output")
        rules += both(f"{theirs}.post_attention_layernorm", f"{ours}.feed_forward_norm")
        rules += both(f"{theirs}.mlp.dense_h_to_4h", f"{ours}.feed_forward.up")
        rules += both(f"{theirs}.mlp.dense_4h_to_h", f"{ours}.feed_forward.down")
    if head == "causal-lm" and not config.tie_embeddings:
        rules.append(same("language_model.output_layer.weight", "head.weight"))
    spellings = ((r"^(language_model\.)?(transformer|encoder)\.", rf"\g<1>{stack}."),)
    return KeyMap(
        tuple(rules),
        # The last stage of a pipeline keeps a copy of the first one's table.
        tied={"word_embeddings_for_head.weight": words},
        prefix="language_model.",
        renamed=(*spellings, (r"\.(self_)?attention\.", f".{attention}.")),
        ignored=(r"\._extra_state$", r"attention\.(core_attention\.)?(bias|masked_bias)$"),
        other_heads=(r"output_layer\.weight$",),
    )


NAMES = {
    "padded_vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "ffn_hidden_size": "intermediate_size",
    "hidden_act": "activation",
    "max_position_embeddings": "max_positions",
    "layernorm_epsilon": "norm_eps",
    "hidden_dropout": "residual_dropout",
    "embedding_dropout": "embedding_dropout",
    "attention_dropout": "attention_dropout",
    "init_method_std": "initializer_range",
    "tie_word_embeddings": "tie_embeddings",
    "checkpoint_version": "checkpoint_version",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
"""config.json's names and ours: Megatron's arguments where it has one."""


def from_hub(data: Mapping[str, Any]) -> MegatronConfig:
    """The content of config.json -> configuration."""
    values = translate(data, NAMES, MegatronConfig)
    values.setdefault("embedding_dropout", values.get("residual_dropout", 0.1))
    version = values.get("checkpoint_version", 0)
    return MegatronConfig.from_dict(values | {"checkpoint_version": _version(version)}, where="config.json")


def fit(config: MegatronConfig, tensors: Mapping[str, Readable], beside: Mapping[str, Any]) -> MegatronConfig:
    """The configuration with the version that Megatron's own file states."""
    if "checkpoint_version" not in beside:
        return config
    return config.replace(checkpoint_version=_version(beside["checkpoint_version"]))


def _version(given: Any) -> int:
    """Megatron writes 3.0 for 3."""
    if isinstance(given, bool) or not isinstance(given, int | float) or given not in (0, 1, 2, 3):
        raise ConfigError(f"{given!r} is no version of a Megatron checkpoint", where="checkpoint_version")
    return int(given)


def to_hub(config: MegatronConfig, head: str) -> dict[str, Any]:
    """Configuration and head -> the content of config.json."""
    values = {theirs: getattr(config, ours) for theirs, ours in NAMES.items()}
    return {"architectures": [FAMILY.architecture(head)], "model_type": "megatron", **values}


FAMILY = Family(
    name="megatron",
    summary="decoder: text generation, as GPT-2 (presets to MT-NLG 530B)",
    model_types=("megatron",),
    config_class=MegatronConfig,
    build=build,
    keymap=keymap,
    from_hub=from_hub,
    to_hub=to_hub,
    fit=fit,
    architectures={"GPTModel": "causal-lm", "TransformerLanguageModel": "base"},
    spread=gpt2.spread,
)
