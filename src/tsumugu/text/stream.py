"""Decoding token by token: text is given out once it is final, and a character is never split.

The backend decodes whole sequences by a chain of steps. Each step has a counterpart here that takes one token
at a time and keeps only what later tokens may still change: the bytes of an unfinished character, a run of
byte-fallback tokens, a space that clean-up may remove. So a token costs the same however long the text is, and
all that was given out, joined, is what `decode` gives for all ids at once.
"""

from __future__ import annotations

import codecs
import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tokenizers

from tsumugu.core.errors import InputError

_CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def clean_up(text: str) -> str:
    """Remove the spaces that word-piece decoding leaves before punctuation and English contractions."""
    for each in _CLEANED:
        text = text.replace(each, each.strip(" "))
    return text


class StreamDecoder:
    """Takes token ids one by one, gives text.

    Args:
        backend: the tokenizer; only read.
        skip_special_tokens: leave special tokens out of the text.
        clean: apply `clean_up`.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, *, skip_special_tokens: bool = False, clean: bool = False
    ) -> None:
        self._token = backend.id_to_token
        self._skipped = _special_ids(backend) if skip_special_tokens else frozenset()
        self._steps = _steps(backend) + ([_CleanUp()] if clean else [])

    def push(self, token_id: int) -> str:
        """Add one token; give the text that has become final, often one token late, never half a character."""
        if not 0 <= token_id < 1 << 32:
            raise InputError(f"{token_id} is no token id", where="token_id")
        token = None if token_id in self._skipped else self._token(token_id)
        return "" if token is None else self._run([token], 0)

    def finish(self) -> str:
        """The rest: what was held back, an unfinished character as U+FFFD. The decoder then starts anew."""
        return "".join(self._run(list(step.finish()), i + 1) for i, step in enumerate(self._steps))

    def _run(self, tokens: list[str], start: int) -> str:
        for step in self._steps[start:]:
            if not tokens:
                return ""
            tokens = [out for token in tokens for out in step.push(token)]
        return "".join(tokens)


def _special_ids(backend: tokenizers.Tokenizer) -> frozenset[int]:
    return frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)


class _Step(ABC):
    """One step of the chain: tokens in, tokens out."""

    @abstractmethod
    def push(self, token: str) -> Iterable[str]:
        """What one more token makes final."""

    @abstractmethod
    def finish(self) -> Iterable[str]:
        """What was held back; the step is then as new."""


class _Each(_Step):
    """A step that looks at one token at a time and only needs to know whether it is the first."""

    def __init__(self, change: Callable[[str, bool], str]) -> None:
        self._change, self._first = change, True

    def push(self, token: str) -> Iterable[str]:
        out = self._change(token, self._first)
        self._first = False
        return (out,)

    def finish(self) -> Iterable[str]:
        self._first = True
        return ()


class _ByteLevel(_Step):
    """Byte-level BPE: every character of a token stands for one byte."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: str) -> Iterable[str]:
        table = _byte_of_character()
        try:
            data = bytes([table[each] for each in token])
        except KeyError:  # an added token that is written as itself
            data = token.encode()
        text = self._decoder.decode(data)
        return (text,) if text else ()

    def finish(self) -> Iterable[str]:
        text = self._decoder.decode(b"", True)
        self._decoder.reset()
        return (text,) if text else ()


class _ByteFallback(_Step):
    """Tokens <0x00> to <0xFF> stand for bytes. A run of them is text only as a whole: one bad byte spoils them all."""

    def __init__(self) -> None:
        self._run = bytearray()

    def push(self, token: str) -> Iterable[str]:
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                self._run.append(int(token[3:5], 16))
            except ValueError:
                pass
            else:
                return ()
        return (*self.finish(), token)

    def finish(self) -> Iterable[str]:
        run, self._run = bytes(self._run), bytearray()
        if not run:
            return ()
        try:
            return (run.decode(),)
        except UnicodeDecodeError:
            return ("\ufffd",) * len(run)


class _StripStart(_Step):
    """Strip up to `count` characters from the front of the whole text."""

    def __init__(self, content: str, count: int) -> None:
        self._content, self._count, self._left = content, count, count

    def push(self, token: str) -> Iterable[str]:
        while self._left and token:
            if token.startswith(self._content):
                token, self._left = token[1:], self._left - 1
            else:
                self._left = 0
        return (token,) if token else ()

    def finish(self) -> Iterable[str]:
        self._left = self._count
        return ()


