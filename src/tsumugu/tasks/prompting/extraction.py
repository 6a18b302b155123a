"""Prompted tasks whose answer is part of the text: names in it, or the stretch that answers a question.

What may be written is held to stretches of that very text by a grammar, so that every answer has its place there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tsumugu.core.errors import InputError, did_you_mean
from tsumugu.data.rows import Row, text_of
from tsumugu.generation.constrained import quoted
from tsumugu.tasks.prompting.base import Example, Prompted, Written, vote, votes_of
from tsumugu.tasks.prompting.template import Prompt
from tsumugu.tasks.question_answering import asked
from tsumugu.tasks.shown import ShowsEntities
from tsumugu.text.japanese import japanese_share

MOST_ENTITIES = 32
WITHOUT_SPACES = 0.3
"""From this share of Japanese letters on, a text counts as written without spaces."""
LINE_OF_TEXT = r"[^\s]([^\n]*[^\s])?"
_LAST = r"[^\s;()]*[^\s;(),.!?:\"]"
_JOINT = r"(of|the|and|de|la|van|von|for) "
NAME = rf"([\p{{Lu}}\p{{N}}][^\s;()]* ({_JOINT}){{0,2}}){{0,4}}[\p{{Lu}}\p{{N}}]({_LAST})?"
"""A name in a text that has capitals: up to five words with one, small words between them."""
LOWER_NAME = rf"([^\s;()]+ ){{0,3}}{_LAST}"
_SIGN = r"\p{Han}\p{Katakana}\p{Latin}\p{N}々ヶーｰﾞﾟ"
JAPANESE_NAME = rf"[{_SIGN}]([{_SIGN}・･＝= .&–-]{{0,22}}[{_SIGN}])?"
"""A name in a text without spaces: anything but hiragana and other signs."""
DRAWS = 4
"""Draws for each answer that is wanted beside the likeliest."""
STRATEGIES = ("simple", "first", "average", "max")
"""Ways to join tokens to names; here they are never apart."""
NOTHING = {"en": "none", "ja": "なし"}


class PromptedExtraction(ShowsEntities, Prompted):
    """Names in a text with what they name: `[{"entity_group", "score", "word", "start", "end"}]`, in their order there.

    `score` is the probability that the model gives each token of a name and its label, in the geometric mean. A name
    that stands there several times is found at each of its places.

    Options of a call, beside those of `Prompted`:
        labels: a list, or a mapping from labels to the words that stand for them in the prompt; persons, places and
            organisations when left out. Examples hold `entities`, a list of `{"word", "entity_group"}`.
        pattern: a regular expression, in Rust's dialect, for what a name looks like. When left out: up to five words
            with capitals; where a text has none, up to four words; without spaces, letters other than hiragana.
        max_new_tokens: for all names of a text together (96).
        aggregation_strategy: any but none, for names are whole; also `grouped_entities`.
        ignore_labels: what is left out.
    """

    name = "token-classification"
    template_name = "token-classification"
    answer_field: ClassVar[str] = "entities"
    words: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "en": {"PER": "person", "LOC": "location", "ORG": "organization"},
        "ja": {"PER": "人名", "LOC": "地名", "ORG": "組織名"},
    }
    options = Prompted.common | {"labels", "pattern", "max_new_tokens", "aggregation_strategy", "ignore_labels"}
    usual: ClassVar[Mapping[str, str | None]] = {"grouped_entities": None, "ignore_subwords": None}

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        read = [self._row(row, f"row {index}") for index, row in enumerate(rows)]
        prompts = self._prompts(read, options)
        words, nothing = self._words(options), NOTHING[self._language(options)]
        kinds, pattern = list(words.values()), options.get("pattern")
        strategy, ignored = str(options.get("aggregation_strategy") or "simple").lower(), options.get("ignore_labels")
        if strategy not in STRATEGIES:
            mend = did_you_mean(strategy, STRATEGIES)
            raise InputError(f"a prompt finds names, not {strategy!r}", where="aggregation_strategy", mend=mend)
        rules = [_entity_rules(row["text"], kinds, nothing, pattern) for row in read]
        limit = int(options.get("max_new_tokens", 96))
        texts = [each[0] for each in self._lines(prompts, options, answers=rules, max_new_tokens=limit)]
        found = [[] if text == nothing else _entities(text, words) for text in texts]
        scores = self._scores(prompts, found, words, options)
        left_out = {ignored} if isinstance(ignored, str) else set(ignored or ())
        return [
            [each for each in _placed(row["text"], mine, values) if each["entity_group"] not in left_out]
            for row, mine, values in zip(read, found, scores, strict=True)
        ]

    def _scores(
        self,
        prompts: list[Prompt],
        found: list[list[tuple[str, str]]],
        words: Mapping[str, str],
        options: Mapping[str, Any],
    ) -> list[list[float]]:
        """The mean probability of each entity's tokens, given those before it."""
        wrote = [[(word, words[label]) for word, label in mine] for mine in found]
        growing = [
            ["; ".join(f"{word} ({kind})" for word, kind in mine[: at + 1]) for at in range(len(mine))]
            for mine in wrote
        ]
        rows = [row for row, texts in enumerate(growing) if texts]
        result: list[list[float]] = [[] for _ in found]
        if not rows:
            return result
        logs = self._likelihoods([prompts[row] for row in rows], [growing[row] for row in rows], options)
        for row, mine in zip(rows, logs, strict=True):
            sums, counts = np.array([[0.0, *map(sum, mine)], [0, *map(len, mine)]])
            means = np.diff(sums) / np.maximum(np.diff(counts), 1)
            result[row] = np.exp(np.minimum(means, 0.0)).tolist()
        return result

    def _words(self, options: Mapping[str, Any]) -> dict[str, str]:
        given = options.get("labels") or self.words[self._language(options)]
        words = dict(given) if isinstance(given, Mapping) else {str(label): str(label) for label in given}
        if not words or any(re.search(r"[();\n]", word) for word in words.values()):
            raise InputError("labels must be words without brackets and semicolons", where="labels")
        return words

    def _answer(self, example: Example, options: Mapping[str, Any]) -> str:
        words = self._words(options)
        parts = []
        for entity in example["entities"]:
            label = str(entity["entity_group"])
            if label not in words:
                raise InputError(f"{label!r} is none of the labels", where="examples", mend=did_you_mean(label, words))
            parts.append(f"{entity['word']} ({words[label]})")
        return "; ".join(parts) or NOTHING[self._language(options)]

    def _values(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {"labels": list(self._words(options).values())}


class PromptedQuestionAnswering(Prompted):
    """Answers to questions.

    With a context, `{"question", "context"}` or `question=` and `context=`, it gives `{"score", "start", "end",
    "answer"}`, a stretch of the context; without one `{"score", "answer"}`, in the model's own words. `score` is the
    probability that the model gives the answer's tokens, all of them; with several `votes` the share that agree.

    Options of a call, beside those of `Prompted`:
        handle_impossible_answer: let there be no answer in the context, `""`.
        max_new_tokens: of an answer (32).
        votes: draw so many answers and take the one that most agree on (1: the likeliest answer, no draw).
        temperature: of those draws (0.7).
        seed: of those draws (0).
        top_k: how many answers (1): the likeliest, and others that are drawn, by their scores; a list when more than
            one is found.
        max_answer_len: another name of `max_new_tokens`. A context is read as a whole and answers are whole words, so
            that `doc_stride`, `max_seq_len`, `max_question_len` and `align_to_words` change nothing.
    """

    name = "question-answering"
    template_name = "question-answering"
    fields: ClassVar[tuple[str, ...]] = ("question",)
    answer_field: ClassVar[str] = "answer"
    options = Prompted.common | {"handle_impossible_answer", "max_new_tokens", "votes", "temperature", "seed", "top_k"}
    usual: ClassVar[Mapping[str, str | None]] = {
        "topk": "top_k",
        "max_answer_len": "max_new_tokens",
        "padding": None,
        **dict.fromkeys(("doc_stride", "max_seq_len", "max_question_len", "align_to_words")),
    }
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("question", "context"),)
    NO_ANSWER: ClassVar[Mapping[str, str]] = {"en": "no answer", "ja": "答えなし"}

    def __call__(self, inputs: Any = None, context: Any = None, *, question: Any = None, **options: Any) -> Any:
        given = asked(inputs, context, question, options)
        results = super().__call__(given, **options)
        return results[0] if isinstance(results, list) and len(results) == 1 else results

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str | Mapping)

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        read = [self._row(row, f"row {index}") for index, row in enumerate(rows)]
        results: list[Any] = [None] * len(rows)
        within = [index for index, row in enumerate(read) if row.get("context")]
        for some in (within, [index for index in range(len(rows)) if index not in set(within)]):
            if not some:
                continue
            mine = [read[index] for index in some]
            for index, answer in zip(some, self._answers(mine, some is within, options), strict=True):
                results[index] = answer
        return results

    def _answers(self, rows: list[dict[str, str]], within: bool, options: Mapping[str, Any]) -> list[Any]:
        prompts = self._prompts(rows, options)
        nothing = self.NO_ANSWER[self._language(options)]
        impossible = nothing if options.get("handle_impossible_answer") else None
        rules = [_span_rules(row["context"], impossible) for row in rows] if within else None
        generation: dict[str, Any] = {"max_new_tokens": int(options.get("max_new_tokens", 32))}
        votes, count = votes_of(options), int(options.get("top_k") or 1)
        if count < 1 or (count > 1 and votes > 1):
            raise InputError(f"{count} answers, {votes} votes", where="top_k", mend="1 or more; with votes 1")
        drawn: dict[str, Any] = {"seed": options.get("seed", 0)}
        if votes > 1:
            drawn |= {"num_return_sequences": votes, "temperature": options.get("temperature", 0.7)}
            found = [[vote(texts)] for texts in self._lines(prompts, options, answers=rules, **generation, **drawn)]
        else:
            written = self._write(prompts, options, answers=rules, scored=True, **generation)
            if count > 1:
                drawn |= {"num_return_sequences": DRAWS * count, "temperature": options.get("temperature", 1.0)}
                more = self._write(prompts, options, answers=rules, scored=True, **generation, **drawn)
                written = [_distinct([*likeliest, *others]) for likeliest, others in zip(written, more, strict=True)]
            logs = self._log_likelihoods(prompts, written, options)
            found = [
                sorted(zip((each.text for each in mine), np.exp(sums).tolist(), strict=True), key=lambda t: -t[1])
                for mine, sums in zip(written, logs, strict=True)
            ]
        results: list[Any] = []
        for row, mine in zip(rows, found, strict=True):
            context = row["context"] if within else None
            ranked = [_answer(text, score, context, impossible) for text, score in mine[:count]]
            results.append(ranked[0] if len(ranked) == 1 else ranked)
        return results

    @classmethod
    def rows(cls, texts: Sequence[str]) -> list[dict[str, Any]]:
        return [{"question": texts[0]}] if len(texts) == 1 else super().rows(texts)

    @classmethod
    def read(cls, row: Row, column: str | None = None) -> Any:
        alone = column is None and "question" in row.values and "context" not in row.values
        return {"question": text_of(row, "question")} if alone else super().read(row, column)

    @classmethod
    def record(cls, result: Any) -> dict[str, Any]:
        return dict(result) if isinstance(result, Mapping) else {"answers": result}

    @classmethod
    def lines(cls, result: Any) -> Iterator[str]:
        for answer in [result] if isinstance(result, Mapping) else result:
            yield f"{answer['score']:.4f}  {answer['answer'] or '(no answer)'}"


