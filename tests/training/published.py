"""Figures that papers print about training, each with its source, and how ours are made to compare."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from tsumugu.core.registry import FAMILIES
from tsumugu.models.presets import find_preset
from tsumugu.training.conventions import CONVENTIONS, Shape
from tsumugu.training.flops import Recompute, count_flops
from tsumugu.training.outline import TRAINED

BROWN = "Brown et al. 2020, table D.1"
HOFFMANN = "Hoffmann et al. 2022, section 4"
DUBEY = "Dubey et al. 2024, section 3.2"
NARAYANAN = "Narayanan et al. 2021, section 5.1"
ZERO = "Narayanan et al. 2021, table 2"
SMITH = "Smith et al. 2022, section 2.4"
KORTHIKANTI = "Korthikanti et al. 2022, table 5"
PALM = "Chowdhery et al. 2022, table 3 and appendix B"

DAY = 86400.0
A100 = 312e12


@cache
def built(preset: str, values: tuple[tuple[str, Any], ...] = ()) -> Any:
    """A published model on the meta device, with what differs from its preset."""
    family, config = find_preset(preset)
    kind = FAMILIES[family]
    head = next(each for each in TRAINED if each in kind.heads)
    with torch.device("meta"):
        return kind.build(config.replace(**dict(values)), head)


@dataclass(frozen=True)
class Figure:
    """One published number and ours.

    Attributes:
        model: as it is called in the paper.
        what: flops (of the whole run), days, teraflops (a second, each device), mfu or hfu (of the peak).
        published: what the paper prints.
        preset: our name of the model, "" where only its shape is known here.
        by: the convention that the paper counts by.
        source: paper and table.
        recompute: what the convention takes for computed again.
        tokens: of the run, or of a step.
        devices, rate, seconds: of the run, where the figure needs them; rate in operations a second.
        values: what differs from the preset.
        context: tokens of a sequence.
        shape: where there is no preset.
    """

    model: str
    what: str
    published: float
    preset: str
    by: str
    source: str
    tokens: float
    recompute: Recompute = "none"
    devices: int = 1
    rate: float = 0.0
    seconds: float = 0.0
    context: int = 2048
    values: dict[str, Any] = field(default_factory=dict)
    shape: Shape | None = None

    @property
    def ours(self) -> float:
        """The same figure, from the network that we build."""
        shape = self.shape or Shape.of(built(self.preset, tuple(self.values.items())))
        operations = CONVENTIONS[self.by](shape, self.context, self.recompute) * self.tokens
        match self.what:
            case "flops":
                return operations
            case "days":
                return operations / (self.devices * self.rate) / DAY
            case "teraflops":
                return operations / (self.devices * self.seconds) / 1e12
        return operations / (self.devices * self.seconds) / A100

    @property
    def difference(self) -> float:
        return self.ours / self.published - 1

    @property
    def exact(self) -> float | None:
        """Operations of the whole run as we count them, for those figures that are such."""
        if self.what != "flops" or not self.preset:
            return None
        model = built(self.preset, tuple(self.values.items()))
        target = {"context": 512, "target": 114} if self.by == "3n" else {"context": self.context}
        asked = 0.15 if model.head_name == "masked-lm" else 1.0
        count = count_flops(model, **target, asked=asked)
        return count.training().total / count.tokens * self.tokens


def _brown(model: str, published: float, preset: str, billions: float, by: str = "6n", **more: Any) -> Figure:
    return Figure(model, "flops", published, preset, by, BROWN, billions * 1e9, **more)


def _days(name: str, preset: str, published: float, devices: int, teraflops: float, **more: Any) -> Figure:
    options = {"tokens": 300e9, "source": ZERO, **more}
    return Figure(
        name,
        "days",
        published,
        preset,
        "megatron",
        recompute="full",
        devices=devices,
        rate=teraflops * 1e12,
        **options,
    )


def _korthikanti(name: str, preset: str, devices: int, batch: int, seconds: float, mfu: float, hfu: float, **more: Any):
    common = {"tokens": batch * 2048, "devices": devices, "seconds": seconds, "source": KORTHIKANTI, **more}
    return [
        Figure(name, "mfu", mfu, preset, "megatron", **common),
        Figure(name, "hfu", hfu, preset, "megatron", recompute="selective", **common),
    ]


def _smith(devices: int, seconds: float, teraflops: float) -> Figure:
    return Figure(
        f"MT-NLG 530B, {devices} A100",
        "teraflops",
        teraflops,
        "megatron-530b",
        "megatron",
        SMITH,
        tokens=1920 * 2048,
        recompute="full",
        devices=devices,
        seconds=seconds,
    )


CHINCHILLA = Shape(80, 8192, 8192, 64, 4 * 8192, 2, 32000, 70_000_000_000)
GPT3_ON_51200 = {"vocab_size": 51200, "band": None}

FIGURES: list[Figure] = [
    _brown("GPT-3 Small", 2.25e20, "gpt3-small", 300),
    _brown("GPT-3 Medium", 6.41e20, "gpt3-medium", 300),
    _brown("GPT-3 Large", 1.37e21, "gpt3-large", 300),
    _brown("GPT-3 XL, 16 heads", 2.38e21, "gpt3-xl", 300, values={"num_heads": 16}),
    _brown("GPT-3 2.7B", 4.77e21, "gpt3-2.7b", 300),
    _brown("GPT-3 6.7B", 1.20e22, "gpt3-6.7b", 300),
    _brown("GPT-3 13B", 2.31e22, "gpt3-13b", 300),
    _brown("GPT-3 175B", 3.14e23, "gpt3-175b", 300),
    _brown("BERT-Base", 1.64e20, "bert-base", 250, context=512),
    _brown("RoBERTa-Base", 1.50e21, "roberta-base", 2000, context=512),
    _brown("RoBERTa-Large", 4.26e21, "roberta-large", 2000, context=512),
    _brown("T5-Small", 1.80e20, "t5-small", 1000, "3n"),
    _brown("T5-Base", 6.60e20, "t5-base", 1000, "3n"),
    _brown("T5-11B", 3.30e22, "t5-11b", 1000, "3n"),
    Figure("Chinchilla 70B", "flops", 5.76e23, "", "chinchilla", HOFFMANN, 1.4e12, shape=CHINCHILLA),
    Figure("Llama 3.1 405B", "flops", 3.8e25, "llama3.1-405b", "6n", DUBEY, 15.6e12, context=8192),
    _days("GPT-3 175B, 1024 A100", "gpt3-175b", 34, 1024, 140, source=NARAYANAN, values=GPT3_ON_51200),
    _days("Megatron 1T, 3072 A100", "megatron-1t", 84, 3072, 163, source=NARAYANAN, tokens=450e9),
    _days("GPT-3 175B, 384 A100", "gpt3-175b", 84, 384, 153, values=GPT3_ON_51200),
    _days("GPT-3 175B, 768 A100", "gpt3-175b", 43, 768, 149, values=GPT3_ON_51200),
    _days("GPT-3 175B, 1536 A100", "gpt3-175b", 23, 1536, 141, values=GPT3_ON_51200),
    _days("Megatron 530B, 560 A100", "megatron-530b", 156, 560, 171),
    _days("Megatron 530B, 1120 A100", "megatron-530b", 80, 1120, 167),
    _days("Megatron 530B, 2240 A100", "megatron-530b", 42, 2240, 159),
    _days("GPT-3 175B with ZeRO-3, 384 A100", "gpt3-175b", 90, 384, 144, values=GPT3_ON_51200),
    _days("GPT-3 175B with ZeRO-3, 768 A100", "gpt3-175b", 74, 768, 88, values=GPT3_ON_51200),
    _days("GPT-3 175B with ZeRO-3, 1536 A100", "gpt3-175b", 74, 1536, 44, values=GPT3_ON_51200),
    _days("Megatron 530B with ZeRO-3, 640 A100", "megatron-530b", 169, 640, 138),
    _days("Megatron 530B with ZeRO-3, 1120 A100", "megatron-530b", 137, 1120, 98),
    _days("Megatron 530B with ZeRO-3, 2240 A100", "megatron-530b", 140, 2240, 48),
    _smith(2240, 60.1, 126),
    _smith(2800, 50.2, 121),
    _smith(3360, 44.4, 113),
    Figure(
        "MT-NLG 530B, without scores",
        "mfu",
        0.297,
        "megatron-530b",
        "6n",
        PALM,
        1920 * 2048,
        devices=2240,
        seconds=60.1,
    ),
    Figure(
        "MT-NLG 530B, with scores", "mfu", 0.302, "megatron-530b", "palm", PALM, 1920 * 2048, devices=2240, seconds=60.1
    ),
    *_korthikanti(
        "Megatron 22B, 8 A100",
        "megatron-345m",
        8,
        4,
        1.10,
        0.415,
        0.437,
        values={"num_layers": 48, "hidden_size": 6144, "num_heads": 64, "max_positions": 2048},
    ),
    *_korthikanti("GPT-3 175B, 64 A100", "gpt3-175b", 64, 64, 13.75, 0.514, 0.528, values=GPT3_ON_51200),
    *_korthikanti("Megatron 530B, 280 A100", "megatron-530b", 280, 280, 37.83, 0.560, 0.570),
    *_korthikanti("Megatron 1T, 512 A100", "megatron-1t", 512, 512, 71.49, 0.563, 0.570),
]
"""All figures that ours must meet within 3 %."""

ROUNDED = {
    # These rows of Brown et al.'s table go by rounder numbers of parameters (in millions) than the models have.
    "BERT-Large": ("bert-large", 5.33e20, 250, 6, 355),
    "T5-Large": ("t5-large", 2.31e21, 1000, 3, 770),
    "T5-3B": ("t5-3b", 9.00e21, 1000, 3, 3000),
}


def table() -> list[str]:
    """The rows of the documentation's table."""
    rows = []
    for each in FIGURES:
        exact = "" if each.exact is None else f"{each.exact:.3g}"
        rows.append(
            f"| {each.model} | {each.what} | {shown(each.published, each.what)} | {shown(each.ours, each.what)} "
            f"| {each.difference:+.1%} | {each.by} | {exact} | {each.source} |"
        )
    return rows


def shown(value: float, what: str) -> str:
    """A figure with the digits that its kind deserves."""
    match what:
        case "flops":
            return f"{value:.3g}"
        case "mfu" | "hfu":
            return f"{value:.1%}"
    return f"{value:.1f}"
