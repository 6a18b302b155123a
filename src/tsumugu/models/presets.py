"""Published shapes of models, by the names they are known by: what a network is built from when no checkpoint is there.

GPT-3's and Megatron's stand in their own families. Shapes are facts of the papers and of the released configurations
named beside each table; tests hold them to the released checkpoints' numbers of parameters.
"""

from __future__ import annotations

import importlib
from typing import Any

from tsumugu.core.config import Config
from tsumugu.core.errors import UnknownNameError, did_you_mean
from tsumugu.core.registry import FAMILIES


def _bert(layers: int, width: int, **more: Any) -> dict[str, Any]:
    return {
        "num_layers": layers,
        "hidden_size": width,
        "num_heads": width // 64,
        "intermediate_size": 4 * width,
        **more,
    }


BERT = {
    "bert-tiny": _bert(2, 128),
    "bert-mini": _bert(4, 256),
    "bert-small": _bert(4, 512),
    "bert-medium": _bert(8, 512),
    "bert-base": _bert(12, 768),
    "bert-large": _bert(24, 1024),
    "bert-base-cased": _bert(12, 768, vocab_size=28996),
    "bert-large-cased": _bert(24, 1024, vocab_size=28996),
    "bert-base-multilingual-cased": _bert(12, 768, vocab_size=119547),
}
"""Source: Devlin et al. 2019, BERT, section 3; Turc et al. 2019, Well-Read Students Learn Better, table 1."""

_XLM = {"vocab_size": 250002, "model_type": "xlm-roberta"}

ROBERTA = {
    "roberta-base": _bert(12, 768),
    "roberta-large": _bert(24, 1024),
    "xlm-roberta-base": _bert(12, 768, **_XLM),
    "xlm-roberta-large": _bert(24, 1024, **_XLM),
}
"""Source: Liu et al. 2019, RoBERTa, appendix B; Conneau et al. 2020, XLM-RoBERTa, appendix A."""


