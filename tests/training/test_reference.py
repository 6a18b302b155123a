"""What is pre-trained here loads in the reference library, and gives the same numbers there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tests.training.recipes import SMALL, recipe

import tsumugu as tg
from tsumugu.training.checkpointing import find_checkpoint
from tsumugu.training.pretrain import train

INNER = {**SMALL, "intermediate_size": 24}
HEADED = {**INNER, "head_dim": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "gpt2": ("causal", {"family": "gpt2", "config": SMALL}, "causal", "AutoModelForCausalLM"),
    "llama": ("causal", {"family": "llama", "config": {**INNER, "num_kv_heads": 1}}, "causal", "AutoModelForCausalLM"),
    "roberta": ("masked", {"family": "roberta", "config": INNER}, "masked", "AutoModelForMaskedLM"),
    "t5": ("span-corruption", {"family": "t5", "config": HEADED}, "span-corruption", "AutoModelForSeq2SeqLM"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_library_gives_the_same_numbers(family, tmp_path):
    kind, model, objective, loader = FAMILIES[family]
    values = recipe(tmp_path, kind, train={"steps": 2, "ema": None}, evaluation={"every": 0})
    values |= {"model": model, "objective": {"name": objective}}
    train(values, tmp_path / "run", quiet=True)
    folder = find_checkpoint(tmp_path / "run", "last")
    text = "The statements are executed in order, and return a value."
    tokenizer, theirs = tg.load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer(text)["input_ids"] == theirs(text)["input_ids"]
    ids = torch.tensor([tokenizer.encode(text)[:20]])
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids[:, :7]} if family == "t5" else {})
    with torch.no_grad():
        mine = tg.load_model(folder)(**inputs).logits
        other = getattr(transformers, loader).from_pretrained(folder).eval()(**inputs).logits
    assert (mine - other).abs().max() <= 1e-5
