"""Quality rules: a measure, a bound, and what falls outside is dropped, counted and shown in the report."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tsumugu.core.errors import ConfigError, did_you_mean
from tsumugu.corpus.measures import MEASURES, Text

_RULE = re.compile(r"\s*([a-z_0-9]+)\s*(<=|>=|≤|≥)\s*([-+0-9.eE_]+)\s*")
_COMPARE: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge}

_REPETITION = (
    "repeated_lines<=0.3",
    "repeated_paragraphs<=0.3",
    "repeated_line_characters<=0.2",
    "repeated_paragraph_characters<=0.2",
    "top_2_gram<=0.2",
    "top_3_gram<=0.18",
    "top_4_gram<=0.16",
    "repeated_5_grams<=0.15",
    "repeated_6_grams<=0.14",
    "repeated_7_grams<=0.13",
    "repeated_8_grams<=0.12",
    "repeated_9_grams<=0.11",
    "repeated_10_grams<=0.1",
)
PRESETS: dict[str, tuple[str, ...]] = {
    "repetition": _REPETITION,
    "gopher": (
        "words>=50",
        "words<=100000",
        "mean_word>=3",
        "mean_word<=10",
        "symbols<=0.1",
        "bullet_lines<=0.9",
        "ellipsis_lines<=0.3",
        "alphabetic_words>=0.8",
        "stop_words>=2",
        *_REPETITION,
    ),
    "c4": ("sentences>=3", "lorem_ipsum<=0", "braces<=0"),
    "japanese": (
        "characters>=400",
        "japanese>=0.5",
        "hiragana>=0.2",
        "katakana<=0.5",
        "mean_sentence>=20",
        "mean_sentence<=90",
        "longest_sentence<=200",
        "ellipsis_lines<=0.2",
        "repeated_lines<=0.3",
        "repeated_line_characters<=0.2",
    ),
}
"""Published sets of rules, see `tsumugu.corpus.measures` for the sources."""


@dataclass(frozen=True)
class Rule:
    """A text is kept when `measure` `comparison` `bound` holds."""

    measure: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.measure}{self.comparison}{self.bound:g}"

    def broken_by(self, text: Text) -> float | None:
        """The measure, when the text breaks the rule."""
        value = MEASURES[self.measure][0](text)
        return None if value is None or _COMPARE[self.comparison](value, self.bound) else float(value)


def parse_rules(words: Iterable[str]) -> tuple[Rule, ...]:
    """The rules that words like ``gopher``, ``characters>=200`` or ``digits<=0.3`` name, in their order.

    A rule that comes later replaces one on the same side of the same measure.

    Raises:
        ConfigError: it is no rule, or there is no such measure or preset; the nearest is named.
    """
    found: dict[tuple[str, str], Rule] = {}
    for word in words:
        for text in PRESETS.get(word.strip(), (word,)):
            rule = _parsed(text)
            found[rule.measure, rule.comparison] = rule
    return tuple(found.values())


def _parsed(text: str) -> Rule:
    match = _RULE.fullmatch(text)
    if match is None:
        if re.fullmatch(r"[a-z_0-9]+", text) and text not in MEASURES:
            raise ConfigError(f"there is no set of rules {text!r}", where="filters", mend=did_you_mean(text, PRESETS))
        raise ConfigError(f"{text!r} is no rule", where="filters", mend='write one as "characters>=200"')
    name, comparison, number = match.groups()
    if name not in MEASURES:
        raise ConfigError(f"there is no measure {name!r}", where="filters", mend=did_you_mean(name, MEASURES, limit=40))
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise ConfigError(f"{number!r} in {text!r} is no number", where="filters")
    return Rule(name, {"≤": "<=", "≥": ">="}.get(comparison, comparison), bound)
