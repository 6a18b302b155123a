"""The one table of names: what is called how, and where it lives, as text, so that nothing loads before it is wanted.

Entries are ``"module:attribute"``. Because they are text, a lower room may hand out something that lives higher in the
house (`Model.generate`, for one) without importing it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tsumugu.core.errors import UnknownNameError, did_you_mean


class Registry(Mapping[str, Any]):
    """A lazy, read-only mapping from names to objects, with aliases.

    Args:
        kind: what an entry is, for error messages ("family", "task").
        entries: name to ``"module:attribute"``.
        aliases: further names; they resolve, but are not listed.
        patterns: the same for names that are many: a regular expression, with `-` for `_`, to a name.

    Raises:
        UnknownNameError: on look-up of a name that is neither; it names the nearest.
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, str],
        aliases: Mapping[str, str] | None = None,
        patterns: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self._patterns = dict(patterns or {})
        self._entries = dict(entries)
        self._aliases = dict(aliases or {})

    def canonical(self, name: str) -> str:
        """The listed name behind `name`, which may be an alias, and may be written with `_` for `-`."""
        if not isinstance(name, str):
            raise UnknownNameError(f"a {self.kind} is called by a name, not by {type(name).__name__}")
        for form in (name, name.replace("_", "-"), name.lower().replace("_", "-")):
            if form in self._entries:
                return form
            if form in self._aliases:
                return self._aliases[form]
        for pattern, target in self._patterns.items():
            if re.fullmatch(pattern, name.replace("_", "-")):
                return target
        known = [*self._entries, *self._aliases]
        raise UnknownNameError(f"unknown {self.kind} {name!r}", mend=did_you_mean(name, known))

    def __getitem__(self, name: str) -> Any:
        module, _, attribute = self._entries[self.canonical(name)].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        try:
            self.canonical(name)  # type: ignore[arg-type]
        except UnknownNameError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def aliases(self, name: str) -> tuple[str, ...]:
        """The other names of `name`, sorted."""
        return tuple(sorted(alias for alias, target in self._aliases.items() if target == name))


@dataclass(frozen=True)
class FamilySummary:
    """What a list of families shows of one: the ``model_type`` words it loads, and one line about it."""

    model_types: tuple[str, ...]
    summary: str


FAMILY_SUMMARIES = {
    "bert": FamilySummary(
        ("bert",), "bidirectional encoder: classification, tagging, spans, sentence vectors, hidden tokens"
    ),
    "electra": FamilySummary(
        ("electra",), "bidirectional encoder, trained to tell which tokens were replaced: as BERT"
    ),
    "gemma3": FamilySummary(("gemma3_text",), "decoder: text generation, chat, in many languages (Gemma 3, text)"),
    "gpt": FamilySummary(("openai-gpt",), "decoder: text generation, as GPT-2 with norms last (openai-gpt)"),
    "gpt2": FamilySummary(("gpt2",), "decoder: text generation"),
    "gpt3": FamilySummary(("gpt3",), "decoder: text generation, dense and banded layers in turn (presets to 175B)"),
    "llama": FamilySummary(("llama", "mistral"), "decoder: text generation, chat (also SmolLM2, TinyLlama, Mistral)"),
    "megatron": FamilySummary(("megatron",), "decoder: text generation, as GPT-2 (presets to MT-NLG 530B)"),
    "roberta": FamilySummary(
        ("roberta", "xlm-roberta"), "bidirectional encoder, trained longer: as BERT (also XLM-RoBERTa)"
    ),
    "t5": FamilySummary(("t5", "mt5", "umt5"), "encoder-decoder: text from text (also T5 v1.1, FLAN-T5, mT5, UmT5)"),
}
"""A copy of what each family says of itself, so that listing them loads no torch; a test keeps the two equal."""

FAMILIES = Registry(
    "model family",
    {
        "bert": "tsumugu.models.bert:FAMILY",
        "electra": "tsumugu.models.electra:FAMILY",
        "gemma3": "tsumugu.models.gemma3:FAMILY",
        "gpt": "tsumugu.models.gpt:FAMILY",
        "gpt2": "tsumugu.models.gpt2:FAMILY",
        "gpt3": "tsumugu.models.gpt3:FAMILY",
        "llama": "tsumugu.models.llama:FAMILY",
        "megatron": "tsumugu.models.megatron:FAMILY",
        "roberta": "tsumugu.models.roberta:FAMILY",
        "t5": "tsumugu.models.t5:FAMILY",
    },
    aliases={
        "gemma": "gemma3",
        "gemma-3": "gemma3",
        "gemma3-text": "gemma3",
        "gpt-1": "gpt",
        "openai-gpt": "gpt",
        "gpt-2": "gpt2",
        "gpt-3": "gpt3",
        "megatron-gpt": "megatron",
        "mt-nlg": "megatron",
        "mistral": "llama",
        "smollm": "llama",
        "xlm-roberta": "roberta",
        "flan-t5": "t5",
        "mt5": "t5",
        "umt5": "t5",
    },
)

