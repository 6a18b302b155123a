"""Where sentences end, in English and Japanese, in mixed text too.

A full stop ends a sentence where white space and no lower case follows it, unless it belongs to an abbreviation, an
initial, or an enumeration; 。！？ end one wherever they stand, but not inside brackets and quotation marks that the
sentence goes on behind. So does an empty line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tsumugu.text.japanese import is_japanese

_ABBREVIATIONS = frozenset(
    re.findall(
        r"\w+",
        "mr mrs ms dr prof sr jr st mt gen col lt capt sgt rev hon gov sen rep pres vs etc cf al fig figs eq eqs no "
        "nos vol vols pp ed eds dept univ inc ltd co corp approx ca jan feb mar apr jun jul aug sep sept oct nov dec",
    )
)
"""Words after which a full stop ends no sentence, in lower case."""

_DOTTED = re.compile(r"(?:[A-Za-z]\.)+[A-Za-z]?|[A-Z]")
"""e.g, U.S, and initials, as they stand before a full stop."""

_CLOSING = "\"'”’»)]}」』）】〉》〕"
_PAIRS = {"「": "」", "『": "』", "（": "）", "【": "】", "〈": "〉", "《": "》", "〔": "〕"}
_END = re.compile(r"[.!?…]+|[。！？．｡]+|\n[^\S\n]*\n|\n|[「『（【〈《〔」』）】〉》〕]")


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the white space around them."""
    return [text[start:end] for start, end in spans(text)]


def spans(text: str) -> Iterator[tuple[int, int]]:
    """Where each sentence begins and ends, in characters of the text."""
    start = 0
    for end in [*_ends(text), len(text)]:
        piece = text[start:end]
        left = start + len(piece) - len(piece.lstrip())
        right = end - (len(piece) - len(piece.rstrip()))
        if left < right:
            yield left, right
        start = max(start, end)


def _ends(text: str) -> Iterator[int]:
    """Places behind the ends of sentences."""
    open_until: list[str] = []
    for match in _END.finditer(text):
        mark, end = match[0], match.end()
        if mark in _PAIRS:
            open_until.append(_PAIRS[mark])
        elif mark in open_until:
            while open_until.pop() != mark:
                pass
            if not open_until and text[match.start() - 1] in "。！？．｡" and _starts_anew(text, end):
                yield end
        elif mark.count("\n") > 1:
            open_until.clear()
            yield match.start()
        elif mark == "\n":
            if _is_broken(text, match.start()):
                yield end
        elif mark[0] in "。！？．｡":
            if not open_until:
                yield _behind_closing(text, end)
        elif not open_until:
            behind = _behind_closing(text, end)
            if _is_full_stop(text, match.start(), mark, behind):
                yield behind


def _behind_closing(text: str, end: int) -> int:
    """The place behind quotation marks and brackets that close at `end`."""
    while end < len(text) and text[end] in _CLOSING:
        end += 1
    return end


def _is_full_stop(text: str, at: int, mark: str, behind: int) -> bool:
    """Whether the mark at `at` ends a sentence, where `behind` is what follows it and its closing marks."""
    following = text[behind : behind + 1]
    if following and not following.isspace():
        return is_japanese(following) and not text[at - 1 : at].isdigit()
    rest = text[behind:].lstrip()
    if rest[:1].islower():
        return False
    if mark != ".":
        return True
    before = re.split(r"[\s(\[\"'“‘]", text[max(0, at - 24) : at])[-1]
    if before.lower() in _ABBREVIATIONS or _DOTTED.fullmatch(before):
        return not rest
    return not (before.isdigit() and len(before) <= 2 and _begins_line(text, at - len(before)))


def _begins_line(text: str, at: int) -> bool:
    return not text[:at].rpartition("\n")[2].strip()


def _starts_anew(text: str, end: int) -> bool:
    """Whether what follows a closed quotation is a new sentence rather than the rest of the one around it."""
    return text[end : end + 1] in ("", "\n", "「", "『", "　", " ")


def _is_broken(text: str, at: int) -> bool:
    """Whether a line ends for good: what follows is indented as paragraphs are, or an item of a list."""
    return re.match(r"\n(?:[　\t]|[-*・•]\s?|\d{1,2}[.)）]\s)", text[at:]) is not None
