"""SentencePiece models: the protobuf file of a Unigram or BPE vocabulary.

Source: google/sentencepiece, src/sentencepiece_model.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from tsumugu.core.errors import CheckpointError, MissingExtraError
from tsumugu.text.files import MAX_BYTES
from tsumugu.text.pieces import SPACE, decode_spaces, escape_spaces, scored_pieces, split_words
from tsumugu.text.template import bos_eos

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
Piece = tuple[str, float, int]


def read_sentencepiece(
    path: Path, kind: str, tokens: Mapping[str, str], config: Mapping[str, Any]
) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """A backend with the ids of the model's own pieces, and the special tokens that it names.

    Some families number or frame the pieces in their own way; `kind` says which ("t5" ends with </s>, "llama"
    begins with <s>, "xlmroberta" has its own first four ids).

    Raises:
        MissingExtraError: the `sentencepiece` package, which knows the file's form, is not installed.
        CheckpointError: the file is broken or of a kind that is not supported (words, characters).
    """
    proto = _parse(path)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    pieces = [(each.piece, each.score, each.type) for each in proto.pieces]
    if not pieces:
        raise CheckpointError("the model has no pieces", where=str(path))
    named = {
        role: pieces[index][0]
        for role, index in (
            ("bos", trainer.bos_id),
            ("eos", trainer.eos_id),
            ("unk", trainer.unk_id),
            ("pad", trainer.pad_id),
        )
        if 0 <= index < len(pieces)
    }
    pieces, named, shifted = _numbered(pieces, named, kind)
    named.update(tokens)
    unknown = next((i for i, each in enumerate(pieces) if each[2] == UNKNOWN), None)
    if unknown is None:
        raise CheckpointError("the model has no unknown piece", where=str(path))
    if trainer.model_type == BPE:
        backend = _pairs(pieces, pieces[unknown][0], normalizer)
    elif trainer.model_type == UNIGRAM:
        backend = _unigram(pieces, unknown, trainer, normalizer)
    else:
        raise CheckpointError("only Unigram and BPE models are supported", where=str(path))
    special = [piece for piece, _, each in pieces if each in (UNKNOWN, CONTROL)]
    if kind == "t5":
        special += [f"<extra_id_{i}>" for i in reversed(range(int(config.get("extra_ids", 100))))]
    backend.add_special_tokens([AddedToken(each, normalized=False, special=True) for each in special])
    _frame(backend, named, kind, config, shifted=shifted)
    return backend, named


def read_pieces(path: Path) -> tuple[list[tuple[str, float]], int]:
    """The pieces of a model with their scores, and the id of the unknown one.

    Raises:
        MissingExtraError, CheckpointError: as `read_sentencepiece`.
    """
    pieces = _parse(path).pieces
    unknown = next((i for i, each in enumerate(pieces) if each.type == UNKNOWN), None)
    if unknown is None:
        raise CheckpointError("the model has no unknown piece", where=str(path))
    return [(each.piece, each.score) for each in pieces], unknown


def _parse(path: Path) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise MissingExtraError("sentencepiece", extra="ja", purpose="reading a SentencePiece model") from None
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError("too large for a SentencePiece model", where=str(path))
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # noqa: BLE001  (protobuf's DecodeError has no importable home in every version)
        raise CheckpointError(
            f"not a SentencePiece model ({type(error).__name__})", where=str(path), mend="fetch the file again"
        ) from None
    return proto


def _numbered(pieces: list[Piece], named: dict[str, str], kind: str) -> tuple[list[Piece], dict[str, str], bool]:
    """Pieces in the order of the family's ids. fairseq models put <s> <pad> </s> <unk> first and shift the rest."""
    if kind in ("xlmroberta", "xlm-roberta", "xlmrobertaxl", "mbart", "barthez"):
        rest = [each for each in pieces if each[0] not in ("<s>", "<pad>", "</s>", "<unk>")]
        first = [("<s>", 0.0, CONTROL), ("<pad>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN)]
        roles = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "cls": "<s>", "sep": "</s>"}
        return [*first, *rest, ("<mask>", 0.0, CONTROL)], {**roles, "mask": "<mask>"}, True
    return pieces, named, False


def _pairs(pieces: list[Piece], unknown: str, normalizer: Any) -> tokenizers.Tokenizer:
    """BPE. User-defined pieces are cut out first; a space is put before the text, but not after one of them.

    Two corners differ from SentencePiece where a model has such pieces: a text that begins with one gets no
    space before it, and the space that a text begins with serves as the one to be put there.
    """
    defined = [piece for piece, _, kind in pieces if kind == USER_DEFINED]
    prefix = bool(normalizer.add_dummy_prefix)
    backend = scored_pieces(
        [each[0] for each in pieces],
        [each[1] for each in pieces],
        unknown=unknown,
        prefix=prefix and not defined,
    )
    if prefix and defined:
        first = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False)
        steps = [first, *([backend.pre_tokenizer] if backend.pre_tokenizer is not None else [])]
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
        backend.decoder = decode_spaces(prefix=True)
    cleaning = _cleaning(normalizer, strip_start=not (prefix and defined))
    backend.normalizer = normalizers.Sequence([*cleaning, backend.normalizer])
    backend.add_tokens([AddedToken(each, normalized=False) for each in defined])
    return backend


