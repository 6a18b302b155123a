"""SentencePiece's way to write text: spaces are "▁", rare characters fall back to bytes, scores say what to merge.

Source: Kudo and Richardson 2018, "SentencePiece: A simple and language independent subword tokenizer and
detokenizer".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

SPACE = "▁"


def scored_pieces(
    tokens: Sequence[str], scores: Sequence[float], *, unknown: str | None, prefix: bool
) -> tokenizers.Tokenizer:
    """BPE that merges the pair of the best score first. `prefix` puts a space before every stretch of text."""
    vocab = {token: i for i, token in enumerate(tokens)}
    model = models.BPE(
        vocab=vocab,
        merges=merges_of_scores(tokens, scores),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=all(f"<0x{byte:02X}>" in vocab for byte in range(256)),
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = escape_spaces(prefix=prefix)
    words = split_words(tokens)
    if words is not None:
        backend.pre_tokenizer = words
    backend.decoder = decode_spaces(prefix=prefix)
    return backend


def escape_spaces(*, prefix: bool) -> Any:
    """The normaliser that writes spaces as "▁"."""
    spaces = normalizers.Replace(" ", SPACE)
    return normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces


def split_words(tokens: Iterable[str]) -> Any | None:
    """A pre-tokenizer that handles words one by one: the same ids, much sooner; None where a token spans two words."""
    if any(re.search(f"[^{SPACE}]{SPACE}", each) for each in tokens):
        return None
    return pre_tokenizers.Split(Regex(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+"), "isolated")


def decode_spaces(*, prefix: bool) -> Any:
    """The decoder: "▁" is a space, byte tokens are bytes, and the space that was put in front goes."""
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)


def merges_of_scores(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges that give the tokens: the best score first, then the smaller id, then the shorter left part."""
    known = set(tokens)
    found = []
    for index in sorted(range(len(tokens)), key=scores.__getitem__, reverse=True):
        token = tokens[index]
        parts = ((token[:at], token[at:]) for at in range(1, len(token)))
        found += [(left, right) for left, right in parts if left in known and right in known]
    return found


def scores_of_merges(tokens: Sequence[str], merges: Iterable[tuple[str, str]]) -> list[float]:
    """Scores in the order of the merges: 0, -1, -2… Tokens that no merge gives come last."""
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(merges):
        rank.setdefault(left + right, i)
    return [-float(rank.get(token, len(rank) + 1_000_000)) for token in tokens]
