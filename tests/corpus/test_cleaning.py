"""Normal forms, quality rules and languages, each against a count by hand or a plain loop."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpus.conftest import ENGLISH, JAPANESE

from tsumugu.core.errors import ConfigError, InputError
from tsumugu.corpus.cleaning import Cleaner, Cleaning
from tsumugu.corpus.filters import PRESETS, parse_rules
from tsumugu.corpus.languages import LanguageIdentifier
from tsumugu.corpus.measures import MEASURES, Text
from tsumugu.corpus.normalization import normalized
from tsumugu.corpus.units import grams, is_spaced, units_of


def measure(name: str, text: str) -> float | None:
    return MEASURES[name][0](Text(text))


# --- normalisation


def test_line_ends_become_one():
    assert normalized("a\r\nb\rc\x0bd\x0ce\x85f\u2028g\u2029h\n\ni") == "a\nb\nc\nd\ne\nf\ng\nh\n\ni"
    assert normalized("a\r\nb\x0cc", newlines=False) == "a\r\nbc"
    assert normalized("a\r\nb\x0cc", newlines=False, controls=False) == "a\r\nb\x0cc"


def test_control_characters_go_but_tab_and_line_feed_stay():
    assert normalized("\ufeffa\x00\x1b[31m\tb\x7f\x9f\n") == "a[31m\tb\n"
    assert normalized("a\x00b", controls=False) == "a\x00b"


def test_forms():
    text = "ｶﾞｯｺｳ　ＡＢＣ　①㌔ が 神"
    assert normalized(text) == text
    assert normalized(text, "nfc") == unicodedata.normalize("NFC", text)
    assert normalized(text, "nfkc") == "ガッコウ ABC 1キロ が 神"


@given(st.text())
def test_a_normal_form_is_normal(text):
    for form in ("none", "nfc", "nfkc"):
        once = normalized(text, form)
        assert normalized(once, form) == once
        assert not re.search("[\r\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]", once)


# --- units


def test_what_is_spaced():
    assert is_spaced("The quick brown fox.")
    assert is_spaced("안녕하세요 세계")
    assert is_spaced("Привет мир")
    assert not is_spaced(JAPANESE[0])
    assert not is_spaced("สวัสดีชาวโลก")
    assert is_spaced("Read about 猫 and 犬 in this long English sentence.")


@given(st.text("ab あ漢\n", max_size=60), st.integers(1, 6))
def test_grams_are_equal_where_stretches_are(text, n):
    found = units_of(text)
    parts = text.split() if found.spaced else [each for each in text if not each.isspace()]
    assert found.sizes.tolist() == [len(each) for each in parts]
    plain = [tuple(parts[at : at + n]) for at in range(len(parts) - n + 1)]
    rows = grams(found.hashes, n).tolist()
    assert len(rows) == len(plain)
    assert len(set(zip(rows, plain, strict=True))) == len(set(rows)) == len(set(plain))


# --- measures


def plain_repeated(parts: list[str], n: int) -> float:
    seen, inside = set(), [False] * len(parts)
    for at in range(len(parts) - n + 1):
        gram = tuple(parts[at : at + n])
        if gram in seen:
            inside[at : at + n] = [True] * n
        seen.add(gram)
    total = sum(map(len, parts))
    return sum(len(part) for part, each in zip(parts, inside, strict=True) if each) / total if total else 0.0


def plain_top(parts: list[str], n: int) -> float:
    counts = Counter(tuple(parts[at : at + n]) for at in range(len(parts) - n + 1))
    most = max(counts.values(), default=0)
    if most < 2:
        return 0.0
    size = max(sum(map(len, gram)) for gram, count in counts.items() if count == most)
    return min(1.0, most * size / sum(map(len, parts)))


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "the"]), max_size=60))
def test_repeated_words_agree_with_a_plain_loop(words):
    text = Text(" ".join(words))
    for n in range(5, 11):
        assert MEASURES[f"repeated_{n}_grams"][0](text) == pytest.approx(plain_repeated(words, n))
    for n in (2, 3, 4):
        assert MEASURES[f"top_{n}_gram"][0](text) == pytest.approx(plain_top(words, n))


@given(st.text("あいうえ", min_size=1, max_size=60))
def test_two_characters_stand_for_a_word_of_japanese(text):
    seen = Text(text)
    assert MEASURES["repeated_5_grams"][0](seen) == pytest.approx(plain_repeated(list(text), 10))
    assert MEASURES["repeated_7_grams"][0](seen) == pytest.approx(plain_repeated(list(text), 14))
    assert MEASURES["top_2_gram"][0](seen) == pytest.approx(plain_top(list(text), 4))


def test_measures_by_hand():
    english = "The cat, 3 years old… sat.\n\n- one #tag\n* two\n\nThe cat, 3 years old… sat."
    expected = {
        "characters": 72,
        "words": 17,
        "stop_words": 1,
        "braces": 0,
        "bullet_lines": 2 / 4,
        "ended_lines": 2 / 4,
        "ellipsis_lines": 0,
        "repeated_lines": 1 / 4,
        "repeated_paragraphs": 1 / 3,
        "symbols": 3 / 17,
    }
    expected["mean_word"] = sum(map(len, english.split())) / 17
    visible = re.sub(r"\s", "", english)
    expected["digits"] = 2 / len(visible)
    expected["letters"] = sum(map(str.isalpha, visible)) / len(visible)
    expected["alphabetic_words"] = sum(any(map(str.isalpha, each)) for each in english.split()) / 17
    for name, value in expected.items():
        assert measure(name, english) == pytest.approx(value), name


def test_measures_of_japanese():
    text = "カタカナとひらがなと漢字。終わり！\nabc…\n"
    visible = "カタカナとひらがなと漢字。終わり！abc…"
    assert measure("words", text) is None
    assert measure("mean_word", text) is None
    assert measure("stop_words", text) is None
    assert measure("katakana", text) == pytest.approx(4 / len(visible))
    assert measure("hiragana", text) == pytest.approx(8 / len(visible))
    assert measure("japanese", text) == pytest.approx(17 / len(visible))
    assert measure("sentences", text) == 3
    assert measure("mean_sentence", text) == pytest.approx((13 + 4 + 4) / 3)
    assert measure("longest_sentence", text) == 13
    assert measure("ellipsis_lines", text) == 0.5
    assert measure("ended_lines", text) == 1.0


@given(st.text(max_size=200))
def test_every_measure_has_a_value_for_any_text(text):
    seen = Text(text)
    for name, (count, _) in MEASURES.items():
        value = count(seen)
        assert value is None or (np.isfinite(value) and value >= 0), name


# --- rules


def test_rules_are_read_and_later_ones_replace_earlier():
    rules = parse_rules(["gopher", "words>=10", " digits <= 0.3 ", "characters≤1e6"])
    said = [str(each) for each in rules]
    assert "words>=10" in said
    assert "words>=50" not in said
    assert "words<=100000" in said
    assert said[-2:] == ["digits<=0.3", "characters<=1e+06"]
    for preset in PRESETS:
        assert parse_rules([preset])


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("gophr", "did you mean 'gopher'"),
        ("digit<=0.3", "did you mean 'digits'"),
        ("digits<0.3", 'write one as "characters>=200"'),
        ("digits<=much", "write one as"),
        ("digits<=1e999", "is no number"),
        ("digits<=--1", "is no number"),
        ("digits", "is no rule"),
        ("", "is no rule"),
    ],
)
def test_what_is_no_rule_is_refused(rule, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        Cleaning(filters=(rule,))


def judged(text: str, **options) -> str:
    cleaning = Cleaning(**options)
    return cleaning.reasons[Cleaner(cleaning).judge(text).reason]


def test_documents_are_judged():
    assert judged("text") == "kept"
    assert judged("") == judged(" \n\u3000\t") == judged("\x00\x01\r\n") == "empty"
    assert judged("\x00\x01", controls=False) == "kept"
    assert judged("short", filters=("characters>=6",)) == "characters>=6"
    assert judged("long enough", filters=("characters>=6", "digits<=0.5")) == "kept"
    assert judged("spam " * 50, filters=("repetition",)) == "top_2_gram<=0.2"
    assert judged("a line of spam\n" * 9, filters=("repetition",)) == "repeated_lines<=0.3"
    verdict = Cleaner(Cleaning(filters=("digits<=0.5",))).judge("12345a")
    assert verdict.value == pytest.approx(5 / 6)


def test_good_texts_pass_the_published_rules_and_bad_ones_do_not():
    prose = [text for text in ENGLISH if len(text) > 3000]
    assert sum(judged(text, filters=("gopher", "top_2_gram<=1")) == "kept" for text in prose) > len(prose) / 3
    japanese = "\n".join(JAPANESE)
    assert judged(japanese, filters=("japanese", "mean_sentence>=10", "characters>=100")) == "kept"
    assert judged("ABC DEF. " * 100, filters=("japanese",)) == "japanese>=0.5"
    assert judged("カタカナ。" * 100, filters=("japanese",)) == "hiragana>=0.2"
    assert judged(" ".join(str(each) for each in range(999)), filters=("gopher",)) == "mean_word>=3"
    assert judged("Lorem ipsum dolor. Sit amet. Consectetur.", filters=("c4",)) == "lorem_ipsum<=0"
    assert judged("int main() { return 0; } Yes. No. Or.", filters=("c4",)) == "braces<=0"


def test_languages_are_told_apart():
    identifier = LanguageIdentifier()
    german = "Der schnelle braune Fuchs springt über den faulen Hund und läuft dann in den Wald hinein."
    assert identifier.language(JAPANESE[0])[0] == "ja"
    assert identifier.language(ENGLISH[5])[0] == "en"
    assert identifier.language(german)[0] == "de"
    assert identifier.language("123 !?") == ("und", 0.0)
    code, probability = identifier.language("今天天气很好，我们去公园散步吧。孩子们在草地上玩耍。")
    assert code == "zh"
    assert 0.5 < probability <= 1.0
    assert judged(german, languages=("ja", "en")) == "language"
    assert judged(JAPANESE[1], languages=("ja", "en")) == "kept"
    with pytest.raises(InputError, match="unknown language 'jp'"):
        Cleaner(Cleaning(languages=("jp",)))