class _LastDiffers(_Step):
    """A step that treats the last token differently: one token is held back."""

    def __init__(self, change: Callable[[str, bool], str]) -> None:
        self._change: Callable[[str, bool], str] = change
        self._held: str | None = None

    def push(self, token: str) -> Iterable[str]:
        held, self._held = self._held, token
        return () if held is None else (self._change(held, False),)

    def finish(self) -> Iterable[str]:
        held, self._held = self._held, None
        return () if held is None else (self._change(held, True),)


class _Whole(_Step):
    """A step with no counterpart here: everything is held back to the end."""

    def __init__(self, decoder: Any) -> None:
        self._decoder, self._tokens = decoder, list[str]()

    def push(self, token: str) -> Iterable[str]:
        self._tokens.append(token)
        return ()

    def finish(self) -> Iterable[str]:
        tokens, self._tokens = self._tokens, []
        return (self._decoder.decode(tokens),) if tokens else ()


class _CleanUp(_Step):
    """`clean_up`, piece by piece: cut where nothing that it removes can reach across."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, token: str) -> Iterable[str]:
        text = self._held + token
        cut = text.rfind(" ")
        while cut > 0 and text[cut - 1] in " 'n":
            cut = text.rfind(" ", 0, cut)
        if cut <= 0:
            self._held = text
            return ()
        self._held = text[cut:]
        return (clean_up(text[:cut]),)

    def finish(self) -> Iterable[str]:
        text, self._held = clean_up(self._held), ""
        return (text,) if text else ()


def _steps(backend: tokenizers.Tokenizer) -> list[_Step]:
    """The counterpart of a tokenizer's decoder."""
    if backend.decoder is None:
        return [_Each(lambda token, first: token if first else f" {token}")]
    found: list[_Step] = []
    joined = False
    parts = list(_parts(json.loads(backend.decoder.__getstate__())))
    for part in parts:
        kind = part["type"]
        if kind == "Fuse":
            joined = True
        elif kind == "Strip" and joined and part["stop"] == 0:
            found.append(_StripStart(part["content"], part["start"]))
        elif (step := _step(kind, part)) is not None and not joined:
            found.append(step)
        else:
            return [_Whole(backend.decoder)]
    return found


def _parts(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder["type"] == "Sequence":
        for each in decoder["decoders"]:
            yield from _parts(each)
    else:
        yield decoder


def _step(kind: str, part: dict[str, Any]) -> _Step | None:
    if kind == "ByteLevel":
        return _ByteLevel()
    if kind == "ByteFallback":
        return _ByteFallback()
    if kind == "WordPiece":
        return _Each(functools.partial(_word_piece, part["prefix"], part["cleanup"]))
    if kind == "Metaspace":
        drop = part.get("prepend_scheme", "always") != "never"
        return _Each(functools.partial(_metaspace, part["replacement"], drop))
    if kind == "Replace" and part["pattern"].get("String"):
        return _Each(functools.partial(_replace, part["pattern"]["String"], part["content"]))
    if kind == "Strip" and part["stop"] == 0:
        return _Each(functools.partial(_strip, part["content"], part["start"]))
    if kind == "BPEDecoder":
        return _LastDiffers(functools.partial(_suffix, part["suffix"]))
    return None


def _word_piece(prefix: str, cleanup: bool, token: str, first: bool) -> str:
    if not first:
        token = token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"
    return _clean_piece(token) if cleanup else token


def _clean_piece(token: str) -> str:
    """The backend's clean-up of one word piece; its list is not quite that of `clean_up`."""
    for each in _CLEANED:
        token = token.replace(each, each.strip(" "))
        if each == " 'm":
            token = token.replace(" do not", " don't")
    return token


def _metaspace(replacement: str, drop: bool, token: str, first: bool) -> str:
    return token.replace(replacement, "" if first and drop else " ")


def _replace(pattern: str, content: str, token: str, first: bool) -> str:
    return token.replace(pattern, content)


def _strip(content: str, start: int, token: str, first: bool) -> str:
    return token[min(start, len(token) - len(token.lstrip(content))) :]


def _suffix(suffix: str, token: str, last: bool) -> str:
    return token.replace(suffix, "" if last else " ")


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE's alphabet. Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [each for each in range(256) if each not in shown]
    return {chr(each): each for each in shown} | {chr(256 + i): each for i, each in enumerate(hidden)}


def byte_alphabet() -> dict[int, str]:
    """Byte to the character that stands for it in byte-level BPE."""
    return {byte: character for character, byte in _byte_of_character().items()}
