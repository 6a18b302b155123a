"""Documents that are there already: the same text, or nearly the same.

Equal texts have equal digests. Near duplicates are found by MinHash: a signature of 128 numbers estimates how much two
texts have in common (the Jaccard similarity of their stretches), and an index of bands of the signatures finds the
candidates. Stretches are five words, or five characters in scripts without spaces.

Sources: Broder 1997, "On the Resemblance and Containment of Documents"; for the index, Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", section 3.4; for the stretches, Lee et al. 2022, "Deduplicating Training Data Makes
Language Models Better", and Okazaki et al. 2024, "Building a Large Japanese Web Corpus for Large Language Models".
"""

from __future__ import annotations

import hashlib
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tsumugu.core.errors import MissingExtraError
from tsumugu.corpus.units import Hashes, grams, units_of

DIGEST_BYTES = 16
SIGNATURE = 128
_STRETCH = 5
_SEED = 1
_RECALL = 0.98
_MOST_CANDIDATES = 64  # of one band: boilerplate that many documents share must not make each cost more than the last


def digest(text: bytes) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest()


class NumberTable:
    """Pairs of 64-bit numbers, found by the first of them: two sorted arrays, 16 bytes a pair.

    New pairs go to a small table that is merged into the large one when it has grown to a part of it.
    """

    def __init__(self) -> None:
        empty = np.zeros(0, np.uint64)
        self._large, self._small = (empty, empty), (empty, empty)

    def __len__(self) -> int:
        return len(self._large[0]) + len(self._small[0])

    def add(self, keys: Hashes, values: Hashes) -> None:
        """Add pairs; the values of equal keys keep the order in which they came."""
        order = np.argsort(keys, kind="stable")
        self._small = _merged(self._small, (keys[order], values[order]))
        if len(self._small[0]) > max(1 << 16, len(self._large[0]) >> 5):
            self._large = _merged(self._large, self._small)
            empty = np.zeros(0, np.uint64)
            self._small = (empty, empty)

    def find(self, keys: Hashes, *, most: int | None = None) -> list[Hashes]:
        """The values of each key, in the order in which they came, the first `most` of them."""
        found: list[list[Hashes]] = [[] for _ in keys]
        for have, values in (self._large, self._small):
            first = np.searchsorted(have, keys, side="left")
            last = np.searchsorted(have, keys, side="right")
            for at in np.flatnonzero(last > first):
                end = last[at] if most is None else min(last[at], first[at] + most)
                found[at].append(values[first[at] : end])
        return [np.concatenate(each)[:most] if each else keys[:0] for each in found]


def _merged(one: tuple[Hashes, Hashes], other: tuple[Hashes, Hashes]) -> tuple[Hashes, Hashes]:
    at = np.searchsorted(one[0], other[0], side="right")
    return np.insert(one[0], at, other[0]), np.insert(one[1], at, other[1])


class ExactIndex:
    """The digests of all documents so far."""

    def __init__(self) -> None:
        self._table = NumberTable()

    def __len__(self) -> int:
        return len(self._table)

    def new(self, digests: bytes) -> npt.NDArray[np.bool_]:
        """Which of these digests (16 bytes each) were not there before; they are from now on."""
        pairs = np.frombuffer(digests, "<u8").reshape(-1, 2).astype(np.uint64)
        fresh = np.zeros(len(pairs), bool)
        fresh[np.unique(pairs, axis=0, return_index=True)[1]] = True
        for at, values in enumerate(self._table.find(pairs[:, 0])):
            if len(values) and (values == pairs[at, 1]).any():
                fresh[at] = False
        self._table.add(pairs[fresh, 0], pairs[fresh, 1])
        return fresh


