"""What tokenizer_config.json says of a tokenizer of the Japanese BERT family."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from tsumugu.core.errors import CheckpointError, did_you_mean
from tsumugu.text.japanese import DICTIONARIES

CLASS = "BertJapaneseTokenizer"
Words = Literal["basic", "mecab"]
Subwords = Literal["wordpiece", "character", "sentencepiece"]
WORDS: tuple[Words, ...] = ("basic", "mecab")
SUBWORDS: tuple[Subwords, ...] = ("wordpiece", "character", "sentencepiece")
_OPTIONS = ("-d", "--dicdir", "-r", "--rcfile", "-u", "--userdic")  # what is read; others name files to write
_T = TypeVar("_T", Words, Subwords)


@dataclass(frozen=True, kw_only=True)
class JapaneseConfig:
    """How texts become words, and words become tokens.

    Attributes:
        words: "mecab", "basic" (white space and punctuation), or None: the whole text is one word.
        subwords: "wordpiece", "character", "sentencepiece", or None: a word is a token.
        lowercase: make small letters of capitals; "basic" words then lose their accents too.
        never_split: words that "basic" leaves whole, and that keep their capitals.
        normalize: write the text in NFKC before MeCab sees it.
        dictionary: MeCab's, by name; None: the one that `options` or the system names.
        options: further options of MeCab, which may only name dictionaries.
    """

    words: Words | None = "basic"
    subwords: Subwords | None = "wordpiece"
    lowercase: bool = False
    never_split: tuple[str, ...] = ()
    normalize: bool = True
    dictionary: str | None = "unidic-lite"
    options: str = ""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], where: str) -> JapaneseConfig:
        """From tokenizer_config.json.

        Raises:
            CheckpointError: it asks for something that is not supported, or holds values of a wrong type.
        """
        mecab = _get(config, "mecab_kwargs", {}, dict, where)
        named = mecab.get("mecab_dic", "unidic_lite")
        dictionary = None if named is None else str(named).replace("_", "-")
        if dictionary is not None and dictionary not in DICTIONARIES:
            mend = did_you_mean(dictionary, DICTIONARIES)
            raise CheckpointError(f"there is no dictionary {named!r} for MeCab", where=where, mend=mend)
        options: str = _get(mecab, "mecab_option", "", str, where)
        _check_options(options, where)
        words = _one_of(config, "word_tokenizer_type", WORDS, "basic", where)
        subwords = _one_of(config, "subword_tokenizer_type", SUBWORDS, "wordpiece", where)
        return cls(
            words=words if _get(config, "do_word_tokenize", True, bool, where) else None,
            subwords=subwords if _get(config, "do_subword_tokenize", True, bool, where) else None,
            lowercase=_get(config, "do_lower_case", False, bool, where),
            never_split=tuple(map(str, _get(config, "never_split", [], list, where))),
            normalize=_get(mecab, "normalize_text", True, bool, where),
            dictionary=dictionary,
            options=options,
        )

    def to_dict(self) -> dict[str, Any]:
        """As tokenizer_config.json has it."""
        found: dict[str, Any] = {
            "tokenizer_class": CLASS,
            "do_word_tokenize": self.words is not None,
            "do_subword_tokenize": self.subwords is not None,
            "do_lower_case": self.lowercase,
            "word_tokenizer_type": self.words or "basic",
            "subword_tokenizer_type": self.subwords or "wordpiece",
            "never_split": list(self.never_split) or None,
        }
        if self.words == "mecab":
            dictionary = None if self.dictionary is None else self.dictionary.replace("-", "_")
            found["mecab_kwargs"] = {"mecab_dic": dictionary, "normalize_text": self.normalize}
            if self.options:
                found["mecab_kwargs"]["mecab_option"] = self.options
        return found


def is_japanese(config: Mapping[str, Any], model_config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's files (tokenizer_config.json, config.json) name such a tokenizer."""
    name = config.get("tokenizer_class") or model_config.get("tokenizer_class")
    return str(name).removesuffix("Fast") == CLASS


def _get(data: Mapping[str, Any], key: str, default: Any, kind: type, where: str) -> Any:
    value = data.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise CheckpointError(f"{key} is {value!r}, which is no {kind.__name__}", where=where)
    return value


def _one_of(config: Mapping[str, Any], key: str, known: tuple[_T, ...], default: _T, where: str) -> _T:
    value = config.get(key) or default
    for each in known:
        if each == value:
            return each
    raise CheckpointError(f"{key} {value!r} is not supported", where=where, mend=f"known: {', '.join(known)}")


def _check_options(options: str, where: str) -> None:
    """Refuse options with which a file from a stranger could do more than name a dictionary."""
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise CheckpointError(f"mecab_option {options!r} cannot be read ({error})", where=where) from None
    names = [each.split("=")[0] if each.startswith("--") else each[:2] for each in words if each.startswith("-")]
    for each in names:
        if each not in _OPTIONS:
            mend = f"allowed: {', '.join(_OPTIONS)}"
            raise CheckpointError(f"mecab_option holds {each!r}", where=where, mend=mend)
