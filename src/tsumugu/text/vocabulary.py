"""Backends from the classic vocabulary files: vocab.txt (WordPiece), vocab.json + merges.txt (byte-level BPE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from tsumugu.core.errors import CheckpointError
from tsumugu.text.files import read_json, read_text

BERT_TOKENS = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
GPT2_TOKENS = {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"}
ROBERTA_TOKENS = {
    "bos": "<s>",
    "eos": "</s>",
    "unk": "<unk>",
    "sep": "</s>",
    "pad": "<pad>",
    "cls": "<s>",
    "mask": "<mask>",
}
QWEN2_TOKENS = {"eos": "<|endoftext|>", "pad": "<|endoftext|>"}

# Contractions, letters with one mark before them, single digits, punctuation with line ends, white space.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def word_pieces(
    vocab: Mapping[str, int],
    tokens: Mapping[str, str],
    *,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    chinese_characters: bool = True,
) -> tokenizers.Tokenizer:
    """BERT's tokenizer: clean, split at white space and punctuation, then the longest pieces from the left.

    Args:
        vocab: piece to id; pieces inside of a word begin with "##".
        tokens: role to token; unk, cls and sep must be in the vocabulary.
        strip_accents: None means: as `lowercase`.
        chinese_characters: make every CJK ideograph a word of its own.

    Source: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers", section 3.
    """
    for role in ("unk", "cls", "sep"):
        if tokens[role] not in vocab:
            raise CheckpointError(f"the vocabulary has no {tokens[role]!r}", where=f"{role}_token")
    backend = tokenizers.Tokenizer(models.WordPiece(dict(vocab), unk_token=tokens["unk"]))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=chinese_characters,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens([each for each in dict.fromkeys(tokens.values()) if each in vocab])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{tokens['cls']}:0 $A:0 {tokens['sep']}:0",
        pair=f"{tokens['cls']}:0 $A:0 {tokens['sep']}:0 $B:1 {tokens['sep']}:1",
        special_tokens=[(tokens["cls"], vocab[tokens["cls"]]), (tokens["sep"], vocab[tokens["sep"]])],
    )
    return backend


def read_vocabulary(path: Path) -> dict[str, int]:
    """vocab.txt: one piece a line, its id the line's number."""
    lines = read_text(path).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return {line.removesuffix("\r"): i for i, line in enumerate(lines)}


def read_word_pieces(path: Path, tokens: Mapping[str, str], config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """vocab.txt as BERT's tokenizer."""
    try:
        return word_pieces(
            read_vocabulary(path),
            tokens,
            lowercase=bool(config.get("do_lower_case", True)),
            strip_accents=config.get("strip_accents"),
            chinese_characters=bool(config.get("tokenize_chinese_chars", True)),
        )
    except CheckpointError as error:
        raise CheckpointError(error.what, where=f"{path}, {error.where}") from None


def byte_pairs(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    style: str,
    tokens: Mapping[str, str],
    add_prefix_space: bool,
    where: str,
) -> tokenizers.Tokenizer:
    """Byte-level BPE. `style` is "gpt2", "roberta" (adds <s> and </s>) or "qwen2" (NFC, its own split pattern).

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
    """
    try:
        model = models.BPE(vocab=dict(vocab), merges=list(merges), fuse_unk=False)
    except Exception as error:  # noqa: BLE001  (the library raises plain Exception)
        raise CheckpointError(f"vocabulary and merges do not fit ({error})", where=where) from None
    backend = tokenizers.Tokenizer(model)
    backend.decoder = decoders.ByteLevel()
    if style == "qwen2":
        backend.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    if style == "roberta":
        for role in ("sep", "cls"):
            if tokens[role] not in vocab:
                raise CheckpointError(f"the vocabulary has no {tokens[role]!r}", where=f"{where}, {role}_token")
        backend.post_processor = processors.RobertaProcessing(
            (tokens["sep"], vocab[tokens["sep"]]),
            (tokens["cls"], vocab[tokens["cls"]]),
            trim_offsets=True,
            add_prefix_space=add_prefix_space,
        )
    else:
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.add_special_tokens(
        [
            AddedToken(each, lstrip=style == "roberta" and role == "mask", normalized=False, special=True)
            for role, each in tokens.items()
        ]
    )
    return backend


def read_byte_pairs(
    vocab_path: Path, merges_path: Path, style: str, tokens: Mapping[str, str], config: Mapping[str, Any]
) -> tokenizers.Tokenizer:
    """vocab.json (token to id) and merges.txt (one merge a line, the most frequent first)."""
    vocab = read_json(vocab_path, required=True)
    for token, index in vocab.items():
        if not isinstance(index, int) or not 0 <= index < 1 << 31:
            raise CheckpointError(f"{index!r} is no id (token {token!r})", where=str(vocab_path))
    merges = []
    for number, line in enumerate(read_text(merges_path).split("\n"), 1):
        line = line.removesuffix("\r")
        if line.startswith("#version") or not line:
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise CheckpointError("expected two tokens and a space", where=f"{merges_path}, line {number}")
        merges.append((pair[0], pair[1]))
    return byte_pairs(
        vocab,
        merges,
        style=style,
        tokens=tokens,
        add_prefix_space=bool(config.get("add_prefix_space", False)),
        where=str(vocab_path),
    )
