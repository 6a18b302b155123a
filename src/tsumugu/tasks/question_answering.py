"""Extractive question answering: the stretch of a context that answers a question, however long the context is.

Source: Devlin et al. 2019, BERT, sections 4.2 and 4.3 (no answer); long contexts as in the released code for SQuAD, the
options as in the usual pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import InputError
from tsumugu.tasks.base import Task
from tsumugu.tasks.batching import numbers, outputs
from tsumugu.text.encoding import Encoding
from tsumugu.text.japanese import japanese_share, past_marks

Floats = NDArray[np.float64]

HIDDEN = -1e4
"""The score of a token that no answer may begin or end with."""

WITHOUT_SPACES = 0.3
"""From this share of Japanese letters on, a context counts as written without spaces."""


class QuestionAnswering(Task):
    """Answers out of a context.

    Called with `question=` and `context=`, or with `{"question", "context"}`, it gives `{"score", "start", "end",
    "answer"}`, where `answer` is the context from character `start` to `end`; with `top_k` above 1 a list of them, the
    surest first. Lists of questions, of contexts, or of such mappings give lists, but one of length 1 gives what its
    one gives, as in the usual pipeline; one context serves all questions, and one question asks all contexts. A long
    context is read in pieces that overlap; an answer found in several is one whose scores add up.

    Options of a call:
        top_k: how many answers (1).
        doc_stride: how many tokens two pieces share (128, or half of `max_seq_len`).
        max_answer_len: tokens of an answer at most (15).
        max_seq_len: tokens of question and piece together (384, or what the model reads).
        max_question_len: tokens of a question, the rest is cut off (64).
        handle_impossible_answer: let "" be an answer, with the score of there being none.
        align_to_words: begin and end answers where words do; True, unless the context is written without spaces.
    """

    name = "question-answering"
    engines = ("torch", "onnx", "native")
    head = "question-answering"
    options = frozenset(
        {
            "top_k",
            "doc_stride",
            "max_answer_len",
            "max_seq_len",
            "max_question_len",
            "handle_impossible_answer",
            "align_to_words",
        }
    )
    usual: ClassVar[Mapping[str, str | None]] = {"topk": "top_k", "padding": None}
    sorts = True
    columns = (("question", "context"),)

    def __call__(self, inputs: Any = None, context: Any = None, *, question: Any = None, **options: Any) -> Any:
        results = super().__call__(asked(inputs, context, question, options), **options)
        return results[0] if isinstance(results, list) and len(results) == 1 else results

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, Mapping)

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        count = _at_least_one(options, "top_k", 1)
        limit = min(_at_least_one(options, "max_seq_len", 384), self.longest)
        pairs = [_texts(row, index) for index, row in enumerate(rows)]
        most = min(_at_least_one(options, "max_question_len", 64), limit * 3 // 4)
        asked = self.tokenizer([question for question, _ in pairs], add_special_tokens=False)
        strides: dict[int, list[int]] = {}
        questions = []
        for row, (question, _) in enumerate(pairs):
            ends = [end for _, end in asked.offsets(row)][:most]
            questions.append(question[: ends[-1]] if len(ends) == most else question)
            room = limit - len(ends) - self.tokenizer.num_special_tokens_to_add(pair=True)
            wanted = options.get("doc_stride")
            stride = max(0, min(limit // 2, 128, room // 2)) if wanted is None else int(wanted)
            strides.setdefault(stride, []).append(row)
        results: list[Any] = [None] * len(rows)
        for stride, some in strides.items():
            encoded = self.tokenizer(
                [questions[row] for row in some],
                [pairs[row][1] for row in some],
                truncation="only_second",
                max_length=limit,
                stride=stride,
                return_overflowing_tokens=True,
            )
            answers = self._answers(encoded, [pairs[row][1] for row in some], count, options)
            for row, ranked in zip(some, answers, strict=True):
                results[row] = ranked[0] if len(ranked) == 1 else ranked
        return results

    def _answers(
        self, encoded: Encoding, contexts: list[str], count: int, options: Mapping[str, Any]
    ) -> list[list[dict[str, Any]]]:
        """The best answers out of each context, from the pieces that it was cut into."""
        length = _at_least_one(options, "max_answer_len", 15)
        words = [_wanted_words(options.get("align_to_words"), context) for context in contexts]
        origin = encoded["overflow_to_sample_mapping"]
        spans: list[list[tuple[int, int, float]]] = [[] for _ in origin]
        nothing = [1.0] * len(contexts)
        for group, output, _ in outputs(self.model, self.tokenizer, encoded, rows=self.batch_size):
            starts, ends = (numbers(each).astype(np.float64) for each in (output.start_logits, output.end_logits))
            for place, piece in enumerate(group):
                row, readable = origin[piece], self._readable(encoded, piece)
                # Where answers are widened to words, several of them may become one: some more are looked at.
                wanted = count * 2 + 10 if words[row] else count
                time = len(readable)
                spans[piece], none = _best_spans(starts[place, :time], ends[place, :time], readable, wanted, length)
                nothing[row] = min(nothing[row], none)
        found: list[dict[str, dict[str, Any]]] = [{} for _ in contexts]
        for piece, row in enumerate(origin):
            for first, last, score in spans[piece]:
                begin, end = _characters(encoded, piece, first, last, words[row])
                end = past_marks(contexts[row], end, len(contexts[row]))
                text = contexts[row][begin:end]
                answer = {"score": 0.0, "start": begin, "end": end, "answer": text}
                found[row].setdefault(text.lower(), answer)["score"] += score
        results = []
        for row, mine in enumerate(found):
            ranked = list(mine.values())
            if options.get("handle_impossible_answer") or not ranked:
                ranked.append({"score": nothing[row], "start": 0, "end": 0, "answer": ""})
            results.append(sorted(ranked, key=lambda answer: answer["score"], reverse=True)[:count])
        return results

    def _readable(self, encoded: Encoding, piece: int) -> NDArray[np.bool_]:
        """Which tokens of a piece `[time]` an answer may begin and end with: the context's, and the first token."""
        ids = np.array(encoded["input_ids"][piece])
        of_context = np.array([each == 1 for each in encoded.sequence_ids(piece)])
        return of_context if self.tokenizer.cls_token_id is None else of_context | (ids == self.tokenizer.cls_token_id)

    @classmethod
    def record(cls, result: Any) -> dict[str, Any]:
        return dict(result) if isinstance(result, Mapping) else {"answers": result}

    @classmethod
    def lines(cls, result: Any) -> Iterator[str]:
        for answer in [result] if isinstance(result, Mapping) else result:
            yield f"{answer['score']:.4f}  {answer['answer'] or '(no answer)'}"


