"""Which labelled examples pull a classifier's answer: those that lie near, and those whose gradients point its way.

Near: the cosine of the vectors that the last linear layer reads. Influence: to first order, how much one step of
gradient descent on a training example lowers the loss of the answer, which is the dot product of two gradients, summed
over checkpoints. The product with all examples of a group is one derivative of their losses in the direction of the
answer's gradient (forward mode), so it costs about three passes and no gradient of an example is ever held.

Sources: Pruthi et al. 2020, "Estimating Training Data Influence by Tracing Gradient Descent" (TracIn), sections 3
and 4.1 (the last layer alone); Pezeshkpour et al. 2021, "An Empirical Comparison of Instance Attribution Methods for
NLP".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tsumugu.core.errors import InputError, did_you_mean, one_line
from tsumugu.data.labelled.examples import Examples
from tsumugu.models.base import Model
from tsumugu.tasks.batching import longest_first, padded
from tsumugu.text.tokenizer import Tokenizer

By = Literal["influence", "embedding"]
Texts = Sequence[str]
"""What is read: one text, or the two of a pair."""

_BUDGET = 2048  # tokens computed together, padding included: forward mode holds twice as much


@dataclass(frozen=True)
class Neighbour:
    """A labelled example: its id in the data, texts, label, and the cosine or the influence."""

    id: str
    texts: tuple[str, ...]
    label: str
    score: float


@dataclass(frozen=True)
class Neighbours:
    """The examples that pull an answer the most.

    Attributes:
        label: the answer.
        examples: how many were looked at; `checkpoints`: at how many sets of weights.
        parameters: how many numbers the gradients have; 0 for cosines.
        pulling: the highest scores, the highest first.
        against: the lowest influences, the lowest first; empty for cosines.
        agreeing: how many of `pulling` have the answer's label.
    """

    by: str
    label: str
    examples: int
    checkpoints: int
    parameters: int
    pulling: list[Neighbour]
    against: list[Neighbour]

    @property
    def agreeing(self) -> int:
        return sum(each.label == self.label for each in self.pulling)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        lists = {key: [vars(each) for each in getattr(self, key)] for key in ("pulling", "against")}
        return {**vars(self), **lists, "agreeing": self.agreeing}


def in_text(found: Neighbours) -> Iterator[str]:
    """A line for each example that pulls, and for each that pulls the other way."""
    yield f"nearest, by {found.by}: {facts(found)}"
    for title, some in (("", found.pulling), ("against it:", found.against)):
        if title and some:
            yield title
        width = max((len(each.label) for each in some), default=0)
        for each in some:
            text = one_line(" ⏎ ".join(each.texts), limit=80)
            yield f"  {each.score:>+10.4g}  {one_line(each.label, limit=30):<{min(width, 30)}}  #{each.id}  {text}"


def facts(found: Neighbours) -> str:
    """What was looked at, in words."""
    said = f"of {found.examples:,} examples, {found.agreeing} of the first {len(found.pulling)} are {found.label}"
    if found.by == "embedding":
        return said
    several = f"{found.checkpoints} checkpoint{'' if found.checkpoints == 1 else 's'}"
    return f"{said}; gradients of {found.parameters:,} numbers at {several}"


def neighbours(
    model: Model,
    tokenizer: Tokenizer,
    texts: Texts,
    examples: Examples,
    *,
    by: str = "influence",
    target: str | None = None,
    checkpoints: Iterable[Model] | None = None,
    layers: int = 0,
    top: int = 5,
    watch: Callable[[int], None] | None = None,
) -> Neighbours:
    """The examples that pull the answer to a text the most.

    Args:
        model: a classifier of texts, in eval mode.
        texts: one, or the two of a pair.
        examples: labelled texts or pairs, as they were trained on.
        by: influence or embedding.
        target: the label that is asked about; the model's own answer when left out.
        checkpoints: the model at several moments of its training, each weighing the same; the model itself when left
            out. Taken one by one.
        layers: gradients are those of the last linear layer; with so many layers from the end, those of the whole head
            and of these layers.
        top: how many examples on each side.
        watch: called with how many examples were read.

    Raises:
        InputError: no classifier, no such label, a text that is too long, or too many layers.
    """
    labels = list(model.config.labels)
    if by not in get_args(By):
        raise InputError(f"unknown measure {by!r}", where="by", mend=did_you_mean(by, get_args(By)))
    if model.head_name != "sequence-classification" or len(labels) < 2:
        raise InputError(
            "pulled are the answers of classifiers of texts, and this model is none",
            where="model",
            mend="the task semantic-search finds texts that are near",
        )
    rows = [each.texts for each in examples]
    asked = next(grouped(model, tokenizer, [tuple(texts)]))[1]
    with torch.no_grad():
        chosen = int(model(**asked).logits[0].argmax())
    if target is not None:
        if target not in labels:
            raise InputError(f"the model has no label {target!r}", where="target", mend=did_you_mean(target, labels))
        chosen = labels.index(target)
    scores, moments, size = np.zeros(len(rows)), 0, 0
    if by == "embedding":
        scores, moments = _cosines(model, tokenizer, asked, rows, watch), 1
    else:
        answers = torch.tensor([labels.index(each.answer) for each in examples])
        for moment in [model] if checkpoints is None else checkpoints:
            found, size = _influences(moment, tokenizer, asked, chosen, rows, answers, layers, watch)
            scores, moments = scores + found, moments + 1
    order = np.argsort(-scores, kind="stable")

    def listed(places: npt.NDArray[np.int64]) -> list[Neighbour]:
        some = [(examples[int(at)], float(scores[at])) for at in places]
        return [Neighbour(each.id, each.texts, str(each.answer), score) for each, score in some]

    low = order[::-1][:top] if by == "influence" else order[:0]
    return Neighbours(
        by=by,
        label=labels[chosen],
        examples=len(rows),
        checkpoints=moments,
        parameters=size,
        pulling=listed(order[:top]),
        against=[each for each in listed(low) if each.score < 0],
    )


def grouped(
    model: Model, tokenizer: Tokenizer, rows: Sequence[tuple[str, ...]]
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Row numbers of texts of like length, and what the model takes for them; longer ones than it can read are cut."""
    limit = int(getattr(model, "longest", model.config.max_positions))
    seconds = [each[1] for each in rows] if len(rows[0]) > 1 else None
    encoded = tokenizer([each[0] for each in rows], seconds, truncation=True, max_length=limit)
    pad = next((each for each in (tokenizer.pad_token_id, model.config.pad_token_id) if each is not None), 0)
    ids = encoded["input_ids"]
    kinds = "token_type_ids" in encoded and getattr(model.config, "num_segments", 1) > 1
    for group in longest_first([len(each) for each in ids], budget=_BUDGET):
        given = {"input_ids": padded([ids[row] for row in group], pad)}
        given["attention_mask"] = padded([[1] * len(ids[row]) for row in group], 0)
        if kinds:
            given["token_type_ids"] = padded([encoded["token_type_ids"][row] for row in group], 0)
        yield group, {key: torch.from_numpy(each).to(model.device) for key, each in given.items()}


