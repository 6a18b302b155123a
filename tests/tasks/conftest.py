"""Tiny models with every head, over tokenizers that know English and Japanese, made once a session."""

from __future__ import annotations

import pydoc_data.topics
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tests.text.corpus import EMOJI, JAPANESE, WORDS
from tests.threads import one_thread as one_thread
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import tsumugu as tg
from tsumugu.core.registry import FAMILIES
from tsumugu.text.tokenizer import Tokenizer

ModelMaker = Callable[..., Path]

JAPANESE_SENTENCES = [
    "山田太郎は東京都で生まれ、京都大学で学んだ。",
    "この映画はとても面白かったが、少し長すぎる。",
    "Hugging Faceはニューヨークに本社がある会社です。",
    "吾輩は猫である。名前はまだ無い。",
    "昨日の試合で阪神タイガースが３対２で勝った！",
    "「本当ですか？」と彼女は聞いた。",
]
ENGLISH_SENTENCES = [
    "My name is Sylvain and I work at Hugging Face in Brooklyn.",
    "I've been waiting for a HuggingFace course my whole life.",
    "The quick brown fox jumps over the lazy dog, isn't it?",
    "This is a course about the Transformers library",
    "It costs $3.50 (or £2.80) at Smith & Sons' shop.",
    "Café Müller, naïve façade; e-mail: user@example.com",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Japanese, English and mixed texts of many lengths, some longer than the models read."""
    draw = random.Random(4)
    topics = " ".join(pydoc_data.topics.topics.values()).split()
    made = [*JAPANESE_SENTENCES, *ENGLISH_SENTENCES]
    for index in range(60):
        length = draw.choice([1, 2, 5, 12, 30])
        if index % 3 == 0:
            made.append("".join(draw.choices([*JAPANESE, *JAPANESE_SENTENCES], k=1 + length // 5)))
        elif index % 3 == 1:
            at = draw.randrange(len(topics) - length)
            made.append(" ".join(topics[at : at + length]))
        else:
            made.append(" ".join(draw.choices([*WORDS, *JAPANESE, *EMOJI], k=length)))
    return made


@cache
def word_pieces() -> Tokenizer:
    """WordPiece as BERT's, lower-casing, each Japanese character of kanji by itself."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        [*pydoc_data.topics.topics.values(), *JAPANESE_SENTENCES * 9, *ENGLISH_SENTENCES * 9],
        trainers.WordPieceTrainer(vocab_size=700, special_tokens=special),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    roles = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return Tokenizer(backend, special_tokens=roles, token_type_ids=True, model_max_length=64)


@cache
def byte_pairs() -> Tokenizer:
    """Byte-level BPE as RoBERTa's."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [*pydoc_data.topics.topics.values(), *JAPANESE_SENTENCES * 9],
        trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet),
    )
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    roles = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    return Tokenizer(backend, special_tokens=roles, model_max_length=62)


@cache
def unigrams() -> Tokenizer:
    """Unigram over spaces made visible, as T5's, with an end token."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        [*pydoc_data.topics.topics.values(), *JAPANESE_SENTENCES * 9],
        trainers.UnigramTrainer(
            vocab_size=500, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return Tokenizer(backend, special_tokens={"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}, model_max_length=64)


TOKENIZERS = {"bert": word_pieces, "electra": word_pieces, "roberta": byte_pairs, "gpt2": byte_pairs, "t5": unigrams}
SIZES: dict[str, dict[str, Any]] = {
    "bert": {"max_positions": 64},
    "electra": {"max_positions": 64, "embedding_size": 16},
    "roberta": {"max_positions": 64, "pad_token_id": 1},
    "gpt2": {"max_positions": 64, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "t5": {"head_dim": 8, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
}


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> ModelMaker:
    """(family, head, labels, usage) -> the folder of a model with random weights and its tokenizer."""

    @cache
    def made(family: str, head: str, labels: tuple[str, ...] = ("LABEL_0", "LABEL_1"), **usage: Any) -> Path:
        tokenizer = TOKENIZERS[family]()
        record = FAMILIES[family]
        sizes: dict[str, Any] = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48}
        if family == "gpt2":
            del sizes["intermediate_size"]
        if family != "t5":
            sizes["labels"] = labels
        config = record.config_class(vocab_size=len(tokenizer), **sizes, **SIZES[family])
        model = record.build(config, head)
        generator = torch.Generator().manual_seed(len(family) + len(head))
        with torch.no_grad():
            for name, each in model.named_parameters():
                noise = torch.randn(each.shape, generator=generator)
                norm = each.dim() == 1 and name.endswith("weight")
                each.copy_(1.0 + noise * 0.1 if norm else noise * (0.4 if name.startswith("head.") else 0.2))
        model.usage = {key: value for key, value in usage.items() if value is not None}
        folder = tmp_path_factory.mktemp(f"{family}-{head}")
        tg.save_model(model, folder, tokenizer=tokenizer)
        return folder

    return made
