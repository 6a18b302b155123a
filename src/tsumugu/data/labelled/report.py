"""What is in labelled data, before a model learns from it: balance, lengths, languages, duplicates, leaks."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tsumugu.data.labelled.examples import Examples, QuestionExample, labels_of

_SHOWN = 5
_BLANK = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Lengths:
    """The spread of some lengths."""

    least: int
    median: int
    p95: int
    most: int

    @classmethod
    def of(cls, lengths: Iterable[int]) -> Lengths:
        """Of at least one length; percentiles are lengths that occur (nearest rank)."""
        found = sorted(lengths)
        last = len(found) - 1
        return cls(found[0], found[last // 2], found[-(-95 * last // 100)], found[-1])


@dataclass(frozen=True)
class SplitReport:
    """One split.

    Attributes:
        rows, skipped: examples, and rows that were passed over.
        labels: how often each label occurs, in their order; 0 for those that never do.
        unanswered: questions without answer.
        characters: of what is read for an example.
        tokens: the same in a tokenizer's tokens, where one was given.
        languages: examples by language, the commonest first, where a way to tell was given.
        duplicates: examples whose texts stand in an earlier example, letter by letter, and up to case, width, spaces
            and punctuation.
        conflicts: those of them with another answer than the earlier one.
        examples: ids of the first duplicates: later, earlier.
    """

    rows: int
    skipped: int
    labels: dict[str, int]
    unanswered: int
    characters: Lengths
    tokens: Lengths | None
    languages: dict[str, int]
    duplicates: tuple[int, int]
    conflicts: int
    examples: list[tuple[str, str]]


@dataclass(frozen=True)
class Leak:
    """Examples of one split whose texts are also in another: exactly, and up to case, width, spaces, punctuation.

    `shared` counts those of which only the last text is new: the same context, premise or document.
    """

    split: str
    of: str
    exact: int
    normalized: int
    shared: int
    examples: list[tuple[str, str]]


@dataclass(frozen=True)
class DataReport:
    """The splits, and what leaks between them."""

    kind: str
    splits: dict[str, SplitReport]
    leaks: list[Leak]
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)


def describe(
    splits: Mapping[str, Examples],
    *,
    count_tokens: Callable[[str], int] | None = None,
    language: Callable[[str], str] | None = None,
) -> DataReport:
    """Look through the splits of a data set.

    Args:
        splits: by name, at least one.
        count_tokens: how many tokens a text has.
        language: the code of a text's language.
    """
    found = {name: _split_report(examples, count_tokens, language) for name, examples in splits.items()}
    keys = {name: [_keys(row) for row in examples] for name, examples in splits.items()}
    names = list(splits)
    leaks = [
        leak
        for at, later in enumerate(names)
        for earlier in names[:at]
        if (leak := _leak(later, splits[later], keys[later], earlier, splits[earlier], keys[earlier])) is not None
    ]
    kind = next(iter(splits.values())).kind
    return DataReport(kind, found, leaks, list(_warnings(found, leaks)))


def normalized(text: str) -> str:
    """A text without case, width, spaces and punctuation: NFKC, case folded, letters and digits only."""
    return _BLANK.sub("", unicodedata.normalize("NFKC", text).casefold()) or text


def _keys(row: Any) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """An example's texts; their normal forms; what several examples may share on purpose, or nothing."""
    texts = tuple(row.texts)
    common = row.context if isinstance(row, QuestionExample) else texts[0] if len(texts) > 1 else ""
    return texts, tuple(map(normalized, texts)), common


def _split_report(
    examples: Examples, count_tokens: Callable[[str], int] | None, language: Callable[[str], str] | None
) -> SplitReport:
    labels = Counter(labels_of(examples.kind, examples) or ())
    order = examples.labels or sorted(labels)
    exact: dict[Any, Any] = {}
    normal: dict[Any, Any] = {}
    twice = near = conflicts = 0
    pairs: list[tuple[str, str]] = []
    for row in examples:
        texts, forms, _ = _keys(row)
        twice += texts in exact
        before = normal.setdefault(forms, row)
        exact.setdefault(texts, row)
        if before is not row:
            near += 1
            conflicts += before.answer != row.answer
            if len(pairs) < _SHOWN:
                pairs.append((row.id, before.id))
    codes = Counter(language(" ".join(row.texts)) for row in examples) if language is not None else Counter()
    tokens = None
    if count_tokens is not None:
        tokens = Lengths.of(sum(map(count_tokens, row.texts)) for row in examples)
    return SplitReport(
        rows=len(examples),
        skipped=len(examples.problems),
        labels={label: labels[label] for label in order} if labels or examples.labels else {},
        unanswered=sum(isinstance(row, QuestionExample) and not row.answers for row in examples),
        characters=Lengths.of(sum(map(len, row.texts)) for row in examples),
        tokens=tokens,
        languages=dict(codes.most_common()),
        duplicates=(twice, near),
        conflicts=conflicts,
        examples=pairs,
    )


def _leak(
    later: str, examples: Examples, keys: Sequence[Any], earlier: str, others: Examples, other_keys: Sequence[Any]
) -> Leak | None:
    exact = {texts for texts, _, _ in other_keys}
    normal = defaultdict(str, {forms: row.id for row, (_, forms, _) in zip(others, other_keys, strict=True)})
    common = {common for _, _, common in other_keys if common}
    pairs = [(row.id, normal[forms]) for row, (_, forms, _) in zip(examples, keys, strict=True) if forms in normal]
    same = sum(texts in exact for texts, _, _ in keys)
    shared = sum(each in common and forms not in normal for _, forms, each in keys)
    return Leak(later, earlier, same, len(pairs), shared, pairs[:_SHOWN]) if pairs or shared else None


def _warnings(splits: Mapping[str, SplitReport], leaks: Iterable[Leak]) -> Iterable[str]:
    for name, split in splits.items():
        missing = [label for label, count in split.labels.items() if not count]
        if missing:
            yield f"{name}: {len(missing)} of {len(split.labels)} labels never occur ({', '.join(missing[:5])})"
        counts = [count for count in split.labels.values() if count]
        if len(counts) > 1 and max(counts) >= 10 * min(counts):
            yield f"{name}: the commonest label is {max(counts) / min(counts):.0f} times as frequent as the rarest"
        if split.conflicts:
            yield f"{name}: {_count(split.conflicts, 'duplicate')} with another answer than the earlier example"
        if split.skipped:
            yield f"{name}: {split.skipped} of {split.rows + split.skipped} rows were passed over"
    for leak in leaks:
        if leak.normalized:
            share = leak.normalized / splits[leak.split].rows
            yield f"{leak.split}: {_count(leak.normalized, 'example')} ({share:.1%}) also in {leak.of}"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
