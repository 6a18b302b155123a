"""The smallest changes of a text that turn a classifier's answer into another one.

Words are deleted, replaced (by what a masked model puts there, or by the nearest words in the classifier's own
embeddings), or negated. All single edits are read first; where none turns the answer, the best ones are put together, a
beam of them at a time. What was found is read again by itself, and edits that are not needed are taken back.

Sources: Ross et al. 2021, "Explaining NLP Models via Minimal Contrastive Editing" (MiCE); Li et al. 2020, "BERT-ATTACK"
(replacements by a masked model); Kaushik et al. 2020, "Learning the Difference that Makes a Difference" (negations).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tsumugu.anatomy.influence import grouped
from tsumugu.anatomy.targets import Question
from tsumugu.core.errors import InputError, did_you_mean, one_line
from tsumugu.corpus.units import is_spaced
from tsumugu.models.base import Model
from tsumugu.text.tokenizer import Tokenizer

BEAM, PARTNERS = 6, 40
"""Sets of edits that go into the next round, and single edits that each is put together with."""
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


@dataclass(frozen=True)
class Counterfactual:
    """Edited texts, the edits, and what the model answers to them, with its probability."""

    texts: tuple[str, ...]
    edits: tuple[Edit, ...]
    label: str
    chance: float


@dataclass(frozen=True)
class Counterfactuals:
    """What was found.

    Attributes:
        label, chance: the answer to the text as it is.
        found: the fewest edits first, then the surest.
        passes: how many texts were read, those of the masked model included; `most`: the bound on it.
        whole: all that was to be tried was tried.
        closest: where nothing was found, the edited text whose answer is the least sure.
    """

    label: str
    chance: float
    found: list[Counterfactual]
    passes: int
    most: int
    whole: bool
    closest: Counterfactual | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""

        def plain(each: Counterfactual) -> dict[str, Any]:
            return {**vars(each), "edits": [edit._asdict() for edit in each.edits]}

        closest = None if self.closest is None else plain(self.closest)
        return {**vars(self), "found": [plain(each) for each in self.found], "closest": closest}


class _Reader:
    """Reads texts and counts them; stops at the bound."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer, texts: tuple[str, ...], most: int, watch: Callable[[int], None] | None
    ) -> None:
        self.model, self.tokenizer, self.texts, self.most, self.watch = model, tokenizer, texts, most, watch
        self.passes = 0
        self.first = self.read([()])[0]
        self.chosen = int(self.first.argmax())

    @property
    def left(self) -> int:
        return self.most - self.passes

    def count(self, passes: int) -> None:
        self.passes += passes
        if self.watch is not None:
            self.watch(passes)

    def read(self, sets: Sequence[tuple[Edit, ...]]) -> Tensor:
        """Probabilities `[sets, labels]` of the text with each set of edits, as many as the bound allows."""
        sets = sets[: self.left]
        rows = [edited(self.texts, each) for each in sets]
        found = torch.zeros(len(rows), len(self.model.config.labels), dtype=torch.float64)
        for group, given in grouped(self.model, self.tokenizer, rows) if rows else ():
            with torch.inference_mode():
                found[group] = self.model(**given).logits.double().softmax(-1).cpu()
        self.count(len(rows))
        return found

    def margins(self, sets: Sequence[tuple[Edit, ...]], wanted: int | None) -> list[float]:
        """How far the answer is from turning, for each set that was read: below 0 it has turned."""
        chances = self.read(sets)
        this = self.chosen if wanted is None else wanted
        others = chances.clone()
        others[:, this] = -1.0
        ahead: list[float] = (chances[:, this] - others.amax(-1)).tolist()
        return ahead if wanted is None else [-each for each in ahead]


def counterfactuals(
    model: Model,
    tokenizer: Tokenizer,
    question: Question,
    *,
    editor: tuple[Model, Tokenizer] | None = None,
    towards: str | None = None,
    edits: int = 3,
    passes: int = 1000,
    top: int = 5,
    watch: Callable[[int], None] | None = None,
) -> Counterfactuals:
    """The smallest edits that turn the answer to a question's text.

    Args:
        model: a classifier of texts, in eval mode.
        question: of `targets`; of pairs both texts are edited.
        editor: a masked model and its tokenizer, which suggest replacements; without one the nearest words in the
            classifier's embeddings are taken.
        towards: the label that the answer is to become; any other one when left out.
        edits: at most so many.
        passes: at most so many texts are read.
        top: at most so many ways are given.
        watch: called with how many texts were read.

    Raises:
        InputError: no classifier, no masked model, or no such label.
    """
    labels = list(model.config.labels)
    if model.head_name != "sequence-classification" or len(labels) < 2:
        raise InputError("edits turn the answers of classifiers of texts, and this model is none", where="model")
    if towards is not None and towards not in labels:
        raise InputError(f"the model has no label {towards!r}", where="towards", mend=did_you_mean(towards, labels))
    if editor is not None and editor[0].head_name not in ("masked-lm", "pretraining"):
        raise InputError("the model that suggests words predicts no hidden ones", where="editor")
    reader = _Reader(model, tokenizer, question.texts, passes, watch)
    wanted = None if towards is None else labels.index(towards)
    if wanted == reader.chosen:
        raise InputError(f"the answer is {towards!r} already", where="towards", mend="name another label")
    words = _words(question)
    suggestions = _near(model, tokenizer, question, words) if editor is None else _masked(editor, reader, words)
    singles: list[tuple[Edit, ...]] = [(each,) for word in words for each in _edits_of(word, suggestions.get(word, ()))]
    singles += [(each,) for each in _japanese(question.texts)]
    whole = len(singles) <= reader.left
    margins = reader.margins(singles, wanted)
    ranked = sorted(zip(margins, singles, strict=False))
    best, turned = ranked, [each for margin, each in ranked if margin < 0]
    for _ in range(1, edits):
        if turned or not ranked:
            break
        beam, partners = [each for _, each in best[:BEAM]], [each[0] for _, each in ranked[:PARTNERS]]
        sets = {frozenset((*each, more)): None for each in beam for more in partners if _apart(each, more)}
        rows = [tuple(sorted(each)) for each in sets]
        whole = whole and len(rows) <= reader.left
        margins = reader.margins(rows, wanted)
        best = sorted(zip(margins, rows, strict=False)) or best
        turned = [each for margin, each in best if margin < 0]
    found = [_judged(reader, _needed(reader, each, wanted), wanted) for each in turned[: 3 * top]]
    unique = {each.texts: each for each in found if each is not None}
    closest = None if unique or not best else _judged(reader, best[0][1], wanted, turned=False)
    return Counterfactuals(
        label=labels[reader.chosen],
        chance=float(reader.first[reader.chosen]),
        found=sorted(unique.values(), key=lambda each: (len(each.edits), -each.chance))[:top],
        passes=reader.passes,
        most=passes,
        whole=whole,
        closest=closest,
    )


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


