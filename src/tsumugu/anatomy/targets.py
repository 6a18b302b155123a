"""Questions to a model: the ids of a text, the one number that is explained, and how tokens are shown.

A question is made for each task: a label of a text, a tag of a token, a span, the likeness of two texts, the next
token, a hidden token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tsumugu.blocks.heads import pool
from tsumugu.core.errors import InputError, did_you_mean, one_line
from tsumugu.models.base import Model, Output
from tsumugu.tasks.sentence_embedding import Pooling, read_pooling
from tsumugu.text.tokenizer import Tokenizer

Score = Callable[[Output], Tensor]
"""What a model gives -> `[rows]`."""


@dataclass(frozen=True)
class Question:
    """What is asked of a model.

    Attributes:
        task: its head or usual name; `answer`: what is explained, in words.
        ids: `[1, time]`; `segments`: which of two texts a token is from, where the model asks that.
        score: reads the number off the output.
        tokens: `[time]`, one by one; `spans`: the characters of each in its text, None for special tokens.
        texts: what was asked, and `owner`: which of them each token is from.
        fixed: `[time]`, True where a token is no feature.
        token_id: the token whose score is explained, where it is one.
        places: of the tokens whose scores are explained: of a tag, or of an answer's two ends.
        label: the number of the label or tag.
        pair: both texts, where only the first has tokens here.
    """

    task: str
    answer: str
    ids: Tensor
    segments: Tensor | None
    score: Score
    tokens: list[str]
    spans: list[tuple[int, int] | None]
    texts: tuple[str, ...]
    owner: list[int]
    fixed: Tensor
    mask_token_id: int | None = None
    token_id: int | None = None
    places: tuple[int, ...] = ()
    label: int | None = None
    pair: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def arguments(self, rows: int) -> dict[str, Any]:
        """What the forward pass takes beside the ids, for so many rows."""
        given = {} if self.segments is None else {"token_type_ids": self.segments.expand(rows, -1)}
        return {**given, **self.extra}

    @property
    def groups(self) -> list[list[int]]:
        """Tokens that share characters, together: bytes of one character are no words."""
        found: list[list[int]] = []
        for place, span in enumerate(self.spans):
            before = self.spans[found[-1][-1]] if found else None
            same = span is not None and before is not None and self.owner[place] == self.owner[found[-1][-1]]
            if same and span is not None and before is not None and span[0] < before[1]:
                found[-1].append(place)
            else:
                found.append([place])
        return found

    def shown(self, group: Sequence[int]) -> str:
        """A group of tokens as text."""
        spans = [self.spans[place] for place in group]
        known = [each for each in spans if each is not None]
        if not known:
            return self.tokens[group[0]]
        text = self.texts[self.owner[group[0]]]
        return text[min(a for a, _ in known) : max(b for _, b in known)] or self.tokens[group[0]]


def ask(
    task: str, model: Model, tokenizer: Tokenizer, text: str, other: str | None = None, *, target: str | None = None
) -> Question:
    """A question to a model with the head that the task needs.

    Args:
        text, other: the text, or for pairs both: premise and hypothesis, question and context, two sentences.
        target: a label, a token, or for tags `LABEL@WORD`; the model's own answer when left out.

    Raises:
        InputError: the text is empty or too long, or there is no such label or token.
    """
    if not text.strip():
        raise InputError("there is no text", where="text")
    match model.head_name:
        case "sequence-classification":
            return _label(task, model, tokenizer, text, other, target)
        case "token-classification":
            return _tag(task, model, tokenizer, text, target)
        case "question-answering":
            return _span(task, model, tokenizer, text, other)
        case "causal-lm" | "masked-lm" | "pretraining":
            return _token(task, model, tokenizer, text, target)
        case "base":
            return _likeness(task, model, tokenizer, text, other)
    raise InputError(f"answers of the head {model.head_name} cannot be explained", where="task")


def _begin(model: Model, tokenizer: Tokenizer, text: str, other: str | None) -> dict[str, Any]:
    """What all questions share."""
    row = tokenizer([text] if other is None else [(text, other)], return_offsets_mapping=True).encodings[0]
    ids = torch.tensor([row.ids])
    limit = int(getattr(model, "longest", model.config.max_positions))
    if ids.shape[1] > limit:
        raise InputError(
            f"{ids.shape[1]} tokens are more than the {limit} this model can read", where="text", mend="shorten it"
        )
    special = torch.tensor(row.special_tokens_mask).bool()
    owner = [each or 0 for each in row.sequence_ids]
    spans = [None if hidden else tuple(span) for hidden, span in zip(special.tolist(), row.offsets, strict=True)]
    pairs = other is not None and tokenizer.token_type_ids
    segments = torch.tensor([row.type_ids]) if pairs and getattr(model.config, "num_segments", 1) > 1 else None
    return {
        "ids": ids.to(model.device),
        "segments": None if segments is None else segments.to(model.device),
        "tokens": [one_line(token, limit=60) for token in row.tokens],
        "spans": spans,
        "texts": (text,) if other is None else (text, other),
        "owner": owner,
        "fixed": special.to(model.device),
        "mask_token_id": tokenizer.mask_token_id,
    }


def _answered(model: Model, begun: dict[str, Any]) -> Output:
    with torch.no_grad():
        given = {} if begun["segments"] is None else {"token_type_ids": begun["segments"]}
        found: Output = model(begun["ids"], **given)
        return found


def _index(labels: Sequence[str], wanted: str | None, likeliest: int) -> int:
    if wanted is None:
        return likeliest
    if wanted not in labels:
        raise InputError(f"the model has no label {wanted!r}", where="target", mend=did_you_mean(wanted, labels))
    return list(labels).index(wanted)


def _label(task: str, model: Model, tokenizer: Tokenizer, text: str, other: str | None, target: str | None) -> Question:
    begun = _begin(model, tokenizer, text, other)
    labels = model.config.labels
    logits = _answered(model, begun).logits[0]
    chosen = _index(labels, target, int(logits.argmax()))
    answer = (
        f"{labels[chosen]} ({float(logits.softmax(-1)[chosen]):.1%})" if len(labels) > 1 else f"{float(logits[0]):.4f}"
    )
    return Question(task, answer, score=lambda output: output.logits[:, chosen], label=chosen, **begun)


def _tag(task: str, model: Model, tokenizer: Tokenizer, text: str, target: str | None) -> Question:
    """The tag of one token: of the word that is named, else of the token that is most surely not "O"."""
    begun = _begin(model, tokenizer, text, None)
    labels = model.config.labels
    chances = _answered(model, begun).logits[0].softmax(-1)
    wanted, _, word = (target or "").partition("@")
    free = torch.nonzero(~begun["fixed"])[:, 0]
    outside = [index for index, label in enumerate(labels) if label == "O"]
    sure = chances[free].clone()
    sure[:, outside] = -1.0
    place = int(free[int(sure.amax(-1).argmax())]) if len(outside) < len(labels) else int(free[0])
    if word:
        at = text.find(word)
        places = [
            i for i, span in enumerate(begun["spans"]) if span is not None and at >= 0 and span[0] <= at < span[1]
        ]
        if not places:
            raise InputError(f"{word!r} does not stand in the text", where="target")
        place = places[0]
    chosen = _index(labels, wanted or None, int(chances[place].argmax()))
    span = begun["spans"][place]
    shown = begun["tokens"][place] if span is None else text[slice(*span)]
    answer = f"{labels[chosen]} for {shown} ({float(chances[place, chosen]):.1%})"
    return Question(
        task, answer, score=lambda output: output.logits[:, place, chosen], places=(place,), label=chosen, **begun
    )


def _span(task: str, model: Model, tokenizer: Tokenizer, question: str, context: str | None) -> Question:
    """The likeliest answer in the context: the sum of its first and last token's scores."""
    if context is None:
        raise InputError("a question needs the text that answers it", where="text", mend="give two texts")
    begun = _begin(model, tokenizer, question, context)
    output = _answered(model, begun)
    inside = torch.tensor([owner == 1 for owner in begun["owner"]]) & ~begun["fixed"].cpu()
    places = torch.nonzero(inside)[:, 0]
    start, end = output.start_logits[0, places], output.end_logits[0, places]
    both = (start[:, None] + end[None, :]).triu().tril(30)
    both = both.masked_fill(~torch.ones_like(both, dtype=torch.bool).triu().tril(30), float("-inf"))
    first, last = divmod(int(both.argmax()), len(places))
    a, b = int(places[first]), int(places[last])
    answer = context[begun["spans"][a][0] : begun["spans"][b][1]]
    return Question(
        task, answer, score=lambda found: found.start_logits[:, a] + found.end_logits[:, b], places=(a, b), **begun
    )


