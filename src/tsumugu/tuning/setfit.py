"""Classification from a few examples: vectors of sentences first, then a logistic regression on them.

The encoder learns that texts of one label are near each other and texts of two labels are not; every two of a batch are
compared. Then scikit-learn fits a logistic regression to the vectors of the examples, which becomes the head.

The classifier that comes out is one of the family's own, exactly, and the reference library loads it. Its head reads
the first token through a dense layer and tanh, where a sentence's vector is the mean of all tokens: the network grows
by the layer of `mean_pooling`. The dense layer divides the mean by the root of the width, where tanh is the identity
to one part in a thousand. What the regression is fitted to is the very vector that the head reads, so nothing is lost
between the two.

Source: Tunstall et al. 2022, "Efficient Few-Shot Learning Without Prompts" (SetFit).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tsumugu.core.errors import ConfigError, MissingExtraError
from tsumugu.data.labelled.examples import Examples
from tsumugu.training.optimizers import HEADS
from tsumugu.tuning.base import Row, TaskObjective, body, in_pieces
from tsumugu.tuning.classification import TextClassification
from tsumugu.tuning.mean_pooling import read_the_mean

if TYPE_CHECKING:
    from torch import Tensor

    from tsumugu.models.base import Model

STRENGTH = 10.0
"""The inverse of the regression's penalty, for vectors of length 1; that of the baseline "embeddings"."""
ROWS = 64
"""Texts whose vectors are computed at once."""
NEVER = -30.0
"""The score of a label that no example has."""


class FewShotClassification(TextClassification):
    """One of several labels, of which there are only a few examples each."""

    term: ClassVar[str] = "pair"
    whole: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    pieces: ClassVar[bool] = True
    obeys: ClassVar[frozenset[str]] = frozenset({"class_weights"})

    def begin(self, model: Model, examples: Examples) -> None:
        super().begin(model, examples)
        read_the_mean(model, model.config.hidden_size**-0.5)
        for name, each in model.named_parameters():  # the head is fitted
            if name.partition(".")[0] in HEADS:
                each.requires_grad_(False)
        self._known = self.rows(examples)

    def answers(self, rows: Sequence[Row], width: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        return {"labels": np.array([row.answer[0] for row in rows], np.int64)}, {"pair": len(rows)}

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from torch.nn import functional

        def encode(asked: dict[str, Tensor]) -> Tensor:
            with classified(model) as seen:
                model(**asked)
            return seen[0].float()

        vectors = functional.normalize(in_pieces(encode, body(inputs), self.at_once, rounds=self.rounds), dim=-1)
        return {"pair": len(vectors) * apart(vectors @ vectors.T, inputs["labels"])}

    def settle(self, model: Model) -> None:
        """Fit the head to the vectors of the training examples."""
        import torch

        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError:
            raise MissingExtraError("scikit-learn", extra="eval", purpose="model.method: setfit") from None
        order = sorted(range(len(self._known)), key=lambda at: len(self._known[at].ids))
        rows, found = [self._known[at] for at in order], []
        for at in range(0, len(rows), ROWS):
            inputs = {key: torch.from_numpy(each) for key, each in self.batch(rows[at : at + ROWS]).inputs.items()}
            with torch.no_grad(), classified(model) as seen:
                model(**body(inputs))
            found.append(seen[0].float().cpu().numpy())
        labels = np.array([row.answer[0] for row in rows])
        fit = LogisticRegression(C=STRENGTH, max_iter=1000)
        fit.fit(np.concatenate(found), labels, sample_weight=self._weights.numpy()[labels])
        weights, bias = fit.coef_, fit.intercept_
        if len(fit.classes_) == 2:  # one row for both
            weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
        head: Any = model.head
        head.classifier.weight.data.zero_()
        head.classifier.bias.data.fill_(NEVER)
        for label, row, value in zip(fit.classes_, weights, bias, strict=True):
            head.classifier.weight.data[label] = torch.from_numpy(row).to(head.classifier.weight)
            head.classifier.bias.data[label] = float(value)


def few_shot(kind: type[TaskObjective]) -> type[TaskObjective]:
    """How the task `kind` is learnt from a few examples.

    Raises:
        ConfigError: it is another than to tell labels of texts apart.
    """
    if kind is not TextClassification:
        raise ConfigError(
            f"setfit does not learn {kind.name}", where="model.method", mend="it learns text-classification"
        )
    return FewShotClassification


def apart(cosines: Tensor, labels: Tensor) -> Tensor:
    """The mean squared error of cosines `[texts, texts]` to 1 within a label, and to 0 between labels, half each."""
    import torch

    same = labels[:, None] == labels
    other = ~same
    same = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    near = ((1 - cosines) ** 2 * same).sum() / same.sum().clamp(min=1)
    far = (cosines**2 * other).sum() / other.sum().clamp(min=1)
    return (near + far) / 2


@contextmanager
def classified(model: Any) -> Iterator[list[Tensor]]:
    """Collects what the last matrix of the model's head reads, `[texts, dim]`, a call at a time."""
    seen: list[Tensor] = []
    module = model.head.classifier
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()
