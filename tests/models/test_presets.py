"""Published models have their published numbers of parameters."""

from __future__ import annotations

import pytest
import torch

from tsumugu.core.errors import UnknownNameError
from tsumugu.core.registry import FAMILIES
from tsumugu.models.presets import ALIASES, find_preset, preset_names

HEADS = ("pretraining", "causal-lm", "seq2seq-lm", "masked-lm")

RELEASED = {
    # Parameters of the released checkpoints, the tied table once; of BERT's with the heads they were trained with.
    "bert-base": 110_106_428,
    "bert-large": 336_226_108,
    "roberta-base": 124_697_433,
    "roberta-large": 355_412_057,
    "xlm-roberta-base": 278_295_186,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "distilgpt2": 81_912_576,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "mistral-7b": 7_241_732_096,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1.1-small": 76_961_152,
    "t5-v1.1-base": 247_577_856,
    "t5-v1.1-large": 783_150_080,
    "mt5-small": 300_176_768,
}

PRINTED = {
    # As papers print them, in millions, and how many digits of it count.
    "bert-tiny": (4.4, 2),
    "bert-mini": (11.3, 3),
    "bert-small": (29.1, 3),
    "bert-medium": (41.7, 3),
    "llama-7b": (6700, 2),
    "llama-13b": (13000, 3),
    "llama-33b": (32500, 3),
    "llama-65b": (65200, 2),
    "mt5-base": (580, 2),
    "mt5-large": (1200, 2),
    "mt5-xl": (3700, 2),
    "mt5-xxl": (13000, 2),
    "gpt3-small": (125, 3),
    "gpt3-medium": (356, 3),
    "gpt3-large": (760, 3),
    "gpt3-2.7b": (2650, 3),
    "gpt3-6.7b": (6660, 3),
    "gpt3-175b": (174600, 4),
    "megatron-18.4b": (18400, 3),
    "megatron-39.1b": (39100, 3),
    "megatron-76.1b": (76100, 3),
    "megatron-145.6b": (145600, 4),
    "megatron-310.1b": (310100, 4),
    "megatron-530b": (529600, 4),
    "megatron-1t": (1008000, 4),
}
"""Turc et al. 2019 (released table); Touvron et al. 2023, table 2; Xue et al. 2021, section 3.2; Brown et al. 2020,
table D.1; Narayanan et al. 2021, table 1. LLaMA's 65.2B is 65.3B when counted, so two digits count there."""


def count(name: str) -> int:
    family, config = find_preset(name)
    head = next(each for each in HEADS if each in FAMILIES[family].heads)
    with torch.device("meta"):
        model = FAMILIES[family].build(config, head)
    assert {each.device.type for each in model.parameters()} == {"meta"}
    return int(model.num_parameters())


@pytest.mark.parametrize("name", RELEASED)
def test_as_the_released_checkpoints_have_them(name: str) -> None:
    assert count(name) == RELEASED[name]


@pytest.mark.parametrize("name", PRINTED)
def test_as_papers_print_them(name: str) -> None:
    printed, digits = PRINTED[name]
    assert float(f"{count(name) / 1e6:.{digits}g}") == float(f"{printed:.{digits}g}")


def test_names() -> None:
    assert find_preset("GPT3-175B") == find_preset("175b", family="gpt3")
    assert find_preset("7b", family="llama") == find_preset("llama-7b")
    assert find_preset("large", family="roberta")[0] == "roberta"
    assert find_preset("mt-nlg-530b") == find_preset("megatron-530b")
    assert find_preset("flan-t5-xl") == find_preset("t5-v1_1-xl") == find_preset("t5-v1.1-xl")
    for name in ALIASES:
        find_preset(name)
    for name in preset_names("t5"):
        assert find_preset(name)[0] == "t5"
    assert len(preset_names()) == len(set(preset_names()))


@pytest.mark.parametrize(
    ("name", "family", "said"),
    [
        ("llama-8b", None, "'llama3-8b'"),
        ("gpt3-175b", "gpt2", "known: "),
        ("", None, "known: "),
        ("gpt3-", None, "gpt3"),
    ],
)
def test_unknown_names(name: str, family: str | None, said: str) -> None:
    with pytest.raises(UnknownNameError, match=f"no published model is called .*{said}"):
        find_preset(name, family=family)
