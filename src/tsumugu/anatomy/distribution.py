"""How the data of a model is distributed: lengths, tokens, languages, labels, duplicates, what stands there often.

A prepared corpus is read as token ids; files of texts are cut by the model's tokenizer. Of large data the first
documents that make up five million tokens count, and the figures say how many those were.

Sources: Zipf 1949, "Human Behavior and the Principle of Least Effort"; the slope is fitted by least squares over the
ranks 10 to 1000 in logarithms, where counting noise is small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tsumugu.core.errors import InputError, MissingExtraError, one_line
from tsumugu.corpus.duplicates import MinHasher, bands_for, digest
from tsumugu.corpus.encoding import encode_document
from tsumugu.corpus.languages import LanguageIdentifier
from tsumugu.corpus.shard_writer import checksum
from tsumugu.corpus.shards import Corpus
from tsumugu.corpus.units import grams, is_spaced, units_of
from tsumugu.data.readers import read_rows
from tsumugu.data.rows import Row
from tsumugu.text.stream import byte_alphabet
from tsumugu.text.tokenizer import Tokenizer

MOST_TOKENS = 5_000_000
_LANGUAGES_OF = 2000  # texts; evenly spaced ones, where there are more
_NEAR_OF = 5000
_SIMILAR = 0.8
_TOP = 20
_LABELS = ("label", "labels", "class", "category", "sentiment", "tag")
_TEXTS = ("text", "sentence", "content", "prompt", "body", "sentence1", "premise", "question", "document", "title")
_SECONDS = ("text_b", "sentence2", "hypothesis", "context", "summary", "answer")

Progress = Callable[[int], None]


@dataclass
class Documents:
    """What is looked at: ids and texts of each document, labels where there are any, and where all came from."""

    ids: list[npt.NDArray[np.int64]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    whole: bool = True
    sources: list[dict[str, Any]] = field(default_factory=list)


def describe_data(
    paths: Sequence[Path], tokenizer: Tokenizer, *, text_column: str | None = None, progress: Progress | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sources of data, and how it is distributed, as plain JSON values.

    Args:
        paths: folders of prepared corpora, or files that `read_rows` reads.
        tokenizer: cuts the texts of files; a corpus holds ids already, and its own tokenizer spells them out.
        text_column: the column with the text; found by its name when left out.
        progress: called with the number of tokens of each document.

    Raises:
        InputError: nothing to read, or files that cannot be read.
    """
    found = Documents()
    speller = tokenizer
    for path in paths:
        if path.is_dir():
            corpus = Corpus.open(path)
            speller = corpus.tokenizer()
            _take_corpus(corpus, speller, found, progress)
        else:
            _take_file(path, tokenizer, text_column, found, progress)
    if not found.ids:
        raise InputError("there is no text in it", where=", ".join(map(str, paths)))
    return {"sources": found.sources}, distribution(found, speller)


def distribution(found: Documents, tokenizer: Tokenizer) -> dict[str, Any]:
    """The figures of documents that were read."""
    lengths = np.array([len(each) for each in found.ids], np.int64)
    stream = np.concatenate(found.ids) if found.ids else np.zeros(0, np.int64)
    counts = np.bincount(stream, minlength=len(tokenizer)) if len(stream) else np.zeros(len(tokenizer), np.int64)
    described: dict[str, Any] = {
        "documents": len(lengths),
        "whole": found.whole,
        "tokens": int(lengths.sum()),
        "characters": sum(map(len, found.texts)),
        "lengths": {
            "mean": float(lengths.mean()),
            "quantiles": {str(q): float(np.quantile(lengths, q / 100)) for q in (0, 5, 25, 50, 75, 95, 99, 100)},
            "histogram": _histogram(lengths),
        },
        "vocabulary": {
            "size": len(tokenizer),
            "used": int((counts > 0).sum()),
            "once": int((counts == 1).sum()),
            "entropy_bits": _entropy(counts),
        },
        "zipf": _zipf(counts),
        "top_tokens": [
            {"token": _spelt(tokenizer, int(i)), "id": int(i), "count": int(counts[i])}
            for i in np.argsort(-counts, kind="stable")[:_TOP]
            if counts[i]
        ],
        "top_ngrams": {str(n): _top_grams(found.texts, n) for n in (2, 3, 4)},
        "duplicates": _duplicates(found),
    }
    if found.labels:
        described["labels"] = dict(Counter(found.labels).most_common(50))
    try:
        described["languages"] = _languages(found.texts)
    except MissingExtraError as error:
        described["languages_left_out"] = str(error)
    return described


