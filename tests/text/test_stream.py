"""Streaming gives the text of all ids, in whole characters, at a cost that does not grow."""

from __future__ import annotations

import random
import time

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.text import conftest
from tokenizers import decoders, models, pre_tokenizers

from tsumugu.core.errors import InputError
from tsumugu.text.stream import clean_up
from tsumugu.text.tokenizer import Tokenizer

SPACE = "▁"


def byte_level() -> tokenizers.Tokenizer:
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "ãģ", "ðŁ", "<|é日|>", "<|end|>"]
    backend = tokenizers.Tokenizer(models.BPE(vocab={each: i for i, each in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    return backend


def byte_fallback(prefix: bool) -> tokenizers.Tokenizer:
    tokens = [
        "<unk>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "a",
        SPACE,
        f"{SPACE}a",
        f"{SPACE}{SPACE}",
        "日",
        "<0xZZ>",
        "",
    ]
    vocab = {each: i for i, each in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    backend.add_special_tokens(["<unk>"])
    return backend


def words(decoder: object | None) -> tokenizers.Tokenizer:
    pieces = [
        "a",
        "##b",
        "##'",
        "'",
        "s",
        "n't",
        ".",
        ",",
        "n",
        "do not",
        "do",
        "not",
        "'s",
        " ",
        "!",
        "##",
        "x</w>",
        "</w>",
    ]
    tokens = ["[UNK]", *pieces, SPACE, f"{SPACE}a", f"{SPACE}b{SPACE}", "'m", "日本"]
    backend = tokenizers.Tokenizer(models.WordLevel({each: i for i, each in enumerate(tokens)}, unk_token="[UNK]"))
    if decoder is not None:
        backend.decoder = decoder
    backend.add_special_tokens(["[UNK]"])
    return backend


BACKENDS = {
    "byte level": byte_level(),
    "byte fallback": byte_fallback(prefix=False),
    "byte fallback, first space stripped": byte_fallback(prefix=True),
    "word pieces": words(decoders.WordPiece(cleanup=False)),
    "word pieces, cleaned": words(decoders.WordPiece(cleanup=True)),
    "metaspace": words(decoders.Metaspace()),
    "metaspace, first kept": words(decoders.Metaspace(prepend_scheme="never")),
    "suffix": words(decoders.BPEDecoder()),
    "strip": words(decoders.Sequence([decoders.Replace("a", "  a"), decoders.Strip(" ", 1, 0)])),
    "none": words(None),
    "unknown to us": words(decoders.CTC()),
}
IDS = st.lists(st.integers(0, 300), max_size=40)


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=120, deadline=None)
@given(ids=IDS, skip=st.booleans(), clean=st.booleans())
def test_any_ids_give_what_decode_gives(name: str, ids: list[int], skip: bool, clean: bool) -> None:
    tokenizer = Tokenizer(BACKENDS[name], clean_up_tokenization_spaces=clean)
    stream = tokenizer.stream(skip_special_tokens=skip)
    for _ in range(2):  # a finished decoder starts anew
        text = "".join([*map(stream.push, ids), stream.finish()])
        assert text == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_any_text_comes_back_in_whole_characters(text: str) -> None:
    tokenizer = Tokenizer(BACKENDS["byte level"])
    stream = tokenizer.stream()
    pieces = [stream.push(each) for each in tokenizer.encode(text)]
    assert stream.finish() == ""
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in each for each in pieces)


def test_emoji_of_several_tokens_appear_at_once() -> None:
    tokenizer = Tokenizer(BACKENDS["byte level"])
    stream = tokenizer.stream()
    assert [stream.push(each) for each in tokenizer.encode("é😀")] == ["", "é", "", "", "", "😀"]


def test_an_unfinished_character_ends_as_a_replacement() -> None:
    tokenizer = Tokenizer(BACKENDS["byte level"])
    stream = tokenizer.stream()
    ids = tokenizer.encode("日")[:2]
    assert [stream.push(each) for each in ids] == ["", ""]
    assert stream.finish() == tokenizer.decode(ids) == "\ufffd"


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_trained_tokenizers(kind: str, backends: dict[str, str]) -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(backends[kind]), clean_up_tokenization_spaces=True)
    draw = random.Random(4)
    for _ in range(200):
        ids = [draw.randrange(len(tokenizer)) for _ in range(draw.randrange(60))]
        stream = tokenizer.stream(skip_special_tokens=True)
        text = "".join([*map(stream.push, ids), stream.finish()])
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
    assert conftest.TOKENS[kind]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=" .?!,'ntmsvrea", max_size=30), st.lists(st.integers(1, 6), max_size=30))
def test_clean_up_in_pieces_is_clean_up_at_once(text: str, sizes: list[int]) -> None:
    pieces, rest = [], text
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    vocab = {each: i for i, each in enumerate(dict.fromkeys([*pieces, rest, "[UNK]"]))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.decoder = decoders.Fuse()
    tokenizer = Tokenizer(backend, clean_up_tokenization_spaces=True)
    stream = tokenizer.stream()
    ids = [vocab[each] for each in (*pieces, rest)]
    assert "".join([*map(stream.push, ids), stream.finish()]) == clean_up(text) == tokenizer.decode(ids)


def test_the_cost_of_a_token_does_not_grow() -> None:
    tokenizer = Tokenizer(BACKENDS["byte fallback"])
    stream = tokenizer.stream()
    ids = tokenizer.encode("a" * 200) * 400
    blocks = []
    for start in range(0, len(ids), 8000):
        began = time.perf_counter()
        for each in ids[start : start + 8000]:
            stream.push(each)
        blocks.append(time.perf_counter() - began)
    assert min(blocks[-3:]) < 5 * min(blocks[:3])


@pytest.mark.parametrize("bad", [-1, 1 << 32])
def test_no_id(bad: int) -> None:
    tokenizer = Tokenizer(BACKENDS["byte level"])
    with pytest.raises(InputError, match="no token id"):
        tokenizer.stream().push(bad)
    with pytest.raises(InputError, match=r"ids\[1\]"):
        tokenizer.decode([1, bad])
