"""Sentences: where they end in English, in Japanese, and in both at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsumugu.text.sentences import sentences, spans

CASES = [
    ["The cat sleeps.", "It dreams!", "Does it?", "Yes."],
    ["Dr. Smith met Mr. J. R. Jones at 3.30 p.m. in the U.S. Senate.", "They talked (e.g. about tea)."],
    ['"Go away!" she said.', "He went.", "“Why?”", "Nobody knows…"],
    ["Version 2.0 costs $3.50.", "See www.example.com/a.html for more."],
    ["We used Fig. 3 and eq. 4 of Brown et al. 2020.", "It works."],
    ["吾輩は猫である。", "名前はまだ無い。"],
    ["彼女は「本当ですか？」と聞いた。", "「はい。」", "「そうです！」"],
    ["東京（日本。首都）は大きい。", "次の文！？", "最後"],
    ["彼は「行く。でも帰る。」と言った。", "雨だった。"],
    ["今日はＡＩの話をします．", "Transformer is a model.", "便利です。"],
]


@pytest.mark.parametrize("wanted", CASES, ids=lambda each: each[0][:20])
def test_sentences_end_where_readers_end_them(wanted: list[str]) -> None:
    japanese = any(each[-1] in "。！？．」" or "最" in each for each in wanted)
    assert sentences((" " if not japanese or "AI" in wanted[0] else "").join(wanted)) == wanted
    assert sentences("\n\n".join(wanted)) == wanted


def test_lines_that_are_only_wrapped_are_one_sentence() -> None:
    assert sentences("A sentence that\nis wrapped.\nAnother one.") == ["A sentence that\nis wrapped.", "Another one."]
    assert sentences("Title\n\nThe text.") == ["Title", "The text."]
    assert sentences("Things:\n- tea\n- rice") == ["Things:", "- tea", "- rice"]
    assert sentences("1. Boil water.\n2. Add tea.") == ["1. Boil water.", "2. Add tea."]
    assert sentences("") == sentences(" \n ") == []


@given(st.text(alphabet="aB .!?。！「」（）\n、あ漢1\"'", max_size=60))
def test_nothing_is_lost_and_nothing_twice(text: str) -> None:
    found = list(spans(text))
    assert all(start < end and text[start:end] == text[start:end].strip() for start, end in found)
    edges = [0, *(edge for span in found for edge in span), len(text)]
    assert edges == sorted(edges)
    assert "".join(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)).strip() == ""