def _best_spans(
    start: Floats, end: Floats, readable: NDArray[np.bool_], count: int, length: int
) -> tuple[list[tuple[int, int, float]], float]:
    """The likeliest spans of one piece as first token, last token and score; and the score of there being none.

    Args:
        start, end: logits `[time]`.
        readable: `[time]`, which tokens a span may begin and end with.
        count: how many spans.
        length: tokens of a span at most.
    """
    first, last = (_softmax(np.where(readable, each, HIDDEN)) for each in (start, end))
    none = float(first[0] * last[0])
    first[0] = last[0] = 0.0
    # One row for each first token, one column for each length.
    later = np.pad(last, (0, length - 1))
    scores = first[:, None] * np.lib.stride_tricks.sliding_window_view(later, length)
    flat = scores.ravel()
    best = np.argsort(-flat, kind="stable")[:count] if count >= len(flat) else _greatest(flat, count)
    begins, finishes = best // length, best // length + best % length
    good = (flat[best] > 0) & readable[begins]
    good[good] &= readable[finishes[good]]
    return [
        (int(a), int(b), float(score))
        for a, b, score in zip(begins[good], finishes[good], flat[best][good], strict=True)
    ], none


def _greatest(values: Floats, count: int) -> NDArray[np.int64]:
    """Where the `count` greatest values are, the greatest first."""
    some = np.argpartition(-values, count - 1)[:count]
    order: NDArray[np.int64] = some[np.argsort(-values[some], kind="stable")]
    return order


def _softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max())
    result: Floats = weights / weights.sum()
    return result


def _characters(encoded: Encoding, piece: int, first: int, last: int, words: bool) -> tuple[int, int]:
    """Where tokens `first` to `last` lie in the context, widened to whole words where wanted."""
    offsets = encoded.offsets(piece)
    if words:
        numbers, sides = encoded.word_ids(piece), encoded.sequence_ids(piece)
        whole = list(zip(numbers, sides, strict=True))
        if numbers[first] is not None and numbers[last] is not None:
            while first > 0 and whole[first - 1] == whole[first]:
                first -= 1
            while last + 1 < len(whole) and whole[last + 1] == whole[last]:
                last += 1
    return offsets[first][0], offsets[last][1]


def _wanted_words(wanted: bool | None, context: str) -> bool:
    return japanese_share([context]) < WITHOUT_SPACES if wanted is None else wanted


def asked(inputs: Any, context: Any, question: Any, options: dict[str, Any]) -> Any:
    """The input of a call in any of its forms: a mapping, or several. `data` and `X` are taken out of the options.

    Raises:
        InputError: as many questions as contexts are needed, or one of them.
    """
    named = [options.pop(name) for name in ("data", "X") if name in options]
    given = next((each for each in (question, inputs, *named) if each is not None), None)
    if context is None:
        return given
    questions, contexts = _several(given), _several(context)
    if len(questions) != len(contexts) and 1 not in (len(questions), len(contexts)):
        raise InputError(f"{len(questions)} questions and {len(contexts)} contexts", where="inputs")
    count = max(len(questions), len(contexts))
    questions, contexts = (each * count if len(each) == 1 else each for each in (questions, contexts))
    rows = [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
    return rows[0] if isinstance(given, str) and isinstance(context, str) else rows


def _several(given: Any) -> list[Any]:
    return [given] if isinstance(given, str) else list(given)


def _texts(row: Any, index: int) -> tuple[str, str]:
    question, context = row.get("question"), row.get("context")
    for name, text in (("question", question), ("context", context)):
        if not isinstance(text, str) or not text.strip():
            found = "is not there" if text is None else "is empty" if isinstance(text, str) else "is no text"
            raise InputError(f"the {name} {found}", where=f"inputs[{index}]", mend="give question= and context=")
    return question, context


def _at_least_one(options: Mapping[str, Any], name: str, default: int) -> int:
    value = int(options.get(name, default))
    if value < 1:
        raise InputError(f"{value} is too small", where=name, mend="at least 1")
    return value
