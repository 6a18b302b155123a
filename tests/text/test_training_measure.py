"""The report's numbers against numbers counted by hand or in the plainest way."""

from __future__ import annotations

import pytest
import tokenizers
from tests.text.corpus import varied_texts
from tokenizers import models, pre_tokenizers

from tsumugu.core.errors import InputError
from tsumugu.text.measure import measure, script
from tsumugu.text.tokenizer import Tokenizer
from tsumugu.text.training import train_tokenizer


def words(*vocabulary: str) -> Tokenizer:
    table = {word: i for i, word in enumerate(("[UNK]", *vocabulary))}
    backend = tokenizers.Tokenizer(models.WordPiece(table, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return Tokenizer(backend, special_tokens={"unk": "[UNK]"})


def test_numbers_counted_by_hand() -> None:
    found = measure(words("cat", "##s", "sleep", "never"), ["cats sleep", "cat purrs"])
    total = found.total
    assert (found.texts, total.characters, total.bytes, total.tokens, total.words) == (2, 19, 19, 5, 4)
    assert (total.unknown, total.unknown_characters) == (1, 5)
    values = found.as_dict()
    assert values["total"]["characters_per_token"] == 19 / 5
    assert values["total"]["tokens_per_word"] == 5 / 4
    assert values["total"]["unknown_rate"] == 1 / 5
    assert values["total"]["unknown_character_rate"] == 5 / 19
    assert (values["vocabulary"], values["vocabulary_used"]) == (4, 3)
    assert found.longest[0] == ("sleep", 1)
    assert found.scripts["latin"].characters == 17
    assert found.scripts["latin"].tokens == 5


class TwoWords:
    """Cuts every text in two."""

    def words(self, text: str) -> list[str]:
        return [text[:1], text[1:]]


def test_languages_and_japanese_words() -> None:
    tokenizer = words("東京", "都", "##都", "a")
    found = measure(tokenizer, ["東京都", "a a a"], mecab=TwoWords())
    assert found.languages["ja"].as_dict()["tokens_per_word"] == 2 / 2
    assert found.languages["ja"].bytes == 9
    assert found.languages["other"].words == 3
    without = measure(tokenizer, ["東京都", "a a a"])
    assert without.as_dict()["languages"]["ja"]["tokens_per_word"] is None
    assert without.as_dict()["languages"]["other"]["tokens_per_word"] == 1


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_sums_agree_with_the_plainest_way(kind: str) -> None:
    texts = [*varied_texts(200), "long words, " * 9000]
    tokenizer = train_tokenizer(texts, family="bert", kind=kind, vocab_size=900, language="en")
    found = measure(tokenizer, texts)
    ids = [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]
    assert found.total.characters == sum(map(len, texts)) == sum(each.characters for each in found.scripts.values())
    assert found.total.bytes == len("".join(texts).encode())
    assert abs(found.total.tokens - sum(map(len, ids))) <= 2  # the long text is encoded in parts
    assert found.total.unknown == sum(row.count(tokenizer.unk_token_id) for row in ids)
    assert found.used == len({i for row in ids for i in row} - set(tokenizer.all_special_ids))
    by_script = sum(each.tokens for each in found.scripts.values())
    assert by_script == pytest.approx(found.total.tokens, abs=1e-6)


def test_scripts() -> None:
    assert [script(each) for each in "aあアｱ漢々1１ 。€Жー"] == [
        *("latin", "hiragana", "katakana", "katakana", "kanji", "kanji", "digits", "digits"),
        *("space", "punctuation", "symbols", "cyrillic", "katakana"),
    ]


def test_no_text() -> None:
    with pytest.raises(InputError, match="no text to measure"):
        measure(words("a"), ["", " "])
