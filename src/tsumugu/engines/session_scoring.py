"""How likely texts go on as proposed, by the sessions of a compiled decoder. Loads no torch.

The tokens that all texts begin with are read once and stay in a row of their own; each text is read once behind them,
and each proposal behind a copy of what its text left in the cache. A proposal of one token is told by the text alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tsumugu.core.errors import InputError
from tsumugu.engines.session import Logits, TokenSession

ROW_LIMIT = 64
"""Rows, of texts and proposals together, that are computed side by side, and tokens of proposals."""
LOGITS_AT_ONCE = 1 << 24
UNIT = 128
"""Rooms of caches are multiples of it, so that the next batch seldom needs a larger one."""

Texts = Sequence[Sequence[int]]
Place = tuple[int, int]
"""A row, and which of its answers."""


class SessionScorer:
    """`tsumugu.engines.session.Scorer` over a `TokenSession`.

    Args:
        opened: rows and capacity -> a session.
        prefix: the tokens that all texts begin with; may be empty.
        limit: the longest text that the model reads, in tokens.
        vocab: size of the vocabulary.
    """

    def __init__(
        self, opened: Callable[[int, int], TokenSession], *, prefix: Sequence[int], limit: int, vocab: int
    ) -> None:
        self._opened, self._prefix, self._limit = opened, list(prefix), limit
        self._together = max(1, min(ROW_LIMIT, LOGITS_AT_ONCE // vocab))
        self._session: TokenSession | None = None
        self._room = 0

    def score(self, stems: Texts, answers: Sequence[Texts]) -> list[list[list[float]]]:
        """The log probability of each token of each answer, after the prefix and the row's stem.

        Args:
            stems: what follows the prefix in each row; at least one token.
            answers: for each row what it may go on with; at least one token each.

        Raises:
            InputError: a row without tokens, an empty answer, or more tokens than the model reads.
        """
        sizes = []
        for row, (stem, mine) in enumerate(zip(stems, answers, strict=True)):
            if not stem or not all(mine):
                raise InputError("a text or an answer has no token", where=f"row {row}")
            sizes.append(len(self._prefix) + len(stem) + max(map(len, mine), default=1) - 1)
        longest = max(sizes, default=0)
        if longest > self._limit:
            what = f"{longest} tokens are more than {self._limit}"
            raise InputError(what, where="prompt", mend="give fewer or shorter examples")
        found: list[list[list[float]]] = [[[] for _ in mine] for mine in answers]
        for rows in self._batches(sizes, answers):
            self._score([stems[row] for row in rows], [answers[row] for row in rows], [found[row] for row in rows])
        return found

    def _batches(self, sizes: Sequence[int], answers: Sequence[Texts]) -> Iterator[list[int]]:
        """Numbers of rows, the longest first, as many together as their texts and long answers take rows."""
        rows: list[int] = []
        taken = 0
        for row in sorted(range(len(sizes)), key=lambda row: -sizes[row]):
            needed = 1 + sum(len(answer) > 1 for answer in answers[row])
            if rows and taken + needed > self._together:
                yield rows
                rows, taken = [], 0
            rows.append(row)
            taken += needed
        if rows:
            yield rows

    def _score(self, stems: Texts, answers: Sequence[Texts], found: Sequence[list[list[float]]]) -> None:
        """Fill in `found` for texts that are computed together."""
        count = len(stems)
        longest = max(len(stem) + max(map(len, mine), default=1) for stem, mine in zip(stems, answers, strict=True))
        session = self._begun(len(self._prefix) + longest)
        session.select(np.zeros(count, np.int64))
        every = [(row, place) for row, mine in enumerate(answers) for place in range(len(mine))]
        asked = [(row, answers[row][place][0]) for row, place in every]
        for (row, place), score in zip(every, log_probabilities(session.extend(stems), asked), strict=True):
            found[row][place].append(score)
        texts = np.arange(count)
        for some in self._chunks([(row, place) for row, place in every if len(answers[row][place]) > 1], answers):
            session.select(np.concatenate((texts, [row for row, _ in some])))
            begun = [answers[row][place][:-1] for row, place in some]
            logits = session.extend([*([] for _ in texts), *begun], every=True)
            due = [token for row, place in some for token in answers[row][place][1:]]
            scores = iter(log_probabilities(logits, list(enumerate(due))))
            for row, place in some:
                found[row][place] += [next(scores) for _ in answers[row][place][1:]]
            session.select(texts)
        session.select(np.zeros(1, np.int64))
        session.forget(np.array([len(stems[0])]))

    def _chunks(self, long: Sequence[Place], answers: Sequence[Texts]) -> Iterator[list[Place]]:
        """Answers of several tokens, as many as are read together."""
        some: list[Place] = []
        tokens = 0
        for row, place in long:
            read = len(answers[row][place]) - 1
            if some and tokens + read > self._together:
                yield some
                some, tokens = [], 0
            some.append((row, place))
            tokens += read
        if some:
            yield some

    def _begun(self, room: int) -> TokenSession:
        """A session of one row that holds the prefix; the last one again, where it is large enough."""
        if self._session is None or self._room < room:
            self._room = min(-(-room // UNIT) * UNIT, max(self._limit, room))
            self._session = self._opened(1, self._room)
            self._session.begin(1)
            if self._prefix:
                self._session.extend([self._prefix])
        return self._session


def log_probabilities(logits: Logits, asked: Sequence[tuple[int, int]]) -> list[float]:
    """Of `[n, vocab]` logits and pairs of a row and a token, each pair's log probability."""
    if not asked:
        return []
    largest = logits.max(-1)
    totals = np.log(np.exp(logits - largest[:, None]).sum(-1, dtype=np.float64)) + largest
    rows, tokens = np.array(asked).T
    found: list[float] = (logits[rows, tokens] - totals[rows]).tolist()
    return found
