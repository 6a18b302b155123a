"""Tokenizers into GGUF metadata, so that llama.cpp reads them with the same ids.

Source: GGUF specification, ggml-org/ggml docs/gguf.md; ggml-org/llama.cpp, src/llama-vocab.cpp.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import decoders, models

from tsumugu.core.errors import CheckpointError
from tsumugu.text import pretokenizers
from tsumugu.text.gguf_keys import KEY, ROLE_KEYS, TokenType
from tsumugu.text.pieces import SPACE, scores_of_merges
from tsumugu.text.template import added_around

if TYPE_CHECKING:
    from tsumugu.text.tokenizer import Tokenizer


def to_gguf_metadata(tokenizer: Tokenizer, vocab_size: int | None = None) -> dict[str, Any]:
    """The key-values that describe a tokenizer in a GGUF file.

    Args:
        vocab_size: rows of the model's embedding, where it has more of them than the tokenizer has tokens; the rest
            become unused tokens, because llama.cpp wants both numbers to agree.

    Raises:
        CheckpointError: llama.cpp has no such tokenizer.
    """
    if tokenizer.japanese is not None:
        raise CheckpointError("llama.cpp does not ask MeCab for words", where="tokenizer")
    backend = tokenizer.backend
    model, found = backend.model, dict[str, Any]()
    tokens, types = _rows(tokenizer, vocab_size)
    if isinstance(model, models.BPE) and _is_byte_level(backend):
        pre = pretokenizers.name_of(backend.pre_tokenizer, ignore_merges=model.ignore_merges)
        if pre is None:
            raise CheckpointError("llama.cpp splits text in no such way", where="pre_tokenizer")
        for step in _parts(backend.normalizer, "normalizers"):
            if step["type"] != "NFC":  # Qwen's; its own GGUF files do without
                raise CheckpointError(f"llama.cpp knows no {step['type']} normaliser here", where="normalizer")
        found = {"model": "gpt2", "pre": pre, "tokens": tokens}
        found["merges"] = [f"{left} {right}" for left, right in _merges(backend)]
    elif isinstance(model, models.BPE):
        types = [TokenType.BYTE if _is_byte(token) else kind for token, kind in zip(tokens, types, strict=True)]
        found = {"model": "llama", "pre": "default", "tokens": tokens, "add_space_prefix": _puts_space(backend)}
        found["scores"] = scores_of_merges(tokens, _merges(backend))
    elif isinstance(model, models.WordPiece):
        found = {"model": "bert", "pre": "default", "tokens": _marked(tokens, types), "token_type_count": 2}
        found["normalizer.lowercase"] = "lowercase=True" in repr(backend.normalizer)
    else:
        raise CheckpointError(f"llama.cpp reads no {type(model).__name__} tokenizer here", where="tokenizer")
    found["token_type"] = [int(each) for each in types]
    for role, name in ROLE_KEYS.items():
        index = getattr(tokenizer, f"{role}_token_id")
        if index is not None:
            found[name] = index
    before, after = added_around(backend)
    if isinstance(model, models.WordPiece):
        found["bos_token_id"] = found["cls_token_id"]
    else:
        found["add_bos_token"] = bool(before) and before == [tokenizer.bos_token_id]
        found["add_eos_token"] = bool(after) and after == [tokenizer.eos_token_id]
    metadata = {KEY + name: value for name, value in found.items()}
    template = tokenizer.chat_template
    for name, text in (template if isinstance(template, dict) else {"default": template}).items():
        if text is not None:
            metadata["tokenizer.chat_template" + ("" if name == "default" else f".{name}")] = text
    return metadata


def _parts(component: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a normaliser ("normalizers") or pre-tokenizer ("pretokenizers"), one after the other."""
    if component is None:
        return []

    def flat(state: dict[str, Any]) -> list[dict[str, Any]]:
        return [each for part in state[key] for each in flat(part)] if state["type"] == "Sequence" else [state]

    return flat(json.loads(component.__getstate__()))


def _puts_space(backend: tokenizers.Tokenizer) -> bool:
    """Whether a space is put before a text; refuses whatever else is done to the text, as llama.cpp cannot do it."""
    prefix = False
    for step in _parts(backend.normalizer, "normalizers"):
        if step["type"] == "Prepend" and step["prepend"] == SPACE:
            prefix = True
        elif step["type"] != "Replace" or step["pattern"] != {"String": " "} or step["content"] != SPACE:
            raise CheckpointError(f"llama.cpp knows no {step['type']} normaliser here", where="normalizer")
    for step in _parts(backend.pre_tokenizer, "pretokenizers"):
        if step["type"] == "Metaspace":
            prefix = prefix or step["prepend_scheme"] != "never"
        elif step["type"] != "Split":
            raise CheckpointError(f"llama.cpp knows no {step['type']} pre-tokenizer here", where="pre_tokenizer")
    return prefix


def _rows(tokenizer: Tokenizer, vocab_size: int | None) -> tuple[list[str], list[TokenType]]:
    """Every id's token and type; ids without a token are unused."""
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    size = max(by_id) + 1
    if vocab_size is not None and vocab_size < size:
        raise CheckpointError(f"{size} tokens do not fit a model of {vocab_size}", where="vocab_size")
    size = max(size, vocab_size or 0)
    added = tokenizer.backend.get_added_tokens_decoder()
    tokens, types = [], []
    for i in range(size):
        token = by_id.get(i)
        tokens.append(f"[PAD{i}]" if token is None else token)
        if token is None:
            types.append(TokenType.UNUSED)
        elif token == tokenizer.unk_token and not isinstance(tokenizer.backend.model, models.WordPiece):
            types.append(
                TokenType.UNKNOWN if i in added and not _is_byte_level(tokenizer.backend) else TokenType.CONTROL
            )
        elif i in added:
            types.append(TokenType.CONTROL if added[i].special else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL)
    return tokens, types


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    return isinstance(backend.decoder, decoders.ByteLevel)


def _is_byte(token: str) -> bool:
    return re.fullmatch("<0x[0-9A-F]{2}>", token) is not None


def _marked(tokens: Iterable[str], types: Iterable[TokenType]) -> list[str]:
    return [
        token
        if kind == TokenType.CONTROL or kind == TokenType.UNUSED
        else token[2:]
        if token.startswith("##") and len(token) > 2
        else SPACE + token
        for token, kind in zip(tokens, types, strict=True)
    ]


def _merges(backend: tokenizers.Tokenizer) -> list[tuple[str, str]]:
    state = json.loads(backend.model.__getstate__())
    return [tuple(each) if isinstance(each, list) else tuple(each.split(" ", 1)) for each in state["merges"]]
