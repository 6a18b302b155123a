"""Sentence vectors (a bi-encoder): texts that are alike in meaning come to lie near one another.

What is learnt follows from the data. Pairs with scores are ranked by their cosines as by their scores (CoSENT), or each
cosine is the score, by squares. Pairs that belong together (question and answer, two wordings; or with the labels of
inference, premise and what follows from it) are told apart from the other texts of the batch.

Source: Reimers & Gurevych 2019, Sentence-BERT, section 3; Henderson et al. 2017, "Efficient Natural Language Response
Suggestion for Smart Reply", section 4.4 (the other texts of a batch); Su 2022, CoSENT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tsumugu.core.errors import InputError
from tsumugu.data.labelled.examples import ChoiceExample, Examples, SimilarityExample
from tsumugu.objectives.base import Batch
from tsumugu.tasks.sentence_embedding import Pooling, pooling_files, read_pooling
from tsumugu.tuning.base import Row, TaskObjective, body, in_pieces, places_of

if TYPE_CHECKING:
    from torch import Tensor

    from tsumugu.models.base import Model

SCALE = 20.0
"""What cosines are multiplied by where they are compared."""
TOGETHER = ("entailment", "paraphrase", "duplicate", "equivalent", "similar", "1", "true", "yes")
APART = ("contradiction", "not_duplicate", "not_equivalent", "not_paraphrase", "different", "0", "false", "no")
"""Labels of pairs that belong together, and of those that do not; any other is between them."""
CHOICES = 20
"""Texts that each pair's second is sought among, where pairs have no scores."""


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of a row.

    Attributes:
        ids: the tokens of two texts that are compared, or of an anchor, what belongs to it, and perhaps what does not.
        numbers: of the texts: equal texts have equal numbers.
        score: how alike two texts are; None for what belongs together.
    """

    ids: tuple[Sequence[int], ...]
    numbers: tuple[int, ...]
    score: float | None = None


class SentenceSimilarity(TaskObjective):
    """One vector for each text. A row's `ids` are those of its longest text, its answer all of them."""

    name: ClassVar[str] = "sentence-similarity"
    kind: ClassVar[str | None] = None
    head: ClassVar[str] = "base"
    solver: ClassVar[str | None] = "sentence-similarity"
    term: ClassVar[str] = "pair"
    whole: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    pieces: ClassVar[bool] = True
    obeys: ClassVar[frozenset[str]] = frozenset({"similarity"})

    @classmethod
    def outputs(cls, examples: Examples) -> tuple[str, ...] | None:
        return None

    @classmethod
    def judged(cls, examples: Examples) -> Examples:
        """Pairs with labels as pairs with scores; pairs without any as choices: which text belongs to the first?"""
        if examples.kind == "pair-classification":
            pairs = [
                SimilarityExample(id=row.id, text1=row.text1, text2=row.text2, score=_side(row.label))
                for row in examples
            ]
            return replace(examples, kind="similarity", rows=tuple(pairs), labels=None)
        if examples.kind == "text-to-text":
            return replace(examples, kind="multiple-choice", rows=tuple(_choices(examples)))
        return examples

    def begin(self, model: Model, examples: Examples) -> None:
        folder = model.path if model.path is not None and model.path.is_dir() else None
        asked = Pooling() if folder is None else read_pooling(folder)
        limit = self.data.max_length or asked.max_tokens
        if limit is not None:
            self.max_length = min(limit, self.longest)
        self.pooling = replace(asked, max_tokens=self.max_length)
        model.beside = pooling_files(self.pooling, model.config.hidden_size)
        pooler = getattr(model, "pooler", None)
        if pooler is not None:
            pooler.requires_grad_(False)  # no vector goes through it
        self._low, self._width = 0.0, 1.0
        if examples.kind == "similarity":
            self._low = min(examples.answers)
            self._width = (max(examples.answers) - self._low) or 1.0

    def rows(self, examples: Examples) -> list[Row]:
        groups: list[tuple[tuple[str, ...], float | None]]
        if examples.kind == "similarity":
            groups = [((row.text1, row.text2), row.score) for row in examples]
        elif examples.kind == "pair-classification":
            groups = [(texts, None) for texts in _triples(examples)]
        elif examples.kind == "text-to-text":
            groups = [((row.source, target), None) for row in examples for target in row.targets[:1]]
        else:
            raise InputError(
                f"{examples.kind} says nothing about pairs of texts",
                where=examples.source,
                mend="give two texts with a score or a label, or source and target",
            )
        known = {
            text: number for number, text in enumerate(dict.fromkeys(text for texts, _ in groups for text in texts))
        }
        lowered = [text.lower() if self.pooling.lower else text for text in known]
        encoded = self.encode(lowered)["input_ids"]
        rows = []
        for texts, score in groups:
            numbers = tuple(known[text] for text in texts)
            ids = tuple(encoded[number] for number in numbers)
            rows.append(Row(max(ids, key=len), Texts(ids, numbers, score)))
        return rows

    def batch(self, rows: Sequence[Row]) -> Batch:
        texts: list[Texts] = [row.answer for row in rows]
        # All firsts, all seconds, and then the thirds that there are.
        flat = [(each.ids[at], each.numbers[at]) for at in range(3) for each in texts if at < len(each.ids)]
        made = super().batch([Row(ids, None) for ids, _ in flat])
        answers: dict[str, np.ndarray] = {"numbers": np.array([number for _, number in flat], np.int64)}
        if texts[0].score is not None:
            answers["scores"] = np.array([each.score for each in texts], np.float32)
        inputs = made.inputs | answers | {"pairs": np.array(len(rows))}
        places = places_of([len(ids) for ids, _ in flat], self._texts_at_once(len(flat), len(rows)), rounds=self.rounds)
        return Batch(inputs, {"pair": len(rows)}, made.tokens, places - made.tokens, 0)

    def answers(self, rows: Sequence[Row], width: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        return {}, {"pair": 0}

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from torch.nn import functional

        count = int(inputs["pairs"])
        vectors = functional.normalize(self.vectors(model, inputs), dim=-1)
        first, second = vectors[:count], vectors[count : 2 * count]
        if "scores" not in inputs:
            numbers = inputs["numbers"]
            return {"pair": ranking(first, vectors[count:], numbers[:count], numbers[count:])}
        cosines = (first * second).sum(-1)
        if self.loss.similarity == "cosine":
            wanted = (inputs["scores"] - self._low) / self._width
            return {"pair": functional.mse_loss(cosines, wanted, reduction="sum")}
        return {"pair": count * cosent(cosines, inputs["scores"])}

    def vectors(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """One vector a text, `[texts, dim]`."""
        import torch

        from tsumugu.blocks.heads import pool

        def encode(asked: dict[str, Tensor]) -> Tensor:
            real = asked.get("attention_mask", torch.ones_like(asked["input_ids"]))
            return pool(model(**asked).last_hidden_state, real, self.pooling.mode).float()

        texts = len(inputs["input_ids"])
        return in_pieces(
            encode, body(inputs), self._texts_at_once(texts, int(inputs.get("pairs", texts))), rounds=self.rounds
        )

    def _texts_at_once(self, texts: int, rows: int) -> int | None:
        return None if self.at_once is None else self.at_once * (texts // rows)


def ranking(first: Tensor, others: Tensor, mine: Tensor, theirs: Tensor) -> Tensor:
    """The sum of cross-entropies of each first text's own second, `others` of the same place, among all the others.

    A text that is equal to the first, or to what belongs to it in any row, is no negative.

    Args:
        first: unit vectors `[pairs, dim]`.
        others: those of the second texts in the same order, and of any number of further negatives.
        mine, theirs: numbers of the texts.
    """
    import torch
    from torch.nn import functional

    count = len(first)
    equal, belongs = (mine[:, None] == mine).float(), (theirs[:count, None] == theirs).float()
    same = (equal @ belongs > 0) | (theirs == mine[:, None])
    same.fill_diagonal_(False)
    scores = (SCALE * first @ others.T).masked_fill(same, float("-inf"))
    return functional.cross_entropy(scores, torch.arange(count, device=scores.device), reduction="sum")


def cosent(cosines: Tensor, scores: Tensor) -> Tensor:
    """How far the order of cosines `[pairs]` is from that of scores, over every two pairs of a batch."""
    import torch

    gaps = SCALE * (cosines[:, None] - cosines)[scores[:, None] < scores]
    return torch.cat([gaps.new_zeros(1), gaps]).logsumexp(0)


def _side(label: str) -> float:
    form = label.lower().replace("-", "_")
    return 1.0 if form in TOGETHER else 0.0 if form in APART else 0.5


def _triples(examples: Examples) -> list[tuple[str, ...]]:
    """Each first text with one that belongs to it, and in turn one that does not, where there is any.

    Raises:
        InputError: no pair belongs together.
    """
    apart: dict[str, list[str]] = {}
    for row in examples:
        if _side(row.label) == 0.0:
            apart.setdefault(row.text1, []).append(row.text2)
    found: list[tuple[str, ...]] = []
    for row in examples:
        if _side(row.label) == 1.0:
            others = apart.get(row.text1, [])
            found.append(
                (row.text1, row.text2, *others[len(found) % len(others) :][:1]) if others else (row.text1, row.text2)
            )
    if not found:
        raise InputError(
            "no label says that two texts belong together", where=examples.source, mend="such as entailment"
        )
    return found


def _choices(examples: Examples) -> list[ChoiceExample]:
    """Each text's own second among those of the rows after it."""
    seconds = [row.targets[0] for row in examples]
    found = []
    for at, row in enumerate(examples):
        after = dict.fromkeys(seconds[at + 1 :] + seconds[:at])
        others = [each for each in after if each not in row.targets][: CHOICES - 1]
        place = at % (len(others) + 1)
        choices = (*others[:place], seconds[at], *others[place:])
        found.append(ChoiceExample(id=row.id, question=row.source, choices=choices, label=place))
    return found
