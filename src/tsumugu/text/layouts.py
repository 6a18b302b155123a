"""What each family expects of a tokenizer: its special tokens, their order, and what is put around a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import tokenizers
from tokenizers import AddedToken, processors

from tsumugu.text.template import bos_eos
from tsumugu.text.vocabulary import BERT_TOKENS, ROBERTA_TOKENS

Kind = Literal["bpe", "wordpiece", "unigram", "character"]
KINDS: tuple[Kind, ...] = ("bpe", "wordpiece", "unigram", "character")
SENTINELS = 100
"""How many <extra_id_…> tokens T5 has for the spans that it restores."""


@dataclass(frozen=True)
class Layout:
    """The special tokens of one family.

    Args:
        roles: role to token.
        order: the tokens that have the first ids.
        kinds: the kinds that suit the family, its own first. WordPiece does not keep spaces, so that families which
            write text leave it out.
        frame: what is put around a text.
        sentinels: whether <extra_id_99> … <extra_id_0> have the last ids.
    """

    roles: Mapping[str, str]
    order: tuple[str, ...]
    kinds: tuple[Kind, ...]
    frame: Literal["bert", "roberta", "bos", "eos"] | None = None
    sentinels: bool = False

    def first(self, kind: str) -> list[str]:
        """The tokens with the first ids. Unigram always has an unknown token; byte-level BPE needs none."""
        tokens = list(self.order)
        if kind == "unigram" and "unk" not in self.roles:
            tokens.append("<unk>")
        return tokens

    def last(self) -> list[str]:
        """The tokens with the last ids."""
        return [f"<extra_id_{i}>" for i in reversed(range(SENTINELS))] if self.sentinels else []

    def named(self, kind: str) -> dict[str, str]:
        """Role to token for one kind."""
        return {**({"unk": "<unk>"} if kind == "unigram" else {}), **self.roles}


LAYOUTS = {
    "bert": Layout(
        BERT_TOKENS,
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        ("wordpiece", "bpe", "unigram", "character"),
        "bert",
    ),
    "roberta": Layout(
        ROBERTA_TOKENS,
        ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
        ("bpe", "wordpiece", "unigram", "character"),
        "roberta",
    ),
    "gpt2": Layout(
        {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "pad": "<|padding|>"},
        ("<|endoftext|>", "<|padding|>"),
        ("bpe", "unigram", "character"),
    ),
    "llama": Layout(
        {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"},
        ("<unk>", "<s>", "</s>", "<pad>"),
        ("bpe", "unigram", "character"),
        "bos",
    ),
    "t5": Layout(
        {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
        ("<pad>", "</s>", "<unk>"),
        ("unigram", "bpe", "character"),
        "eos",
        sentinels=True,
    ),
}


def add_tokens(backend: tokenizers.Tokenizer, layout: Layout, kind: str, more: list[str]) -> None:
    """Make the tokens special: whole in any text, left out of decoded text. They are in the vocabulary already."""
    mask = layout.roles.get("mask") if layout.frame == "roberta" else None
    tokens = [*layout.first(kind), *more, *layout.last()]
    backend.add_special_tokens(
        [AddedToken(each, lstrip=each == mask, normalized=False, special=True) for each in tokens]
    )


def frame(backend: tokenizers.Tokenizer, layout: Layout, kind: str) -> Any:
    """The post-processor: special tokens around one text or a pair.

    Source: Devlin et al. 2019, "BERT", section 3 ([CLS] A [SEP] B [SEP]); Liu et al. 2019, "RoBERTa"
    (<s> A </s></s> B </s>); Raffel et al. 2020, "T5" (A </s> B </s>).
    """
    tokens = layout.named(kind)
    if layout.frame in ("bos", "eos"):
        return bos_eos(backend, tokens, [layout.frame])
    if layout.frame is None:
        return processors.ByteLevel(trim_offsets=False) if kind == "bpe" else None
    vocabulary = backend.get_vocab()
    cls, sep = ((tokens[role], vocabulary[tokens[role]]) for role in ("cls", "sep"))
    if layout.frame == "roberta" and kind == "bpe":
        return processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=False)
    between, second = (f"{sep[0]} {sep[0]}", 0) if layout.frame == "roberta" else (sep[0], 1)
    return processors.TemplateProcessing(
        single=f"{cls[0]} $A {sep[0]}",
        pair=f"{cls[0]} $A {between} $B:{second} {sep[0]}:{second}",
        special_tokens=[cls, sep],
    )
