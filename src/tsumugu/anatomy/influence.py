"""Which labelled examples pull an answer: those that lie near, and those whose gradients point its way.

Near: the cosine of the vectors that the last linear layer reads, or for models without one, of both texts' vectors;
of tags the nearest token counts, of answers the mean of both ends. Influence: to first order, how much one step of
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

from tsumugu.anatomy.supervision import (
    Supervision,
    agrees,
    cosines,
    kind_of,
    losses,
    shown,
    supervise,
    wanted,
)
from tsumugu.anatomy.targets import Question, ask, pooling_of
from tsumugu.blocks.heads import pool
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
    """A labelled example: its id in the data, texts, label, the cosine or the influence, whether its label is that of
    the answer (None where answers are no labels)."""

    id: str
    texts: tuple[str, ...]
    label: str
    score: float
    agrees: bool | None


@dataclass(frozen=True)
class Neighbours:
    """The examples that pull an answer the most.

    Attributes:
        label: the answer.
        examples: how many were looked at; `left_out`: others, whose answer lies behind the model's longest text.
        checkpoints: at how many sets of weights.
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
    left_out: int = 0

    @property
    def agreeing(self) -> int | None:
        known = [each.agrees for each in self.pulling if each.agrees is not None]
        return sum(known) if known else None

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
        width = max((len(one_line(each.label, limit=30)) for each in some), default=0)
        for each in some:
            text = one_line(" ⏎ ".join(each.texts), limit=80)
            yield f"  {each.score:>+10.4g}  {one_line(each.label, limit=30):<{width}}  #{each.id}  {text}"


