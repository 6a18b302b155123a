"""Classification of texts and of pairs, and the likeness of two texts as a number (a cross-encoder).

Source: Devlin et al. 2019, BERT, section 4.1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tsumugu.core.errors import ConfigError, InputError, did_you_mean
from tsumugu.data.labelled.examples import Examples, TextExample
from tsumugu.objectives.base import IGNORE
from tsumugu.tuning.base import Row, TaskObjective, body

if TYPE_CHECKING:
    from torch import Tensor

    from tsumugu.models.base import Model


TAUGHT = ("label_smoothing", "class_weights", "teacher", "teacher_share", "temperature")
"""Settings of a loss with labels, which another model may tell as well."""
CONSISTENCY = "consistency"
"""The name of the loss on texts without labels."""
HIDDEN, LIKELY, SHARPENED = 0.15, 0.8, 0.4
"""Of consistency: the share of tokens that is hidden, how likely an answer must be, and the temperature it gets."""


class TextClassification(TaskObjective):
    """One of several labels for a text."""

    name: ClassVar[str] = "text-classification"
    kind: ClassVar[str] = "text-classification"
    head: ClassVar[str] = "sequence-classification"
    solver: ClassVar[str] = "text-classification"
    obeys: ClassVar[frozenset[str]] = frozenset({*TAUGHT, "consistency", "ramp"})

    def begin(self, model: Model, examples: Examples) -> None:
        import torch

        self._weights = torch.tensor(label_weights(self.loss.class_weights, self.labels, examples.answers))
        self._taught: Mapping[Any, np.ndarray] = {}
        if self.loss.teacher is not None:
            self._taught = self._ask(self.loss.teacher, examples)
        if self.loss.consistency:
            self.weights = {self.term: 1.0, CONSISTENCY: self.loss.consistency}

    def texts(self, examples: Examples) -> tuple[list[str], list[str] | None]:
        """The texts of examples, and the second ones of pairs."""
        return [row.text for row in examples], None

    def rows(self, examples: Examples) -> list[Row]:
        encoded = self.encode(*self.texts(examples))
        index = {label: at for at, label in enumerate(self.labels)}
        answers = [(index[row.label], self._taught.get(row.texts)) for row in examples]
        return [
            Row(ids, answer, types)
            for ids, types, answer in zip(encoded["input_ids"], self.types(encoded), answers, strict=True)
        ]

    def unlabelled(self, texts: Sequence[str]) -> list[Row]:
        if self.kind != "text-classification":
            return super().unlabelled(texts)
        if bool(self.loss.consistency) == (self.loss.teacher is not None):
            mend = "give one of loss.consistency, loss.teacher, self_training.rounds"
            raise ConfigError("how they are learnt is not said", where="data.unlabelled", mend=mend)
        taught: Mapping[Any, np.ndarray] = {}
        if self.loss.teacher is not None:
            rows = tuple(TextExample(text=text, label=self.labels[0]) for text in texts)
            taught = self._ask(self.loss.teacher, Examples(self.kind, rows))
        encoded = self.encode(texts)
        return [
            Row(ids, (IGNORE, taught.get((text,))), types)
            for text, ids, types in zip(texts, encoded["input_ids"], self.types(encoded), strict=True)
        ]

    def answers(self, rows: Sequence[Row], width: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        found = {"labels": np.array([row.answer[0] for row in rows], np.int64)}
        if all(row.answer[1] is not None for row in rows):
            found["taught"] = np.array([row.answer[1] for row in rows], np.float32)
        if not self.loss.consistency:
            return found, {"label": len(rows)}
        free = int((found["labels"] == IGNORE).sum())
        return found, {"label": len(rows) - free, CONSISTENCY: free}

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from torch.nn import functional

        if "ramp" in inputs:
            return {CONSISTENCY: inputs["ramp"].reshape(()) * disagreement(model, body(inputs))}
        logits = model(**body(inputs)).logits.float()
        labels = inputs["labels"]
        weights = self._weights.to(logits)
        each = functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self.loss.label_smoothing, ignore_index=IGNORE
        )
        loss = (each * weights[labels.clamp(min=0)]).sum()
        if "taught" in inputs and model.training:
            heat, share = self.loss.temperature, self.loss.teacher_share
            wanted = (inputs["taught"] / heat).log_softmax(-1)
            soft = functional.kl_div((logits / heat).log_softmax(-1), wanted, reduction="sum", log_target=True)
            loss = (1 - share) * loss + share * heat**2 * soft
        return {"label": loss}

    def _ask(self, teacher: str, examples: Examples) -> dict[Any, np.ndarray]:
        """The teacher's logits for each example, in the order of our labels."""
        from tsumugu.evaluation.solving import match_labels
        from tsumugu.tasks.pipeline import pipeline

        task = pipeline("text-classification", teacher)
        names = match_labels(task.model.config.labels, self.labels, {})
        first, second = self.texts(examples)
        texts: list[Any] = (
            first if second is None else [{"text": a, "text_pair": b} for a, b in zip(first, second, strict=True)]
        )
        found = {}
        for row, answer in zip(
            examples, task(texts, return_all_scores=True, function_to_apply="none", top_k=None), strict=True
        ):
            by_label = {names[each["label"]]: each["score"] for each in answer}
            missing = [label for label in self.labels if label not in by_label]
            if missing:
                raise InputError(f"the teacher knows no label {missing[0]!r}", where="loss.teacher")
            found[row.texts] = np.array([by_label[label] for label in self.labels], np.float32)
        return found