class MinHasher:
    """Signatures of texts. Equal in every process and on every run.

    Raises:
        MissingExtraError: rensa is not installed.
    """

    def __init__(self) -> None:
        try:
            import rensa
        except ImportError:
            raise MissingExtraError("rensa", extra="clean", purpose="finding near duplicates") from None
        self._hasher: Any = rensa.RMinHash

    def signature(self, text: str) -> npt.NDArray[np.uint32]:
        """The signature of a text, `[128]`."""
        units = units_of(text).hashes
        rows = np.unique(grams(units, min(_STRETCH, len(units))))
        ends = np.array([0, len(rows)], np.uint64)
        matrix = self._hasher.digest_matrix_from_flat_token_hashes(rows, ends, SIGNATURE, _SEED)
        return np.array(matrix.to_rows()[0], np.uint32)


def bands_for(threshold: float) -> tuple[int, int]:
    """How many bands of how many rows: the longest that still find 98 % of the pairs just at the threshold."""
    for rows in range(SIGNATURE, 1, -1):
        bands = SIGNATURE // rows
        if 1 - (1 - threshold**rows) ** bands >= _RECALL:
            return bands, rows
    return SIGNATURE, 1


class NearIndex:
    """The signatures of the documents that were kept, in a file; their bands, in memory (16 bytes each).

    Args:
        file: open for reading and writing; holds the signatures of `documents` documents.
        threshold: the estimated similarity from which on two texts count as one.
    """

    def __init__(self, file: BinaryIO, threshold: float, documents: int = 0) -> None:
        self._file, self._threshold = file, threshold
        self._bands, self._rows = bands_for(threshold)
        self._table = NumberTable()
        self._documents = 0
        size = 4 * SIGNATURE
        file.truncate(documents * size)
        file.seek(0)
        while self._documents < documents:
            count = min(4096, documents - self._documents)
            self._remember(np.frombuffer(file.read(count * size), "<u4").reshape(count, SIGNATURE))

    def __len__(self) -> int:
        return self._documents

    def new(self, signatures: npt.NDArray[np.uint32], candidates: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which of the candidates are like no document so far; those are remembered, in their order."""
        fresh = np.zeros(len(signatures), bool)
        keys = self._keys(signatures)
        older = self._table.find(keys.ravel(), most=_MOST_CANDIDATES)
        within: dict[int, list[int]] = {}
        for at in np.flatnonzero(candidates):
            own = keys[at].tolist()
            known = np.unique(np.concatenate(older[at * self._bands : (at + 1) * self._bands]))
            near = {row for key in own for row in within.get(key, ())[:_MOST_CANDIDATES]}
            if self._like_one(signatures[at], known) or any(
                _similarity(signatures[at], signatures[row]) >= self._threshold for row in sorted(near)
            ):
                continue
            fresh[at] = True
            for key in own:
                within.setdefault(key, []).append(int(at))
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(signatures[fresh], "<u4").data)
        self._file.flush()
        self._remember(signatures[fresh])
        return fresh

    def _like_one(self, signature: npt.NDArray[np.uint32], documents: Hashes) -> bool:
        for number in documents.tolist():
            self._file.seek(number * 4 * SIGNATURE)
            other = np.frombuffer(self._file.read(4 * SIGNATURE), "<u4")
            if _similarity(signature, other) >= self._threshold:
                return True
        return False

    def _remember(self, signatures: npt.NDArray[np.uint32]) -> None:
        numbers = np.arange(self._documents, self._documents + len(signatures), dtype=np.uint64)
        self._table.add(self._keys(signatures).ravel(), np.repeat(numbers, self._bands))
        self._documents += len(signatures)

    def _keys(self, signatures: npt.NDArray[np.uint32]) -> Hashes:
        """A number for each band of each signature, `[documents, bands]`."""
        used = signatures[:, : self._bands * self._rows].astype(np.uint64)
        parts = used.reshape(len(signatures), self._bands, self._rows)
        keys = np.broadcast_to(np.arange(self._bands, dtype=np.uint64), parts.shape[:2]).copy()
        for row in range(self._rows):
            keys = keys * np.uint64(0x9E3779B97F4A7C15) + parts[:, :, row] + np.uint64(1)
            keys ^= keys >> np.uint64(29)
        return keys


def _similarity(one: npt.NDArray[np.uint32], other: npt.NDArray[np.uint32]) -> float:
    return float(np.count_nonzero(one == other)) / SIGNATURE
