"""Tiny random models with real tokenizers, saved as anyone's checkpoint would be."""

from __future__ import annotations

import json
import pydoc_data.topics
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import tsumugu as tg
from tsumugu.core.registry import FAMILIES
from tsumugu.text.tokenizer import Tokenizer

TEXT = list(pydoc_data.topics.topics.values())
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA of two layers with a byte-level BPE of 400 tokens and a chat template."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    backend.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    tokenizer = Tokenizer(
        backend, special_tokens={"eos": "<|end|>", "pad": "<|end|>"}, additional_special_tokens=special[1:]
    )
    tokenizer.chat_template = TEMPLATE
    family = FAMILIES["llama"]
    config = family.config_class(
        vocab_size=len(tokenizer),
        hidden_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=64,
        max_positions=96,
        tie_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return _save(family.build(config, "causal-lm"), tokenizer, tmp_path_factory.mktemp("decoder"), seed=1)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with a word-piece tokenizer and a head for hidden tokens."""
    tokenizer = _word_pieces()
    family = FAMILIES["bert"]
    config = family.config_class(
        vocab_size=len(tokenizer), hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64, max_positions=64
    )
    return _save(family.build(config, "masked-lm"), tokenizer, tmp_path_factory.mktemp("encoder"), seed=2)


@pytest.fixture(scope="session", params=["mean", "cls", "max"])
def sentence_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with sentence-transformers' own files beside it, for three ways of pooling; mean ones are normalised."""
    tokenizer = _word_pieces()
    tokenizer.model_max_length = 24
    family = FAMILIES["bert"]
    config = family.config_class(
        vocab_size=len(tokenizer), hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64, max_positions=64
    )
    folder = _save(family.build(config, "base"), tokenizer, tmp_path_factory.mktemp("sentences"), seed=3)
    kind = "sentence_transformers.models."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{kind}Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}Pooling"},
    ]
    if request.param == "mean":
        modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{kind}Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules), "utf-8")
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 24, "do_lower_case": False}), "utf-8"
    )
    pooling = {
        "word_embedding_dimension": 32,
        "pooling_mode_cls_token": request.param == "cls",
        "pooling_mode_mean_tokens": request.param == "mean",
        "pooling_mode_max_tokens": request.param == "max",
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), "utf-8")
    return folder


def _word_pieces() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=500, special_tokens=special))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    roles = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return Tokenizer(backend, special_tokens=roles, token_type_ids=True, model_max_length=64)


def _save(model: torch.nn.Module, tokenizer: Tokenizer, folder: Path, *, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in model.parameters():
            noise = torch.randn(each.shape, generator=generator)
            each.copy_(noise * 0.2 if each.dim() > 1 else 1.0 + noise * 0.1)
    tg.save_model(model, folder, tokenizer=tokenizer)
    return folder