def facts(found: Neighbours) -> str:
    """What was looked at, in words."""
    said = f"of {found.examples:,} examples"
    if found.agreeing is not None:
        said += f", {found.agreeing} of the first {len(found.pulling)} say {found.label}"
    if found.left_out:
        said += f" ({found.left_out:,} others are too long)"
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
        model: a classifier of texts or of tokens, one that finds answers, or (by embedding) one that gives vectors, in
            eval mode.
        texts: one, or the two of a pair: question and context, two sentences.
        examples: labelled, as they were trained on.
        by: influence or embedding.
        target: the label that is asked about, of tags LABEL@WORD; the model's own answer when left out.
        checkpoints: the model at several moments of its training, each weighing the same; the model itself when left
            out. Taken one by one.
        layers: gradients are those of the last linear layer; with so many layers from the end, those of the whole head
            and of these layers.
        top: how many examples on each side.
        watch: called with how many examples were read.

    Raises:
        InputError: a model with another head, data of another kind, no such label, a text that is too long, or too many
            layers.
    """
    if by not in get_args(By):
        raise InputError(f"unknown measure {by!r}", where="by", mend=did_you_mean(by, get_args(By)))
    kind_of(model, texts)
    if model.head_name == "base" and by == "influence":
        said = "a model that gives vectors has no last layer whose gradients could point at an example"
        raise InputError(said, where="model", mend="look for near ones: by embedding")
    question = ask(examples.kind, model, tokenizer, *texts, target=target)
    known = supervise(model, tokenizer, examples)
    rows = [each.texts for each in known.rows]
    scores, moments, size = np.zeros(len(rows)), 0, 0
    if by == "embedding":
        near = _likenesses if model.head_name == "base" else _cosines
        scores, moments = near(model, tokenizer, question, rows, known, watch), 1
    else:
        for moment in [model] if checkpoints is None else checkpoints:
            found, size = _influences(moment, tokenizer, question, rows, known, layers, watch)
            scores, moments = scores + found, moments + 1
    order = np.argsort(-scores, kind="stable")

    def listed(places: npt.NDArray[np.int64]) -> list[Neighbour]:
        some = [(known.rows[int(at)], float(scores[at])) for at in places]
        return [
            Neighbour(each.id, each.texts, shown(each), score, agrees(each, model, question)) for each, score in some
        ]

    low = order[::-1][:top] if by == "influence" else order[:0]
    return Neighbours(
        by=by,
        label=question.answer if question.label is None else str(model.config.labels[question.label]),
        examples=len(rows),
        checkpoints=moments,
        parameters=size,
        pulling=listed(order[:top]),
        against=[each for each in listed(low) if each.score < 0],
        left_out=known.left_out,
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


def _inputs(question: Question) -> dict[str, Tensor]:
    """What the model takes for the question, one row."""
    return {"input_ids": question.ids, "attention_mask": torch.ones_like(question.ids), **question.arguments(1)}


@torch.no_grad()
def _cosines(
    model: Model,
    tokenizer: Tokenizer,
    question: Question,
    rows: Sequence[tuple[str, ...]],
    known: Supervision,
    watch: Callable[[int], None] | None,
) -> npt.NDArray[np.float64]:
    """How near each example lies by what the last linear layer reads, `[rows]`."""
    read: list[Tensor] = []
    handle = _last_linear(model)[1].register_forward_pre_hook(lambda layer, given: read.append(given[0]))

    def vectors(given: dict[str, Tensor]) -> Tensor:
        model(**given)
        return functional.normalize(read.pop().double(), dim=-1)

    scores = np.zeros(len(rows))
    try:
        here = vectors(_inputs(question))[0]
        here = here[list(question.places)] if here.ndim == 2 else here[None]
        for group, given in grouped(model, tokenizer, rows):
            targets = known.of(group).to(model.device)
            scores[group] = cosines(vectors(given), targets, here, model.head_name).cpu().numpy()
            if watch is not None:
                watch(len(group))
    finally:
        handle.remove()
    return scores


@torch.no_grad()
def _likenesses(
    model: Model,
    tokenizer: Tokenizer,
    question: Question,
    rows: Sequence[tuple[str, ...]],
    known: Supervision,
    watch: Callable[[int], None] | None,
) -> npt.NDArray[np.float64]:
    """How near both texts of each pair are to those asked about: the mean of the two cosines, `[rows]`."""
    pooling = pooling_of(model)

    def vectors(texts: Sequence[str]) -> Tensor:
        given = [(each.lower() if pooling.lower else each,) for each in texts]
        found = torch.zeros(len(given), model.config.hidden_size, dtype=torch.float64)
        for group, inputs in grouped(model, tokenizer, given):
            states = model(**inputs).last_hidden_state
            pooled = pool(states, inputs["attention_mask"], pooling.mode)
            found[group] = functional.normalize(pooled.double(), dim=-1).cpu()
        return found

    sides = [vectors([text, *(each[at] for each in rows)]) for at, text in enumerate(question.pair)]
    if watch is not None:
        watch(len(rows))
    return np.mean([(side[1:] @ side[0]).numpy() for side in sides], 0)


def _influences(
    model: Model,
    tokenizer: Tokenizer,
    question: Question,
    rows: Sequence[tuple[str, ...]],
    known: Supervision,
    layers: int,
    watch: Callable[[int], None] | None,
) -> tuple[npt.NDArray[np.float64], int]:
    """The dot product of each example's gradient with the answer's, `[rows]`, and how many numbers a gradient has."""
    parameters = {name: each.detach() for name, each in _parameters(model, layers).items()}

    def loss(values: dict[str, Tensor], given: dict[str, Tensor], targets: Tensor) -> Tensor:
        # The fused attention of a CPU has no forward mode.
        with sdpa_kernel(SDPBackend.MATH):
            output = torch.func.functional_call(model, values, (), given)
        return losses(output, targets.to(model.device), given["attention_mask"])

    asked = _inputs(question)
    direction = torch.func.grad(lambda values: loss(values, asked, wanted(question)).sum())(parameters)
    scores = np.zeros(len(rows))
    for group, given in grouped(model, tokenizer, rows):
        targets = known.of(group)
        along: Tensor = torch.func.jvp(
            lambda values, given=given, targets=targets: loss(values, given, targets), (parameters,), (direction,)
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
