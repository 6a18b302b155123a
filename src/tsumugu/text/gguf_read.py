"""Tokenizers out of GGUF metadata, with llama.cpp's ids.

Where llama.cpp and the model's original tokenizer part ways, llama.cpp is followed:

- Special tokens are found by their type: control and unknown tokens count as special (llama.cpp's
  ``parse_special``; our ``split_special_tokens=True`` is its ``parse_special=false``), user-defined ones are
  matched in any case.
- A byte without a token of its own is left out and keeps its neighbours apart; the `tokenizers` library would
  merge them.
- Unicode is not normalised for byte-level BPE, though Qwen's own tokenizer applies NFC.
- The default of a missing ``add_bos_token`` is llama.cpp's for the kind of vocabulary.

Known differences that remain: of special tokens that overlap in a text llama.cpp takes the longest, we the
leftmost; where two merges of a "llama" vocabulary have one score, llama.cpp takes the leftmost, we the one of
the smaller id; a WordPiece word of more than 100 characters is unknown here, as in BERT itself; and WordPiece
accents and case follow BERT's own tables, while llama.cpp drops vowels of Korean syllables and splits at U+0085.

Source: GGUF specification, ggml-org/ggml docs/gguf.md; ggml-org/llama.cpp, src/llama-vocab.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models

from tsumugu.core.errors import CheckpointError
from tsumugu.text import pretokenizers, vocabulary
from tsumugu.text.gguf_keys import KEY, ROLE_KEYS, TokenType
from tsumugu.text.pieces import SPACE, scored_pieces
from tsumugu.text.template import bos_eos

MAX_TOKENS = 1 << 22
_DEFAULT_IDS = {
    "gpt2": {},
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "bert": {"cls": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
}

# Words that llama.cpp takes for control tokens whatever type the file gives them, and that end a text or a turn; and
# those that it takes for user-defined ones.
END_TOKENS = frozenset(
    [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<｜end▁of▁sentence｜>",
    ]
)
_USER_DEFINED = frozenset(("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"))


def read_gguf(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Tokenizer` for the key-values of a GGUF file.

    Raises:
        CheckpointError: which key is missing, of the wrong type or length, or contradicts another.
    """
    model = _get(metadata, "model", str)
    tokens = _tokens(metadata)
    types = _types(metadata, tokens)
    if model not in _DEFAULT_IDS:
        raise CheckpointError(
            f"unknown kind of tokenizer {model!r}", where=KEY + "model", mend="known: bert, gpt2, llama"
        )
    roles = _roles(metadata, tokens, model)
    if model == "gpt2":
        backend, defaults = _byte_pairs(metadata, tokens)
    elif model == "llama":
        backend, defaults = _scored_pieces(metadata, tokens, roles)
    else:
        backend, defaults = _word_pieces(metadata, tokens, types, roles), {}
        roles = {role: index for role, index in roles.items() if role not in ("bos", "eos")}
        tokens = [str(backend.id_to_token(i)) for i in range(len(tokens))]
    special = {role: tokens[index] for role, index in roles.items()}
    _add_special(backend, tokens, types, metadata)
    if model != "bert":
        used = [role for role in ("bos", "eos") if _flag(metadata, f"add_{role}_token", defaults.get(role, False))]
        for role in used:
            if role not in special:
                raise CheckpointError(f"{role} is to be added, but no token is named", where=f"{KEY}add_{role}_token")
        backend.post_processor = bos_eos(backend, special, used)
    return {
        "backend": backend,
        "special_tokens": special,
        "model_max_length": _context_length(metadata),
        "chat_template": _chat_template(metadata),
        "token_type_ids": model == "bert",
    }


