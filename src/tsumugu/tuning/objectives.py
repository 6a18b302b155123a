"""The tasks that a model is tuned for, by the names that people have for them."""

from __future__ import annotations

from tsumugu.core.errors import UnknownNameError, did_you_mean
from tsumugu.core.registry import TASKS
from tsumugu.tuning.base import TaskObjective
from tsumugu.tuning.choice import MultipleChoice
from tsumugu.tuning.classification import PairClassification, TextClassification, TextSimilarity
from tsumugu.tuning.embedding import SentenceSimilarity
from tsumugu.tuning.instruction import InstructionTuning
from tsumugu.tuning.preference import Preference
from tsumugu.tuning.sentence_distillation import SentenceDistillation
from tsumugu.tuning.spans import QuestionAnswering
from tsumugu.tuning.tagging import TokenClassification
from tsumugu.tuning.writing import TextToText

OBJECTIVES: tuple[type[TaskObjective], ...] = (
    TextClassification,
    PairClassification,
    TextSimilarity,
    SentenceSimilarity,
    SentenceDistillation,
    TokenClassification,
    QuestionAnswering,
    MultipleChoice,
    TextToText,
    InstructionTuning,
    Preference,
)
"""What can be learnt."""

_ALSO = {
    "nli": "natural-language-inference",
    "pair-classification": "natural-language-inference",
    "aspect-sentiment": "natural-language-inference",
    "sts": "text-similarity",
    "document-classification": "text-classification",
    "sentence-embedding": "sentence-similarity",
    "semantic-search": "sentence-similarity",
    "bi-encoder": "sentence-similarity",
    "summarization": "text2text-generation",
    "translation": "text2text-generation",
    "text-to-text": "text2text-generation",
    "chat": "instruction-tuning",
    "sft": "instruction-tuning",
    "dpo": "preference",
}
"""Further names, beside the aliases of tasks."""


def find_objective(task: str) -> type[TaskObjective]:
    """What a task, by any of its names, is learnt by.

    Raises:
        UnknownNameError: nothing is learnt for it; the nearest is named.
    """
    known = {each.name: each for each in OBJECTIVES}
    form = task.lower().replace("_", "-")
    for name in (form, _ALSO.get(form), TASKS.canonical(form) if form in TASKS else None):
        name = _ALSO.get(name or "", name)
        if name in known:
            return known[name]
    raise UnknownNameError(f"no model is tuned for {task!r}", mend=did_you_mean(form, [*known, *_ALSO]))
