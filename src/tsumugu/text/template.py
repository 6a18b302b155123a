"""The special tokens that are put around a text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers
from tokenizers import processors


def bos_eos(backend: tokenizers.Tokenizer, tokens: Mapping[str, str], used: Iterable[str]) -> Any:
    """A post-processor that puts bos before and eos after each text, as far as they are in `used`; None for neither."""
    used = list(used)
    if not used:
        return None
    names = {role: tokens[role] for role in used}

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        pieces: list[dict[str, Any]] = [{"Sequence": {"id": sequence, "type_id": type_id}}]
        for role, at in (("bos", 0), ("eos", len(used))):
            if role in names:
                pieces.insert(at, {"SpecialToken": {"id": names[role], "type_id": type_id}})
        return pieces

    special = {each: {"id": each, "ids": [backend.token_to_id(each)], "tokens": [each]} for each in names.values()}
    state = {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": special,
    }
    processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    processor.__setstate__(json.dumps(state).encode())
    return processor


def added_around(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that are put before and after a text."""
    encoded = backend.encode("a")
    text = [i for i, special in enumerate(encoded.special_tokens_mask) if not special]
    if not text:
        return list(encoded.ids), []
    return encoded.ids[: text[0]], encoded.ids[text[-1] + 1 :]