def corpus_source(corpus: Corpus) -> dict[str, Any]:
    """What a prepared corpus is and where it came from, without a look at its documents."""
    keep = ("documents", "tokens", "bytes", "characters", "checksum")
    about = {key: getattr(corpus, key) for key in keep}
    files = [{**each, "path": Path(str(each["path"])).name} if "path" in each else each for each in corpus.sources]
    return {"name": corpus.path.name, "kind": "corpus", **about, "inputs": files}


def _take_corpus(corpus: Corpus, tokenizer: Tokenizer, found: Documents, progress: Progress | None) -> None:
    found.sources.append(corpus_source(corpus))
    taken = sum(map(len, found.ids))
    for number in range(len(corpus)):
        if taken >= MOST_TOKENS:
            found.whole = False
            break
        ids = corpus.document(number).astype(np.int64)
        taken += len(ids)
        found.ids.append(ids)
        found.texts.append(tokenizer.decode(ids.tolist()))
        if progress is not None:
            progress(len(ids))


def _take_file(
    path: Path, tokenizer: Tokenizer, column: str | None, found: Documents, progress: Progress | None
) -> None:
    rows = read_rows(path)
    found.sources.append(
        {
            "name": f"{path.absolute().parent.name}/{path.name}",
            "kind": "file",
            "bytes": path.stat().st_size,
            "checksum": f"sha256:{checksum(path)}",
        }
    )
    taken = sum(map(len, found.ids))
    count = 0
    for row in rows:
        if taken >= MOST_TOKENS:
            found.whole = False
            break
        text, label = text_of_row(row, column)
        if label is not None:
            found.labels.append(label)
        if not text:
            continue
        ids = np.array(encode_document(tokenizer, text), np.int64)
        taken += len(ids)
        count += 1
        found.ids.append(ids)
        found.texts.append(text)
        if progress is not None:
            progress(len(ids))
    found.sources[-1]["documents"] = count


def text_of_row(row: Row, column: str | None) -> tuple[str, str | None]:
    """The text of a row (texts of a pair together), and its label."""
    values = row.values
    if column is not None:
        text = values.get(column)
        if not isinstance(text, str):
            raise InputError("holds no text", where=f"{row.where}, column {column!r}")
    else:
        first = next((name for name in _TEXTS if isinstance(values.get(name), str)), None)
        if first is None:
            first = next((name for name, each in values.items() if isinstance(each, str) and name not in _LABELS), None)
        if first is None:
            raise InputError("no column holds texts", where=row.where, mend="name it with --text-column")
        second = next((name for name in _SECONDS if isinstance(values.get(name), str)), None)
        text = "\n".join(str(values[name]) for name in (first, second) if name is not None)
    label = next((values[name] for name in _LABELS if isinstance(values.get(name), str | int)), None)
    return text, None if label is None else str(label)


def _histogram(lengths: npt.NDArray[np.int64]) -> dict[str, list[int]]:
    """Documents by length; the edges grow by the square root of two, so that short and long ones are told apart."""
    top = max(int(lengths.max()), 1)
    edges = np.unique(np.round(2 ** np.arange(0, np.log2(top) + 1, 0.5)).astype(np.int64))
    edges = np.concatenate([[0], edges[edges <= top], [top + 1]])
    edges = np.unique(edges)
    counts, _ = np.histogram(lengths, bins=edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _entropy(counts: npt.NDArray[np.int64]) -> float:
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log2(shares)).sum())


