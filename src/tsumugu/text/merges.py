"""Two ways to write down one BPE: merges in order, or a score for every token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def merges_of_scores(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges that give the tokens: the best score first, then the smaller id, then the shorter left part."""
    known = set(tokens)
    found = []
    for index, token in enumerate(tokens):
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in known and right in known:
                found.append((-scores[index], index, at, left, right))
    found.sort(key=lambda each: each[:3])
    return [(left, right) for *_, left, right in found]


def scores_of_merges(tokens: Sequence[str], merges: Iterable[tuple[str, str]]) -> list[float]:
    """Scores in the order of the merges: 0 for the first, one less for each further. Tokens no merge gives come last."""
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(merges):
        rank.setdefault(left + right, i)
    return [-float(rank.get(token, len(rank) + 1_000_000)) for token in tokens]
