"""A tiny tokenizer and tiny models for the engine's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tests.models.references import spread
from tests.threads import one_thread as one_thread
from tokenizers import decoders, models, pre_tokenizers

from tsumugu.core.registry import FAMILIES
from tsumugu.models.base import Model
from tsumugu.text.tokenizer import Tokenizer

Build = Callable[..., Model]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Byte-level BPE: one token a byte, a few merges, one special token; 260 in all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("a", "n")]
    words = [*alphabet, *("".join(pair) for pair in merges), "<|endoftext|>"]
    backend = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}')
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="session")
def build() -> Build:
    """A small random model: `build("llama", num_kv_heads=2, …)`."""

    def made(name: str, head: str = "causal-lm", *, seed: int = 0, **values: Any) -> Model:
        family = FAMILIES[name]
        sizes = {"vocab_size": 260, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_positions": 64}
        config = family.config_class.from_dict({**sizes, "intermediate_size": 48, **values})
        model = family.build(config, head).eval()
        spread(model, seed)
        return model

    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"