def _zipf(counts: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Counts by rank, at ranks evenly spaced in logarithms, and how steeply they fall."""
    ranked = np.sort(counts[counts > 0])[::-1]
    if not len(ranked):
        return {"ranks": [], "counts": [], "slope": None}
    ranks = np.unique(np.round(np.geomspace(1, len(ranked), 60)).astype(np.int64))
    low, high = 10, min(1000, len(ranked))
    slope = None
    if high > 2 * low:
        fitted = np.polyfit(np.log(np.arange(low, high + 1)), np.log(ranked[low - 1 : high]), 1)
        slope = float(fitted[0])
    return {"ranks": ranks.tolist(), "counts": ranked[ranks - 1].tolist(), "slope": slope}


def _top_grams(texts: Sequence[str], n: int) -> list[dict[str, Any]]:
    """The commonest runs of n words within documents; where no spaces divide words, two characters stand for one.

    Found by numbers that stand for runs, 64 bits each; the text of a run is looked up where it stood first.
    """
    keys, counts = [], []
    for text in texts:
        units = units_of(text)
        keys.append(grams(units.hashes, n if units.spaced else 2 * n))
        counts.append(len(keys[-1]))
    stream = np.concatenate(keys) if keys else np.zeros(0, np.uint64)
    if not len(stream):
        return []
    _, first, often = np.unique(stream, return_index=True, return_counts=True)
    ends = np.cumsum(counts)
    found = []
    for i in np.argsort(-often, kind="stable")[:_TOP]:
        if often[i] > 1:
            document = int(np.searchsorted(ends, first[i], side="right"))
            start = int(first[i] - (ends[document] - counts[document]))
            found.append({"text": _run(texts[document], start, n), "count": int(often[i])})
    return found


def _run(text: str, start: int, n: int) -> str:
    """A run of n words of a text, or of twice as many characters."""
    if is_spaced(text):
        return one_line(" ".join(text.split()[start : start + n]), limit=80)
    return one_line("".join(text.split())[start : start + 2 * n], limit=80)


def _duplicates(found: Documents) -> dict[str, Any]:
    """Documents that equal an earlier one, and those that are nearly like one."""
    digests = [digest(each.encode("utf-8", "replace")) for each in found.texts]
    described: dict[str, Any] = {"exact": len(digests) - len(set(digests)), "of": len(digests)}
    try:
        hasher = MinHasher()
    except MissingExtraError as error:
        return {**described, "near_left_out": str(error)}
    fresh = list(dict(zip(digests, found.texts, strict=True)).values())[:_NEAR_OF]
    signatures = np.stack([hasher.signature(each) for each in fresh if each.strip()] or [np.zeros(128, np.uint32)])
    return {**described, "near": _near(signatures), "near_of": len(signatures), "near_threshold": _SIMILAR}


def _near(signatures: npt.NDArray[np.uint32]) -> int:
    """How many rows resemble an earlier one by 0.8 or more; candidates share a band of their signatures."""
    bands, width = bands_for(_SIMILAR)
    seen: list[dict[bytes, list[int]]] = [{} for _ in range(bands)]
    near = 0
    for at, row in enumerate(signatures):
        keys = [row[band * width : (band + 1) * width].tobytes() for band in range(bands)]
        candidates = {other for band, key in enumerate(keys) for other in seen[band].get(key, ())}
        near += any(float((row == signatures[other]).mean()) >= _SIMILAR for other in candidates)
        for band, key in enumerate(keys):
            seen[band].setdefault(key, []).append(at)
    return near


def _languages(texts: Sequence[str]) -> dict[str, int]:
    identifier = LanguageIdentifier()
    step = max(1, len(texts) // _LANGUAGES_OF)
    return dict(Counter(identifier.language(each)[0] for each in texts[::step]).most_common(20))


def _spelt(tokenizer: Tokenizer, number: int) -> str:
    """A token as text, safe to show; the bytes of one that is no whole character as hexadecimal numbers."""
    text = tokenizer.decode([number])
    if "\ufffd" in text or not text:
        text = str(tokenizer.convert_ids_to_tokens(number))
        known = {character: byte for byte, character in byte_alphabet().items()}
        if text and all(each in known for each in text):
            text = f"⟨{' '.join(f'{known[each]:02x}' for each in text)}⟩"
    else:
        text = text.replace(" ", "␣").replace("\n", "↵")
    return one_line(text, limit=60)
