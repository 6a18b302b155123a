"""Which language a text is in, by py3langid's own model: offline, without chance, a millisecond a text.

Source: Lui and Baldwin 2012, "langid.py: An Off-the-shelf Language Identification Tool".
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from tsumugu.core.errors import InputError, MissingExtraError, did_you_mean

_CHARACTERS = 1000  # from the middle: beginnings often hold names and addresses


class LanguageIdentifier:
    """Names languages by their ISO 639-1 codes.

    Raises:
        MissingExtraError: py3langid is not installed.
    """

    def __init__(self) -> None:
        self._identifier = _loaded()

    def check(self, codes: Iterable[str]) -> None:
        """Raise InputError for a code that the model does not know."""
        known = self._identifier.labels
        for code in codes:
            if code not in known:
                raise InputError(f"unknown language {code!r}", where="languages", mend=did_you_mean(code, known))

    def language(self, text: str) -> tuple[str, float]:
        """The likeliest language and its probability; a text without letters is "und" (undetermined)."""
        start = max(0, (len(text) - _CHARACTERS) // 2)
        sample = text[start : start + _CHARACTERS]
        if not any(map(str.isalpha, sample)):
            return "und", 0.0
        code, probability = self._identifier.classify(sample)
        return str(code), float(probability)


@cache
def _loaded() -> Any:
    try:
        from py3langid import langid
    except ImportError:
        raise MissingExtraError("py3langid", extra="clean", purpose="telling languages apart") from None
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
