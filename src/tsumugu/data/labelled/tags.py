"""Tag schemes of sequence labelling: tags to spans and back.

Tags are read as conlleval reads them unless a scheme is named: any prefix of BIO, IOBES and BILOU, and an I without a
B begins a span. Under a named scheme, only spans that are written as the scheme says count.

Source: Ramshaw and Marcus 1995, section 4 (IOB); Tjong Kim Sang and Veenstra 1999, section 2 (IOB1, IOB2, IOE1, IOE2);
Ratinov and Roth 2009, section 5.1 (BILOU); the rules of conlleval and of seqeval's strict mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tsumugu.core.errors import InputError, did_you_mean

OUTSIDE = "O"


class TokenSpan(NamedTuple):
    """A span over tokens: `start` counts from 0, `end` is the token after the last."""

    label: str
    start: int
    end: int


@dataclass(frozen=True)
class _Scheme:
    """Which prefixes may occur, and where spans start, go on and end.

    A rule is two prefixes that follow each other (``.``: any) and how their labels must compare: ``=``, ``!`` or ``*``.
    """

    prefixes: str
    start: tuple[str, ...]
    inside: tuple[str, ...]
    end: tuple[str, ...]

    def matches(self, rules: Iterable[str], before: tuple[str, str], here: tuple[str, str]) -> bool:
        same = before[1] == here[1]
        return any(
            rule[0] in (before[0], ".") and rule[1] in (here[0], ".") and (rule[2] == "*" or (rule[2] == "=") == same)
            for rule in rules
        )


def _rules(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SCHEMES = {
    "IOB1": _Scheme("IOB", _rules("OI* II! BI* IB= BB="), _rules("BI= II="), _rules("II! IO* IB* BO* BI! BB=")),
    "IOB2": _Scheme("IOB", _rules(".B*"), _rules("BI= II="), _rules("IO* II! IB* BO* BI! BB*")),
    "IOE1": _Scheme("IOE", _rules("OI* II! EI* EE="), _rules("II= IE="), _rules("II! IO* IE! EI= EE=")),
    "IOE2": _Scheme("IOE", _rules("OI* OE* EI* EE* II! IE!"), _rules("IE= II="), _rules("E.*")),
    "IOBES": _Scheme("IOBES", _rules(".B* .S*"), _rules("BI= BE= II= IE="), _rules("S.* E.*")),
    "BILOU": _Scheme("BILOU", _rules(".B* .U*"), _rules("BI= BL= II= IL="), _rules("U.* L.*")),
}
"""The schemes by name, as strict readers understand them."""

_ENDS = frozenset("ESLU")
_BEGINS = frozenset("BSU")


def split_tag(tag: str) -> tuple[str, str]:
    """The prefix and the label of a tag: ``B-LOC`` gives ``("B", "LOC")``, ``O`` gives ``("O", "")``.

    Raises:
        InputError: there is no such prefix.
    """
    prefix, _, label = tag.partition("-")
    if prefix in ("B", "I", "E", "S", "L", "U") and (label or tag == prefix):
        return prefix, label or "_"
    if tag == OUTSIDE:
        return OUTSIDE, ""
    raise InputError(f"the tag {tag!r} is of no scheme", mend="write B-LABEL, I-LABEL or O (or IOBES, or BILOU)")


def tags_to_spans(tags: Sequence[str], scheme: str | None = None) -> list[TokenSpan]:
    """The spans that `tags` mark, in order.

    Args:
        tags: one for each token.
        scheme: IOB1, IOB2, IOE1, IOE2, IOBES or BILOU, read strictly; None reads all of them, leniently.

    Raises:
        InputError: a tag is of no scheme, or not of this one, or there is no such scheme.
    """
    parts = [split_tag(tag) for tag in tags]
    if scheme is None:
        return _lenient(parts)
    rules = find_scheme(scheme)
    for tag, (prefix, _) in zip(tags, parts, strict=True):
        if prefix not in rules.prefixes:
            raise InputError(
                f"the tag {tag!r} is not of scheme {scheme}", mend=f"prefixes: {', '.join(rules.prefixes)}"
            )
    return _strict(parts, rules)


def find_scheme(name: str) -> _Scheme:
    """The rules of a scheme.

    Raises:
        InputError: there is no such scheme.
    """
    aliases = {"BIO": "IOB2", "IOB": "IOB1", "BIOES": "IOBES"}
    found = SCHEMES.get(aliases.get(name.upper(), name.upper()))
    if found is None:
        raise InputError(f"unknown scheme {name!r}", mend=did_you_mean(name, [*SCHEMES, *aliases]))
    return found


def _lenient(parts: list[tuple[str, str]]) -> list[TokenSpan]:
    """As conlleval reads: a span ends before O, B, S, U, another label, and behind E, S, L, U."""
    spans: list[TokenSpan] = []
    start, before, kept = 0, OUTSIDE, ""
    for at, (prefix, label) in enumerate([*parts, (OUTSIDE, "")]):
        opened = before != OUTSIDE
        ends = opened and (prefix == OUTSIDE or prefix in _BEGINS or before in _ENDS or label != kept)
        if ends:
            spans.append(TokenSpan(kept, start, at))
        if prefix != OUTSIDE and (ends or not opened):
            start = at
        before, kept = prefix, label
    return spans


def _strict(parts: list[tuple[str, str]], scheme: _Scheme) -> list[TokenSpan]:
    spans: list[TokenSpan] = []
    tokens = [*parts, (OUTSIDE, "")]
    before, at = tokens[-1], 0
    while at < len(tokens):
        if scheme.matches(scheme.start, before, tokens[at]):
            end = at + 1
            while end < len(parts) and scheme.matches(scheme.inside, tokens[end - 1], tokens[end]):
                end += 1
            if end < len(tokens) and scheme.matches(scheme.end, tokens[end - 1], tokens[end]):
                spans.append(TokenSpan(tokens[at][1], at, end))
            at = end
        else:
            at += 1
        before = tokens[at - 1]
    return spans


def spans_to_tags(spans: Iterable[TokenSpan | tuple[str, int, int]], length: int, scheme: str = "IOB2") -> list[str]:
    """`length` tags that mark `spans`, which must not overlap.

    Raises:
        InputError: spans overlap or leave the tokens, or the scheme has no such form (IOB1, IOE1 are read only).
    """
    forms = {"IOB2": "BBII", "IOE2": "EIIE", "IOBES": "SBIE", "BILOU": "UBIL"}  # alone, first, middle, last
    find_scheme(scheme)
    name = {"BIO": "IOB2", "BIOES": "IOBES"}.get(scheme.upper(), scheme.upper())
    if name not in forms:
        raise InputError(f"{scheme} is read but not written", mend=f"use one of {', '.join(forms)}")
    alone, first, middle, last = tuple(forms[name])
    tags = [OUTSIDE] * length
    for label, start, end in spans:
        if not 0 <= start < end <= length:
            raise InputError(f"the span {start} to {end} leaves the {length} tokens")
        if any(tag != OUTSIDE for tag in tags[start:end]):
            raise InputError(f"two spans overlap at token {start}")
        prefixes = [alone] if end == start + 1 else [first, *[middle] * (end - start - 2), last]
        tags[start:end] = [f"{prefix}-{label}" for prefix in prefixes]
    return tags