class PairClassification(TextClassification):
    """One of several labels for two texts: natural language inference, the sentiment towards an aspect."""

    name = "natural-language-inference"
    kind = "pair-classification"
    obeys = frozenset(TAUGHT)

    def texts(self, examples: Examples) -> tuple[list[str], list[str] | None]:
        return [row.text1 for row in examples], [row.text2 for row in examples]


class TextSimilarity(TaskObjective):
    """How alike two texts are, read together: one number, as near as squares go."""

    name: ClassVar[str] = "text-similarity"
    kind: ClassVar[str] = "similarity"
    head: ClassVar[str] = "sequence-classification"
    solver: ClassVar[str] = "text-classification"
    obeys: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def outputs(cls, examples: Examples) -> tuple[str, ...] | None:
        return ("LABEL_0",)

    @classmethod
    def usage(cls) -> dict[str, Any]:
        return {"problem_type": "regression"}

    def begin(self, model: Model, examples: Examples) -> None:
        # A fresh head begins with the mean, so that the first steps need not carry it there.
        bias = getattr(getattr(model.head, "classifier", None), "bias", None)
        if bias is not None and model.load_report is not None and model.load_report.missing:
            bias.data.fill_(float(np.mean(examples.answers)))

    def rows(self, examples: Examples) -> list[Row]:
        encoded = self.encode([row.text1 for row in examples], [row.text2 for row in examples])
        return [
            Row(ids, row.score, types)
            for ids, types, row in zip(encoded["input_ids"], self.types(encoded), examples, strict=True)
        ]

    def answers(self, rows: Sequence[Row], width: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        return {"scores": np.array([row.answer for row in rows], np.float32)}, {"label": len(rows)}

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from torch.nn import functional

        found = model(**body(inputs)).logits.float().squeeze(-1)
        return {"label": functional.mse_loss(found, inputs["scores"], reduction="sum")}


def disagreement(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """How far the model's answers to texts of which it sees a part are from its answers to the whole, summed.

    The whole is read without dropout; its answers are sharpened, not learnt, and count where one label is likely.

    Source: Xie et al. 2020, "Unsupervised Data Augmentation for Consistency Training", sections 2.2 and 2.3 (with
    hidden tokens in the place of translations).
    """
    import torch
    from torch.nn import functional

    with torch.no_grad():
        model.eval()
        sure = model(**inputs).logits.float()
        model.train()
    ids = inputs["input_ids"]
    kept = torch.rand(ids.shape, device=ids.device) >= HIDDEN
    kept[:, 0] = True
    seen = inputs.get("attention_mask", torch.ones_like(ids)) * kept
    found = model(**{**inputs, "attention_mask": seen}).logits.float().log_softmax(-1)
    wanted = (sure / SHARPENED).log_softmax(-1)
    each = functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)
    total: Tensor = (each * (sure.softmax(-1).amax(-1) >= LIKELY)).sum()
    return total


def label_weights(wanted: str | Mapping[str, float], labels: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """The weight of each label, so that the mean over `answers` is 1: the learning rate keeps its meaning.

    Raises:
        ConfigError: a weight is for no label.
    """
    counts = Counter(answers)
    if isinstance(wanted, str):
        raw = [1.0 if wanted == "none" else 1.0 / max(counts[label], 1) for label in labels]
    else:
        for label in wanted:
            if label not in labels:
                raise ConfigError(
                    f"there is no label {label!r}", where="loss.class_weights", mend=did_you_mean(label, labels)
                )
        raw = [float(wanted.get(label, 1.0)) for label in labels]
    mean = sum(weight * counts[label] for weight, label in zip(raw, labels, strict=True)) / max(len(answers), 1)
    return np.array(raw, np.float32) / np.float32(mean or 1.0)
