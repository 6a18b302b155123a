"""Writing text one way: Unicode forms, line ends, control characters."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

Form = Literal["none", "nfc", "nfkc"]

_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")


def normalized(text: str, form: Form = "none", *, newlines: bool = True, controls: bool = True) -> str:
    r"""A text in one manner of writing.

    Args:
        form: "nfc" composes characters (か and a voicing mark become が; it also replaces some kanji of names by their
            usual shape); "nfkc" besides takes half-width kana, full-width Latin, ligatures and circled numbers for the
            usual characters.
        newlines: every line end becomes ``\n``: ``\r\n``, ``\r``, form feeds, U+0085, U+2028, U+2029.
        controls: drop control characters but tab and line ends, and stray byte order marks.

    Source: Unicode Standard Annex #15; for line ends, the Unicode Standard, section 5.8.
    """
    if newlines and _LINE_ENDS.search(text):
        text = _LINE_ENDS.sub("\n", text)
    if controls and _CONTROLS.search(text):
        text = _CONTROLS.sub("", text)
    if form == "nfc":
        return unicodedata.normalize("NFC", text)
    if form == "nfkc":
        return unicodedata.normalize("NFKC", text)
    return text
