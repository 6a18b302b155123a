"""Answers of a given shape: one of several texts, a regular expression, a JSON schema, or a grammar.

The library llguidance keeps for each text the state of a parser and says which tokens may come next; sampling chooses
among those. A text ends where nothing can be added, or where the model ends it and the shape allows that. Where the
tokens that were asked for run out first, the text is closed with the fewest bytes that make it whole, so that what
comes back always has the shape.

Source: Willard & Louf 2023, Efficient Guided Generation for Large Language Models, section 3; llguidance's documents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import InputError
from tsumugu.corpus.token_bytes import token_texts

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from tsumugu.text.tokenizer import Tokenizer

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As `json.dumps` writes; left free, white space could go on for ever."""
CLOSERS = b"\"}],:)/| 0123456789-.+(aAtrufalsen'"
"""The bytes that are tried first when a text is closed, the likeliest to end something first."""
CLOSING_STEPS, CLOSING_WIDTH = 512, 16
"""How many steps may close a text, and how many ways of closing it are followed side by side."""


def grammar_of(
    *,
    choices: Sequence[str] | None = None,
    regex: str | None = None,
    json_schema: Mapping[str, Any] | str | None = None,
    lark: str | None = None,
) -> str | None:
    """The grammar, as llguidance reads it, of one shape; None where none is given.

    Args:
        choices: the text is one of these.
        regex: the whole text matches this, in Rust's dialect: no look-around, no back-references.
        json_schema: the text is JSON that fits this schema, a mapping or JSON itself; `{}` for any JSON. Whole numbers
            in it are exact up to 2 to the 53rd.
        lark: a grammar in llguidance's dialect of Lark.

    Raises:
        InputError: two shapes at once, no choice, an empty one, or text that is no JSON.
    """
    given = [name for name, each in locals().items() if each is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} are two shapes for one text", mend="give one of them")
    if choices is not None:
        if not choices or "" in choices:
            raise InputError("a choice must have at least one character", where="choices")
        return str(_library().grammar_from("regex", "|".join(map(_verbatim, dict.fromkeys(choices)))))
    if regex is not None:
        return str(_library().grammar_from("regex", regex))
    if json_schema is not None:
        try:
            schema = json.loads(json_schema) if isinstance(json_schema, str) else json_schema
            return str(_library().LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_STYLE))
        except (ValueError, TypeError) as error:
            raise InputError(f"not a JSON schema ({error})", where="json_schema") from None
    return None if lark is None else str(_library().grammar_from("lark", lark))