def _token(task: str, model: Model, tokenizer: Tokenizer, text: str, target: str | None) -> Question:
    """The next token, or the hidden one."""
    begun = _begin(model, tokenizer, text, None)
    place = begun["ids"].shape[1] - 1
    if model.head_name != "causal-lm":
        hidden = torch.nonzero(begun["ids"][0] == tokenizer.mask_token_id)[:, 0]
        if not len(hidden):
            raise InputError(f"no token is hidden; write {tokenizer.mask_token} where one is", where="text")
        place = int(hidden[0])
        begun["fixed"][place] = True
    chances = _answered(model, begun).logits[0, place].softmax(-1)
    chosen = int(chances.argmax())
    if target is not None:
        chosen = token_of(tokenizer, target, where="target")
    shown = tokenizer.decode([chosen])
    answer = f"{shown!r} ({float(chances[chosen]):.1%})"
    return Question(task, answer, score=lambda output: output.logits[:, place, chosen], token_id=chosen, **begun)


def token_of(tokenizer: Tokenizer, text: str, *, where: str) -> int:
    """The one token that a text is.

    Raises:
        InputError: it is several, or none.
    """
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise InputError(f"{text!r} is {len(ids)} tokens, not one", where=where, mend="mind the space before it")
    return ids[0]


def pooling_of(model: Model) -> Pooling:
    """How a checkpoint's token states become one vector, by its own files."""
    folder = model.path if model.path is not None and model.path.is_dir() else None
    return Pooling() if folder is None else read_pooling(folder)


def _likeness(task: str, model: Model, tokenizer: Tokenizer, text: str, other: str | None) -> Question:
    """The cosine of two texts' vectors, as a function of the first text."""
    if other is None:
        raise InputError("likeness needs two texts", where="text")
    pooling = pooling_of(model)

    def vector(output: Output) -> Tensor:
        states = output.last_hidden_state
        real = torch.ones(states.shape[:2], dtype=torch.int64, device=states.device)
        return torch.nn.functional.normalize(pool(states, real, pooling.mode), dim=-1)

    texts = [each.lower() if pooling.lower else each for each in (text, other)]
    with torch.no_grad():
        fixed = vector(_answered(model, _begin(model, tokenizer, texts[1], None)))
    begun = _begin(model, tokenizer, texts[0], None)
    likeness = float((vector(_answered(model, begun)) * fixed).sum())
    answer = f"{likeness:.4f}, the cosine with: {one_line(other, limit=120)}"
    return Question(task, answer, score=lambda output: (vector(output) * fixed).sum(-1), pair=(text, other), **begun)
