"""Documents in memory, packed as the loader packs them, for tests of objectives."""

from __future__ import annotations

import numpy as np

from tsumugu.corpus.chance import generators
from tsumugu.corpus.loader import Loader


class Texts:
    """Documents of ids, with the bytes of each."""

    path = None

    def __init__(self, documents, sizes=None):
        self.documents = [np.array(each, np.uint16) for each in documents]
        self.lengths = np.array([len(each) for each in documents], np.int64)
        self.document_bytes = np.array(sizes if sizes is not None else 2 * self.lengths, np.int64)

    def document(self, index):
        return self.documents[index]


def random_texts(seed, *, count=12, longest=40, low=10, high=64):
    """Documents of random ordinary ids; their bytes are not those that the tokens tell."""
    chance = np.random.default_rng(seed)
    documents = [chance.integers(low, high, chance.integers(1, longest + 1)) for _ in range(count)]
    return Texts(documents, [int(chance.integers(1, 9)) * len(each) for each in documents])


def epoch(objective, corpus, packing, *, seed=5, number=0, **options):
    """All rows of one epoch and their generators."""
    loader = Loader(corpus, packing, length=objective.length(LENGTH), slots=objective.slots, seed=seed, **options)
    first = number * loader.rows_per_epoch
    rows = loader.rows(first, loader.rows_per_epoch)
    return rows, generators(seed, range(first, first + len(rows)))


LENGTH = 24
"""The context of the objectives in these tests."""


def binomial(count, trials, probability, *, deviations=5.0):
    """Whether `count` successes of `trials` are within so many standard deviations of what is expected."""
    return abs(count - trials * probability) <= deviations * np.sqrt(trials * probability * (1 - probability)) + 1e-9