def _unigram(pieces: list[Piece], unknown: int, trainer: Any, normalizer: Any) -> tokenizers.Tokenizer:
    """Unigram. User-defined pieces are ordinary ones whose score beats all others."""
    best = max((score for _, score, kind in pieces if kind == NORMAL), default=0.0)
    vocab = [
        (piece, len(piece.encode()) * best - 0.1 if kind == USER_DEFINED else score) for piece, score, kind in pieces
    ]
    backend = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=unknown, byte_fallback=bool(trainer.byte_fallback)))
    prefix = bool(normalizer.add_dummy_prefix)
    backend.normalizer = normalizers.Sequence([*_cleaning(normalizer), escape_spaces(prefix=prefix)])
    backend.pre_tokenizer = split_words(each[0] for each in pieces)
    backend.decoder = decode_spaces(prefix=prefix)
    return backend


def _cleaning(normalizer: Any, *, strip_start: bool = True) -> list[Any]:
    """The steps before spaces are escaped: the model's table of characters, then superfluous spaces.

    The library applies the table to one grapheme at a time where SentencePiece takes the longest match; the two
    steps around it restore what that loses (line ends of two characters, half-width kana with a sound mark).
    """
    steps: list[Any] = []
    if normalizer.precompiled_charsmap:
        if normalizer.name.startswith("nmt_"):
            steps.append(normalizers.Replace("\r\n", "  "))
        steps.append(normalizers.Precompiled(normalizer.precompiled_charsmap))
        if "nfkc" in normalizer.name:
            steps.append(normalizers.NFC())
    if normalizer.remove_extra_whitespaces:
        ends = r"\A +| +\z" if strip_start else r" +\z"
        steps += [normalizers.Replace(Regex(ends), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    return steps


def _frame(
    backend: tokenizers.Tokenizer, named: Mapping[str, str], kind: str, config: Mapping[str, Any], *, shifted: bool
) -> None:
    """The tokens that the family puts around a text."""
    if shifted or kind in ("t5", "mt5", "umt5", "pegasus", "bigbird_pegasus"):
        roles = ["bos", "eos"] if shifted else ["eos"]
    elif kind in ("llama", "codellama", "mistral", "gemma", "gemma2", "gemma3", "gemma3_text", "mixtral"):
        roles = ["bos"]
    else:
        roles = []
    roles = [role for role in ("bos", "eos") if config.get(f"add_{role}_token", role in roles) and role in named]
    backend.post_processor = bos_eos(backend, named, roles)
