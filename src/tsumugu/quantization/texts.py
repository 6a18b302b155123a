"""Calibration texts as windows of tokens, taken evenly from everything that is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tsumugu.core.errors import InputError
from tsumugu.corpus.documents import Reading, read_documents
from tsumugu.corpus.encoding import encode_document
from tsumugu.corpus.inputs import find_sources
from tsumugu.text.tokenizer import Tokenizer

WINDOW = 512
LEAST = 128
"""Tokens below which nothing can be said about a model's inputs."""
MOST = 1 << 22
"""Tokens of text after which no more is read."""


def calibration_windows(
    tokenizer: Tokenizer, inputs: Sequence[str | Path], *, tokens: int, longest: int, column: str | None = None
) -> Tensor:
    """Token ids `[windows, time]`, each window behind the start token where there is one.

    Args:
        inputs: files, folders and patterns of text, as `tsumugu prepare` takes them.
        tokens: how many there are to be in all; fewer where the texts are shorter.
        longest: tokens that the model reads at most.
        column: of rows, the one with the text; found by its name when left out.

    Raises:
        InputError: the texts cannot be read, or are too short.
    """
    if tokens < LEAST:
        raise InputError(f"{tokens} tokens are too few to calibrate with", where="tokens", mend=f"at least {LEAST}")
    documents = (each for source in find_sources(inputs) for each in read_documents(source, Reading(column=column)))
    ids: list[int] = []
    for document in documents:
        ids += encode_document(tokenizer, document.text)
        if len(ids) >= MOST:
            break
    if len(ids) < LEAST:
        what = f"{len(ids)} tokens of text are too few to calibrate with"
        raise InputError(what, where="calibrate", mend=f"give {LEAST} at least, better some thousands")
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    first = [] if start is None else [start]
    size = min(WINDOW, longest, len(ids) + len(first), tokens)
    taken = size - len(first)
    count = max(1, min(tokens // size, len(ids) // taken))
    places = [at * (len(ids) - taken) // max(count - 1, 1) for at in range(count)]
    return torch.tensor([[*first, *ids[at : at + taken]] for at in places])
