"""SentencePiece models: the ids that SentencePiece itself gives."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.text.corpus import KINDS, WORDS, varied_texts

from tsumugu.core.errors import CheckpointError
from tsumugu.text.tokenizer import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece")


def trained(folder: Path, **arguments: object) -> Path:
    draw = random.Random(1)
    every = [line for kind in KINDS for each in kind for line in each.replace("\0", "").split("\n") if line.strip()]
    lines = [draw.choice([" ", "  ", ""]).join(draw.choices(every, k=4)) for _ in range(3000)]
    (folder / "train.txt").write_text("\n".join(lines), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "train.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=900,
        character_coverage=0.99,
        hard_vocab_limit=False,
        minloglevel=2,
        **arguments,
    )
    return folder


LLAMA = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
FAMILIES = {
    "llama": {**LLAMA, "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True},
    "gemma": {
        **LLAMA,
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "allow_whitespace_only_pieces": True,
        "user_defined_symbols": ["<start_of_turn>", "\n\n"],
    },
    "bpe, spaces cleaned": {**LLAMA, "remove_extra_whitespaces": True},
    "unigram": {"model_type": "unigram", "normalization_rule_name": "identity"},
    "unigram with bytes and own pieces": {
        "model_type": "unigram",
        "normalization_rule_name": "identity",
        "byte_fallback": True,
        "user_defined_symbols": ["<sep>", ".", "("],
    },
}


@pytest.mark.parametrize("name", FAMILIES)
def test_sentencepieces_own_ids(name: str, tmp_path: Path) -> None:
    folder = trained(tmp_path, **FAMILIES[name])
    judge = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = Tokenizer.from_folder(folder)
    texts = varied_texts(1000, seed=8, special=("<start_of_turn>", "<sep>"))
    texts = [each for each in texts if not {"<s>", "</s>", "<unk>"} & set(each.split())]
    found = [tokenizer.encode(each, add_special_tokens=False) for each in texts]
    assert [text for text, ids in zip(texts, found, strict=True) if ids != judge.encode(text)] == []
    assert len(tokenizer) == judge.get_piece_size()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_nfkc_models_agree_on_ordinary_text(model_type: str, tmp_path: Path) -> None:
    """The backend applies the model's table of characters by graphemes: rare marks in a row may come out otherwise."""
    folder = trained(tmp_path, model_type=model_type, normalization_rule_name="nmt_nfkc")
    judge = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = Tokenizer.from_folder(folder)
    draw = random.Random(2)
    pools = [WORDS, KINDS[1], KINDS[3], KINDS[6], KINDS[7]]
    texts = [" ".join(draw.choice(draw.choice(pools)) for _ in range(draw.randrange(1, 12))) for _ in range(800)]
    texts += ["ﾊﾟﾋﾟﾌﾟ ｶﾞｷﾞ", "a\r\nb", "  ①  ㌔ ", "が が"]
    wrong = [each for each in texts if tokenizer.encode(each, add_special_tokens=False) != judge.encode(each)]
    assert wrong == []


def test_families_frame_texts_in_their_way(tmp_path: Path) -> None:
    folder = trained(tmp_path, **FAMILIES["llama"])
    (folder / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id
    assert tokenizer.padding_side == "left"
    (folder / "config.json").write_text('{"model_type": "t5"}')
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("a")[-1] == tokenizer.eos_token_id
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == len(tokenizer) - 1
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "add_eos_token": true}')
    tokenizer = Tokenizer.from_folder(folder)
    ids = tokenizer.encode("a", "b")
    assert [ids[0], ids[-1]] == [tokenizer.bos_token_id, tokenizer.eos_token_id]


def test_it_is_saved_and_decoded(tmp_path: Path) -> None:
    folder = trained(tmp_path, **FAMILIES["llama"])
    tokenizer = Tokenizer.from_folder(folder / "tokenizer.model")
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.from_folder(tmp_path / "saved")
    for text in varied_texts(300):
        ids = tokenizer.encode(text)
        assert again.encode(text) == ids
        assert again.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(range(256)) * 4])
def test_broken_models(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        Tokenizer.from_folder(tmp_path)


def test_a_model_that_is_cut_short(tmp_path: Path) -> None:
    data = (trained(tmp_path, **FAMILIES["llama"]) / "tokenizer.model").read_bytes()
    for size in (len(data) // 2, len(data) - 1):
        (tmp_path / "tokenizer.model").write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            Tokenizer.from_folder(tmp_path)
