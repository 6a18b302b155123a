"""What objectives need to know of a tokenizer: special ids, bytes of text, and which tokens go on with a word."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tokenizers import models

from tsumugu.core.errors import InputError
from tsumugu.objectives.base import Vocabulary
from tsumugu.text.pieces import SPACE
from tsumugu.text.special import ROLES
from tsumugu.text.stream import byte_alphabet

if TYPE_CHECKING:
    from tsumugu.text.tokenizer import Tokenizer

_SENTINEL = re.compile(r"<extra_id_(\d+)>")
_SINGLE_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Kana, kanji, bopomofo, Thai, Lao, Tibetan, Burmese and Khmer: scripts that put no space between words.
_UNSPACED = re.compile(
    "[\\u0e00-\\u109f\\u1780-\\u17ff\\u3005-\\u3007\\u3040-\\u312f\\u31f0-\\u31ff\\u3400-\\u4dbf\\u4e00-\\u9fff\\uf900-\\ufaff"
    "\\uff66-\\uff9f\\U00020000-\\U0003ffff]"
)
_NEVER_FIRST = frozenset("ーｰﾞﾟ\u3099\u309a")  # they lengthen or voice the kana before


def vocabulary_of(tokenizer: Tokenizer, token_bytes: npt.NDArray[np.integer]) -> Vocabulary:
    """What an objective needs to know of `tokenizer`.

    Args:
        tokenizer: the one that the corpus was prepared with.
        token_bytes: UTF-8 bytes that each id stands for, `[vocabulary]`, as the corpus has them.

    Raises:
        InputError: `token_bytes` are of another tokenizer.
    """
    table = tokenizer.get_vocab()
    size = max(table.values(), default=-1) + 1
    if len(token_bytes) < size:
        raise InputError(
            f"the tokenizer has {size} ids, the corpus knows {len(token_bytes)}",
            where="corpus",
            mend="prepare the corpus with this tokenizer",
        )
    known = tokenizer.backend.get_added_tokens_decoder()
    special = {*tokenizer.all_special_ids, *(index for index, each in known.items() if each.special)}
    sentinels = {int(found[1]): index for token, index in table.items() if (found := _SENTINEL.fullmatch(token))}
    return Vocabulary(
        size=len(token_bytes),
        token_bytes=token_bytes,
        **{role: getattr(tokenizer, f"{role}_token_id") for role in ROLES},
        special=tuple(sorted(special)),
        continues=continues(tokenizer, len(token_bytes)),
        sentinels=tuple(sentinels[number] for number in sorted(sentinels)),
        added={each.content: index for index, each in known.items()},
    )


def continues(tokenizer: Tokenizer, size: int) -> npt.NDArray[np.bool_] | None:
    """Which ids go on with the word before them, `[size]`; None where the spelling of tokens does not tell.

    WordPiece marks them itself ("##"); byte-level BPE and SentencePiece mark the others, by the space before them. So a
    word is what stands between two spaces, and punctuation begins a word of its own. Where a script has no spaces
    (Japanese, Chinese, Thai…), that would make one word of a whole sentence: there each token is a word by itself,
    unless it begins inside of a character or with a sign that cannot come first (ー).
    """
    model = tokenizer.backend.model
    if isinstance(model, models.BPE) and model.end_of_word_suffix:
        return None  # there the token before tells
    prefix = getattr(model, "continuing_subword_prefix", None)
    kinds = _decoder_kinds(tokenizer.backend.decoder)
    alphabet = {char: byte for byte, char in byte_alphabet().items()} if "ByteLevel" in kinds else {}
    found = np.zeros(size, bool)
    if isinstance(model, models.WordLevel):
        return found
    added = tokenizer.backend.get_added_tokens_decoder()
    for token, index in tokenizer.get_vocab().items():
        if index in added or not token:
            continue
        if prefix:
            found[index] = token.startswith(prefix) and _goes_on(token[len(prefix) :])
        elif alphabet:
            found[index] = _bytes_go_on(bytes(alphabet[each] for each in token if each in alphabet))
        elif single := _SINGLE_BYTE.fullmatch(token):
            found[index] = _bytes_go_on(bytes.fromhex(single[1]))
        else:
            found[index] = not token.startswith(SPACE) and _goes_on(token)
    return found


def _goes_on(text: str) -> bool:
    """Whether text without a space before it belongs to the word before it."""
    first = text[:1]
    if _UNSPACED.match(first):
        return first in _NEVER_FIRST
    return bool(first) and unicodedata.category(first)[0] in "LMN"


def _bytes_go_on(data: bytes) -> bool:
    """The same for bytes, which may begin and end inside of a character."""
    if not data:
        return False
    width = 1 if data[0] < 0x80 else 0 if data[0] < 0xC0 else 2 if data[0] < 0xE0 else 3 if data[0] < 0xF0 else 4
    if width == 0:
        return True
    whole = data[:width].decode(errors="ignore")
    # Of half a character only its width is known; scripts that write two bytes put spaces between words.
    return _goes_on(whole) if whole else width == 2


def _decoder_kinds(decoder: Any) -> set[str]:
    """The kinds of steps in a backend's decoder."""
    waiting = [] if decoder is None else [json.loads(decoder.__getstate__())]
    kinds = set()
    while waiting:
        step = waiting.pop()
        kinds.add(step["type"])
        waiting += step.get("decoders", [])
    return kinds
