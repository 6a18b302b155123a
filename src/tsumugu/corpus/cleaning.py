"""How raw text is cleaned: one configuration, and the part of the work that looks at a single document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tsumugu.core.config import Config, limits
from tsumugu.corpus.filters import parse_rules
from tsumugu.corpus.languages import LanguageIdentifier
from tsumugu.corpus.measures import Text
from tsumugu.corpus.normalization import Form, normalized

KEPT, EMPTY, LANGUAGE, EXACT, NEAR = "kept", "empty", "language", "exact duplicate", "near duplicate"


@dataclass(frozen=True, kw_only=True)
class Cleaning(Config):
    """What is done to documents before they are tokenised. Empty ones are always dropped.

    Attributes:
        normalize: Unicode form: "none", "nfc", or "nfkc", which suits Japanese from the web.
        newlines: make every line end a line feed.
        controls: drop control characters but tab and line feed.
        exact_duplicates: drop a document that is there already.
        near_duplicates: drop a document this similar to an earlier one (0.8 is usual); None keeps them.
        languages: keep documents in these languages only (ISO 639-1: "ja", "en"); empty keeps all.
        filters: quality rules ("characters>=200") and sets of them ("gopher", "c4", "japanese", "repetition").
    """

    normalize: Form = "none"
    newlines: bool = True
    controls: bool = True
    exact_duplicates: bool = True
    near_duplicates: float | None = limits(None, low=0.3, high=1.0)
    languages: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse rules that cannot be read."""
        parse_rules(self.filters)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What may become of a document: kept, or why it is dropped, in the order in which this is asked."""
        rules = tuple(map(str, parse_rules(self.filters)))
        return (KEPT, EMPTY, LANGUAGE, *rules, EXACT, NEAR)

    @property
    def asked(self) -> tuple[str, ...]:
        """The reasons for which this cleaning can drop a document."""
        idle = {KEPT: True, LANGUAGE: not self.languages, EXACT: not self.exact_duplicates}
        idle[NEAR] = self.near_duplicates is None
        return tuple(each for each in self.reasons if not idle.get(each))


class Verdict(NamedTuple):
    """What a look at one document gives.

    Attributes:
        text: in its normal form.
        reason: a place in `Cleaning.reasons`.
        value: the measure that broke a rule, or the probability of a language that is not wanted.
        language: where languages are asked for.
    """

    text: str
    reason: int
    value: float
    language: str


class Cleaner:
    """Judges documents one by one.

    Raises:
        MissingExtraError: languages are asked for and the library that knows them is not installed.
        InputError: a language is not known.
    """

    def __init__(self, cleaning: Cleaning) -> None:
        self._cleaning = cleaning
        self._rules = parse_rules(cleaning.filters)
        reasons = cleaning.reasons
        self._empty, self._language, self._first = reasons.index(EMPTY), reasons.index(LANGUAGE), 3
        self._identifier = LanguageIdentifier() if cleaning.languages else None
        if self._identifier is not None:
            self._identifier.check(cleaning.languages)

    def judge(self, text: str) -> Verdict:
        """Normalise a text and say whether it is kept, duplicates aside."""
        asked = self._cleaning
        text = normalized(text, asked.normalize, newlines=asked.newlines, controls=asked.controls)
        if not text or text.isspace():
            return Verdict(text, self._empty, 0.0, "")
        language = ""
        if self._identifier is not None:
            language, probability = self._identifier.language(text)
            if language not in asked.languages:
                return Verdict(text, self._language, probability, language)
        if self._rules:
            seen = Text(text)
            for at, rule in enumerate(self._rules):
                value = rule.broken_by(seen)
                if value is not None:
                    return Verdict(text, self._first + at, value, language)
        return Verdict(text, 0, 0.0, language)
