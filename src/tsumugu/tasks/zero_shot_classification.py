"""Zero-shot classification: labels that the model never saw, by whether a text entails a sentence about them.

Source: Yin et al. 2019, Benchmarking Zero-shot Text Classification, section 5.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from tsumugu.core.errors import InputError, did_you_mean
from tsumugu.tasks.base import Task
from tsumugu.tasks.batching import outputs
from tsumugu.tasks.shown import ShowsLabels
from tsumugu.tasks.usual import hypothesis

ENTAILMENT = ("entail", "含意")
"""What a label that means entailment begins with."""


class ZeroShotClassification(ShowsLabels, Task):
    """Labels of one's own choice, scored by a model of natural language inference.

    A text gives `{"sequence", "labels", "scores"}`, the likeliest label first.

    Options of a call:
        candidate_labels: a list, or one text with commas; also the second argument of a call.
        hypothesis_template: the sentence that is judged, with {} where the label goes ("This example is {}.").
        multi_label: judge each label by itself, entailment against contradiction, rather than labels among each other.
        entailment: which of the model's labels means entailment; found by its name when left out.
    """

    name = "zero-shot-classification"
    options = frozenset({"candidate_labels", "hypothesis_template", "multi_label", "entailment"})
    usual: ClassVar[Mapping[str, str | None]] = {"multi_class": "multi_label"}
    sorts = True

    def __call__(
        self, inputs: Any = None, candidate_labels: Any = None, *, sequences: Any = None, **options: Any
    ) -> Any:
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        return super().__call__(inputs if sequences is None else sequences, **options)

    @torch.inference_mode()
    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        labels = _labels(options.get("candidate_labels"))
        template = options.get("hypothesis_template", "This example is {}.")
        sentences = [hypothesis(template, label) for label in labels]
        entails = self._entailment(options.get("entailment"))
        encoded = self.tokenizer(
            [(row, sentence) for row in rows for sentence in sentences],
            truncation="only_first",
            max_length=self.longest,
        )
        logits = torch.empty(len(rows) * len(labels), len(self.model.config.labels))
        for group, output, _ in outputs(self.model, self.tokenizer, encoded, rows=self.batch_size):
            logits[group] = output.logits.float().cpu()
        judged = logits.view(len(rows), len(labels), -1)
        if options.get("multi_label") or len(labels) == 1:
            contradicts = -1 if entails == 0 else 0
            scores = judged[..., [contradicts, entails]].softmax(-1)[..., 1]
        else:
            scores = judged[..., entails].softmax(-1)
        results = []
        for row, mine in zip(rows, scores.tolist(), strict=True):
            # Of equally likely labels the later comes first, as in the usual pipeline.
            ranked = sorted(zip(mine, labels, strict=True), key=lambda pair: pair[0])[::-1]
            results.append(
                {"sequence": row, "labels": [label for _, label in ranked], "scores": [score for score, _ in ranked]}
            )
        return results

    def _entailment(self, wanted: str | None) -> int:
        """The number of the label that means entailment."""
        known = self.model.config.labels
        if wanted is not None:
            if wanted not in known:
                raise InputError(
                    f"the model has no label {wanted!r}", where="entailment", mend=did_you_mean(wanted, known)
                )
            return int(known.index(wanted))
        found = next((index for index, label in enumerate(known) if label.lower().startswith(ENTAILMENT)), None)
        if found is None:
            raise InputError(
                f"none of the model's labels ({', '.join(known)}) is called entailment",
                where="model",
                mend="use a model of natural language inference, or say which label it is with entailment=",
            )
        return found


def _labels(given: Any) -> list[str]:
    labels = [each.strip() for each in given.split(",")] if isinstance(given, str) else list(given or ())
    labels = [label for label in labels if label]
    if not labels or not all(isinstance(label, str) for label in labels):
        raise InputError("there is no label to choose from", where="candidate_labels", mend="give a list of texts")
    return labels
