"""GPT-3: GPT-2's network made large, with dense and locally banded attention in turn.

The paper leaves open how wide the bands are and which kind comes first. Here the first layer is dense, each second one
banded, and the width is a setting, `band`: 128 tokens unless said otherwise, the Sparse Transformer's stride on text;
None makes every layer dense. The weights were never published. Checkpoints carry GPT-2's names, so that
one whose layers are all dense runs wherever GPT-2 runs.

Source: Brown et al. 2020, Language Models are Few-Shot Learners, section 2.1 and table 2.1; Child et al. 2019,
Generating Long Sequences with Sparse Transformers, sections 4.2 and 7.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from tsumugu.blocks.feedforward import activation as find_activation
from tsumugu.core.config import limits
from tsumugu.models import gpt2
from tsumugu.models.base import Family, label_names, label_tables, preset, translate
from tsumugu.models.decoder import Decoder

PRESETS: dict[str, tuple[int, int, int, int]] = {
    "small": (12, 768, 12, 64),
    "medium": (24, 1024, 16, 64),
    "large": (24, 1536, 16, 96),
    "xl": (24, 2048, 24, 128),
    "2.7b": (32, 2560, 32, 80),
    "6.7b": (32, 4096, 32, 128),
    "13b": (40, 5140, 40, 128),
    "175b": (96, 12288, 96, 128),
}
"""Layers, width, heads and width of a head, as table 2.1 prints them.

Two lines of it do not come out even: XL's 24 heads of 128 are wider than its 2048 and make 1.5 billion parameters where
the table says 1.3 (16 heads would make those), and 13B's width of 5140 is not its 40 heads of 128.
"""
PRESETS |= {"125m": PRESETS["small"], "350m": PRESETS["medium"], "760m": PRESETS["large"], "1.3b": PRESETS["xl"]}


@dataclass(frozen=True, kw_only=True)
class GPT3Config(gpt2.GPT2Config):
    """Hyperparameters of GPT-3; the defaults are those of the 125M model.

    `head_dim` of 0 stands for `hidden_size / num_heads`. `band` is how many tokens, itself included, a token sees in
    each second layer; None for all.
    """

    head_dim: int = limits(0, low=0)
    max_positions: int = limits(2048, low=1)
    band: int | None = limits(128, low=1)

    @classmethod
    def preset(cls, name: str) -> Self:
        """One of table 2.1's models: small, medium, large, xl, 2.7b, 6.7b, 13b or 175b.

        Raises:
            UnknownNameError: there is no such model; it names the nearest.
        """
        layers, width, heads, head_dim = preset(PRESETS, name, family="gpt3")
        return cls(num_layers=layers, hidden_size=width, num_heads=heads, head_dim=head_dim)

    def check(self) -> None:
        if self.head_dim == 0:
            if self.hidden_size % self.num_heads:
                self.refuse("num_heads", f"{self.num_heads} heads do not divide a width of {self.hidden_size}")
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        find_activation(self.activation)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """For each layer how many tokens a token sees, itself included; None for all before it."""
        return tuple(self.band if layer % 2 else None for layer in range(self.num_layers))


def build(config: GPT3Config, head: str) -> Decoder:
    """A GPT-3 with fresh weights."""
    return gpt2.assemble(FAMILY, config, head)


NAMES = gpt2.NAMES | {"head_dim": "head_dim", "band": "band"}
"""config.json's names and ours: GPT-2's, and two of our own."""


def from_hub(data: Mapping[str, Any]) -> GPT3Config:
    """The content of config.json -> configuration."""
    return GPT3Config.from_dict(
        {**translate(data, NAMES, GPT3Config), "labels": label_names(data)}, where="config.json"
    )


def to_hub(config: GPT3Config, head: str) -> dict[str, Any]:
    """Configuration and head -> the content of config.json."""
    values = {theirs: getattr(config, ours) for theirs, ours in NAMES.items()}
    return {"architectures": [FAMILY.architecture(head)], "model_type": "gpt3", **values, **label_tables(config.labels)}


FAMILY = Family(
    name="gpt3",
    summary="decoder: text generation, dense and banded layers in turn (presets to 175B)",
    model_types=("gpt3",),
    config_class=GPT3Config,
    build=build,
    keymap=gpt2.keymap,
    from_hub=from_hub,
    to_hub=to_hub,
    architectures=gpt2.FAMILY.architectures,
    spread=gpt2.spread,
)
