"""What in a text can be changed, and into what: words deleted, replaced or negated, Japanese endings turned.

Replacements are what a masked model puts in a word's place, or the nearest words in a model's own embeddings.

Sources: Li et al. 2020, "BERT-ATTACK" (replacements by a masked model); Kaushik et al. 2020, "Learning the Difference
that Makes a Difference" (negations).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from tsumugu.anatomy.targets import Question
from tsumugu.corpus.units import is_spaced
from tsumugu.models.base import Model
from tsumugu.text.tokenizer import Tokenizer

SUGGESTED = 8
"""Replacements of a word."""

_AUXILIARY = re.compile(
    "is|are|was|were|am|be|been|do|does|did|can|could|will|would|should|must|may|might|has|have|had", re.IGNORECASE
)
_JAPANESE = (
    ("ませんでした", "ました"),
    ("ました", "ませんでした"),
    ("ません", "ます"),
    ("ます", "ません"),
    ("くなかった", "かった"),
    ("ではなかった", "だった"),
    ("くない", "い"),
    ("ではない", "だ"),
    ("かった", "くなかった"),
    ("だった", "ではなかった"),
    ("いです", "くないです"),
    ("でした", "ではありませんでした"),
    ("です", "ではありません"),
    ("い(?=[。！？!?]|$)", "くない"),
    ("だ(?=[。！？!?]|$)", "ではない"),
)
_NEGATED = re.compile("|".join(f"({pattern})" for pattern, _ in _JAPANESE))


class Edit(NamedTuple):
    """A part of a text (its number, from, to) that becomes something else; `kind`: delete, replace or negate."""

    owner: int
    start: int
    end: int
    old: str
    new: str
    kind: str


def edited(texts: Sequence[str], edits: Sequence[Edit]) -> tuple[str, ...]:
    """The texts with edits made; a deleted word takes a space with it."""
    found = list(texts)
    for each in sorted(edits, key=lambda edit: (edit.owner, -edit.start)):
        text = found[each.owner]
        before, after = text[: each.start], text[each.end :]
        if not each.new and after.startswith(" ") and (not before or before.endswith(" ")):
            after = after[1:]
        elif not each.new and not after[:1].isalnum() and before.endswith(" "):
            before = before[:-1]
        found[each.owner] = before + each.new + after
    return tuple(found)


def marked(texts: Sequence[str], edits: Sequence[Edit]) -> list[tuple[str, str]]:
    """Both texts in parts: what is kept (""), taken away ("-"), and put in ("+")."""
    parts: list[tuple[str, str]] = []
    for owner, text in enumerate(texts):
        if owner:
            parts.append(("", " ⏎ "))
        at = 0
        for each in sorted(edit for edit in edits if edit.owner == owner):
            parts += [("", text[at : each.start]), ("-", each.old), ("+", each.new)]
            at = each.end
        parts.append(("", text[at:]))
    return [(mark, part) for mark, part in parts if part]


def words_of(question: Question) -> list[Edit]:
    """What can be edited, as edits that change nothing yet: words, or where no spaces divide them, groups of tokens."""
    found = []
    for owner, text in enumerate(question.texts):
        if is_spaced(text):
            spans = [match.span() for match in re.finditer(r"[^\W_]+(?:['’-][^\W_]+)*", text)]
        else:
            groups = [[question.spans[place] for place in group] for group in question.groups]
            owners = [question.owner[group[0]] for group in question.groups]
            spans = [
                (min(each[0] for each in known), max(each[1] for each in known))
                for group, of in zip(groups, owners, strict=True)
                if of == owner and (known := [each for each in group if each is not None])
            ]
            spans = [each for each in spans if any(map(str.isalnum, text[slice(*each)]))]
        found += [Edit(owner, start, end, text[start:end], text[start:end], "replace") for start, end in spans]
    return found


def edits_of(word: Edit, suggestions: Sequence[str]) -> Iterator[Edit]:
    """A word deleted, replaced by each suggestion, and negated."""
    yield word._replace(new="", kind="delete")
    for each in suggestions:
        yield word._replace(new=each)
    low = word.old.lower()
    if _AUXILIARY.fullmatch(low):
        yield word._replace(new=f"{word.old} not", kind="negate")
    elif low.isascii() and low.isalpha() and len(low) > 2 and low not in ("not", "the", "and"):
        yield word._replace(new=f"not {word.old}", kind="negate")


def negated_endings(texts: Sequence[str]) -> Iterator[Edit]:
    """Negations of endings, and affirmations of negated ones."""
    for owner, text in enumerate(texts):
        for match in _NEGATED.finditer(text):
            new = _JAPANESE[(match.lastindex or 1) - 1][1]
            yield Edit(owner, match.start(), match.end(), match[0], new, "negate")


def near_words(model: Model, tokenizer: Tokenizer, question: Question, words: Sequence[Edit]) -> dict[Edit, list[str]]:
    """For words that are one token, the nearest tokens of their kind in the model's own embeddings."""
    tokens = {(question.owner[at], span): at for at, span in enumerate(question.spans) if span is not None}
    places = {word: at for word in words for at in [_token_of(tokens, question, word)] if at is not None}
    if not places:
        return {}
    with torch.no_grad():
        table = functional.normalize(model.embeddings.token.weight.float(), dim=-1)  # type: ignore[union-attr, arg-type]
    found = {}
    for word, at in places.items():
        number = int(question.ids[0, at])
        spelt = str(tokenizer.convert_ids_to_tokens(number))
        order = torch.topk(table @ table[number], min(12 * SUGGESTED, len(table))).indices.tolist()
        near = [(str(tokenizer.convert_ids_to_tokens(each)), tokenizer.decode([each]).strip()) for each in order]
        alike = [text for piece, text in near if _begins(piece) == _begins(spelt) and _fits(text, word.old)]
        found[word] = list(dict.fromkeys(alike))[:SUGGESTED]
    return found


