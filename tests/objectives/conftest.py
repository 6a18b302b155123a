"""Tokenizers and a vocabulary that the tests of all objectives share."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tsumugu.objectives.base import Vocabulary
from tsumugu.text.tokenizer import Tokenizer

SPECIAL = ("<s>", "</s>", "<pad>", "<mask>", "[CLS]", "[SEP]", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<unk>")


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    """64 ids: ten special ones, then some that stand for 1 to 7 bytes, of which every third goes on with a word."""
    ids = np.arange(64)
    return Vocabulary(
        size=64,
        token_bytes=np.where(ids < 10, 0, 1 + ids % 7).astype(np.int32),
        bos=0,
        eos=1,
        pad=2,
        mask=3,
        cls=4,
        sep=5,
        unk=9,
        special=tuple(range(10)),
        continues=(ids >= 10) & (ids % 3 == 0),
        added={token: index for index, token in enumerate(SPECIAL)},
    )


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    """Byte-level BPE that has learned a few words, in English and Japanese."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=410, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    backend.train_from_iterator(TEXTS, trainer)
    roles = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "mask": "<mask>", "cls": "[CLS]", "sep": "[SEP]"}
    return Tokenizer(backend, special_tokens=roles)


@pytest.fixture(scope="session")
def word_pieces() -> Tokenizer:
    """WordPiece with lower-casing: its tokens do not tell how many bytes a text had."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=300, special_tokens=list(SPECIAL))
    backend.train_from_iterator(TEXTS, trainer)
    roles = {
        "unk": "<unk>",
        "bos": "[CLS]",
        "eos": "[SEP]",
        "pad": "<pad>",
        "mask": "<mask>",
        "cls": "[CLS]",
        "sep": "[SEP]",
    }
    return Tokenizer(backend, special_tokens=roles)


TEXTS = [
    *(f"The spinners of the {n} villages were spinning, unhurriedly; the yarn was unspun!\n" for n in range(20)),
    *(f"吾輩は猫である。名前はまだ無い。コーヒーを{n}杯飲んだ。Über naïve cafés.\n" for n in range(20)),
    "one",
]
