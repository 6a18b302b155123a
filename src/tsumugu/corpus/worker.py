"""The work on a block of documents, in this process or in one of its own.

A process of its own gets blocks on standard input and answers on standard output; both are arrays in NumPy's .npz
format behind their length, so that nothing is executed on either side. It ends when its input does, and so never
outlives whoever started it.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tsumugu.core.errors import TsumuguError
from tsumugu.corpus.cleaning import Cleaner, Cleaning
from tsumugu.corpus.duplicates import DIGEST_BYTES, SIGNATURE, MinHasher, digest
from tsumugu.corpus.encoding import encode_document

Arrays = dict[str, npt.NDArray[Any]]


class Worker:
    """Cleans and tokenises blocks of documents.

    Args:
        tokenizer: the folder of a saved tokenizer.
        cleaning: what is done to each document.
        dtype: of the ids.

    Raises:
        MissingExtraError: what the cleaning asks for needs a library that is not installed.
    """

    def __init__(self, tokenizer: Path, cleaning: Cleaning, dtype: np.dtype[Any]) -> None:
        from tsumugu.text.tokenizer import Tokenizer

        self._tokenizer = Tokenizer.from_folder(tokenizer)
        self._cleaner = Cleaner(cleaning)
        self._hasher = MinHasher() if cleaning.near_duplicates is not None else None
        self._languages = bool(cleaning.languages)
        self._dtype = dtype

    def work(self, texts: Sequence[str]) -> Arrays:
        """What becomes of each text.

        Returns:
            ``reasons`` (places in `Cleaning.reasons`), ``values``, ``changed`` (by normalisation), ``characters`` and
            ``bytes`` (in normal form), ``digests`` `[texts, 16]`, ``lengths`` (tokens, 0 where dropped), all
            `[texts]`; ``ids`` `[tokens]`; ``signatures`` `[texts, 128]` and ``languages`` where they are asked for.
        """
        count = len(texts)
        found: Arrays = {
            "reasons": np.zeros(count, np.int16),
            "values": np.zeros(count, np.float64),
            "changed": np.zeros(count, bool),
            "characters": np.zeros(count, np.int64),
            "bytes": np.zeros(count, np.int64),
            "lengths": np.zeros(count, np.int64),
            "digests": np.zeros((count, DIGEST_BYTES), np.uint8),
        }
        if self._hasher is not None:
            found["signatures"] = np.zeros((count, SIGNATURE), np.uint32)
        languages, ids = [""] * count, []
        for at, text in enumerate(texts):
            verdict = self._cleaner.judge(text)
            languages[at] = verdict.language
            data = verdict.text.encode()
            found["changed"][at] = verdict.text != text
            found["characters"][at], found["bytes"][at] = len(verdict.text), len(data)
            found["reasons"][at], found["values"][at] = verdict.reason, verdict.value
            if verdict.reason:
                continue
            row = np.array(encode_document(self._tokenizer, verdict.text), self._dtype)
            if not len(row):
                found["reasons"][at] = 1  # nothing but what the tokenizer itself leaves out
                continue
            found["digests"][at] = np.frombuffer(digest(data), np.uint8)
            if self._hasher is not None:
                found["signatures"][at] = self._hasher.signature(verdict.text)
            found["lengths"][at] = len(row)
            ids.append(row)
        found["ids"] = np.concatenate(ids) if ids else np.zeros(0, self._dtype)
        if self._languages:
            found["languages"] = np.array(languages, np.str_)
        return found


def send(stream: IO[bytes], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays behind their length."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    stream.write(buffer.tell().to_bytes(8, "little"))
    stream.write(buffer.getbuffer())
    stream.flush()


def receive(stream: IO[bytes]) -> Arrays | None:
    """Read what `send` wrote; None when the stream has ended."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    data = stream.read(size := int.from_bytes(head, "little"))
    if len(data) < size:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def packed(texts: Sequence[bytes]) -> Arrays:
    """Texts in UTF-8 as arrays."""
    return {"text": np.frombuffer(b"".join(texts), np.uint8), "lengths": np.array([len(each) for each in texts])}


def unpacked(arrays: Arrays) -> list[str]:
    """The texts that `packed` was given."""
    data, ends = arrays["text"].tobytes(), np.cumsum(arrays["lengths"]).tolist()
    return [data[start:end].decode() for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def main() -> None:
    """Serve blocks until standard input ends. The first message says how to work; the first answer, that it can."""
    source, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not stand among the answers
    first = receive(source)
    if first is None:
        return
    settings = json.loads(str(first["settings"]))
    try:
        cleaning = Cleaning.from_dict(settings["cleaning"])
        worker = Worker(Path(settings["tokenizer"]), cleaning, np.dtype(settings["dtype"]))
        send(answers, {})
        while (block := receive(source)) is not None:
            send(answers, worker.work(unpacked(block)))
    except TsumuguError as error:
        send(answers, {"error": np.array(json.dumps([error.what, error.where, error.mend]))})
    except BrokenPipeError:  # nobody waits for the answer any more
        os._exit(1)
