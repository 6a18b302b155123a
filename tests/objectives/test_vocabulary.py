"""What objectives are told of a tokenizer: ids, bytes, sentinels, and where words go on, in English and Japanese."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from tests.objectives.conftest import SPECIAL, TEXTS
from tokenizers import decoders, models, pre_tokenizers

from tsumugu.core.errors import InputError
from tsumugu.corpus.token_bytes import token_bytes
from tsumugu.objectives.vocabulary import continues, vocabulary_of
from tsumugu.text.pieces import decode_spaces, escape_spaces
from tsumugu.text.tokenizer import Tokenizer


def words(tokenizer, text):
    """The words of a text, as the tokens tell them."""
    found = continues(tokenizer, len(tokenizer))
    groups: list[list[int]] = []
    for index in tokenizer.encode(text, add_special_tokens=False):
        if found[index] and groups:
            groups[-1].append(index)
        else:
            groups.append([index])
    return [tokenizer.decode(each) for each in groups]


def characters(*, spaced: bool) -> Tokenizer:
    """Unigram of single characters and a few words, with bytes for the rest; "▁" before texts in English."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁spin", "ning", "un", "▁un", ",", "ー", "ヒ"]
    pieces += ["コ", "猫", "である", "。", "é", "▁the"]
    backend = tokenizers.Tokenizer(models.Unigram([(each, -1.0) for each in pieces], unk_id=0, byte_fallback=True))
    backend.normalizer = escape_spaces(prefix=spaced)
    backend.decoder = decode_spaces(prefix=spaced)
    return Tokenizer(backend, special_tokens={"unk": "<unk>"})


def test_ids_bytes_and_added_tokens(byte_level):
    sizes = token_bytes(byte_level)
    vocabulary = vocabulary_of(byte_level, sizes)
    assert vocabulary.size == len(byte_level) == len(vocabulary.token_bytes)
    assert (vocabulary.bos, vocabulary.eos, vocabulary.pad, vocabulary.mask) == (0, 1, 2, 3)
    assert (vocabulary.cls, vocabulary.sep, vocabulary.unk) == (4, 5, None)
    assert vocabulary.special == tuple(range(10))  # those without a role, too
    assert vocabulary.added == {token: index for index, token in enumerate(SPECIAL)}
    assert vocabulary.sentinels == ()
    for text in TEXTS:
        assert vocabulary.token_bytes[byte_level.encode(text)].sum() == len(text.encode())


def test_sentinels_are_in_the_order_of_their_numbers():
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "<extra_id_10>": 1, "<extra_id_2>": 2, "<extra_id_0>": 3}))
    tokenizer = Tokenizer(backend)
    assert vocabulary_of(tokenizer, np.zeros(4, np.int32)).sentinels == (3, 2, 1)


def test_bytes_of_another_tokenizer_are_refused(byte_level):
    with pytest.raises(InputError, match=r"the tokenizer has 410 ids, the corpus knows 100; prepare the corpus with"):
        vocabulary_of(byte_level, np.zeros(100, np.int32))


def test_bytes_for_more_ids_than_there_are_make_no_trouble(byte_level):
    vocabulary = vocabulary_of(byte_level, np.zeros(512, np.int32))
    assert vocabulary.size == len(vocabulary.continues) == 512


def test_word_pieces_go_on_where_they_say_so(word_pieces):
    table = word_pieces.get_vocab()
    found = continues(word_pieces, len(word_pieces))
    for token, index in table.items():
        if token in SPECIAL:
            assert not found[index]
        elif not token.startswith("##"):
            assert not found[index], token
        elif token[2].isascii():
            assert found[index] == token[2].isalnum(), token
    split = [each.removeprefix("##") for each in words(word_pieces, "the spinners unspun, villages")]
    assert split == ["the", "spinners", "unspun", ",", "villages"]


def test_japanese_word_pieces_are_units_although_no_space_parts_them():
    vocabulary = ["<unk>", "吾", "##輩", "##は", "##コ", "##ー", "##ヒ", "##ab", "##1"]
    backend = tokenizers.Tokenizer(models.WordPiece({each: i for i, each in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    found = continues(Tokenizer(backend), len(vocabulary))
    assert [vocabulary[i] for i in np.flatnonzero(found)] == ["##ー", "##ab", "##1"]


def test_byte_level_words_begin_with_a_space(byte_level):
    split = words(byte_level, "The spinners were unspun, unhurriedly; yarn")
    assert split == ["The", " spinners", " were", " unspun", ",", " unhurriedly", ";", " yarn"]


def test_half_a_character_goes_on_and_japanese_tokens_do_not(byte_level):
    table, found = byte_level.get_vocab(), continues(byte_level, len(byte_level))
    # In the alphabet of bytes: é is "Ã" "©", 猫 is "ç" "Į" "«".
    assert [found[table[each]] for each in ("Ã", "©")] == [True, True]
    assert [found[table[each]] for each in ("ç", "Į", "«")] == [False, True, True]
    assert words(byte_level, "naïve 鰯蝶") == ["naïve", " ", "鰯", "蝶"]  # one unit, however many bytes they fell into


def test_sentence_pieces_begin_with_their_space_and_japanese_ones_stand_alone():
    assert words(characters(spaced=True), "spinning, the unspin") == ["spinning", ",", "the", "unspin"]
    assert words(characters(spaced=False), "猫である。コーヒー") == ["猫", "である", "。", "コー", "ヒー"]
    found = continues(characters(spaced=False), 300)
    byte = [1 + each for each in b" a," + "é猫".encode()]
    assert found[byte].tolist() == [False, True, False, True, True, False, True, True]


def test_whole_words_are_words_and_others_are_not_told():
    level = tokenizers.Tokenizer(models.WordLevel({"the": 0, "cat": 1, "<unk>": 2}, unk_token="<unk>"))
    assert not continues(Tokenizer(level), 3).any()
    suffixed = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "a</w>": 1}, merges=[], end_of_word_suffix="</w>"))
    assert continues(Tokenizer(suffixed), 2) is None