def _get(metadata: Mapping[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value = metadata.get(KEY + name, default)
    if value is None:
        raise CheckpointError("missing", where=KEY + name, mend="the file holds no tokenizer, or is damaged")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CheckpointError(f"expected {kind.__name__}, found {type(value).__name__}", where=KEY + name)
    return value


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    return bool(_get(metadata, name, bool, default))


def _list(metadata: Mapping[str, Any], name: str, kind: type | tuple[type, ...], what: str) -> list[Any]:
    value = metadata.get(KEY + name)
    if value is None:
        raise CheckpointError("missing", where=KEY + name, mend="the file holds no tokenizer, or is damaged")
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise CheckpointError(f"expected a list of {what}, found {type(value).__name__}", where=KEY + name)
    if len(value) > MAX_TOKENS:
        raise CheckpointError(f"{len(value)} entries are too many", where=KEY + name)
    for i, each in enumerate(value):
        if not isinstance(each, kind) or isinstance(each, bool):
            raise CheckpointError(f"expected {what}, found {type(each).__name__}", where=f"{KEY}{name}[{i}]")
    return list(value)


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = _list(metadata, "tokens", str, "text")
    tokens = [each or f"[EMPTY_{i}]" for i, each in enumerate(tokens)]
    if not tokens:
        raise CheckpointError("empty", where=KEY + "tokens")
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        for i, each in enumerate(tokens):
            if each in seen:
                what = f"the token {each!r} stands twice, at {tokens.index(each)} and {i}"
                raise CheckpointError(what, where=KEY + "tokens")
            seen.add(each)
    return tokens


def _same_length(values: list[Any], tokens: list[str], name: str) -> None:
    if len(values) < len(tokens):
        raise CheckpointError(f"{len(values)} entries for {len(tokens)} tokens", where=KEY + name)


def _types(metadata: Mapping[str, Any], tokens: list[str]) -> list[int]:
    if KEY + "token_type" not in metadata:
        types = [int(TokenType.NORMAL)] * len(tokens)
    else:
        types = _list(metadata, "token_type", int, "a whole number")
        _same_length(types, tokens, "token_type")
    for i, token in enumerate(tokens):
        if token in _USER_DEFINED:
            types[i] = TokenType.USER_DEFINED
        elif token in END_TOKENS:
            types[i] = TokenType.CONTROL
    return types


def _roles(metadata: Mapping[str, Any], tokens: list[str], model: str) -> dict[str, int]:
    """Role to id. Ids out of range are ignored, as llama.cpp does: files in the wild have them."""
    roles = {}
    for role, name in ROLE_KEYS.items():
        index = metadata.get(KEY + name, _DEFAULT_IDS[model].get(role))
        if index is None and role == "sep":
            index = metadata.get(KEY + "separator_token_id")
        if index is None:
            continue
        if not isinstance(index, int) or isinstance(index, bool):
            raise CheckpointError(f"expected a whole number, found {type(index).__name__}", where=KEY + name)
        if 0 <= index < len(tokens):
            roles[role] = index
    return roles


def _add_special(
    backend: tokenizers.Tokenizer, tokens: Sequence[str], types: Iterable[int], metadata: Mapping[str, Any]
) -> None:
    strip = _strips(metadata)
    special, defined = [], []
    for token, kind in zip(tokens, types, strict=False):
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            special.append(AddedToken(token, normalized=False, special=True, **strip(token)))
        elif kind == TokenType.USER_DEFINED:
            defined.append(AddedToken(token, normalized=False, special=False, **strip(token)))
    backend.add_special_tokens(special)
    backend.add_tokens(defined)


def _strips(metadata: Mapping[str, Any]) -> Callable[[str], dict[str, bool]]:
    """White space that special tokens swallow: not in the file, so llama.cpp knows it by the model's name."""
    name = str(metadata.get("general.name", "")).lower()
    pre = str(metadata.get(KEY + "pre", ""))
    if any(each in pre for each in ("jina-v2-de", "jina-v2-es", "jina-v2-code")):
        return lambda token: {"lstrip": token == "<mask>"}
    if "phi-3" in name or "phi3" in name:
        return lambda token: {"rstrip": token not in ("<unk>", "<s>", "<|endoftext|>")}
    if "modern-bert" in name:
        return lambda token: {"lstrip": token == "[MASK]"}
    return lambda token: {}


def _byte_pairs(metadata: Mapping[str, Any], tokens: list[str]) -> tuple[tokenizers.Tokenizer, dict[str, bool]]:
    """Byte-level BPE ("gpt2")."""
    pre = pretokenizers.by_name(_get(metadata, "pre", str, "default"))
    merges = []
    for i, each in enumerate(_list(metadata, "merges", str, "text")):
        at = each.find(" ", 1)
        if at < 0 or at == len(each) - 1:
            raise CheckpointError(f"expected two tokens and a space, found {each!r}", where=f"{KEY}merges[{i}]")
        merges.append((each[:at], each[at + 1 :]))
    vocab = {token: i for i, token in enumerate(tokens)}
    for i, (left, right) in enumerate(merges):
        for part in (left, right, left + right):
            if part not in vocab:
                raise CheckpointError(f"{part!r} is no token", where=f"{KEY}merges[{i}]")
    model = models.BPE(vocab=vocab, merges=merges, fuse_unk=False, ignore_merges=pre.ignore_merges)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre.build(vocab)
    backend.decoder = decoders.ByteLevel()
    return backend, {"bos": pre.add_bos}


def _scored_pieces(
    metadata: Mapping[str, Any], tokens: list[str], roles: Mapping[str, int]
) -> tuple[tokenizers.Tokenizer, dict[str, bool]]:
    """SentencePiece-like BPE with scores and byte fallback ("llama")."""
    scores = _list(metadata, "scores", (int, float), "a number")
    _same_length(scores, tokens, "scores")
    unknown = tokens[roles["unk"]] if "unk" in roles else None
    backend = scored_pieces(tokens, scores, unknown=unknown, prefix=_flag(metadata, "add_space_prefix", True))
    return backend, {"bos": True}


def _word_pieces(
    metadata: Mapping[str, Any], tokens: list[str], types: Sequence[int], roles: dict[str, int]
) -> tokenizers.Tokenizer:
    """WordPiece ("bert"). The file marks the start of a word with "▁" where BERT marks its inside with "##"."""
    if "cls" not in roles and "bos" in roles:
        roles["cls"] = roles["bos"]
    if KEY + "cls_token_id" not in metadata and KEY + "bos_token_id" in metadata and "bos" in roles:
        roles["cls"] = roles["bos"]
    for role in ("unk", "cls", "sep"):
        if role not in roles:
            raise CheckpointError("missing or out of range", where=KEY + ROLE_KEYS[role])
    plain = (TokenType.NORMAL, TokenType.UNUSED)
    named = set(roles.values())
    pieces = [
        token
        if kind not in plain or i in named or (re.fullmatch(r"\[.*\]", token) and not token.startswith(SPACE))
        else token[1:]
        if token.startswith(SPACE) and len(token) > 1
        else f"##{token}"
        for i, (token, kind) in enumerate(zip(tokens, types, strict=False))
    ]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    if len(vocab) != len(pieces):
        raise CheckpointError("two tokens are one and the same word piece", where=KEY + "tokens")
    special = {role: pieces[index] for role, index in roles.items() if role not in ("bos", "eos")}
    lowercase = _flag(metadata, "normalizer.lowercase", True)
    return vocabulary.word_pieces(
        vocab,
        special,
        lowercase=lowercase,
        strip_accents=_flag(metadata, "normalizer.strip_accents", lowercase),
    )


def _context_length(metadata: Mapping[str, Any]) -> int | None:
    length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return length if isinstance(length, int) and 0 < length < 1 << 31 else None


def _chat_template(metadata: Mapping[str, Any]) -> str | dict[str, str] | None:
    start = "tokenizer.chat_template"
    named = {}
    for key, value in metadata.items():
        if key == start or key.startswith(f"{start}."):
            if not isinstance(value, str):
                raise CheckpointError(f"expected text, found {type(value).__name__}", where=key)
            named[key[len(start) + 1 :] or "default"] = value
    return named["default"] if list(named) == ["default"] else named or None