def _token_of(tokens: dict[tuple[int, tuple[int, int]], int], question: Question, word: Edit) -> int | None:
    """The place of the one token that is this word; byte-level tokens may have a space before them."""
    for start in (word.start, word.start - 1):
        at = tokens.get((word.owner, (start, word.end)))
        if at is not None:
            return at
    return None


def _begins(piece: str) -> str:
    """What a token's spelling says about its place in a word."""
    return "##" if piece.startswith("##") else piece[:1] if piece[:1] in "Ġ▁" else ""


def _fits(new: str, old: str) -> bool:
    return new.casefold() != old.casefold() and new.isalpha() and new.isascii() == old.isascii()


@torch.inference_mode()
def masked_words(editor: tuple[Model, Tokenizer], texts: Sequence[str], words: Sequence[Edit]) -> dict[Edit, list[str]]:
    """What a masked model puts in the place of each word, one text at a time."""
    model, tokenizer = editor
    found: dict[Edit, list[str]] = {}
    for word in words:
        hidden = word._replace(new=str(tokenizer.mask_token))
        text = edited(texts, [hidden])[word.owner]
        limit = int(getattr(model, "longest", model.config.max_positions))
        ids = torch.tensor([tokenizer.encode(text)[:limit]], device=model.device)
        places = [at for at, number in enumerate(ids[0].tolist()) if number == tokenizer.mask_token_id]
        if not places:
            continue
        order = torch.topk(model(ids).logits[0, places[0]], 4 * SUGGESTED).indices.tolist()
        near = [(str(tokenizer.convert_ids_to_tokens(each)), tokenizer.decode([each]).strip()) for each in order]
        fit = [text for piece, text in near if not piece.startswith("##") and _fits(text, word.old)]
        found[word] = list(dict.fromkeys(fit))[:SUGGESTED]
    return found
