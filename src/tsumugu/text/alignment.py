"""A text that is being rewritten, and for each of its characters where it came from in the text as it was.

``text[a:b]`` came from ``original[starts[a]:ends[b - 1]]``. Where one character becomes several (㌔ → キロ) they share
its place; where several become one (ﾊ and ﾟ → パ) it has them all.

Source: Unicode Standard Annex #15, section 9 (which characters can change the ones before them).
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Self

# Characters that no normal form changes and that never change the one before: ASCII, kana and kanji in their usual
# shapes, Japanese punctuation. All else is looked up, one by one.
_UNUSUAL = re.compile("[^\0-\x7f、-】ぁ-ゖァ-ヺー一-龠]+")
_UNUSUAL_DECOMPOSED = re.compile("[^\0-\x7f]+")


class Aligned(NamedTuple):
    """A text and its characters' places in the original, `[characters]` each, both ascending."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    @classmethod
    def of(cls, original: str, start: int, end: int) -> Self:
        """A stretch of the original, as it is."""
        return cls(original[start:end], range(start, end), range(start + 1, end + 1))

    def part(self, start: int, end: int) -> Aligned:
        """Some of it."""
        return Aligned(self.text[start:end], self.starts[start:end], self.ends[start:end])

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where `text[start:end]` came from; of nothing, the place in which it stands."""
        if start < end:
            return self.starts[start], self.ends[end - 1]
        at = self.starts[start] if start < len(self.text) else self.ends[-1] if self.text else 0
        return at, at

    def normalized(self, form: str) -> Aligned:
        """In the normal form "NFC" or "NFKC"."""
        if unicodedata.is_normalized(form, self.text):  # type: ignore[arg-type]
            return self
        whole = unicodedata.normalize(form, self.text)  # type: ignore[arg-type]
        found = self._rewritten(lambda part: unicodedata.normalize(form, part), _UNUSUAL)  # type: ignore[arg-type]
        # Scripts of a later Unicode may compose in ways that the rule of `_begins` does not know.
        return found if found.text == whole else self._as_one(whole)

    def without_accents(self) -> Aligned:
        """Decomposed, and then without the marks that this sets free."""
        if self.text.isascii():
            return self
        return self._rewritten(_without_marks, _UNUSUAL_DECOMPOSED)

    def lower(self) -> Aligned:
        """In small letters; İ becomes two characters."""
        text = self.text.lower()
        if len(text) == len(self.text):
            return Aligned(text, self.starts, self.ends)
        sizes = [len(each.lower()) for each in self.text]
        starts = [at for at, size in zip(self.starts, sizes, strict=True) for _ in range(size)]
        return Aligned(text, starts, [at for at, size in zip(self.ends, sizes, strict=True) for _ in range(size)])

    def replaced(self, kept: Callable[[str], str]) -> Aligned:
        """With each character replaced by what `kept` gives for it: one character, or nothing."""
        parts = [kept(each) for each in self.text]
        text = "".join(parts)
        if len(text) == len(self.text):
            return Aligned(text, self.starts, self.ends)
        chosen = [at for at, each in enumerate(parts) if each]
        return Aligned(text, [self.starts[at] for at in chosen], [self.ends[at] for at in chosen])

    def substituted(self, pattern: re.Pattern[str], text: str) -> Aligned:
        """With all that the pattern fits, never nothing, replaced by one text, which stands for all of it."""
        return self._with((*match.span(), text) for match in pattern.finditer(self.text))

    def words(self) -> Iterator[Aligned]:
        """What white space divides."""
        for match in re.finditer(r"\S+", self.text):
            yield self.part(*match.span())

    def _rewritten(self, change: Callable[[str], str], unusual: re.Pattern[str]) -> Aligned:
        """Rewrite stretches that do not depend on their neighbours, each by itself."""
        text = self.text
        found = ((first, last, change(text[first:last])) for first, last in _stretches(text, unusual))
        return self._with(each for each in found if each[2] != text[each[0] : each[1]])

    def _with(self, changes: Iterable[tuple[int, int, str]]) -> Aligned:
        """With other texts in the place of [first, last), ascending; each stands for the whole of it."""
        text, starts, ends = self.text, list[int](), list[int]()
        parts: list[str] = []
        done = 0
        for first, last, new in changes:
            parts += (text[done:first], new)
            starts += [*self.starts[done:first], *[self.starts[first]] * len(new)]
            ends += [*self.ends[done:first], *[self.ends[last - 1]] * len(new)]
            done = last
        if not done:
            return self
        starts += self.starts[done:]
        ends += self.ends[done:]
        return Aligned("".join([*parts, text[done:]]), starts, ends)

    def _as_one(self, text: str) -> Aligned:
        return Aligned(text, [self.starts[0]] * len(text), [self.ends[-1]] * len(text))


def _stretches(text: str, unusual: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """The stretches of unusual characters that nothing outside can change; marks belong to what is before them."""
    for match in unusual.finditer(text):
        first, last = match.span()
        cuts = [at for at in range(first, last) if _begins(text[at])]
        if not cuts or cuts[0] != first:
            cuts.insert(0, max(0, first - 1))
        yield from zip(cuts, [*cuts[1:], last], strict=True)


@functools.lru_cache(maxsize=1 << 14)
def _begins(character: str) -> bool:
    """Whether a character can neither change the one before it nor change places with it."""
    first = unicodedata.normalize("NFKD", character)[0]
    mark = unicodedata.combining(first) or unicodedata.category(first).startswith("M")
    return not mark and not "\u1160" <= first <= "\u11ff"  # vowels and final consonants of Hangul


def _without_marks(text: str) -> str:
    return "".join(each for each in unicodedata.normalize("NFD", text) if unicodedata.category(each) != "Mn")