def _gpt2(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {"num_layers": layers, "hidden_size": width, "num_heads": heads}


GPT2 = {
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    "distilgpt2": _gpt2(6, 768, 12),
}
"""Source: Radford et al. 2019, GPT-2, table 2; Sanh et al. 2019 (released configuration)."""


def _llama(layers: int, width: int, heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return {"num_layers": layers, "hidden_size": width, "num_heads": heads, "intermediate_size": inner, **more}


def _llama2(layers: int, width: int, heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return _llama(layers, width, heads, inner, max_positions=4096, norm_eps=1e-5, **more)


def _llama3(layers: int, width: int, heads: int, inner: int, *, stretch: float = 0.0, **more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "num_kv_heads": 8,
        "vocab_size": 128256,
        "max_positions": 131072 if stretch else 8192,
        "norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    }
    if stretch:
        values["rope_scaling"] = {"kind": "llama3", "factor": stretch}
    return _llama(layers, width, heads, inner, **values, **more)


def _smollm2(layers: int, width: int, heads: int, kv_heads: int, inner: int) -> dict[str, Any]:
    return _llama(
        layers,
        width,
        heads,
        inner,
        num_kv_heads=kv_heads,
        vocab_size=49152,
        max_positions=8192,
        norm_eps=1e-5,
        rope_theta=100000.0,
        tie_embeddings=True,
    )


LLAMA = {
    "llama-7b": _llama(32, 4096, 32, 11008),
    "llama-13b": _llama(40, 5120, 40, 13824),
    "llama-33b": _llama(60, 6656, 52, 17920),
    "llama-65b": _llama(80, 8192, 64, 22016),
    "llama2-7b": _llama2(32, 4096, 32, 11008),
    "llama2-13b": _llama2(40, 5120, 40, 13824),
    "llama2-70b": _llama2(80, 8192, 64, 28672, num_kv_heads=8),
    "llama3-8b": _llama3(32, 4096, 32, 14336),
    "llama3-70b": _llama3(80, 8192, 64, 28672),
    "llama3.1-8b": _llama3(32, 4096, 32, 14336, stretch=8.0),
    "llama3.1-70b": _llama3(80, 8192, 64, 28672, stretch=8.0),
    "llama3.1-405b": _llama3(126, 16384, 128, 53248, stretch=8.0),
    "llama3.2-1b": _llama3(16, 2048, 32, 8192, stretch=32.0, tie_embeddings=True),
    "llama3.2-3b": _llama3(28, 3072, 24, 8192, stretch=32.0, tie_embeddings=True),
    "tinyllama-1.1b": _llama(22, 2048, 32, 5632, num_kv_heads=4, norm_eps=1e-5),
    "smollm2-135m": _smollm2(30, 576, 9, 3, 1536),
    "smollm2-360m": _smollm2(32, 960, 15, 5, 2560),
    "smollm2-1.7b": _smollm2(24, 2048, 32, 32, 8192) | {"rope_theta": 130000.0},
    "mistral-7b": _llama(32, 4096, 32, 14336, num_kv_heads=8, max_positions=32768, norm_eps=1e-5, window=4096),
}
"""Source: Touvron et al. 2023, LLaMA, table 2, and LLaMA 2, table 1; Dubey et al. 2024, Llama 3, table 3, and the
released configurations; Zhang et al. 2024, TinyLlama; Allal et al. 2025, SmolLM2; Jiang et al. 2023, Mistral 7B."""


def _t5(layers: int, width: int, heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return {"num_layers": layers, "hidden_size": width, "num_heads": heads, "intermediate_size": inner, **more}


_V11: dict[str, Any] = {"gated": True, "activation": "gelu_new", "tie_embeddings": False, "scale_outputs": False}
_V11_SHAPES = {
    "small": (8, 512, 6, 1024),
    "base": (12, 768, 12, 2048),
    "large": (24, 1024, 16, 2816),
    "xl": (24, 2048, 32, 5120),
    "xxl": (24, 4096, 64, 10240),
}

T5 = {
    "t5-small": _t5(6, 512, 8, 2048),
    "t5-base": _t5(12, 768, 12, 3072),
    "t5-large": _t5(24, 1024, 16, 4096),
    "t5-3b": _t5(24, 1024, 32, 16384, head_dim=128),
    "t5-11b": _t5(24, 1024, 128, 65536, head_dim=128),
    **{f"t5-v1.1-{size}": _t5(*shape, **_V11) for size, shape in _V11_SHAPES.items()},
    **{f"mt5-{size}": _t5(*shape, **_V11, vocab_size=250112, model_type="mt5") for size, shape in _V11_SHAPES.items()},
}
"""Source: Raffel et al. 2020, T5, sections 3.1.1 and 3.7; the released notes on T5 v1.1; Xue et al. 2021, mT5."""

SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "bert": BERT,
    "gpt2": GPT2,
    "llama": LLAMA,
    "roberta": ROBERTA,
    "t5": T5,
}
"""What differs from a family's defaults, by family and name."""

OWN = ("gpt3", "megatron")
"""Families that keep their published shapes themselves."""

ALIASES = {
    "bert-base-uncased": "bert-base",
    "bert-large-uncased": "bert-large",
    "gpt2-small": "gpt2",
    "gpt2-124m": "gpt2",
    "gpt2-355m": "gpt2-medium",
    "gpt2-774m": "gpt2-large",
    "gpt2-1.5b": "gpt2-xl",
    "llama-30b": "llama-33b",
    "mt-nlg": "megatron-530b",
    "mt-nlg-530b": "megatron-530b",
    **{f"t5-v1_1-{size}": f"t5-v1.1-{size}" for size in _V11_SHAPES},
    **{f"flan-t5-{size}": f"t5-v1.1-{size}" for size in _V11_SHAPES},
}


def preset_names(family: str | None = None) -> list[str]:
    """The names of all presets, or of one family's."""
    names = [name for kind, table in SHAPES.items() if family in (None, kind) for name in table]
    for kind in OWN:
        if family in (None, kind):
            names += [f"{kind}-{size}" for size in importlib.import_module(f"tsumugu.models.{kind}").PRESETS]
    return names


def find_preset(name: str, *, family: str | None = None) -> tuple[str, Config]:
    """The family's name and the configuration of a published model, `llama-7b`; `7b` will do where the family is given.

    Raises:
        UnknownNameError: there is no such model; it names the nearest.
    """
    if family is not None:
        family = FAMILIES.canonical(family)
    word = name.lower().replace("_", "-") if name.lower() not in ALIASES else name.lower()
    for form in (word, f"{family}-{word}"):
        form = ALIASES.get(form, form)
        for kind, table in SHAPES.items():
            if form in table and family in (None, kind):
                return kind, FAMILIES[kind].config_class.from_dict(table[form])
        kind, _, size = form.partition("-")
        if kind in OWN and family in (None, kind) and form in preset_names(kind):
            return kind, FAMILIES[kind].config_class.preset(size)
    raise UnknownNameError(f"no published model is called {name!r}", mend=did_you_mean(word, preset_names(family)))
