"""The typed forms of labelled data: one class for each kind of task, and the sets of labels.

Offsets count characters (code points) of the original text; `end` is the one after the last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple, Self, overload

from tsumugu.core.errors import InputError, did_you_mean
from tsumugu.data.labelled.labels import LabelSet
from tsumugu.data.labelled.tags import TokenSpan

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Span(NamedTuple):
    """A labelled part of a text: ``text[start:end]``."""

    start: int
    end: int
    label: str


class Answer(NamedTuple):
    """An answer that stands in the context: ``context[start : start + len(text)]``."""

    text: str
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Example(ABC):
    """What all have.

    Attributes:
        id: the row's own, else its number in the file.
        extra: columns that were asked to be kept.
    """

    id: str = ""
    extra: Mapping[str, Any] = field(default_factory=lambda: _NOTHING, repr=False)

    @property
    @abstractmethod
    def texts(self) -> tuple[str, ...]:
        """What is read to solve this example, in order."""

    @property
    @abstractmethod
    def answer(self) -> Any:
        """What is right: a label, a score, spans, answers, an index or texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextExample(Example):
    """A text and its label."""

    text: str
    label: str

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,)

    @property
    def answer(self) -> str:
        return self.label


@dataclass(frozen=True, slots=True, kw_only=True)
class PairExample(Example):
    """Two texts and the label of the pair; premise and hypothesis in that order."""

    text1: str
    text2: str
    label: str

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text1, self.text2)

    @property
    def answer(self) -> str:
        return self.label


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityExample(Example):
    """Two texts and how alike they are, on whatever scale the data has."""

    text1: str
    text2: str
    score: float

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text1, self.text2)

    @property
    def answer(self) -> float:
        return self.score


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanExample(Example):
    """A text and its labelled spans, in order, none overlapping.

    Attributes:
        tokens: the offsets of the tokens, where the data came in tokens; every span ends with a token then.
    """

    text: str
    spans: tuple[Span, ...]
    tokens: tuple[tuple[int, int], ...] | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,)

    @property
    def answer(self) -> tuple[Span, ...]:
        return self.spans

    @property
    def token_spans(self) -> list[TokenSpan]:
        """The spans over `tokens`.

        Raises:
            InputError: the data did not come in tokens.
        """
        if self.tokens is None:
            raise InputError("the text did not come in tokens", where=f"example {self.id}")
        starts = {start: at for at, (start, _) in enumerate(self.tokens)}
        ends = {end: at + 1 for at, (_, end) in enumerate(self.tokens)}
        return [TokenSpan(span.label, starts[span.start], ends[span.end]) for span in self.spans]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionExample(Example):
    """A question to a context, and the answers that people marked there; none: it has no answer."""

    question: str
    context: str
    answers: tuple[Answer, ...]
    title: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.question, self.context)

    @property
    def answer(self) -> tuple[Answer, ...]:
        return self.answers


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceExample(Example):
    """A question, choices, and which of them is right, from 0."""

    question: str
    choices: tuple[str, ...]
    label: int
    context: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.context, self.question) if self.context else (self.question,)

    @property
    def answer(self) -> int:
        return self.label


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetExample(Example):
    """A text and the texts it may become: summaries, translations, answers, code. The first is the one to learn."""

    source: str
    targets: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def answer(self) -> tuple[str, ...]:
        return self.targets


Message = Mapping[str, Any]
"""What somebody says in a conversation: a role, and the content as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationExample(Example):
    """A conversation, of which the assistant's part is to be learnt."""

    messages: tuple[Message, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(each["content"] for each in self.messages if each["role"] != "assistant")

    @property
    def answer(self) -> tuple[str, ...]:
        return tuple(each["content"] for each in self.messages if each["role"] == "assistant")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceExample(Example):
    """What was asked, and two answers of which people, or a model, chose one."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(each["content"] for each in self.prompt)

    @property
    def answer(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(each["content"] for each in answer) for answer in (self.chosen, self.rejected))


KINDS: dict[str, type[Example]] = {
    "text-classification": TextExample,
    "pair-classification": PairExample,
    "similarity": SimilarityExample,
    "token-classification": SpanExample,
    "question-answering": QuestionExample,
    "multiple-choice": ChoiceExample,
    "text-to-text": TargetExample,
    "conversation": ConversationExample,
    "preference": PreferenceExample,
}
"""The kinds of labelled data."""

KIND_ALIASES = {
    "sentiment-analysis": "text-classification",
    "document-classification": "text-classification",
    "zero-shot-classification": "text-classification",
    "nli": "pair-classification",
    "natural-language-inference": "pair-classification",
    "sts": "similarity",
    "sentence-similarity": "similarity",
    "ner": "token-classification",
    "spans": "token-classification",
    "qa": "question-answering",
    "summarization": "text-to-text",
    "translation": "text-to-text",
    "text2text-generation": "text-to-text",
    "text-generation": "text-to-text",
    "chat": "conversation",
    "instruction-tuning": "conversation",
    "sft": "conversation",
    "dpo": "preference",
}


def find_kind(name: str) -> str:
    """The kind behind a name, which may be a task's.

    Raises:
        InputError: there is no such kind.
    """
    form = name.lower().replace("_", "-")
    found = form if form in KINDS else KIND_ALIASES.get(form)
    if found is None and form.startswith("translation-"):
        found = "text-to-text"
    if found is None:
        raise InputError(f"unknown kind of data {name!r}", mend=did_you_mean(form, [*KINDS, *KIND_ALIASES]))
    return found


@dataclass(frozen=True)
class Problem:
    """A row that was passed over: where it stands, what is wrong, how to mend it."""

    where: str
    what: str
    mend: str | None = None

    @classmethod
    def of(cls, error: InputError) -> Problem:
        """What an error says."""
        return cls(error.where or "", error.what, error.mend)

    def __str__(self) -> str:
        return str(InputError(self.what, where=self.where or None, mend=self.mend))


@dataclass(frozen=True)
class Examples(Sequence[Any]):
    """Labelled examples of one kind.

    Attributes:
        kind: one of `KINDS`.
        rows: the examples, in the order of the file.
        labels: the frozen labels, for the kinds that have any.
        problems: rows that were passed over, in order.
        source: the file's name.
        read: how many rows there were: those here and those passed over.
    """

    kind: str
    rows: tuple[Any, ...]
    labels: LabelSet | None = None
    problems: tuple[Problem, ...] = ()
    source: str = ""

    @property
    def read(self) -> int:
        return len(self.rows) + len(self.problems)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return replace(self, rows=self.rows[index], problems=())
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)

    def where(self, keep: Callable[[Any], bool]) -> Self:
        """Only the examples for which `keep` says so; the labels stay."""
        return replace(self, rows=tuple(row for row in self.rows if keep(row)), problems=())

    @property
    def answers(self) -> list[Any]:
        """What is right, for each example."""
        return [row.answer for row in self.rows]


def labels_of(kind: str, rows: Iterable[Any]) -> Iterator[str] | None:
    """Every label that occurs in the rows; None for kinds without labels."""
    if kind in ("text-classification", "pair-classification"):
        return (row.label for row in rows)
    if kind == "token-classification":
        return (span.label for row in rows for span in row.spans)
    return None
