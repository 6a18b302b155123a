"""Prompted tasks whose answer is one of several: labels are scored by how likely the model goes on with their words.

Source: Brown et al. 2020, Language Models are Few-Shot Learners, section 2.4 (scoring of options); Zhao et al. 2021,
Calibrate Before Use, section 5 (contextual calibration); Holtzman et al. 2021, Surface Form Competition, section 3
(pointwise mutual information).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import InputError, did_you_mean
from tsumugu.data.rows import PAIRS, Row, require_columns, text_of
from tsumugu.generation.sampling import log_softmax
from tsumugu.tasks.prompting.base import CONTENT_FREE, Example, Prompted
from tsumugu.tasks.shown import ShowsLabel, ShowsLabels, ShowsScore
from tsumugu.tasks.usual import hypothesis

Floats = NDArray[np.float64]

CALIBRATIONS = ("none", "contextual", "pmi")
WITHOUT_EXAMPLES = {"examples": (), "shots": None}
NORMALIZATIONS = ("sum", "mean")
OF_LABELS = frozenset({"labels", "top_k", "return_all_scores", "function_to_apply"})
"""Options of tasks whose result is a label out of a fixed set."""


class PromptedClassification(ShowsLabel, Prompted):
    """Labels with their scores, which are 1 in sum.

    A text, or a mapping with the task's fields, gives `{"label", "score"}`, the likeliest; a text alone gives it in a
    list, as the usual pipeline does. With `top_k` it is a list, the likeliest first.

    Options of a call, beside those of `Prompted`:
        labels: a list of labels, or a mapping from labels to the words that stand for them in the prompt.
        calibration: none; contextual, against texts that say nothing; pmi, against the question without text and
            examples. Both even out what the model likes to say in any case.
        normalization: sum or mean of the log probabilities of a label's tokens (sum).
        top_k: how many labels; None for all of them.
        return_all_scores: every label, in the order of the labels.
        function_to_apply: softmax, the only one there is.
    """

    name = "text-classification"
    template_name = "text-classification"
    words: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    calibration: ClassVar[str] = "none"
    options = Prompted.common | {
        *("labels", "calibration", "normalization", "top_k", "return_all_scores", "function_to_apply")
    }

    def __call__(self, inputs: Any, **options: Any) -> Any:
        result = super().__call__(inputs, **options)
        return [result] if isinstance(inputs, str) and "top_k" not in options else result

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str | Mapping)

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        labels = list(self._words(options))
        if (function := options.get("function_to_apply")) not in (None, "default", "softmax"):
            raise InputError(f"{function!r} is not for prompts", where="function_to_apply", mend="choose softmax")
        results: list[Any] = []
        for scores in self._scores(rows, options):
            order = np.argsort(-scores, kind="stable")
            answers = [{"label": labels[place], "score": float(scores[place])} for place in order]
            if options.get("return_all_scores"):
                results.append([answers[place] for place in np.argsort(order)])
                continue
            if "top_k" not in options:
                results.append(answers[0])
                continue
            count = options["top_k"]
            if count is not None and count < 1:
                raise InputError(f"{count} labels are none", where="top_k", mend="at least 1, or None for all")
            results.append(answers[:count])
        return results

    def scores(self, rows: Sequence[Any], **options: Any) -> Floats:
        """The score of each label for each row, `[rows, labels]`, in the order of the labels."""
        return self._scores(rows, self.defaults | self._checked(options))

    def _scores(self, rows: Sequence[Any], options: Mapping[str, Any]) -> Floats:
        read = [self._row(row, f"row {index}") for index, row in enumerate(rows)]
        words = list(self._words(options).values())
        nothing = [dict.fromkeys(self.fields, text) for text in CONTENT_FREE]
        beyond = self._prompts(nothing, options) if options.get("choose") != "similar" else []
        logs = self._logs(read, [words] * len(read), options, beyond=beyond)
        match options.get("calibration", self.calibration):
            case "contextual":
                neutral: Floats = np.exp(log_softmax(np.stack(self._logs(nothing, [words] * 3, options)))).mean(0)
                return np.exp(log_softmax(log_softmax(np.stack(logs)) - np.log(neutral)))
            case "pmi":
                bare = self._logs(nothing[:1], [words], {**options, **WITHOUT_EXAMPLES})
                return np.exp(log_softmax(np.stack(logs) - bare[0]))
            case "none" | None:
                return np.exp(log_softmax(np.stack(logs)))
            case other:
                mend = did_you_mean(str(other), CALIBRATIONS)
                raise InputError(f"there is no calibration {other!r}", where="calibration", mend=mend)

    def _logs(
        self, rows: Sequence[Mapping[str, str]], words: Sequence[Sequence[str]], options: Mapping[str, Any], **more: Any
    ) -> list[Floats]:
        """For each row the log probability of each of its words."""
        how = options.get("normalization", "sum")
        if how not in NORMALIZATIONS:
            mend = did_you_mean(str(how), NORMALIZATIONS)
            raise InputError(f"there is no normalization {how!r}", where="normalization", mend=mend)
        found = self._likelihoods(self._prompts(rows, options), words, options, **more)
        reduce = np.sum if how == "sum" else np.mean
        return [np.array([reduce(tokens) for tokens in mine]) for mine in found]

    def _words(self, options: Mapping[str, Any]) -> dict[str, str]:
        """Labels and the words that stand for them."""
        given = options.get("labels") or self.words.get(self._language(options))
        if isinstance(given, str) or not given or len(given) < 2:
            raise InputError("there are no labels to choose from", where="labels", mend="give two or more in a list")
        words = dict(given) if isinstance(given, Mapping) else {label: label for label in given}
        if len(set(words.values())) < len(words):
            raise InputError("two labels have one word", where="labels")
        return {str(label): str(word) for label, word in words.items()}

    def _answer(self, example: Example, options: Mapping[str, Any]) -> str:
        words, label = self._words(options), str(example[self.answer_field])
        if label not in words:
            raise InputError(f"{label!r} is none of the labels", where="examples", mend=did_you_mean(label, words))
        return words[label]

    def _values(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {"labels": list(self._words(options).values())}


class PromptedSentiment(PromptedClassification):
    """Whether a text is positive or negative; options and results are those of `PromptedClassification`."""

    template_name = "sentiment-analysis"
    words: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "en": {"negative": "negative", "positive": "positive"},
        "ja": {"negative": "否定的", "positive": "肯定的"},
    }


class PromptedInference(PromptedClassification):
    """Whether a premise entails a hypothesis, contradicts it, or leaves it open: `{"premise", "hypothesis"}`."""

    template_name = "natural-language-inference"
    fields: ClassVar[tuple[str, ...]] = ("premise", "hypothesis")
    columns = (("premise", "hypothesis"), *PAIRS)
    words: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "en": {"entailment": "True", "neutral": "Unknown", "contradiction": "False"},
        "ja": {"entailment": "はい", "neutral": "不明", "contradiction": "いいえ"},
    }


class PromptedZeroShot(ShowsLabels, PromptedClassification):
    """Labels of one's own choice: `{"sequence", "labels", "scores"}`, the likeliest label first.

    Words of one's own are seldom equally common, so that `calibration` is contextual unless the call says otherwise.

    Options of a call, beside those of `PromptedClassification`:
        candidate_labels: a list, one text with commas, or a mapping from labels to words; also the second argument of a
            call.
        multi_label: judge each label by itself, by yes or no, rather than labels among each other.
        hypothesis_template: a sentence with {} where the label goes, which is scored in place of the label's word.
    """

    name = "zero-shot-classification"
    template_name = "zero-shot-classification"
    calibration = "contextual"
    options = (PromptedClassification.options - OF_LABELS) | {"candidate_labels", "multi_label", "hypothesis_template"}
    usual: ClassVar[Mapping[str, str | None]] = {"multi_class": "multi_label"}

    def __call__(
        self, inputs: Any = None, candidate_labels: Any = None, *, sequences: Any = None, **options: Any
    ) -> Any:
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        return Prompted.__call__(self, inputs if sequences is None else sequences, **options)

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        given = options.pop("candidate_labels", None)
        labels = _several(given)
        template = options.pop("hypothesis_template", None)
        if options.pop("multi_label", False) or len(labels) == 1:
            judge = PromptedJudgement(self.model, self.tokenizer)
            asked = [{"text": row, "label": label} for row in rows for label in labels]
            scores = judge._scores(asked, options)[:, 1].reshape(len(rows), len(labels))
        else:
            words = dict(given) if isinstance(given, Mapping) else {label: label for label in labels}
            if template is not None:
                words = {label: hypothesis(template, word) for label, word in words.items()}
            scores = self._scores(rows, {**options, "labels": words})
        results = []
        for row, mine in zip(rows, scores, strict=True):
            order = np.argsort(-mine, kind="stable")
            ranked = {"labels": [labels[place] for place in order], "scores": [float(mine[place]) for place in order]}
            results.append({"sequence": row, **ranked})
        return results


class PromptedJudgement(PromptedClassification):
    """Whether a label fits a text, no or yes: `{"text", "label"}`."""

    template_name = "label-judgement"
    fields: ClassVar[tuple[str, ...]] = ("text", "label")
    answer_field: ClassVar[str] = "fits"
    words: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "en": {"no": "no", "yes": "yes"},
        "ja": {"no": "いいえ", "yes": "はい"},
    }


class PromptedMultipleChoice(PromptedClassification):
    """Which of several answers is right: `{"question", "choices"}`, and `"context"` if there is one.

    Gives `{"label", "score"}`, where the label is the choice's number from 0 on, and `"answer"`, the choice; with
    `top_k` a list. Choices are scored by their own words; with `normalization="mean"`, for each token, so that long
    ones are not at a disadvantage.
    """

    name = "multiple-choice"
    template_name = "multiple-choice"
    fields: ClassVar[tuple[str, ...]] = ("question",)
    options = PromptedClassification.options - OF_LABELS | {"top_k"}

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, Mapping)

    def _row(self, given: Any, where: str) -> dict[str, Any]:
        row: dict[str, Any] = super()._row(given, where)
        choices = row.get("choices")
        if not isinstance(choices, list | tuple) or len(choices) < 2 or not all(isinstance(c, str) for c in choices):
            raise InputError("expected choices, a list of two or more texts", where=where)
        return row

    def _answer(self, example: Example, options: Mapping[str, Any]) -> str:
        label, choices = example[self.answer_field], example["choices"]
        if isinstance(label, int) and 0 <= label < len(choices):
            return str(choices[label])
        if label in choices:
            return str(label)
        raise InputError(f"{label!r} is none of the choices", where="examples", mend="give its number or its text")

    def _values(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        read = [self._row(row, f"row {index}") for index, row in enumerate(rows)]
        choices = [list(row["choices"]) for row in read]
        logs = self._logs(read, choices, options)
        if options.get("calibration", "none") in ("contextual", "pmi"):
            bare = [{**row, "question": "", "context": ""} for row in read]
            without = self._logs(bare, choices, {**options, **WITHOUT_EXAMPLES})
            logs = [mine - other for mine, other in zip(logs, without, strict=True)]
        results: list[Any] = []
        for mine, texts in zip(logs, choices, strict=True):
            scores = np.exp(log_softmax(mine))
            order = np.argsort(-scores, kind="stable")
            answers = [{"label": int(at), "score": float(scores[at]), "answer": texts[at]} for at in order]
            results.append(answers[: options["top_k"]] if "top_k" in options else answers[0])
        return results

    @classmethod
    def rows(cls, texts: Sequence[str]) -> list[dict[str, Any]]:
        if len(texts) < 3:
            raise InputError("a question and two choices or more are needed", where="text")
        return [{"question": texts[0], "choices": list(texts[1:])}]

    @classmethod
    def read(cls, row: Row, column: str | None = None) -> Any:
        """A question, and its choices in one column, in those named after it, or in `choice0`, `choice1`, …"""
        asked, *listed = [each.strip() for each in column.split(",")] if column else ["question"]
        listed = listed or ["choices"]
        if listed == ["choices"] and "choices" not in row.values:
            listed = [name for name in row.values if name.removeprefix("choice").strip("_").isdigit()]
        require_columns([asked, *(listed or ["choices"])], row.values, row.where)
        values = [row.values[name] for name in listed]
        context = {"context": row.values["context"]} if isinstance(row.values.get("context"), str) else {}
        choices = values[0] if len(values) == 1 and isinstance(values[0], list) else values
        return {"question": text_of(row, asked), "choices": choices, **context}

    @classmethod
    def lines(cls, result: Any) -> Iterator[str]:
        for answer in [result] if isinstance(result, Mapping) else result:
            yield f"{answer['score']:.4f}  {answer['answer']}"


class PromptedSimilarity(ShowsScore, PromptedClassification):
    """How alike two texts are in meaning, `{"score"}` from 0 to 1: the mean of the grades that the model may give.

    Called with two texts, or with pairs.

    Source: the grades are those of Agirre et al. 2012, SemEval-2012 Task 6, section 3.
    """

    name = "sentence-similarity"
    template_name = "sentence-similarity"
    fields: ClassVar[tuple[str, ...]] = ("text1", "text2")
    columns = (("text1", "text2"), *PAIRS)
    answer_field: ClassVar[str] = "score"
    grades: ClassVar[dict[str, str]] = {str(grade): str(grade) for grade in range(6)}
    words: ClassVar[Mapping[str, Mapping[str, str]]] = {"en": grades, "ja": grades}
    options = PromptedClassification.options - OF_LABELS

    def __call__(self, inputs: Any, other: str | None = None, **options: Any) -> Any:
        return Prompted.__call__(self, inputs if other is None else (inputs, other), **options)

    def _is_one(self, inputs: Any) -> bool:
        if isinstance(inputs, Mapping):
            return True
        return isinstance(inputs, tuple | list) and len(inputs) == 2 and all(isinstance(each, str) for each in inputs)

    def _row(self, given: Any, where: str) -> dict[str, str]:
        return super()._row(given if isinstance(given, Mapping) else dict(zip(self.fields, given, strict=True)), where)

    def _answer(self, example: Example, options: Mapping[str, Any]) -> str:
        score = example[self.answer_field]
        if not isinstance(score, int | float) or not 0 <= score <= 1:
            raise InputError(f"{score!r} is no score from 0 to 1", where="examples")
        return str(round(score * 5))

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        grades = np.arange(6) / 5
        return [{"score": float(score)} for score in self._scores(rows, options) @ grades]


def _several(given: Any) -> list[str]:
    labels = [each.strip() for each in given.split(",")] if isinstance(given, str) else list(given or ())
    labels = [label for label in labels if label]
    if not labels or not all(isinstance(label, str) for label in labels):
        raise InputError("there is no label to choose from", where="candidate_labels", mend="give a list of texts")
    return labels
