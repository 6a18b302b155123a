"""Odd, huge and impossible input: it works, or one line says which text and which character."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.text.conftest import word_pieces
from tests.text.corpus import varied_texts
from tests.text.test_stream import byte_level

from tsumugu.core.errors import InputError, UnknownNameError
from tsumugu.text.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(backend: tokenizers.Tokenizer, special_tokens: dict[str, str]) -> Tokenizer:
    return Tokenizer(backend, special_tokens={key.removesuffix("_token"): each for key, each in special_tokens.items()})


@pytest.mark.parametrize("text", ["bad \udc80 byte", "\ud83d", "a\udfff"])
def test_a_lone_surrogate_is_named_with_its_place(tokenizer: Tokenizer, text: str) -> None:
    at = next(i for i, each in enumerate(text) if 0xD800 <= ord(each) < 0xE000)
    with pytest.raises(InputError, match=f"text: character {at} is the lone surrogate U\\+") as caught:
        tokenizer(text)
    assert "utf-8" in str(caught.value)
    with pytest.raises(InputError, match=r"text\[2\]: character"):
        tokenizer(["fine", "fine too", text])
    with pytest.raises(InputError, match=r"text\[1\] \(second\): character"):
        tokenizer(["a", "b"], ["c", text], truncation=True, max_length=16)
    with pytest.raises(InputError, match=r"text\[0\], word 1: character"):
        tokenizer([["a", text]], is_split_into_words=True)


def test_a_file_that_is_not_utf8_is_recognised(tokenizer: Tokenizer) -> None:
    text = b"caf\xe9".decode("utf-8", "surrogateescape")
    with pytest.raises(InputError, match="byte 0xE9 of a file that is not UTF-8"):
        tokenizer(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "text: expected text, found None"),
        (5, "text: expected text, found int"),
        (b"bytes", "text: expected text, found bytes; decode it first"),
        (np.array(["a"]), r"text: expected text, found ndarray; hand in a list of str"),
        (["a", None], r"text\[1\]: expected text, found None"),
        (["a", "b", 3.5], r"text\[2\]: expected text, found float"),
        ([("a", "b"), ("a", 7)], r"text\[1\] \(second\): expected text, found int"),
        ([("a", "b"), "c"], r"text\[1\]: expected a pair of texts, found str"),
        ([["a", "b", "c"]], r"text\[0\]: expected a pair of texts, found 3 texts; pass is_split_into_words=True"),
    ],
)
def test_what_is_no_text_is_named(tokenizer: Tokenizer, text: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenizer(text)


def test_pairs_must_fit(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="2 first texts and 1 second"):
        tokenizer(["a", "b"], ["c"])
    with pytest.raises(InputError, match="text_pair: expected a list"):
        tokenizer(["a", "b"], "c")
    with pytest.raises(InputError, match="expected a list of words"):
        tokenizer("a b", is_split_into_words=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": "longst"}, "padding.*'longest'"),
        ({"padding": "max_length"}, "no length is known; pass max_length"),
        ({"truncation": "longest"}, "truncation.*'longest_first'"),
        ({"truncation": True, "max_length": -1}, "max_length"),
        ({"truncation": True, "max_length": 0}, "no room|^$"),
        ({"padding_side": "top", "padding": True}, "padding_side.*left or right"),
        ({"truncation": True, "max_length": 6, "stride": 9, "return_overflowing_tokens": True}, "stride"),
        ({"truncation": "only_second", "max_length": 4}, "too short|stride"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    tokenizer = Tokenizer(
        word_pieces(["one two three four five six seven"] * 3), special_tokens={"pad": "[PAD]", "cls": "[CLS]"}
    )
    with pytest.raises(InputError, match=message):
        tokenizer("one two three four five six seven", **arguments)


def test_padding_needs_a_token(backends: dict[str, str]) -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(backends["bpe"]), special_tokens={"eos": "<|endoftext|>"})
    with pytest.raises(InputError, match=r"tokenizer\.pad_token = tokenizer\.eos_token"):
        tokenizer(["a", "b c"], padding=True)
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer(["a", "bcd efg"], padding=True).attention_mask[0][-1] == 0


def test_tensors_need_one_length(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"input_ids: rows of .* make no tensor; pass padding=True"):
        tokenizer(["a", "b c d e"], return_tensors="np")
    with pytest.raises(UnknownNameError, match="pt"):
        tokenizer("a", return_tensors="torch")


@pytest.mark.parametrize("format", ["pt", "np", "jax", "tf"])
def test_every_tensor_format(backends: dict[str, str], format: str) -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(backends["bpe"]), special_tokens={"pad": "<pad>"})
    found = tokenizer(["a", "b c d e"], padding=True, return_tensors=format, return_offsets_mapping=True)
    wanted = tokenizer(["a", "b c d e"], padding=True, return_offsets_mapping=True)
    for key, value in wanted.items():
        assert np.asarray(found[key]).tolist() == np.array(value).tolist()
    assert tuple(found.offset_mapping.shape) == (2, len(wanted.input_ids[0]), 2)
    ids = tokenizer("b c d e", return_tensors=format).input_ids
    assert tokenizer.decode(ids[0]) == tokenizer.decode(tokenizer.encode("b c d e"))
    assert tokenizer.batch_decode(np.asarray(ids)) == [tokenizer.decode(np.asarray(ids)[0])]


def test_an_encoding_is_a_dict_with_attributes(tokenizer: Tokenizer) -> None:
    found = tokenizer("a b", return_tensors="pt").to("cpu")
    assert isinstance(found, dict)
    assert found.input_ids is found["input_ids"]
    assert isinstance(found.input_ids, torch.Tensor)
    assert dict(**found).keys() == found.keys()
    assert found[0].tokens == found.tokens()
    with pytest.raises(AttributeError, match="no 'labels'; it has input_ids"):
        _ = found.labels


def test_empty_texts(tokenizer: Tokenizer) -> None:
    assert tokenizer("").input_ids == tokenizer.encode("")
    assert tokenizer("", add_special_tokens=False).input_ids == []
    assert tokenizer([]).input_ids == []
    assert tokenizer([], padding=True, return_tensors="np").input_ids.shape == (0, 0)
    assert tokenizer(["", ""], padding=True, return_tensors="np").input_ids.shape[0] == 2
    assert tokenizer("", "").input_ids == tokenizer([("", "")]).input_ids[0]
    assert tokenizer.decode([]) == ""
    assert tokenizer.batch_decode([]) == []


def test_decode_takes_one_row(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a")[0]) == tokenizer.decode(tokenizer.encode("a")[:1])
    with pytest.raises(InputError, match="use batch_decode"):
        tokenizer.decode([[1, 2]])
    assert tokenizer.decode([10**6]) == ""


def test_a_huge_text_takes_seconds(kind: str, tokenizer: Tokenizer) -> None:
    text = " ".join(varied_texts(2000, seed=3))
    text = (text * (1_000_000 // len(text.encode()) + 1))[:1_000_000]
    began = time.monotonic()
    ids = tokenizer.encode(text)
    assert len(ids) > 50_000
    assert time.monotonic() - began < 60
    if kind == "bpe":
        assert tokenizer.decode(ids) == text


@pytest.mark.slow
def test_ten_million_characters(tokenizer: Tokenizer) -> None:
    for text in ("word " * 2_000_000, "語" * 10_000_000, " " * 10_000_000, "\n" * 10_000_000):
        began = time.monotonic()
        assert tokenizer.encode(text)
        assert time.monotonic() - began < 120


def test_offsets_point_into_the_text_as_it_was_handed_in(tokenizer: Tokenizer, kind: str) -> None:
    for text in varied_texts(400):
        found = tokenizer(text, return_offsets_mapping=True)
        last = 0
        for (start, end), special in zip(found.offset_mapping, found[0].special_tokens_mask, strict=True):
            assert 0 <= start <= end <= len(text)
            if not special and kind == "bpe":
                assert start <= last <= end or start == last
                last = end
        if kind == "bpe":
            assert last == len(text)


def test_words_of_offsets(tokenizer: Tokenizer) -> None:
    text = "Tsumugu spins 糸 and words."
    found = tokenizer(text, return_offsets_mapping=True)
    covered = {i for start, end in found.offset_mapping for i in range(start, end)}
    assert {i for i, each in enumerate(text) if not each.isspace()} <= covered


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
def test_byte_level_text_comes_back(text: str) -> None:
    tokenizer = Tokenizer(byte_level())
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_special_tokens_as_plain_text(tokenizer: Tokenizer, special_tokens: dict[str, str]) -> None:
    token = special_tokens["pad_token"]
    assert tokenizer.pad_token_id in tokenizer(f"a {token}", add_special_tokens=False).input_ids
    plain = tokenizer(f"a {token}", add_special_tokens=False, split_special_tokens=True).input_ids
    assert tokenizer.pad_token_id not in plain
    assert tokenizer.add_tokens(["<new>"], special_tokens=True) == 1
    new = tokenizer.convert_tokens_to_ids("<new>")
    assert new in tokenizer("<new>").input_ids
    assert new not in tokenizer("<new>", split_special_tokens=True).input_ids


def test_roles_can_be_set_by_token_and_id(tokenizer: Tokenizer) -> None:
    size = len(tokenizer)
    tokenizer.pad_token = "<fill>"
    assert tokenizer.pad_token_id == size == len(tokenizer) - 1
    tokenizer.eos_token_id = tokenizer.pad_token_id
    assert tokenizer.eos_token == "<fill>"
    tokenizer.pad_token = None
    assert tokenizer.pad_token_id is None
    with pytest.raises(InputError, match="no id 99999"):
        tokenizer.bos_token_id = 99999
    with pytest.raises(InputError, match="'pad_token'"):
        tokenizer.add_special_tokens({"padd_token": "x"})
    assert tokenizer.decode([tokenizer.eos_token_id], skip_special_tokens=True) == ""


def test_threads_with_different_lengths_do_not_meet(tokenizer: Tokenizer) -> None:
    texts = varied_texts(60)
    lengths = (8, 16, 40)
    wanted = {n: tokenizer(texts, truncation=True, max_length=n, padding="max_length").input_ids for n in lengths}
    wrong: list[int] = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(30):
            n = draw.choice(lengths)
            if tokenizer(texts, truncation=True, max_length=n, padding="max_length").input_ids != wanted[n]:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert wrong == []


def test_neither_torch_nor_numpy_is_loaded_for_lists() -> None:
    code = (
        "import sys\n"
        "from tokenizers import Tokenizer as T, models\n"
        "from tsumugu.text.tokenizer import Tokenizer\n"
        "t = Tokenizer(T(models.WordLevel({'a': 0, '[UNK]': 1}, unk_token='[UNK]')))\n"
        "assert t('a').input_ids == [0]\n"
        "assert not {'torch', 'numpy', 'transformers', 'jinja2'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