def _words(question: Question) -> list[Edit]:
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


def _edits_of(word: Edit, suggestions: Sequence[str]) -> Iterator[Edit]:
    yield word._replace(new="", kind="delete")
    for each in suggestions:
        yield word._replace(new=each)
    low = word.old.lower()
    if _AUXILIARY.fullmatch(low):
        yield word._replace(new=f"{word.old} not", kind="negate")
    elif low.isascii() and low.isalpha() and len(low) > 2 and low not in ("not", "the", "and"):
        yield word._replace(new=f"not {word.old}", kind="negate")


def _japanese(texts: Sequence[str]) -> Iterator[Edit]:
    """Negations of endings, and affirmations of negated ones."""
    for owner, text in enumerate(texts):
        for match in _NEGATED.finditer(text):
            new = _JAPANESE[(match.lastindex or 1) - 1][1]
            yield Edit(owner, match.start(), match.end(), match[0], new, "negate")


def _near(model: Model, tokenizer: Tokenizer, question: Question, words: Sequence[Edit]) -> dict[Edit, list[str]]:
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
def _masked(editor: tuple[Model, Tokenizer], reader: _Reader, words: Sequence[Edit]) -> dict[Edit, list[str]]:
    """What a masked model puts in the place of each word, one text at a time."""
    model, tokenizer = editor
    found: dict[Edit, list[str]] = {}
    for word in words[: reader.left // 2]:
        hidden = word._replace(new=str(tokenizer.mask_token))
        text = edited(reader.texts, [hidden])[word.owner]
        limit = int(getattr(model, "longest", model.config.max_positions))
        ids = torch.tensor([tokenizer.encode(text)[:limit]], device=model.device)
        places = [at for at, number in enumerate(ids[0].tolist()) if number == tokenizer.mask_token_id]
        if not places:
            continue
        order = torch.topk(model(ids).logits[0, places[0]], 4 * SUGGESTED).indices.tolist()
        near = [(str(tokenizer.convert_ids_to_tokens(each)), tokenizer.decode([each]).strip()) for each in order]
        fit = [text for piece, text in near if not piece.startswith("##") and _fits(text, word.old)]
        found[word] = list(dict.fromkeys(fit))[:SUGGESTED]
        reader.count(1)
    return found


def _apart(edits: Sequence[Edit], more: Edit) -> bool:
    return all(each.owner != more.owner or each.end <= more.start or more.end <= each.start for each in edits)


def _needed(reader: _Reader, edits: tuple[Edit, ...], wanted: int | None) -> tuple[Edit, ...]:
    """The edits without those that the answer turns without."""
    for each in edits if len(edits) > 2 else ():  # single ones were all read
        fewer = tuple(other for other in edits if other != each)
        if [margin for margin in reader.margins([fewer], wanted) if margin < 0]:
            return _needed(reader, fewer, wanted)
    return edits


def _judged(
    reader: _Reader, edits: tuple[Edit, ...], wanted: int | None, *, turned: bool = True
) -> Counterfactual | None:
    """An edited text read by itself; None where its answer has not turned after all."""
    if not reader.left:
        return None
    chances = reader.read([edits])[0]
    answer = int(chances.argmax())
    if turned and (answer == reader.chosen or wanted not in (None, answer)):
        return None
    label = reader.model.config.labels[answer]
    return Counterfactual(edited(reader.texts, edits), edits, label, float(chances[answer]))


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


def in_text(found: Counterfactuals, texts: Sequence[str]) -> Iterator[str]:
    """A line for each way to turn the answer."""
    yield facts(found)
    shown = found.found or ([found.closest] if found.closest is not None else [])
    for each in shown:
        signs = {"": "{}", "-": "[-{}-]", "+": "{{+{}+}}"}
        text = "".join(signs[mark].format(part) for mark, part in marked(texts, each.edits))
        yield f"  {each.label} ({each.chance:.1%})  {one_line(text, limit=400)}"


def facts(found: Counterfactuals) -> str:
    """What was tried, in words."""
    read = f"{found.passes:,} texts read" + (
        "" if found.whole else f", the bound of {found.most:,} left others untried"
    )
    if not found.found:
        return f"no edit turns {found.label} ({found.chance:.1%}) into another answer; {read}; the nearest:"
    count = len(found.found[0].edits)
    turns = "1 edit turns" if count == 1 else f"{count} edits turn"
    return f"{turns} {found.label} ({found.chance:.1%}) into another answer; {read}:"
