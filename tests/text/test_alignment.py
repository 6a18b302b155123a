"""Texts that know where their characters came from: the same text as Python's own, and places that can be checked."""

from __future__ import annotations

import re
import sys
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tsumugu.text.alignment import Aligned

FORMS = ["NFC", "NFKC"]
MARKED = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.combining(chr(code))]
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=5),
        st.sampled_from([*"ﾊﾟｶﾞｳﾞ㌔½①ﬁéß가각\u1100\u1161\u11a8\u0cc6\u0cc2\u0cd5かは゛か\u3099\u309a\u302e\u302f"]),
        st.sampled_from(MARKED),
    ),
    max_size=9,
).map("".join)
MANY = settings(max_examples=400, deadline=None)


def check(found: Aligned, original: str) -> None:
    assert len(found.text) == len(found.starts) == len(found.ends)
    assert list(found.starts) == sorted(found.starts)
    assert list(found.ends) == sorted(found.ends)
    for start, end in zip(found.starts, found.ends, strict=True):
        assert 0 <= start < end <= len(original)


@pytest.mark.parametrize("form", FORMS)
def test_normal_forms(form: str) -> None:
    @MANY
    @given(TEXTS)
    @example("\u0344" * 3)
    def holds(text: str) -> None:
        found = Aligned.of(text, 0, len(text)).normalized(form)
        assert found.text == unicodedata.normalize(form, text)
        check(found, text)
        assert {at for start, end in zip(found.starts, found.ends, strict=True) for at in range(start, end)} == set(
            range(len(text))
        )
        for each, start, end in zip(found.text, found.starts, found.ends, strict=True):
            assert each in unicodedata.normalize(form, text[start:end])

    holds()


@pytest.mark.parametrize("form", FORMS)
def test_what_stands_apart_stays_apart(form: str) -> None:
    """Every character that a form changes or that changes others, between two that nothing changes."""
    changing = [
        each
        for each in map(chr, range(sys.maxunicode + 1))
        if not "\ud800" <= each <= "\udfff" and (unicodedata.decomposition(each) or unicodedata.combining(each))
    ]
    for each in changing:
        found = Aligned.of(f"猫{each}犬", 0, 3).normalized(form)
        assert found.text == unicodedata.normalize(form, f"猫{each}犬")
        assert (found.starts[0], found.ends[-1]) == (0, 3)
        assert found.starts[-1] == 2
        assert found.ends[0] in (1, 2)


def test_small_letters_and_accents() -> None:
    text = "xİΣé e\u0301\u0327Σ"
    low = Aligned.of(text, 1, len(text)).lower()
    assert low.text == text[1:].lower()
    check(low, text)
    assert low.span(0, 2) == (1, 2)  # both of what İ became
    bare = low.without_accents()
    assert bare.text == "iσe eς"
    assert [bare.span(at, at + 1) for at in range(6)] == [(1, 2), (2, 3), (3, 4), (4, 5), (5, 8), (8, 9)]
    assert Aligned.of("がパ", 0, 2).without_accents().text == "かハ"


@MANY
@given(TEXTS)
def test_lowering_and_dropping_accents_are_those_of_plain_python(text: str) -> None:
    found = Aligned.of(text, 0, len(text)).lower()
    assert found.text == text.lower()
    check(found, text)
    bare = found.without_accents()
    whole = unicodedata.normalize("NFD", text.lower())
    assert bare.text == "".join(each for each in whole if unicodedata.category(each) != "Mn")
    check(bare, text)


def test_parts_replacements_and_words() -> None:
    text = "  猫 \t``犬''x\0y "
    aligned = Aligned.of(text, 0, len(text))
    quoted = aligned.substituted(re.compile("``|''"), '"')
    assert quoted.text == '  猫 \t"犬"x\0y '
    assert quoted.span(5, 8) == (5, 10)
    kept = quoted.replaced(lambda each: "" if each == "\0" else " " if each == "\t" else each)
    assert [(word.text, word.span(0, len(word.text))) for word in kept.words()] == [("猫", (2, 3)), ('"犬"xy', (5, 13))]
    assert [kept.span(at, at) for at in (0, len(kept.text))] == [(0, 0), (len(text), len(text))]
    assert Aligned.of(text, 3, 3).span(0, 0) == (0, 0)
