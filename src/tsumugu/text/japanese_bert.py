"""Tokenizers of the Japanese BERT family: words by MeCab, then word pieces, characters, or SentencePiece's pieces.

No file format says how MeCab is asked, so that it is asked whenever a text is encoded. The ids are those of the
reference library's ``BertJapaneseTokenizer``; unlike there, every token knows its place in the original text, also
where normalisation or small letters changed the text's length. One difference: MeCab's interface ends a text at a NUL
character, and what follows would be lost; here it divides words.

Source: tohoku-nlp/bert-japanese; Devlin et al. 2019, "BERT", section 3.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, processors

from tsumugu.core.errors import CheckpointError
from tsumugu.text.alignment import Aligned
from tsumugu.text.encoding import Limits, shares
from tsumugu.text.japanese import Mecab
from tsumugu.text.japanese_config import JapaneseConfig
from tsumugu.text.japanese_pieces import (
    Cut,
    Piece,
    Tokens,
    characters,
    no_pieces,
    remembering,
    sentence_pieces,
    word_pieces,
)
from tsumugu.text.japanese_words import MecabSplitter, SpaceSplitter, Splitter, Words
from tsumugu.text.pieces import decode_spaces
from tsumugu.text.sentencepiece import read_pieces
from tsumugu.text.special import ROLES
from tsumugu.text.template import added_around
from tsumugu.text.vocabulary import BERT_TOKENS, read_vocabulary

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class Ids:
    """What a quick encoding gives: all that a model takes."""

    ids: list[int]
    type_ids: list[int]
    attention_mask: list[int]

    def pad(self, length: int, *, direction: str, pad_id: int, pad_type_id: int, pad_token: str) -> None:
        """Bring the row to a length, as an encoding does."""
        missing = max(0, length - len(self.ids))
        for row, value in ((self.ids, pad_id), (self.type_ids, pad_type_id), (self.attention_mask, 0)):
            at = len(row) if direction == "right" else 0
            row[at:at] = [value] * missing


class Japanese:
    """How a text becomes tokens; what the vocabulary and the frame are is the backend's.

    Args:
        config: as the checkpoint says.
        sentencepiece: the bytes of a SentencePiece model, where words are divided by one.

    Raises:
        InputError, MissingExtraError: MeCab, its dictionary or SentencePiece is needed and not there.
    """

    def __init__(self, config: JapaneseConfig, sentencepiece: bytes | None = None) -> None:
        self.config, self.sentencepiece = config, sentencepiece
        self.splitter = Splitter()
        if config.words == "mecab":
            mecab = Mecab(config.dictionary, config.options)
            self.splitter = MecabSplitter(mecab, lowercase=config.lowercase, normalize=config.normalize)
        elif config.words == "basic":
            self.splitter = SpaceSplitter(lowercase=config.lowercase)

    def cut(self, vocabulary: Mapping[str, int], unknown: str) -> Cut:
        """What divides words into the pieces of a vocabulary."""
        if self.config.subwords == "wordpiece":
            return word_pieces(vocabulary, unknown)
        if self.config.subwords == "character":
            return characters(vocabulary, unknown)
        if self.config.subwords == "sentencepiece":
            assert self.sentencepiece is not None
            return sentence_pieces(self.sentencepiece)
        return no_pieces(vocabulary, unknown)

    def backend(
        self, vocabulary: tokenizers.Tokenizer, unknown: str, special: Collection[str], *, plain: bool
    ) -> JapaneseBackend:
        """What encodes texts.

        Args:
            vocabulary: a backend that knows ids, added tokens and the frame, and nothing of how to divide a text.
            special: the special tokens.
            plain: take special tokens in a text for plain text.
        """
        known = dict(vocabulary.get_vocab(with_added_tokens=False))
        if plain:
            known = {token: index for token, index in known.items() if token not in special or token == unknown}
        never_split = frozenset([*self.config.never_split, *(() if plain else special)])
        return JapaneseBackend(vocabulary, self.splitter, self.cut(known, unknown), never_split, plain=plain)


class JapaneseBackend:
    """Does what a `tokenizers.Tokenizer` does for a call: encodes, and puts the frame around."""

    def __init__(
        self,
        vocabulary: tokenizers.Tokenizer,
        splitter: Splitter,
        cut: Cut,
        never_split: Collection[str],
        *,
        plain: bool,
    ) -> None:
        self._vocabulary, self._splitter, self._never_split = vocabulary, splitter, never_split
        self._tokens = remembering(cut)
        added = vocabulary.get_added_tokens_decoder()
        self._added = {each.content: (index, each) for index, each in added.items() if not (plain and each.special)}
        longest_first = sorted(filter(None, self._added), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.num_special_tokens_to_add = vocabulary.num_special_tokens_to_add
        self.post_process = vocabulary.post_process
        self.post_processor = vocabulary.post_processor
        self._frame = added_around(vocabulary)

    def encode_batch(
        self, texts: Sequence[Any], is_pretokenized: bool = False, add_special_tokens: bool = True
    ) -> list[tokenizers.Encoding]:
        """Texts, or pairs (tuples), each a str or, if `is_pretokenized`, a list of words.

        Raises:
            TypeError: an element is none of these, or no valid Unicode.
        """
        found = []
        for each in texts:
            first, second = each if _is_pair(each, is_pretokenized) else (each, None)
            row = self._row(first, is_pretokenized)
            other = None if second is None else self._row(second, is_pretokenized)
            row.set_sequence_id(0)
            if other is not None:
                other.set_sequence_id(1)
            found.append(self.post_process(row, other, add_special_tokens))
        return found

    def encode_batch_fast(
        self, texts: Sequence[Any], is_pretokenized: bool = False, add_special_tokens: bool = True
    ) -> list[Ids]:
        """As `encode_batch`, without tokens, words and places."""
        return self.quickly(texts, is_pretokenized, None, add_special_tokens)

    def quickly(
        self, texts: Sequence[Any], is_pretokenized: bool, limits: Limits | None, add_special_tokens: bool
    ) -> list[Ids]:
        """The same, cut to `limits`."""
        found = []
        for each in texts:
            paired = _is_pair(each, is_pretokenized)
            parts = [self._ids(part, is_pretokenized) for part in (each if paired else (each,))]
            if limits is not None and limits.max_length is not None:
                added = self.num_special_tokens_to_add(paired) if add_special_tokens else 0
                kept = shares(len(parts[0]), len(parts[1]) if paired else None, added, limits)
                left = limits.truncation_side == "left"
                parts = [row[len(row) - n :] if left else row[:n] for row, n in zip(parts, kept, strict=False)]
            before, after = self._frame if add_special_tokens else ([], [])
            ids, type_ids = [*before, *parts[0], *after], [0] * (len(before) + len(parts[0]) + len(after))
            if paired:
                ids += [*parts[1], *after]
                type_ids += [1] * (len(parts[1]) + len(after))
            found.append(Ids(ids, type_ids, [1] * len(ids)))
        return found

    def _ids(self, text: Any, split: bool) -> list[int]:
        if split:
            return [index for word in text for index in self._ids(word, False)]
        found: list[int] = []
        for start, end, added in self._apart(text):
            if added is not None:
                found.append(added)
                continue
            for word in self._splitter.strings(text[start:end], self._never_split):
                found += self._tokens(word).ids
        return found

    def _row(self, text: Any, split: bool) -> tokenizers.Encoding:
        """The tokens of one text, without a frame."""
        ids, tokens, words, offsets = list[str](), list[str](), list[str](), list[str]()
        number, look = 0, self._tokens
        for given in text if split else (text,):
            for (aligned, strings, begins), added in self._words(given):
                _, starts, ends = aligned
                for string, begin in zip(strings, begins, strict=True):
                    found = added or look(string)
                    if not found.ids:
                        continue
                    ids.append(found.ids_json)
                    tokens.append(found.tokens_json)
                    words += [str(number)] * len(found.ids)
                    for start, end in found.places:
                        if start < end:
                            offsets.append(f"[{starts[begin + start]},{ends[begin + end - 1]}]")
                        else:
                            offsets.append("[{},{}]".format(*aligned.span(begin + start, begin + start)))
                    number += not split
            number += split
        # Its own JSON is the only way into an encoding.
        zeros = ",".join("0" * len(words))
        state = (
            f'{{"ids":[{",".join(ids)}],"tokens":[{",".join(tokens)}],"words":[{",".join(words)}],'
            f'"offsets":[{",".join(offsets)}],"type_ids":[{zeros}],"special_tokens_mask":[{zeros}],'
            f'"attention_mask":[{zeros.replace("0", "1")}],"overflowing":[],"sequence_ranges":{{}}}}'
        )
        row = tokenizers.Encoding()
        row.__setstate__(state.encode())
        return row

    def _words(self, text: Any) -> Iterator[tuple[Words, Tokens | None]]:
        """The words of a text; added tokens are words, with themselves as tokens."""
        for start, end, added in self._apart(text):
            stretch = Aligned.of(text, start, end)
            if added is None:
                yield from ((words, None) for words in self._splitter.places(stretch, self._never_split))
            else:
                token = Tokens([Piece(added, stretch.text, 0, end - start)])
                yield Words(stretch, (stretch.text,), (0,)), token

    def _apart(self, text: Any) -> Iterator[tuple[int, int, int | None]]:
        """Stretches [start, end) of a text: added tokens with their id, and what lies between them."""
        if not isinstance(text, str) or _SURROGATE.search(text):
            raise TypeError("no text")
        at, found = 0, list[_Stretch]()
        for match in self._pattern.finditer(text):
            if match.start() > at:
                found.append(_Stretch(at, match.start()))
            found.append(_Stretch(*match.span(), self._added[match[0]][1]))
            at = match.end()
        if at < len(text):
            found.append(_Stretch(at, len(text)))
        for left, each, right in zip([None, *found], found, [*found[1:], None], strict=False):
            if each.token is not None:
                each.meet(text, left, right)
        for each in found:
            if each.start < each.end:  # what is left between two may be spelt as a token, and then is one
                yield each.start, each.end, self._added.get(text[each.start : each.end], (None,))[0]


@dataclass
class _Stretch:
    """A part of a text: an added token, or what lies between two."""

    start: int
    end: int
    token: tokenizers.AddedToken | None = None

    def meet(self, text: str, left: _Stretch | None, right: _Stretch | None) -> None:
        """Take white space from the neighbours, or be no token amid a word, as the token's flags say."""
        assert self.token is not None
        if self.token.rstrip and right is not None:
            part = text[right.start : right.end]
            right.start += len(part) - len(part.lstrip())
        if self.token.lstrip and left is not None:
            part = text[left.start : left.end]
            left.end -= len(part) - len(part.rstrip())
        if not self.token.single_word:
            return
        if left is not None and left.start < left.end and text[left.end - 1] != " ":
            left.end, left.token = self.end, None
            self.end = self.start
        elif right is not None and right.start < right.end and text[right.start] != " ":
            right.start, right.token = self.start, None
            self.end = self.start