TASKS = Registry(
    "task",
    {
        "text-generation": "tsumugu.tasks.text_generation:TextGeneration",
        "chat": "tsumugu.tasks.chat:Chat",
        "fill-mask": "tsumugu.tasks.fill_mask:FillMask",
        "feature-extraction": "tsumugu.tasks.feature_extraction:FeatureExtraction",
        "sentence-embedding": "tsumugu.tasks.sentence_embedding:SentenceEmbedding",
        "sentence-similarity": "tsumugu.tasks.sentence_similarity:SentenceSimilarity",
        "text-classification": "tsumugu.tasks.text_classification:TextClassification",
        "token-classification": "tsumugu.tasks.token_classification:TokenClassification",
        "question-answering": "tsumugu.tasks.question_answering:QuestionAnswering",
        "zero-shot-classification": "tsumugu.tasks.zero_shot_classification:ZeroShotClassification",
        "summarization": "tsumugu.tasks.summarization:Summarization",
        "translation": "tsumugu.tasks.translation:Translation",
        "text2text-generation": "tsumugu.tasks.text2text_generation:Text2TextGeneration",
        "extractive-summarization": "tsumugu.tasks.extractive_summarization:ExtractiveSummarization",
        "semantic-search": "tsumugu.tasks.semantic_search:SemanticSearch",
        "text-ranking": "tsumugu.tasks.text_ranking:TextRanking",
        "multiple-choice": "tsumugu.tasks.prompting.classification:PromptedMultipleChoice",
    },
    aliases={
        "sts": "sentence-similarity",
        "embed": "sentence-embedding",
        "embeddings": "sentence-embedding",
        "conversational": "chat",
        "sentiment-analysis": "text-classification",
        "natural-language-inference": "text-classification",
        "nli": "text-classification",
        "document-classification": "text-classification",
        "ner": "token-classification",
        "named-entity-recognition": "token-classification",
        "qa": "question-answering",
        "zero-shot": "zero-shot-classification",
        "summarisation": "summarization",
        "extractive-summarisation": "extractive-summarization",
        "search": "semantic-search",
        "rerank": "text-ranking",
    },
    patterns={"translation-.+-to-.+": "translation"},
)

PROMPTED = Registry(
    "prompted task",
    {
        "text-classification": "tsumugu.tasks.prompting.classification:PromptedClassification",
        "sentiment-analysis": "tsumugu.tasks.prompting.classification:PromptedSentiment",
        "natural-language-inference": "tsumugu.tasks.prompting.classification:PromptedInference",
        "zero-shot-classification": "tsumugu.tasks.prompting.classification:PromptedZeroShot",
        "multiple-choice": "tsumugu.tasks.prompting.classification:PromptedMultipleChoice",
        "sentence-similarity": "tsumugu.tasks.prompting.classification:PromptedSimilarity",
        "token-classification": "tsumugu.tasks.prompting.extraction:PromptedExtraction",
        "question-answering": "tsumugu.tasks.prompting.extraction:PromptedQuestionAnswering",
        "summarization": "tsumugu.tasks.prompting.writing:PromptedSummarization",
        "translation": "tsumugu.tasks.prompting.writing:PromptedTranslation",
    },
    aliases={
        "document-classification": "text-classification",
        "nli": "natural-language-inference",
        "zero-shot": "zero-shot-classification",
        "sts": "sentence-similarity",
        "ner": "token-classification",
        "named-entity-recognition": "token-classification",
        "qa": "question-answering",
        "summarisation": "summarization",
    },
)
"""What a decoder does when a task of this name is asked of it."""

OBJECTIVES = Registry(
    "objective",
    {
        "causal": "tsumugu.objectives.causal:CausalConfig",
        "prefix-lm": "tsumugu.objectives.causal:PrefixLMConfig",
        "fill-in-the-middle": "tsumugu.objectives.fill_in_the_middle:FillInTheMiddleConfig",
        "masked": "tsumugu.objectives.masked:MaskedConfig",
        "span-corruption": "tsumugu.objectives.span_corruption:SpanCorruptionConfig",
        "ul2": "tsumugu.objectives.span_corruption:UL2Config",
        "next-sentence": "tsumugu.objectives.sentence_pair:NextSentenceConfig",
        "sentence-order": "tsumugu.objectives.sentence_pair:SentenceOrderConfig",
        "replaced-token": "tsumugu.objectives.replaced_token:ReplacedTokenConfig",
    },
    aliases={
        "clm": "causal",
        "fim": "fill-in-the-middle",
        "mlm": "masked",
        "nsp": "next-sentence",
        "sop": "sentence-order",
        "rtd": "replaced-token",
    },
)

FUNCTIONS = Registry(
    "function",
    {
        "generate": "tsumugu.generation.generate:generate",
        "torch-prefix": "tsumugu.engines.torch_session:TorchPrefix",
        "torch-scorer": "tsumugu.engines.torch_scoring:TorchScorer",
        "torch-session": "tsumugu.engines.torch_session:TorchSession",
        "seq2seq-session": "tsumugu.engines.seq2seq_session:Seq2SeqSession",
    },
)
