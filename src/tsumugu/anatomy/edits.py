"""The smallest changes of a text that turn a classifier's answer into another one.

All single edits (see `candidates`) are read first; where none turns the answer, the best ones are put together, a beam
of them at a time. What was found is read again by itself, and edits that are not needed are taken back.

Source: Ross et al. 2021, "Explaining NLP Models via Minimal Contrastive Editing" (MiCE).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsumugu.anatomy.candidates import (
    Edit,
    edited,
    edits_of,
    marked,
    masked_words,
    near_words,
    negated_endings,
    words_of,
)
from tsumugu.anatomy.influence import grouped
from tsumugu.anatomy.targets import Question
from tsumugu.core.errors import InputError, did_you_mean, one_line
from tsumugu.models.base import Model
from tsumugu.text.tokenizer import Tokenizer

BEAM, PARTNERS = 6, 40
"""Sets of edits that go into the next round, and single edits that each is put together with."""


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
    words = words_of(question)
    if editor is None:
        suggestions = near_words(model, tokenizer, question, words)
    else:
        suggestions = masked_words(editor, question.texts, words[: reader.left // 2])
        reader.count(len(suggestions))
    singles: list[tuple[Edit, ...]] = [(each,) for word in words for each in edits_of(word, suggestions.get(word, ()))]
    singles += [(each,) for each in negated_endings(question.texts)]
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
