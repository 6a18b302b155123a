"""Small tokenizers of every kind, trained on the spot, and texts to try them on."""

from __future__ import annotations

import pydoc_data.topics

import pytest
import tokenizers
from tests.text import corpus
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers


@pytest.fixture(scope="session")
def training_text() -> list[str]:
    """English prose about Python, and a little of everything else."""
    prose = list(pydoc_data.topics.topics.values())[::6]
    return [*prose, *corpus.JAPANESE * 40, *corpus.CODE * 40, *corpus.WORDS * 40]


def byte_pairs(text: list[str]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=700,
            special_tokens=["<|endoftext|>", "<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return backend


def word_pieces(text: list[str]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        text, trainers.WordPieceTrainer(vocab_size=800, special_tokens=special, show_progress=False)
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return backend


def unigram(text: list[str]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    backend.train_from_iterator(
        text,
        trainers.UnigramTrainer(vocab_size=600, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return backend


TOKENS = {
    "bpe": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<pad>"},
    "wordpiece": {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
    "unigram": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
}
TRAINERS = {"bpe": byte_pairs, "wordpiece": word_pieces, "unigram": unigram}


@pytest.fixture(scope="session")
def backends(training_text: list[str]) -> dict[str, str]:
    """Kind to tokenizer.json."""
    return {kind: train(training_text).to_str() for kind, train in TRAINERS.items()}


@pytest.fixture(params=sorted(TRAINERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backend(kind: str, backends: dict[str, str]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(backends[kind])


@pytest.fixture
def special_tokens(kind: str) -> dict[str, str]:
    """``{"pad_token": …}`` of this kind."""
    return TOKENS[kind]