def _distinct(written: Sequence[Written]) -> list[Written]:
    """The first of each text."""
    found: dict[str, Written] = {}
    for each in written:
        found.setdefault(each.text, each)
    return list(found.values())


def _answer(text: str, score: float, context: str | None, nothing: str | None) -> dict[str, Any]:
    """An answer with its place in the context, where there is one; `nothing` stands for there being none."""
    if context is None:
        return {"score": score, "answer": text}
    answer = "" if text == nothing else text
    start = max(0, context.find(answer))
    return {"score": score, "start": start, "end": start + len(answer), "answer": answer}


def _span_rules(context: str, nothing: str | None) -> str:
    other = "" if nothing is None else f" | {quoted(nothing)}"
    return f"answer: SPAN{other}\n{_stretch(context, LINE_OF_TEXT)}"


def _entity_rules(text: str, words: list[str], nothing: str, pattern: str | None) -> str:
    labels = " | ".join(quoted(f" ({word})") for word in words)
    usual = JAPANESE_NAME if _unspaced(text) else NAME if text != text.lower() else LOWER_NAME
    more = f'("; " ENTITY){{0,{MOST_ENTITIES - 1}}}'
    span = _stretch(text, pattern or usual)
    # One lexeme, so that a name may end where it could also go on.
    return f"answer: {quoted(nothing)} | ENTITY {more}\nENTITY: SPAN LABEL\nLABEL: {labels}\n{span}"


