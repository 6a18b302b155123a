"""What labelled examples ask of a model, by head: the label of a text, a tag for each token, the two ends of an answer.

Targets are whole numbers: `[rows]` for texts, `[rows, time]` for tokens (`IGNORE` where nothing is asked), `[rows, 2]`
for answers. The question that is explained is one row of the same kind, so that losses of both can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tsumugu.anatomy.targets import Question
from tsumugu.core.errors import InputError
from tsumugu.data.labelled.examples import Example, Examples, QuestionExample, SpanExample
from tsumugu.data.labelled.tags import OUTSIDE, split_tag
from tsumugu.models.base import Model, Output
from tsumugu.objectives.base import IGNORE
from tsumugu.tasks.alignment import span_of, tags_of
from tsumugu.tasks.batching import padded
from tsumugu.text.tokenizer import Tokenizer

KINDS = {
    "sequence-classification": ("text-classification", "pair-classification"),
    "token-classification": ("token-classification",),
    "question-answering": ("question-answering",),
    "base": ("similarity",),
}
"""The data that pull answers of each head."""


@dataclass(frozen=True)
class Supervision:
    """Examples that can be read whole enough to say what they ask, and what that is.

    Attributes:
        rows: the examples; `left_out`: how many others there were, whose answer lies behind the model's longest text.
        targets: of each row, a number, or one for each of its tokens.
    """

    rows: list[Example]
    targets: list[Any]
    left_out: int = 0

    def of(self, group: Sequence[int]) -> Tensor:
        """The targets of some rows."""
        some = [self.targets[row] for row in group]
        return torch.from_numpy(padded(some, IGNORE)) if isinstance(some[0], list) else torch.tensor(some)


def kind_of(model: Model, texts: Sequence[str]) -> str:
    """The kind of data that pulls the answers of a model.

    Raises:
        InputError: of a model with another head.
    """
    kinds = KINDS.get(model.head_name, ())
    if not kinds or (model.head_name == "sequence-classification" and len(model.config.labels) < 2):
        mend = "the task semantic-search finds texts that are near"
        if model.head_name in ("causal-lm", "masked-lm", "pretraining"):
            said = "each of a text's tokens is an example to a model that predicts tokens, and none of them has a label"
            raise InputError(said, where="model", mend=mend)
        raise InputError("no labelled examples pull the answers of this model", where="model", mend=mend)
    return kinds[-1] if len(texts) == 2 else kinds[0]


def labels_of(model: Model) -> list[str] | None:
    """The labels that data for a model may have; None where its answers are no labels."""
    if model.head_name == "sequence-classification":
        return list(model.config.labels)
    if model.head_name == "token-classification":
        return list(dict.fromkeys(split_tag(each)[1] for each in model.config.labels if each != OUTSIDE))
    return None


def supervise(model: Model, tokenizer: Tokenizer, examples: Examples) -> Supervision:
    """What examples ask of a model that is trained on them.

    Raises:
        InputError: they are of another kind, or have a label that the model lacks.
    """
    kinds = KINDS[model.head_name]
    if examples.kind not in kinds:
        raise InputError(f"data for {examples.kind} do not fit this model", where="data", mend=f"use {kinds[0]}")
    rows, labels = list(examples), {label: at for at, label in enumerate(model.config.labels)}
    if model.head_name == "base":
        return Supervision(rows, [0] * len(rows))
    if model.head_name == "sequence-classification":
        return Supervision(rows, [_index(labels, str(each.answer), each.id) for each in rows])
    limit = int(getattr(model, "longest", model.config.max_positions))
    kept, targets = [], []
    for each in rows:
        texts = each.texts
        given = [texts[0]] if len(texts) == 1 else [(texts[0], texts[1])]
        code = tokenizer(given, truncation=True, max_length=limit, return_offsets_mapping=True).encodings[0]
        sides = code.sequence_ids
        if isinstance(each, SpanExample):
            for span in each.spans:
                for prefix in "BI":
                    _index(labels, f"{prefix}-{span.label}", each.id)
            found = tags_of(each, code.offsets, sides, labels)
        elif isinstance(each, QuestionExample):
            found = list(span_of(each, code.offsets, sides))
            if each.answers and found == [0, 0]:
                continue
        kept.append(each)
        targets.append(found)
    if not kept:
        raise InputError("the answers of all examples lie behind the model's longest text", where="data")
    return Supervision(kept, targets, len(rows) - len(kept))


def _index(labels: dict[str, int], label: str, row: str) -> int:
    if label not in labels:
        raise InputError(f"the model has no label {label!r}", where=f"example {row}")
    return labels[label]


def wanted(question: Question) -> Tensor:
    """The target of the answer that is explained: one row."""
    if len(question.places) == 2:
        return torch.tensor([question.places])
    if question.label is None:
        return torch.zeros(1, dtype=torch.int64)
    if not question.places:
        return torch.tensor([question.label])
    found = torch.full((1, question.ids.shape[1]), IGNORE)
    found[0, question.places[0]] = question.label
    return found


def losses(output: Output, targets: Tensor, mask: Tensor) -> Tensor:
    """The loss of each row, `[rows]`: cross-entropy, the sum over tokens, the mean of both ends of an answer.

    Args:
        mask: `[rows, time]`, 0 for padding, where no answer can end: a row's loss is the same in any company.
    """
    if output.start_logits is not None and output.end_logits is not None:
        logits = [each.float().masked_fill(mask == 0, -1e30) for each in (output.start_logits, output.end_logits)]
        start, end = (functional.cross_entropy(logits[at], targets[:, at], reduction="none") for at in range(2))
        return (start + end) / 2
    chances = output.logits.float().log_softmax(-1)
    each = chances.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    each = -each.masked_fill(targets == IGNORE, 0.0)
    return each if targets.ndim == 1 else each.sum(-1)


def cosines(states: Tensor, targets: Tensor, asked: Tensor, head: str) -> Tensor:
    """How near each row is to the question, `[rows]`, by what the last layer reads.

    Args:
        states: `[rows, dim]` or `[rows, time, dim]`, of length 1.
        asked: of the question, `[places, dim]`: of its text, its token, or the two ends of its answer.
    """
    if head == "sequence-classification":
        return states @ asked[0]
    if head == "token-classification":  # the nearest token
        return (states @ asked[0]).masked_fill(targets == IGNORE, -1.0).amax(-1)
    ends = states.gather(1, targets[..., None].expand(-1, -1, states.shape[-1]))
    return (ends * asked).sum(-1).mean(-1)


def shown(example: Example) -> str:
    """What an example says, in a few words."""
    if isinstance(example, SpanExample):
        return ", ".join(f"{each.label} for {example.text[each.start : each.end]}" for each in example.spans) or OUTSIDE
    if isinstance(example, QuestionExample):
        return example.answers[0].text if example.answers else "no answer"
    return str(example.answer)


def agrees(example: Example, model: Model, question: Question) -> bool | None:
    """Whether an example has the label that is explained; None where answers are no labels."""
    if question.label is None:
        return None
    label = str(model.config.labels[question.label])
    if isinstance(example, SpanExample):
        kinds = {each.label for each in example.spans}
        return not kinds if label == OUTSIDE else split_tag(label)[1] in kinds
    return str(example.answer) == label
