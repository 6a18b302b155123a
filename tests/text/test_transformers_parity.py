"""The same results as the reference library, on tokenizers of each kind, both ways through their files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from tests.text.corpus import varied_texts

from tsumugu.text.tokenizer import Tokenizer

KEYS = ("input_ids", "token_type_ids", "attention_mask", "special_tokens_mask", "offset_mapping")


@pytest.fixture
def theirs(kind: str, backend: tokenizers.Tokenizer, special_tokens: dict[str, str]) -> Any:
    names = ["input_ids", *(["token_type_ids"] if kind == "wordpiece" else []), "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=names, model_max_length=200, **special_tokens
    )


@pytest.fixture
def ours(theirs: Any, tmp_path: Path) -> Tokenizer:
    """Loaded from the files that the reference library wrote."""
    theirs.save_pretrained(tmp_path / "theirs")
    return Tokenizer.from_folder(tmp_path / "theirs")


def all_keys() -> dict[str, bool]:
    return {"return_offsets_mapping": True, "return_special_tokens_mask": True}


def same(ours: Any, theirs: Any) -> None:
    assert sorted(ours) == sorted(theirs)
    for key in theirs:
        assert ours[key] == theirs[key], key


def test_single_texts_pairs_and_batches(ours: Tokenizer, theirs: Any) -> None:
    texts = varied_texts(600)
    same(ours(texts, **all_keys()), theirs(texts, **all_keys()))
    same(ours(texts, texts[::-1], **all_keys()), theirs(texts, texts[::-1], **all_keys()))
    same(ours(texts[:50], add_special_tokens=False), theirs(texts[:50], add_special_tokens=False))
    for text in texts[:100:7]:
        same(ours(text, **all_keys()), theirs(text, **all_keys()))
        same(ours(text, "and more", **all_keys()), theirs(text, "and more", **all_keys()))
        assert ours.encode(text) == theirs.encode(text)
        assert ours.tokenize(text) == theirs.tokenize(text)


def test_pairs_as_tuples(ours: Tokenizer, theirs: Any) -> None:
    pairs = [("one text", "another"), ("", "x"), ("a b c", "")]
    same(ours(pairs, **all_keys()), theirs(pairs, **all_keys()))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_padding(ours: Tokenizer, theirs: Any, side: str, padding: str) -> None:
    texts = varied_texts(60)
    arguments = {"padding": padding, "max_length": 300, "padding_side": side, "truncation": False, **all_keys()}
    same(ours(texts, **arguments), theirs(texts, **arguments))
    arguments["pad_to_multiple_of"] = 16
    same(ours(texts, **arguments), theirs(texts, **arguments))


@pytest.mark.parametrize("strategy", [True, "longest_first", "only_first"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_of_single_texts(ours: Tokenizer, theirs: Any, strategy: bool | str, side: str) -> None:
    ours.truncation_side = theirs.truncation_side = side
    texts = [each for each in varied_texts(300) if each]
    for length in (4, 7, 16):
        arguments: dict[str, Any] = {"truncation": strategy, "max_length": length, **all_keys()}
        same(ours(texts, **arguments), theirs(texts, **arguments))


def test_max_length_alone_truncates(ours: Tokenizer, theirs: Any) -> None:
    assert ours("one two three four five six", max_length=5) == dict(
        theirs("one two three four five six", max_length=5)
    )


def test_truncation_without_length_cuts_at_the_models(ours: Tokenizer) -> None:
    assert len(ours("word " * 900, truncation=True).input_ids) == 200


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_of_pairs(ours: Tokenizer, theirs: Any, side: str) -> None:
    ours.truncation_side = theirs.truncation_side = side
    for first, second, length in itertools.product((0, 1, 5, 12), (0, 1, 5, 12), range(3, 30, 2)):
        texts = ("a " * first).strip(), ("b " * second).strip()
        arguments: dict[str, Any] = {"truncation": "longest_first", "max_length": length, **all_keys()}
        found, wanted = ours([texts], **arguments), theirs([texts], **arguments)
        same(found, wanted)
        assert found.sequence_ids() == wanted.sequence_ids()


@pytest.mark.parametrize("strategy", ["only_first", "only_second"])
def test_overflow(ours: Tokenizer, theirs: Any, strategy: str) -> None:
    question, context = "Who spins threads of words?", "The spinner of words spins a long thread, day by day. " * 6
    pair = (question, context) if strategy == "only_second" else (context, question)
    arguments: dict[str, Any] = {
        "truncation": strategy,
        "max_length": 64,
        "stride": 8,
        "return_overflowing_tokens": True,
        "padding": "max_length",
        **all_keys(),
    }
    found, wanted = ours([pair, pair], **arguments), theirs([pair, pair], **arguments)
    same(found, wanted)
    assert len(found.input_ids) > 2
    for row in range(len(found.input_ids)):
        assert found.sequence_ids(row) == wanted.sequence_ids(row)
        assert found.word_ids(row) == wanted.word_ids(row)


def test_words(ours: Tokenizer, theirs: Any, kind: str) -> None:
    words = [["Hello", "world", "!"], ["tokenization", "日本", "x"]]
    found = ours(words, is_split_into_words=True, padding=True, **all_keys())
    wanted = theirs(words, is_split_into_words=True, padding=True, **all_keys())
    same(found, wanted)
    assert [found.word_ids(i) for i in range(2)] == [wanted.word_ids(i) for i in range(2)]
    one = ours(words[0], is_split_into_words=True)
    same(one, theirs(words[0], is_split_into_words=True))


def test_ways_between_tokens_and_characters(ours: Tokenizer, theirs: Any) -> None:
    text = "The quick brown fox."
    found, wanted = ours(text), theirs(text)
    for char in range(len(text)):
        assert found.char_to_token(char) == wanted.char_to_token(char)
    for token in range(len(found.input_ids)):
        span = wanted.token_to_chars(token)
        assert found.token_to_chars(token) == (None if span is None else (span.start, span.end))
    assert found.word_to_tokens(1) == tuple(wanted.word_to_tokens(1) or ()) or None


def test_decoding(ours: Tokenizer, theirs: Any) -> None:
    rows = ours(varied_texts(200)).input_ids
    assert ours.batch_decode(rows) == theirs.batch_decode(rows)
    assert ours.batch_decode(rows, skip_special_tokens=True) == theirs.batch_decode(rows, skip_special_tokens=True)
    for clean in (True, False):
        found = [ours.decode(row, clean_up_tokenization_spaces=clean) for row in rows]
        assert found == [theirs.decode(row, clean_up_tokenization_spaces=clean) for row in rows]


def test_vocabulary(ours: Tokenizer, theirs: Any) -> None:
    assert len(ours) == len(theirs)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.special_tokens_map == dict(theirs.special_tokens_map)
    assert sorted(ours.all_special_ids) == sorted(theirs.all_special_ids)
    assert ours.convert_tokens_to_ids(["a", "nowhere to be found"]) == theirs.convert_tokens_to_ids(
        ["a", "nowhere to be found"]
    )
    for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        assert getattr(ours, f"{role}_token") == getattr(theirs, f"{role}_token")
        assert getattr(ours, f"{role}_token_id") == getattr(theirs, f"{role}_token_id")


def test_our_files_load_to_the_same_ids_there(ours: Tokenizer, tmp_path: Path) -> None:
    texts = varied_texts(400)
    ours.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    ours.chat_template = "{{ messages[0]['content'] }}"
    ours.save(tmp_path / "saved")
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    texts = [*texts, "with <extra> in it"]
    assert back(texts)["input_ids"] == ours(texts).input_ids
    assert back.model_max_length == ours.model_max_length
    assert back.chat_template == ours.chat_template
    assert dict(back.special_tokens_map).items() >= ours.special_tokens_map.items()
    again = Tokenizer.from_folder(tmp_path / "saved")
    assert again(texts) == ours(texts)
    assert again.additional_special_tokens == ["<extra>"]
    assert again.special_tokens_map == ours.special_tokens_map


def test_classic_files_are_enough(ours: Tokenizer, kind: str, tmp_path: Path) -> None:
    written = {each.name for each in ours.save(tmp_path / "saved")}
    if kind == "unigram":  # it has no classic file that others read
        assert written == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
        return
    (tmp_path / "saved" / "tokenizer.json").unlink()
    texts = varied_texts(400)
    assert Tokenizer.from_folder(tmp_path / "saved")(texts).input_ids == ours(texts).input_ids
    one = {"bpe": transformers.GPT2Tokenizer, "wordpiece": transformers.BertTokenizer}[kind]
    assert one.from_pretrained(tmp_path / "saved")(texts)["input_ids"] == ours(texts).input_ids


def test_arrays(ours: Tokenizer, theirs: Any) -> None:
    texts = ["one", "two words", ""]
    found = ours(texts, padding=True, return_tensors="np", return_offsets_mapping=True)
    wanted = theirs(texts, padding=True, return_tensors="np", return_offsets_mapping=True)
    for key, value in wanted.items():
        assert found[key].dtype == np.int64
        np.testing.assert_array_equal(found[key], value)
