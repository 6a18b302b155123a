"""Published models have their published numbers of parameters, counted without a byte of weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tsumugu.core.registry import FAMILIES

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
LLAMA3 = {"vocab_size": 128256, "num_key_value_heads": 8, "rope_theta": 500000.0}
LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama(hidden: int, layers: int, heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        **more,
    }


def t5(width: int, layers: int, heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return {"d_model": width, "num_layers": layers, "num_heads": heads, "d_ff": inner, **more}


V11 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


SIZES: list[tuple[str, str, str, int, dict[str, Any]]] = [
    ("bert-base-uncased", "bert", "base", 109_482_240, {}),
    ("bert-base-uncased, hidden tokens", "bert", "masked-lm", 109_514_298, {}),
    ("bert-base-cased", "bert", "base", 108_310_272, {"vocab_size": 28996}),
    ("bert-base-multilingual-cased", "bert", "base", 177_853_440, {"vocab_size": 119547}),
    ("bert-large-uncased", "bert", "base", 335_141_888, LARGE),
    (
        "all-MiniLM-L6-v2",
        "bert",
        "base",
        22_713_216,
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    ),
    ("gpt2", "gpt2", "causal-lm", 124_439_808, {}),
    ("gpt2-medium", "gpt2", "causal-lm", 354_823_168, {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    ("gpt2-large", "gpt2", "causal-lm", 774_030_080, {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    ("gpt2-xl", "gpt2", "causal-lm", 1_557_611_200, {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    ("distilgpt2", "gpt2", "causal-lm", 81_912_576, {"n_layer": 6}),
    ("llama-2-7b", "llama", "causal-lm", 6_738_415_616, llama(4096, 32, 32, 11008)),
    ("llama-2-13b", "llama", "causal-lm", 13_015_864_320, llama(5120, 40, 40, 13824)),
    ("llama-2-70b", "llama", "causal-lm", 68_976_648_192, llama(8192, 80, 64, 28672, num_key_value_heads=8)),
    ("llama-3-8b", "llama", "causal-lm", 8_030_261_248, llama(4096, 32, 32, 14336, **LLAMA3)),
    ("llama-3.1-70b", "llama", "causal-lm", 70_553_706_496, llama(8192, 80, 64, 28672, **LLAMA3, rope_scaling=LLAMA31)),
    (
        "llama-3.2-1b",
        "llama",
        "causal-lm",
        1_235_814_400,
        llama(2048, 16, 32, 8192, **LLAMA3, head_dim=64, tie_word_embeddings=True, rope_scaling=LLAMA31),
    ),
    (
        "llama-3.2-3b",
        "llama",
        "causal-lm",
        3_212_749_824,
        llama(3072, 28, 24, 8192, **LLAMA3, head_dim=128, tie_word_embeddings=True, rope_scaling=LLAMA31),
    ),
    ("tinyllama-1.1b", "llama", "causal-lm", 1_100_048_384, llama(2048, 22, 32, 5632, num_key_value_heads=4)),
    (
        "smollm2-135m",
        "llama",
        "causal-lm",
        134_515_008,
        llama(576, 30, 9, 1536, num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True),
    ),
    (
        "smollm2-360m",
        "llama",
        "causal-lm",
        361_821_120,
        llama(960, 32, 15, 2560, num_key_value_heads=5, vocab_size=49152, tie_word_embeddings=True),
    ),
    (
        "smollm2-1.7b",
        "llama",
        "causal-lm",
        1_711_376_384,
        llama(2048, 24, 32, 8192, vocab_size=49152, tie_word_embeddings=True),
    ),
    ("mistral-7b", "llama", "causal-lm", 7_241_732_096, llama(4096, 32, 32, 14336, num_key_value_heads=8)),
    ("gemma-3-270m", "gemma3", "causal-lm", 268_098_176, {}),
    (
        "gemma-3-1b",
        "gemma3",
        "causal-lm",
        999_885_952,
        {
            "hidden_size": 1152,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "intermediate_size": 6912,
        },
    ),
    ("t5-small", "t5", "seq2seq-lm", 60_506_624, {}),
    ("t5-base", "t5", "seq2seq-lm", 222_903_552, t5(768, 12, 12, 3072)),
    ("t5-large", "t5", "seq2seq-lm", 737_668_096, t5(1024, 24, 16, 4096)),
    ("t5-3b", "t5", "seq2seq-lm", 2_851_598_336, t5(1024, 24, 32, 16384, d_kv=128)),
    ("t5-11b", "t5", "seq2seq-lm", 11_307_321_344, t5(1024, 24, 128, 65536, d_kv=128)),
    ("t5-v1.1-small", "t5", "seq2seq-lm", 76_961_152, t5(512, 8, 6, 1024, **V11)),
    ("flan-t5-base", "t5", "seq2seq-lm", 247_577_856, t5(768, 12, 12, 2048, **V11)),
    ("flan-t5-large", "t5", "seq2seq-lm", 783_150_080, t5(1024, 24, 16, 2816, **V11)),
    ("mt5-small", "t5", "seq2seq-lm", 300_176_768, t5(512, 8, 6, 1024, **V11, vocab_size=250112, model_type="mt5")),
]


@pytest.mark.parametrize(
    ("family", "head", "count", "config"), [each[1:] for each in SIZES], ids=[each[0] for each in SIZES]
)
def test_number_of_parameters(family: str, head: str, count: int, config: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = FAMILIES[family].build(FAMILIES[family].from_hub(config), head)
    assert model.num_parameters() == count
    assert {each.device.type for each in model.parameters()} == {"meta"}
