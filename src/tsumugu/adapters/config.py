"""What is added to a network, as a recipe's section has it: one configuration for each method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tsumugu.core.config import Config, limits

SHORTHANDS = ("all-linear", "attention", "feed-forward")
"""Words for groups of matrices: all of the layers, those of attention, those of the feed-forward networks."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Config):
    """Low-rank adaptation: beside each matrix W two thin ones, W + scale * up @ down, of which only they are trained.

    Attributes:
        rank: the inner width of the two.
        alpha: what they give is scaled by alpha / rank.
        dropout: on what enters them, while training.
        targets: the matrices, by the last words of their names, ours or the reference library's (`query`, `q_proj`),
            or by patterns of whole names (`decoder.layers.[01].*`), or a shorthand: all-linear, attention,
            feed-forward.
        rslora: scale by alpha / sqrt(rank).
        dora: also train how long each row of W is, apart from where it points.
        modules_to_save: modules that are trained whole, by name as in `targets`; when left out, a classifier's head
            and whatever the checkpoint did not hold.

    Source: Hu et al. 2021, LoRA, section 4.1; rsLoRA: Kalajdzievski 2023; DoRA: Liu et al. 2024, section 4.
    """

    method: Literal["lora"] = "lora"
    rank: int = limits(8, low=1)
    alpha: float = limits(16.0, low=0.0)
    dropout: float = limits(0.0, low=0.0, high=1.0)
    targets: tuple[str, ...] | str = "all-linear"
    rslora: bool = False
    dora: bool = False
    modules_to_save: tuple[str, ...] | None = None

    def check(self) -> None:
        if isinstance(self.targets, str):
            object.__setattr__(self, "targets", (self.targets,))
        if not self.targets:
            self.refuse("targets", "nothing is adapted", mend=f"name matrices, or one of {', '.join(SHORTHANDS)}")

    @property
    def scale(self) -> float:
        """The factor on what the thin matrices give."""
        return self.scale_of(self.rank, self.alpha)

    def scale_of(self, rank: int, alpha: float) -> float:
        """The factor for a matrix whose rank and alpha are its own."""
        return alpha / rank**0.5 if self.rslora else alpha / rank


@dataclass(frozen=True, kw_only=True)
class PromptTuningConfig(Config):
    """Prompt tuning: vectors that stand before every text, in place of tokens. For decoders.

    Attributes:
        tokens: how many.
        modules_to_save: modules that are trained whole, as in `LoraConfig`.

    Source: Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning.
    """

    method: Literal["prompt"] = "prompt"
    tokens: int = limits(16, low=1)
    modules_to_save: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class PrefixTuningConfig(Config):
    """Prefix tuning: keys and values that stand before those of every text, in each layer. For decoders.

    Attributes:
        tokens: how many in each layer.
        modules_to_save: modules that are trained whole, as in `LoraConfig`.

    Source: Li & Liang 2021, Prefix-Tuning, without the reparametrisation of section 4.3.
    """

    method: Literal["prefix"] = "prefix"
    tokens: int = limits(16, low=1)
    modules_to_save: tuple[str, ...] | None = None


AdapterConfig = LoraConfig | PromptTuningConfig | PrefixTuningConfig
"""As the type of a recipe's section: `method` says which one it is."""