def _last_linear(model: Model) -> tuple[str, nn.Linear]:
    """The layer that gives the labels' scores, and its name."""
    found = [(name, each) for name, each in model.named_modules() if isinstance(each, nn.Linear)]
    name, layer = next(each for each in reversed(found) if each[0].startswith("head"))
    return name, layer


def _cosines(
    model: Model,
    tokenizer: Tokenizer,
    asked: dict[str, Tensor],
    rows: Sequence[tuple[str, ...]],
    watch: Callable[[int], None] | None,
) -> npt.NDArray[np.float64]:
    read: list[Tensor] = []
    handle = _last_linear(model)[1].register_forward_pre_hook(lambda layer, given: read.append(given[0]))

    def vectors(given: dict[str, Tensor]) -> Tensor:
        model(**given)
        return functional.normalize(read.pop().double(), dim=-1)

    scores = np.zeros(len(rows))
    try:
        with torch.no_grad():
            here = vectors(asked)[0]
            for group, given in grouped(model, tokenizer, rows):
                scores[group] = (vectors(given) @ here).cpu().numpy()
                if watch is not None:
                    watch(len(group))
    finally:
        handle.remove()
    return scores


def _influences(
    model: Model,
    tokenizer: Tokenizer,
    asked: dict[str, Tensor],
    chosen: int,
    rows: Sequence[tuple[str, ...]],
    answers: Tensor,
    layers: int,
    watch: Callable[[int], None] | None,
) -> tuple[npt.NDArray[np.float64], int]:
    """The dot product of each example's gradient with the answer's, `[rows]`, and how many numbers a gradient has."""
    parameters = {name: each.detach() for name, each in _parameters(model, layers).items()}

    def losses(values: dict[str, Tensor], given: dict[str, Tensor], labels: Tensor) -> Tensor:
        # The fused attention of a CPU has no forward mode.
        with sdpa_kernel(SDPBackend.MATH):
            output = torch.func.functional_call(model, values, (), given)
        return functional.cross_entropy(output.logits.float(), labels.to(output.logits.device), reduction="none")

    direction = torch.func.grad(lambda values: losses(values, asked, torch.tensor([chosen])).sum())(parameters)
    scores = np.zeros(len(rows))
    for group, given in grouped(model, tokenizer, rows):
        labels = answers[group]
        along: Tensor = torch.func.jvp(
            lambda values, given=given, labels=labels: losses(values, given, labels), (parameters,), (direction,)
        )[1]
        scores[group] = along.detach().double().cpu().numpy()
        if watch is not None:
            watch(len(group))
    return scores, sum(each.numel() for each in parameters.values())


def _parameters(model: Model, layers: int) -> dict[str, Tensor]:
    """Those whose gradients count: of the last linear layer, or of the whole head and of layers from the end."""
    if not layers:
        name, layer = _last_linear(model)
        return {f"{name}.{key}": each for key, each in layer.named_parameters()}
    name, stack = next((name, each) for name, each in model.named_children() if hasattr(each, "layers"))
    count = len(stack.layers)  # type: ignore[arg-type]
    if not 0 < layers <= count:
        raise InputError(f"the model has no {layers} layers", where="layers", mend=f"0 to {count}")
    starts = ("head.", "pooler.", f"{name}.norm.", *(f"{name}.layers.{at}." for at in range(count - layers, count)))
    return {key: each for key, each in model.named_parameters() if key.startswith(starts)}
