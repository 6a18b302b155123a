"""How many bytes of text each token stands for: what a loss per token is divided by to give bits per byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tsumugu.text.stream import byte_alphabet

if TYPE_CHECKING:
    from tsumugu.text.tokenizer import Tokenizer

_SINGLE_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the greatest id: what a table of all ids needs."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


def token_bytes(tokenizer: Tokenizer) -> npt.NDArray[np.int32]:
    """The UTF-8 bytes of each id, `[vocabulary_size]`.

    Special tokens stand for none, the unknown token included. A space that a token holds counts; white space that the
    tokenizer drops (word pieces do) belongs to no token.
    """
    return np.array([len(each) for each in token_texts(tokenizer)], np.int32)


def token_texts(tokenizer: Tokenizer) -> list[bytes]:
    """The text of each id in UTF-8, which may be a part of a character; nothing for special tokens."""
    texts = [b""] * vocabulary_size(tokenizer)
    added = tokenizer.backend.get_added_tokens_decoder()
    special = {*tokenizer.all_special_ids, *(index for index, each in added.items() if each.special)}
    steps = {each["type"]: each for each in _decoder_steps(tokenizer)}
    for token, index in tokenizer.get_vocab().items():
        if index not in special:
            texts[index] = token.encode() if index in added else _text(token, steps)
    return texts


def _text(token: str, steps: dict[str, Any]) -> bytes:
    if "ByteLevel" in steps:
        alphabet = _byte_characters()
        return b"".join(bytes([alphabet[each]]) if each in alphabet else each.encode() for each in token)
    if "ByteFallback" in steps and _SINGLE_BYTE.fullmatch(token):
        return bytes([int(token[3:5], 16)])
    if "WordPiece" in steps:
        token = token.removeprefix(steps["WordPiece"]["prefix"])
    if "BPEDecoder" in steps:
        token = token.replace(steps["BPEDecoder"]["suffix"], " ")
    if "Metaspace" in steps:
        token = token.replace(steps["Metaspace"]["replacement"], " ")
    if "Replace" in steps and steps["Replace"]["pattern"].get("String"):
        token = token.replace(steps["Replace"]["pattern"]["String"], steps["Replace"]["content"])
    return token.encode()


@cache
def _byte_characters() -> dict[str, int]:
    return {character: byte for byte, character in byte_alphabet().items()}


def _decoder_steps(tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    decoder = tokenizer.backend.decoder
    if decoder is None:
        return
    waiting = [json.loads(decoder.__getstate__())]
    while waiting:
        step = waiting.pop()
        if step["type"] == "Sequence":
            waiting += step["decoders"]
        else:
            yield step
