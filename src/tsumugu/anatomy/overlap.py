"""Whether evaluation sets stand in the data that a model was trained on: runs of words that both have.

An example is dirty when any run of n words of it stands in a training document; n is the fifth percentile of the
examples' lengths, between 8 and 13, and shorter examples are not judged. Words are lower-cased, without punctuation;
where no spaces divide them, two characters stand for one. The runs of the evaluation sets alone are held, as 64-bit
numbers, so that training data of any size stream past.

Source: Brown et al. 2020, "Language Models are Few-Shot Learners" (GPT-3), appendix C.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tsumugu.anatomy.distribution import text_of_row
from tsumugu.core.errors import InputError, one_line
from tsumugu.corpus.shards import Corpus
from tsumugu.corpus.units import Hashes, Units, grams, units_of
from tsumugu.data.readers import read_rows

LEAST, MOST = 8, 13
_PERCENTILE = 5
_SHOWN = 5
_PUNCTUATION = re.compile(r"[^\w\s]+|_+")


@dataclass(frozen=True)
class _Set:
    """An evaluation set: its name, n, its examples' texts and the runs of each."""

    name: str
    n: int
    texts: list[str]
    runs: list[Hashes]


def overlap(
    data: Sequence[Path],
    evaluations: Sequence[Path],
    *,
    text_column: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """For each evaluation set, how much of it stands in the training data, as plain JSON values.

    Args:
        data: folders of prepared corpora, or files that `read_rows` reads; all of it is read.
        evaluations: files that `read_rows` reads.
        text_column: of the training data's files; found by its name when left out, as it is in evaluation sets.
        progress: called with how many documents were read.

    Raises:
        InputError: a file cannot be read, or there is no text in it.
    """
    sets = [_read(path) for path in evaluations]
    wanted = np.unique(np.concatenate([run for each in sets for run in each.runs] or [np.zeros(0, np.uint64)]))
    found = np.zeros(len(wanted), bool)
    sizes = sorted({each.n for each in sets})
    for text in _texts(data, text_column):
        units = _units(text)
        for n in sizes if len(wanted) else ():
            here = grams(units.hashes, n if units.spaced else 2 * n)
            at = np.minimum(np.searchsorted(wanted, here), len(wanted) - 1)
            found[at[wanted[at] == here]] = True
        if progress is not None:
            progress(1)
    return [_judged(each, wanted, found) for each in sets]


def _read(path: Path) -> _Set:
    texts = [text for row in read_rows(path) if (text := text_of_row(row, None)[0])]
    if not texts:
        raise InputError("there is no text in it", where=str(path))
    cut = [_units(each) for each in texts]
    lengths = [len(each.hashes) / (1 if each.spaced else 2) for each in cut]
    n = int(np.clip(np.percentile(lengths, _PERCENTILE), LEAST, MOST))
    runs = [grams(each.hashes, n if each.spaced else 2 * n) for each in cut]
    return _Set(f"{path.absolute().parent.name}/{path.name}", n, texts, runs)


def _units(text: str) -> Units:
    return units_of(_PUNCTUATION.sub(" ", text.lower()))


def _texts(data: Sequence[Path], column: str | None) -> Iterator[str]:
    for path in data:
        if path.is_dir():
            corpus = Corpus.open(path)
            tokenizer = corpus.tokenizer()
            for number in range(len(corpus)):
                yield tokenizer.decode(corpus.document(number).tolist())
        else:
            for row in read_rows(path):
                yield text_of_row(row, column)[0]


def _judged(each: _Set, wanted: Hashes, found: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
    shares = [float(found[np.searchsorted(wanted, run)].mean()) if len(run) else None for run in each.runs]
    judged = [(share, at) for at, share in enumerate(shares) if share is not None]
    dirty = sorted(((share, at) for share, at in judged if share), key=lambda one: (-one[0], one[1]))
    return {
        "name": each.name,
        "n": each.n,
        "examples": len(each.texts),
        "short": len(each.texts) - len(judged),
        "dirty": len(dirty),
        "dirty_share": len(dirty) / max(len(judged), 1),
        "runs_found": sum(share for share, _ in judged) / max(len(judged), 1),
        "worst": [
            {"example": at + 1, "share": share, "text": one_line(each.texts[at], limit=120)}
            for share, at in dirty[:_SHOWN]
        ],
    }


def in_words(found: dict[str, Any]) -> str:
    """One set's figures in a line."""
    judged = found["examples"] - found["short"]
    short = f", {found['short']:,} too short to judge" if found["short"] else ""
    return (
        f"{found['dirty']:,} of {judged:,} examples ({found['dirty_share']:.1%}) share a run of {found['n']} words "
        f"with the data{short}"
    )
