"""Token classification: a label for each token, and the entities that neighbouring ones make; names, parts of speech.

Source: Tjong Kim Sang & De Meulder 2003, CoNLL-2003 (the B- and I- scheme); the strategies and keys are those of the
usual pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import InputError, did_you_mean
from tsumugu.tasks.base import Task
from tsumugu.tasks.batching import numbers, outputs, softmax
from tsumugu.tasks.shown import ShowsEntities
from tsumugu.text.encoding import Encoding
from tsumugu.text.japanese import is_japanese, past_marks

Strategy = Literal["none", "simple", "first", "average", "max"]
Entity = dict[str, Any]


@dataclass(frozen=True)
class Token:
    """One token of a text, or a word of several.

    Attributes:
        word: as the vocabulary spells it; of an unknown token, as the text does.
        scores: `[labels]`, summing to 1.
        start, end: where it lies, in characters of the text.
        index: its number in the text, the special tokens in front counted in.
        continues: whether it goes on with the word of the token before.
    """

    word: str
    scores: NDArray[np.float32]
    start: int
    end: int
    index: int
    continues: bool


class TokenClassification(ShowsEntities, Task):
    """Labels of tokens, or entities.

    A text gives a list of `{"entity", "score", "index", "word", "start", "end"}`, one for each token whose label is not
    ignored; with an aggregation strategy, of `{"entity_group", "score", "word", "start", "end"}`, one for each entity.
    `start` and `end` are characters of the text. A text that is too long for the model is read piece by piece.

    Options of a call:
        aggregation_strategy: none: tokens as they are. simple: neighbours with one label are one entity, a B- begins a
            new one. first, average, max: as simple, and the tokens of a word have one label: that of its first token,
            of the mean of their scores, of the surest.
        ignore_labels: what is left out (["O"]).
        stride: how many tokens two pieces of a long text share (0); where entities overlap, the longer one is kept.
        is_split_into_words, delimiter: the text comes as a list of words; positions are those in the words joined.
        grouped_entities, ignore_subwords: an older way to say simple and, both, first.
    """

    name = "token-classification"
    engines = ("torch", "onnx", "native")
    head = "token-classification"
    options = frozenset(
        {
            "aggregation_strategy",
            "ignore_labels",
            "stride",
            "is_split_into_words",
            "delimiter",
            "grouped_entities",
            "ignore_subwords",
        }
    )
    sorts = True

    def __call__(self, inputs: Any, **options: Any) -> Any:
        chosen = self.defaults | self._checked({key: each for key, each in options.items() if key != "batch_size"})
        if not chosen.get("is_split_into_words"):
            return super().__call__(inputs, **options)
        rows = [inputs] if _is_words(inputs) else list(inputs)
        for index, row in enumerate(rows):
            if not _is_words(row):
                raise InputError("expected a list of words", where=f"row {index}")
        return self._solve(rows, **chosen)

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        strategy = _strategy(options)
        ignored = options.get("ignore_labels", ["O"])
        ignored = {ignored} if isinstance(ignored, str) else set(ignored)
        split = bool(options.get("is_split_into_words"))
        stride = int(options.get("stride") or 0)
        encoded = self.tokenizer(
            [list(row) for row in rows] if split else rows,
            is_split_into_words=split,
            truncation=True,
            max_length=self.longest,
            stride=stride,
            return_overflowing_tokens=True,
            return_special_tokens_mask=True,
        )
        scores: list[Any] = [None] * len(encoded["input_ids"])
        for group, output, _ in outputs(self.model, self.tokenizer, encoded, rows=self.batch_size):
            for place, piece in enumerate(group):
                length = len(encoded["input_ids"][piece])
                scores[piece] = softmax(numbers(output.logits[place, :length])).astype(np.float32)
        pieces: list[list[int]] = [[] for _ in rows]
        for piece, row in enumerate(encoded["overflow_to_sample_mapping"]):
            pieces[row].append(piece)
        results = []
        for row, mine in zip(rows, pieces, strict=True):
            text, starts = _joined(row, options.get("delimiter", " ")) if split else (row, None)
            found: list[Entity] = []
            read = 0
            for piece in mine:
                tokens = self._tokens(text, encoded, piece, scores[piece], starts)
                tokens = [replace(token, index=token.index + read) for token in tokens]
                read += len(encoded["input_ids"][piece]) - self.tokenizer.num_special_tokens_to_add() - stride
                entities = self._entities(tokens, strategy)
                found += [each for each in entities if each.get("entity", each.get("entity_group")) not in ignored]
            results.append(_without_overlaps(found, strategy) if len(mine) > 1 and stride else found)
        return results

    def _tokens(
        self, text: str, encoded: Encoding, piece: int, scores: NDArray[np.float32], starts: list[int] | None
    ) -> list[Token]:
        """The tokens of one piece of a text, without special ones."""
        prefix = getattr(self.tokenizer.backend.model, "continuing_subword_prefix", None)
        names, offsets, words = encoded.tokens(piece), encoded.offsets(piece), encoded.word_ids(piece)
        tokens = []
        for index, special in enumerate(encoded["special_tokens_mask"][piece]):
            if special:
                continue
            start, end = offsets[index]
            word_number = words[index]
            if starts is not None and word_number is not None:
                start, end = start + starts[word_number], end + starts[word_number]
            if encoded["input_ids"][piece][index] == self.tokenizer.unk_token_id:
                word, continues = text[start:end], False
            else:
                word = names[index]
                continues = word.startswith(prefix) if prefix else _continues(text, start)
            tokens.append(Token(word, scores[index], start, end, index, continues))
        ends = [*(token.start for token in tokens[1:]), len(text)][: len(tokens)]
        return [replace(each, end=past_marks(text, each.end, end)) for each, end in zip(tokens, ends, strict=True)]

    def _entities(self, tokens: list[Token], strategy: Strategy) -> list[Entity]:
        labelled = [self._labelled(token) for token in tokens]
        if strategy == "none":
            return labelled
        if strategy != "simple":
            labelled = [self._word(word, strategy) for word in _words(tokens)]
        groups: list[list[Entity]] = []
        for entity in labelled:
            kind, begins = _kind(entity["entity"])
            if groups and not begins and kind == _kind(groups[-1][-1]["entity"])[0]:
                groups[-1].append(entity)
            else:
                groups.append([entity])
        return [
            {
                "entity_group": group[0]["entity"].split("-", 1)[-1],
                "score": float(np.mean([each["score"] for each in group])),
                "word": self.tokenizer.convert_tokens_to_string([each["word"] for each in group]),
                "start": group[0]["start"],
                "end": group[-1]["end"],
            }
            for group in groups
        ]

    def _labelled(self, token: Token) -> Entity:
        best = int(token.scores.argmax())
        return {
            "entity": self.model.config.labels[best],
            "score": float(token.scores[best]),
            "index": token.index,
            "word": token.word,
            "start": token.start,
            "end": token.end,
        }

    def _word(self, tokens: Sequence[Token], strategy: Strategy) -> Entity:
        """One word, labelled as the strategy says."""
        if strategy == "first":
            scores = tokens[0].scores
        elif strategy == "max":
            scores = max(tokens, key=lambda token: token.scores.max()).scores
        else:
            scores = np.mean([token.scores for token in tokens], axis=0)
        word = self.tokenizer.convert_tokens_to_string([token.word for token in tokens])
        return self._labelled(replace(tokens[0], word=word, scores=scores, end=tokens[-1].end))


def _strategy(options: Mapping[str, Any]) -> Strategy:
    wanted = options.get("aggregation_strategy")
    if wanted is None:
        if not options.get("grouped_entities"):
            return "none"
        return "first" if options.get("ignore_subwords") else "simple"
    known: tuple[Strategy, ...] = get_args(Strategy)
    for strategy in known:
        if strategy == str(wanted).lower():
            return strategy
    raise InputError(
        f"{wanted!r} is no such strategy", where="aggregation_strategy", mend=did_you_mean(str(wanted), known)
    )


def _continues(text: str, start: int) -> bool:
    """Whether a token that begins at `start` is in the middle of a word, where its spelling does not tell.

    It is where no space parts it from what stands before. Where words are written without spaces, each token is one.
    """
    around = text[max(0, start - 1) : start + 1]
    return start > 0 and " " not in around and not any(map(is_japanese, around))


def _words(tokens: Sequence[Token]) -> list[list[Token]]:
    words: list[list[Token]] = []
    for token in tokens:
        if words and token.continues:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _kind(label: str) -> tuple[str, bool]:
    """A label without B- or I-, and whether it begins an entity."""
    return (label[2:], label[0] == "B") if label[:2] in ("B-", "I-") else (label, False)


def _without_overlaps(entities: list[Entity], strategy: Strategy) -> list[Entity]:
    """Of entities that two pieces of a text both found, the longer one, or the surer of equally long ones."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda each: each["start"]):
        if kept and kept[-1]["start"] <= entity["start"] < kept[-1]["end"]:
            size = (entity["end"] - entity["start"], entity["score"])
            if size > (kept[-1]["end"] - kept[-1]["start"], kept[-1]["score"]):
                kept[-1] = entity
        else:
            kept.append(entity)
    return kept


def _is_words(inputs: Any) -> bool:
    return isinstance(inputs, list | tuple) and bool(inputs) and all(isinstance(each, str) for each in inputs)


def _joined(words: Sequence[str], delimiter: str | None) -> tuple[str, list[int]]:
    """The words as one text, and where each begins in it."""
    between = " " if delimiter is None else delimiter
    starts, at = [], 0
    for word in words:
        starts.append(at)
        at += len(word) + len(between)
    return between.join(words), starts