def quoted(value: Any) -> str:
    """A text, or JSON, as it stands in a grammar of llguidance's."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _verbatim(text: str) -> str:
    """A regular expression for a text itself."""
    return "".join(each if each.isascii() and each.isalnum() else f"\\x{{{ord(each):x}}}" for each in text)


class Guide:
    """The parsers of texts that are written side by side.

    Args:
        tokenizer: the model's own.
        grammars: one for each text, as `grammar_of` gives them.
        vocab: size of the model's vocabulary.
        ends: tokens that end a text.

    Raises:
        InputError: a grammar that llguidance refuses, or a tokenizer without any token for an end.
    """

    def __init__(self, tokenizer: Tokenizer, grammars: Sequence[str], *, vocab: int, ends: Sequence[int]) -> None:
        known = tuple(ends) or tuple(each for each in (tokenizer.eos_token_id,) if each is not None)
        if not known:
            raise InputError("a shape needs a token that ends a text", where="eos_token_id")
        self.table, self.plain, self.others = _tables(_Key(tokenizer), vocab, known)
        self.ends, self.vocab = frozenset(known), vocab
        starts: dict[str, LLMatcher] = {}
        for grammar in dict.fromkeys(grammars):
            starts[grammar] = _library().LLMatcher(self.table, grammar, log_level=0)
            if starts[grammar].is_error():
                reason = starts[grammar].get_error().strip().partition("\n")[0]
                raise InputError(f"not a shape that can be followed ({reason})", where="grammar")
        self.matchers = [starts[grammar].deep_copy() for grammar in grammars]

    def masked(self, logits: Floats, plain: Floats) -> Floats:
        """Logits `[rows, vocab]` with -inf where a token may not come next.

        Where penalties have left a row nothing, `plain` counts, the logits before them.
        """
        allowed = np.stack([self._allowed(matcher) for matcher in self.matchers])
        found = np.where(allowed, logits, -np.inf).astype(np.float32, copy=False)
        lost = np.isneginf(found.max(-1))
        if lost.any():
            found[lost] = np.where(allowed[lost], np.maximum(plain[lost], np.finfo(np.float32).min), -np.inf)
        return found

    def wrote(self, tokens: Rows) -> NDArray[np.bool_]:
        """Note the token of each row; gives which rows are whole now, `[rows]`."""
        whole = np.zeros(len(tokens), dtype=bool)
        for row, (matcher, token) in enumerate(zip(self.matchers, tokens, strict=True)):
            if int(token) in self.ends:
                whole[row] = True
                continue
            if not matcher.consume_token(int(token)):
                raise InputError(f"the shape cannot be followed further ({matcher.get_error().strip()})")
            whole[row] = matcher.is_stopped()
        return whole

    def select(self, rows: Rows) -> None:
        """Go on with `rows` in that order; they may repeat or be left out."""
        self.matchers = [self.matchers[row].deep_copy() for row in rows]

    def alone(self, row: int) -> Guide:
        """A guide for one of the rows, from where it is."""
        made = copy(self)
        made.select(np.array([row]))
        return made

    def closing(self, row: int) -> list[int]:
        """The fewest steps that make a row whole, mostly of a byte each; none where it is already.

        Raises:
            InputError: none were found, as where the shape asks for a long text.
        """
        ways: list[tuple[list[int], LLMatcher]] = [([], self.matchers[row])]
        seen: set[bytes] = set()
        for _ in range(CLOSING_STEPS):
            for tokens, matcher in ways:
                if matcher.is_accepting():
                    return tokens
            following: dict[bytes, tuple[list[int], LLMatcher]] = {}
            for tokens, matcher in ways:
                for more in self._steps(matcher):
                    after = matcher.deep_copy()
                    if after.consume_tokens(more):
                        # What allows the same mostly goes on the same way: one of the two is enough.
                        following.setdefault(after.compute_bitmask(), ([*tokens, *more], after))
            # First the way that closes whatever it can, then those that lead somewhere new; others may be counting.
            first = next(iter(following), None)
            order = sorted(following, key=lambda mask: mask != first and 1 + (mask in seen))[:CLOSING_WIDTH]
            ways = [following[mask] for mask in order]
            seen.update(order)
        raise InputError(
            f"the text has not the shape yet, and {CLOSING_STEPS} more steps would not do",
            where="max_new_tokens",
            mend="allow more tokens",
        )

    def _steps(self, matcher: LLMatcher) -> list[list[int]]:
        """How a text may go on: as it must, else by a byte, else by any token."""
        forced = matcher.compute_ff_tokens()
        if forced:
            return [forced]
        allowed = self._allowed(matcher)
        for some in (self.plain, self.others):
            if found := [[each] for each in some if allowed[each]]:
                return found
        return [[int(each)] for each in np.flatnonzero(allowed)[:CLOSING_WIDTH] if int(each) not in self.ends]

    def _allowed(self, matcher: LLMatcher) -> NDArray[np.bool_]:
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        found: NDArray[np.bool_] = np.unpackbits(bits, bitorder="little", count=self.vocab).view(bool)
        return found


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        mend = "pip install 'tsumugu[constrained]'"
        raise InputError("answers of a given shape need llguidance", where="generation", mend=mend) from None
    return llguidance


class _Key:
    """A tokenizer that is hashed by what it is, not by what it holds."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __hash__(self) -> int:
        return id(self.tokenizer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.tokenizer is self.tokenizer


class _Words:
    """A tokenizer as llguidance asks for it."""

    def __init__(self, tokenizer: Tokenizer, ends: tuple[int, ...]) -> None:
        self.tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = ends[0], tokenizer.bos_token_id
        found = token_texts(tokenizer)
        self.tokens = [each or f"<{index}>".encode() for index, each in enumerate(found)]
        self.special_token_ids = [index for index, each in enumerate(found) if not each]

    def __call__(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


@lru_cache(maxsize=4)
def _tables(key: _Key, vocab: int, ends: tuple[int, ...]) -> tuple[LLTokenizer, list[int], list[int]]:
    """llguidance's own tables of a vocabulary, which take a while; tokens of one byte of ASCII, the best closers first;
    tokens of one other byte."""
    library = _library()
    words = _Words(key.tokenizer, ends)
    words.tokens = words.tokens[:vocab]
    single = {text[0]: index for index, text in reversed(list(enumerate(words.tokens))) if len(text) == 1}
    plain = [single[each] for each in dict.fromkeys((*CLOSERS, *range(128))) if each in single]
    others = [single[each] for each in range(128, 256) if each in single]
    table = library.LLTokenizer(library.TokenizerWrapper(words), n_vocab=vocab, eos_token=list(ends))
    return table, plain, others
