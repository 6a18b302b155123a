"""Direct preference optimisation: a decoder learns to prefer one answer to another, and to stay near what it was.

Source: Rafailov et al. 2023, Direct Preference Optimization, equation 7; label smoothing: Mitchell 2023, A note on DPO
with noisy preferences, equation 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tsumugu.adapters.adapt import without_adapters
from tsumugu.core.errors import InputError
from tsumugu.data.labelled.examples import Examples
from tsumugu.models.targets import summed_loss
from tsumugu.objectives.base import IGNORE, Batch
from tsumugu.tasks.batching import longest_first, padded
from tsumugu.text.tokenizer import Tokenizer
from tsumugu.text.turns import Turns, encode_turns
from tsumugu.tuning.base import Row, TaskObjective, body, in_pieces, places_of
from tsumugu.tuning.instruction import need_template, shortened, targets_of

if TYPE_CHECKING:
    from torch import Tensor

    from tsumugu.models.base import Model
    from tsumugu.tuning.recipe import DataSection, LossSection


class Preference(TaskObjective):
    """The better of two answers.

    A pair's margin is by how much the logarithm of the better answer's probability has grown since the start, less the
    same of the worse one; the loss is -log sigmoid(beta * margin). How likely the start weights found the answers is
    computed once, before training: of a model with an adapter it is the network without it.

    Logged beside the loss are `margin`, beta * margin, and `right`, the share of pairs where it is above 0.
    """

    name: ClassVar[str] = "preference"
    kind: ClassVar[str] = "preference"
    head: ClassVar[str] = "causal-lm"
    solver: ClassVar[str | None] = None
    term: ClassVar[str] = "preference"
    obeys: ClassVar[frozenset[str]] = frozenset({"beta", "label_smoothing"})

    def __init__(self, model: Model, tokenizer: Tokenizer, data: DataSection, loss: LossSection) -> None:
        super().__init__(model, tokenizer, data, loss)
        need_template(tokenizer)
        self.weights: Mapping[str, float] = {"preference": 1.0, "margin": 0.0, "right": 0.0}
        self._model = model

    def begin(self, model: Model, examples: Examples) -> None:
        without_dropout(model)

    def rows(self, examples: Examples) -> list[Row]:
        pairs = []
        for example in examples:
            both = [self._answer(example, answer) for answer in (example.chosen, example.rejected)]
            if both[0] is not None and both[1] is not None:
                pairs.append((both[0], both[1]))
        if not pairs:
            raise InputError(f"no answer begins within {self.max_length} tokens", where=examples.source)
        before = iter(self._before([each for pair in pairs for each in pair]))
        found = []
        for pair in pairs:
            longer = max(pair, key=lambda each: len(each.ids))
            found.append(Row(longer.ids, [(each.ids, targets_of(each), next(before)) for each in pair]))
        return found

    def batch(self, rows: Sequence[Row]) -> Batch:
        """All better answers, then all worse ones."""
        answers = [row.answer[which] for which in (0, 1) for row in rows]
        lengths = [len(tokens) for tokens, _, _ in answers]
        width = self.width(lengths)
        inputs: dict[str, np.ndarray] = {
            "input_ids": padded([tokens for tokens, _, _ in answers], self.pad, width),
            "attention_mask": padded([[1] * each for each in lengths], 0, width),
            "targets": padded([targets for _, targets, _ in answers], IGNORE, width),
            "before": np.array([before for _, _, before in answers], np.float32),
        }
        padding = places_of(lengths, rounds=self.rounds) - sum(lengths)
        return Batch(inputs, dict.fromkeys(self.weights, len(rows)), sum(lengths), padding, 0)

    def answers(self, rows: Sequence[Row], width: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        raise AssertionError("pairs make their own batches")

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        asked = {key: inputs[key] for key in ("input_ids", "attention_mask", "targets")}
        found = in_pieces(partial(log_probabilities, model), asked, rounds=self.rounds) - inputs["before"]
        better, worse = found.chunk(2)
        margins = self.loss.beta * (better - worse)
        loss = preference_loss(margins, self.loss.label_smoothing).sum()
        return {"preference": loss, "margin": margins.detach().sum(), "right": (margins.detach() > 0).float().sum()}

    def _answer(self, example: Any, answer: Sequence[Mapping[str, Any]]) -> Turns | None:
        where, asked = f"example {example.id}", len(example.prompt)
        (*_, turns) = encode_turns(self.tokenizer, [*example.prompt, *answer], where=where, begin=asked)
        return shortened(turns, self.max_length, skip=self.data.skip, where=where)

    def _before(self, answers: Sequence[Turns]) -> list[float]:
        """The logarithm of each answer's probability under the start weights."""
        import torch

        model, found = self._model, np.empty(len(answers))
        training = model.training
        with torch.no_grad(), without_adapters(model):
            model.eval()
            for places in longest_first([len(each.ids) for each in answers]):
                ids = padded([answers[at].ids for at in places], self.pad)
                given = {
                    "input_ids": torch.from_numpy(ids),
                    "attention_mask": torch.from_numpy(padded([[1] * len(answers[at].ids) for at in places], 0)),
                    "targets": torch.from_numpy(padded([targets_of(answers[at]) for at in places], IGNORE)),
                }
                found[places] = log_probabilities(model, given).double().cpu().numpy()
            model.train(training)
        return [float(each) for each in found]


def log_probabilities(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """`[rows]`: the logarithm of the probability of all targets of a row, in float32."""
    import torch

    targets = inputs["targets"].to(model.device)
    nothing = torch.full_like(targets, IGNORE)
    states = model(**body(inputs), targets=nothing, output_hidden_states=True).hidden_states[-1]
    return torch.stack([-summed_loss(model.head, *row) for row in zip(states, targets, strict=True)]).float()


def preference_loss(margins: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log sigmoid of each margin; with `smoothing` as if so many pairs were the wrong way round."""
    from torch.nn import functional

    return -(1 - smoothing) * functional.logsigmoid(margins) - smoothing * functional.logsigmoid(-margins)


def without_dropout(model: Model) -> None:
    """Compare with the start weights without chance: what is dropped would weigh as much as what was learnt."""
    from torch import nn

    from tsumugu.blocks.attention import Attention

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, Attention):
            module.dropout = 0.0