def _is_pair(text: Any, split: bool) -> bool:
    return isinstance(text, tuple) and len(text) == 2 and not (split and isinstance(text[0], str))


def read_japanese(
    folder: Path, tokens: Mapping[str, str], config: Mapping[str, Any]
) -> tuple[tokenizers.Tokenizer, dict[str, str], Japanese]:
    """Vocabulary and frame, the special tokens, and how texts are divided.

    Raises:
        CheckpointError: a file is missing or broken.
        InputError, MissingExtraError: MeCab, its dictionary or SentencePiece is needed and not there.
    """
    asked = JapaneseConfig.from_dict(config, str(folder / "tokenizer_config.json"))
    name = "spiece.model" if asked.subwords == "sentencepiece" else "vocab.txt"
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"there is no {name}", where=str(folder), mend="copy or download it again")
    named = {**BERT_TOKENS, **tokens}
    if asked.subwords == "sentencepiece":
        pieces, unknown = read_pieces(path)
        backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=unknown))
        backend.decoder = decode_spaces(prefix=True)
        japanese = Japanese(asked, path.read_bytes())
    else:
        vocabulary = read_vocabulary(path)
        if named["unk"] not in vocabulary:
            raise CheckpointError(f"the vocabulary has no {named['unk']!r}", where=f"{path}, unk_token")
        backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=named["unk"]))
        backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
        japanese = Japanese(asked)
    return framed(backend, named), named, japanese


def framed(backend: tokenizers.Tokenizer, tokens: Mapping[str, str]) -> tokenizers.Tokenizer:
    """The backend with its special tokens, and [CLS] A [SEP] B [SEP] as the frame."""
    backend.add_special_tokens([tokens[role] for role in ROLES if role in tokens])
    cls, sep = tokens["cls"], tokens["sep"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(each, backend.token_to_id(each)) for each in (cls, sep)],
    )
    return backend