def _stretch(text: str, pattern: str) -> str:
    """A rule for a stretch of a text, of whole words or, where there are no spaces, of characters."""
    part = quoted({"substring_chars" if _unspaced(text) else "substring_words": text})
    return f"SPAN: PART & /{pattern}/\nPART: %regex {part}\n"


def _unspaced(text: str) -> bool:
    return japanese_share([text]) >= WITHOUT_SPACES


def _entities(text: str, words: Mapping[str, str]) -> list[tuple[str, str]]:
    """Words and labels out of `word (label); word (label)`; what was said twice counts once."""
    labels = {word: label for label, word in words.items()}
    found = re.findall(r"(?:^|; )(.+?) \(([^()]*)\)(?=;|$)", text)
    return list(dict.fromkeys((word.strip(), labels[label]) for word, label in found))


def _placed(text: str, entities: list[tuple[str, str]], scores: list[float]) -> list[dict[str, Any]]:
    """Where entities stand; of two that overlap the longer."""
    taken = [False] * len(text)
    found = []
    for (word, label), score in sorted(zip(entities, scores, strict=True), key=lambda each: -len(each[0][0])):
        for match in re.finditer(re.escape(word), text):
            if not any(taken[match.start() : match.end()]):
                taken[match.start() : match.end()] = [True] * (match.end() - match.start())
                where = {"word": word, "start": match.start(), "end": match.end()}
                found.append({"entity_group": label, "score": score, **where})
    return sorted(found, key=lambda each: each["start"])
