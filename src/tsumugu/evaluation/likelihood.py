"""How well a language model predicts texts: the negative log-likelihood of every token, document by document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from tsumugu.blocks.heads import IGNORE
from tsumugu.core.errors import InputError
from tsumugu.corpus.documents import Document
from tsumugu.corpus.encoding import encode_document
from tsumugu.evaluation.scoring import Item, Prediction
from tsumugu.models.base import Model
from tsumugu.text.tokenizer import Tokenizer

KIND = "language-modeling"
CONTEXT = 1024
"""Tokens read at once, where the model reads more; the second half of each window is scored."""
_SHOWN = 400  # characters that are kept of a document


@torch.inference_mode()
def likelihoods(
    model: Model,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    *,
    context: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Item]:
    """Each document with its bytes as reference and ``[nats, tokens]`` as prediction.

    The first token follows the start token (the end token where there is none). Long documents are read in windows that
    overlap by half, so that every later token is predicted from at least half a window.

    Args:
        model: a decoder.
        tokenizer: the model's own.
        documents: empty ones are left out.
        context: tokens of a window; at most what the model reads.
        progress: called with how many documents were read.

    Raises:
        InputError: the model does not predict the next token, or there is no token to start with.

    Source: Jelinek et al. 1977 (perplexity); Radford et al. 2019, section 3.1, on windows.
    """
    if model.head_name != "causal-lm":
        raise InputError(f"a model with head {model.head_name!r} does not predict the next token", where="model")
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise InputError("there is neither a start token nor an end token", where="tokenizer")
    size = min(context or CONTEXT, model.config.max_positions)
    if size < 2:
        raise InputError(f"{size} tokens are no context", where="context", mend="at least 2")
    for document in documents:
        if document.text:
            ids = [start, *encode_document(tokenizer, document.text)]
            nats = sum(_windows(model, ids, size))
            size_in_bytes = len(document.text.encode("utf-8", "replace"))
            shown = (document.text[:_SHOWN],)
            yield Item(document.where, shown, size_in_bytes, Prediction([nats, len(ids) - 1]))
        if progress is not None:
            progress(1)


def _windows(model: Model, ids: list[int], size: int) -> Iterator[float]:
    """The nats of each window's new tokens."""
    done = 1  # the start token is given
    begin = 0
    while done < len(ids):
        window = ids[begin : begin + size + 1]
        targets: list[Any] = [IGNORE if begin + at + 1 < done else token for at, token in enumerate(window[1:])]
        read = torch.tensor([window[:-1]], device=model.device)
        yield float(model(read, targets=torch.tensor([targets])).loss)
        done = begin + len(window)
        begin = done - 1 - size // 2
