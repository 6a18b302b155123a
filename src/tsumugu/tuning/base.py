"""What a task asks of a model that is tuned for it: examples in, rows with answers out, and the sums of losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tsumugu.core.errors import ConfigError, InputError
from tsumugu.data.labelled.examples import Examples
from tsumugu.objectives.base import Batch
from tsumugu.tasks.batching import longest_first, padded
from tsumugu.text.tokenizer import Tokenizer
from tsumugu.tuning.recipe import DataSection, LossSection

if TYPE_CHECKING:
    from torch import Tensor

    from tsumugu.models.base import Model

DEFAULTS = LossSection()
LONGEST = 512
"""Tokens of a text at most where the model would read more and nothing is said."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is computed for an example, or for a piece of one.

    Attributes:
        ids: `[time]`, the tokens.
        answer: what is right, in the form that the objective's `answers` takes.
        types: `[time]`, which of two texts each token is from; None where the model does not ask.
        written: tokens of a text that another part of the network reads, such as an encoder-decoder's target.
    """

    ids: Sequence[int]
    answer: Any
    types: Sequence[int] | None = None
    written: int = 0


class TaskObjective(ABC):
    """How a task is learnt from labelled examples.

    Args:
        model: with the task's head.
        tokenizer: its own.
        data: the recipe's section: lengths.
        loss: the recipe's section: what is asked.

    Attributes:
        name: of the task, as the loop tells it.
        kind: of the examples; None where the objective takes several, as the data are.
        head: that the model needs, a key of `tsumugu.models.base.HEADS`.
        solver: the task of a pipeline that the tuned model solves, and by whose score the best weights are chosen;
            None where the loss chooses.
        term: the name of its loss.
        whole: whether the loss is of all rows of a step together; they are computed in pieces then, see `in_pieces`.
        compares: whether, beyond that, lengths are mixed.
        pieces: whether its texts are computed by `in_pieces`, in whatever order they stand in a batch.
        obeys: the settings of the recipe's `loss` that mean something for it; others are refused.
        at_once: of a loss of the whole, rows that are computed at once; all when None.
        weights: the share of each loss in the whole: this one is all.
        rounds: whether sizes of batches are rounded up, so that few shapes are computed, each many times.
    """

    name: ClassVar[str]
    kind: ClassVar[str | None]
    head: ClassVar[str]
    solver: ClassVar[str | None]
    term: ClassVar[str] = "label"
    whole: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    pieces: ClassVar[bool] = False
    obeys: ClassVar[frozenset[str]] = frozenset({"label_smoothing"})
    at_once: int | None = None
    rounds: bool = False

    def __init__(self, model: Model, tokenizer: Tokenizer, data: DataSection, loss: LossSection) -> None:
        for key, value in vars(loss).items():
            if key not in self.obeys and value != getattr(DEFAULTS, key):
                mend = f"it obeys {', '.join(sorted(self.obeys)) or 'no setting of the loss'}"
                raise ConfigError(f"{self.name} has no use for this", where=f"loss.{key}", mend=mend)
        self.tokenizer, self.data, self.loss = tokenizer, data, loss
        self.weights: Mapping[str, float] = {self.term: 1.0}
        self.labels: tuple[str, ...] = tuple(getattr(model.config, "labels", ()))
        reads = int(getattr(model, "longest", model.config.max_positions))
        reads = min(reads, tokenizer.model_max_length or reads)
        self.longest = reads
        self.max_length = min(data.max_length or LONGEST, reads)
        self.pad = next((each for each in (tokenizer.pad_token_id, model.config.pad_token_id) if each is not None), 0)
        self._typed = getattr(model.config, "num_segments", 1) > 1

    @classmethod
    def outputs(cls, examples: Examples) -> tuple[str, ...] | None:
        """The labels of the model's outputs, for a head that has any.

        Raises:
            InputError: there is nothing to tell apart.
        """
        if examples.labels is not None and len(examples.labels) < 2 and cls.kind != "token-classification":
            raise InputError(f"the only label is {examples.labels[0]!r}", where=examples.source, mend="give two")
        return None if examples.labels is None else tuple(examples.labels)

    @classmethod
    def judged(cls, examples: Examples) -> Examples:
        """The examples in the form in which the solver's answers are scored."""
        return examples

    @classmethod
    def usage(cls) -> dict[str, Any]:
        """What the model's config.json says about how it is meant."""
        return {}

    def begin(self, model: Model, examples: Examples) -> None:  # noqa: B027  (most have nothing to prepare)
        """Prepare what depends on the examples of training."""

    def unlabelled(self, texts: Sequence[str]) -> list[Row]:
        """What is computed for texts without labels.

        Raises:
            ConfigError: the task has no use for them, or nothing of the recipe has.
        """
        raise ConfigError(f"{self.name} learns nothing from texts without labels", where="data.unlabelled")

    def settle(self, model: Model) -> None:  # noqa: B027  (most have nothing to set)
        """Set what is not learnt by gradients; comes before the model is scored and saved."""

    @abstractmethod
    def rows(self, examples: Examples) -> list[Row]:
        """What is computed for examples; at least one row for each."""

    @abstractmethod
    def answers(self, rows: Sequence[Row], width: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """The answers of some rows as arrays, padded to `width` tokens, and how many terms each loss sums."""

    @abstractmethod
    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum of each loss over a batch, under the name `term`."""

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Arrays from rows."""
        lengths = [len(row.ids) for row in rows]
        ids = padded([row.ids for row in rows], self.pad, self.width(lengths))
        inputs, tokens = {"input_ids": ids}, sum(lengths)
        if tokens < ids.size:
            inputs["attention_mask"] = padded([[1] * each for each in lengths], 0, ids.shape[1])
        if rows[0].types is not None:
            inputs["token_type_ids"] = padded([row.types or () for row in rows], 0, ids.shape[1])
        answers, counts = self.answers(rows, ids.shape[1])
        places = places_of(lengths, self.at_once, rounds=self.rounds) if self.pieces else ids.size
        return Batch(inputs | answers, counts, tokens=tokens, padding=places - tokens, bytes=0)

    def width(self, lengths: Sequence[int]) -> int:
        """Places that texts of such lengths take in a batch, as many for each."""
        return max(*lengths, min(rounded(max(lengths)), self.max_length)) if self.rounds else max(lengths)

    def encode(self, first: Sequence[str], second: Sequence[str] | None = None, **options: Any) -> Any:
        """Texts or pairs of them, cut to `max_length`."""
        options = {"truncation": True, "max_length": self.max_length, **options}
        return self.tokenizer(list(first), None if second is None else list(second), **options)

    def types(self, encoded: Any) -> Sequence[Sequence[int] | None]:
        """Which text each token is from, for models that ask."""
        if self._typed and "token_type_ids" in encoded:
            found: Sequence[Sequence[int]] = encoded["token_type_ids"]
            return found
        return [None] * len(encoded["input_ids"])


def body(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a batch, what the network reads."""
    return {key: inputs[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in inputs}


def rounded(size: int) -> int:
    """The next size of eight to an octave: 1 to 16, 18, 20, …, 32, 36, …

    In bfloat16 on a CPU matrix products are compiled for each new shape, and what is compiled is kept: that many shapes
    are few, and what they add is an eighth at most, mostly a thirtieth.
    """
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step


def in_pieces(
    encode: Callable[[dict[str, Tensor]], Tensor],
    inputs: dict[str, Tensor],
    at_once: int | None = None,
    *,
    rounds: bool = False,
) -> Tensor:
    """What `encode` makes of texts, as if of all together: those of like length are computed together.

    With `at_once` it takes the memory of so many texts: each piece is computed a second time on the way back. A loss of
    all texts has its exact gradients so.

    Args:
        encode: makes `[texts, …]` of what the network reads.
        inputs: `[texts, time]` each, padded on the right.
        at_once: texts of a piece at most.
        rounds: round the sizes of pieces up, with further places and with the last text once more, see `rounded`.

    Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache);
    Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost" (the second computation, by torch).
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    ids = inputs["input_ids"]
    texts, time = ids.shape
    lengths = inputs["attention_mask"].sum(1).tolist() if "attention_mask" in inputs else [time] * texts
    pieces, found = longest_first(lengths, rows=at_once), []
    twice = at_once is not None and texts > at_once and torch.is_grad_enabled()
    for piece in pieces:
        width, some = lengths[piece[0]], piece
        if rounds:
            width, some = rounded(width), piece + piece[-1:] * (rounded(len(piece)) - len(piece))
        mine = {key: each[some, :width] for key, each in inputs.items()}
        made = checkpoint(encode, mine, use_reentrant=False) if twice else encode(mine)
        found.append(made[: len(piece)])
    order = torch.tensor([text for piece in pieces for text in piece], device=ids.device)
    return torch.cat(found)[order.argsort()]


def places_of(lengths: Sequence[int], at_once: int | None = None, *, rounds: bool = False) -> int:
    """How many tokens `in_pieces` computes for texts of such lengths, padding included."""
    sizes = [(len(piece), lengths[piece[0]]) for piece in longest_first(lengths, rows=at_once)]
    return sum(rounded(texts) * rounded(width) if rounds else texts * width for texts, width in sizes)
