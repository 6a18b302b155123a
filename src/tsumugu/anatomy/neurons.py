"""What single neurons of the feed-forwards answer to: the texts of a corpus that excite each the most.

A neuron is a number that goes into the last matrix of a feed-forward. For each, a few best tokens are kept while texts
stream past, so that memory does not grow with the corpus. How selective it is: how many standard deviations its best
tokens lie above its mean over all tokens; with labels, how far the means of one label's texts and of the others lie
apart, in the same unit.

Sources: Geva et al. 2021, "Transformer Feed-Forward Layers Are Key-Value Memories"; Bills et al. 2023, "Language models
can explain neurons in language models" (top activating texts).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tsumugu.anatomy.influence import grouped
from tsumugu.core.errors import InputError, one_line
from tsumugu.models.base import Model
from tsumugu.text.tokenizer import Tokenizer

_TEXTS = 64
"""Texts that are read before the best ones are chosen anew."""
LEAST_TOKENS = 100
"""Of so many numbers, a standard deviation is known to about 7 %."""
LEAST_TEXTS = 5
"""Labels of fewer texts choose no neurons: their means are one text's whim."""


@dataclass(frozen=True)
class Place:
    """A token that excites a neuron: the text's number from 1, the text, the token's characters in it, the value."""

    row: int
    text: str
    start: int
    end: int
    value: float


@dataclass(frozen=True)
class Neuron:
    """One neuron, counted from 1 as its layer is.

    Attributes:
        mean, deviation: over all tokens.
        selectivity: of its best tokens or, with labels, of `label`.
        places: the best tokens, each of another text, the best first.
    """

    layer: int
    number: int
    mean: float
    deviation: float
    selectivity: float
    label: str | None
    places: list[Place]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**vars(self), "places": [vars(each) for each in self.places]}


class Token(NamedTuple):
    """A token of a text: its characters, and what a neuron gives there."""

    start: int
    end: int
    value: float


class _Watched:
    """Running sums and the best tokens of every neuron `[layers, neurons]`."""

    def __init__(self, layers: int, width: int, top: int) -> None:
        self.top = top
        self.count = 0
        self.sums, self.squares = torch.zeros(2, layers, width, dtype=torch.float64)
        self.values = torch.full((layers, width, top), float("-inf"))
        self.rows, self.tokens = torch.full((2, layers, width, top), -1, dtype=torch.int64)
        self.by_label: dict[str, tuple[int, Tensor]] = {}

    def add(self, seen: Tensor, real: Tensor, rows: Tensor, labels: list[str] | None) -> None:
        """Take in activations `[layers, texts, time, neurons]`; `real` `[texts, time]` says which tokens count."""
        kept = seen * real[None, :, :, None]
        self.count += int(real.sum())
        self.sums += kept.sum((1, 2), dtype=torch.float64)
        self.squares += kept.square().sum((1, 2), dtype=torch.float64)
        best, tokens = seen.masked_fill(~real[None, :, :, None], float("-inf")).max(2)
        values = torch.cat([self.values, best.transpose(1, 2)], -1)
        here = rows.expand(*best.shape[:1], best.shape[2], -1)
        self.values, order = values.topk(self.top, -1)
        self.rows = torch.cat([self.rows, here], -1).gather(-1, order)
        self.tokens = torch.cat([self.tokens, tokens.transpose(1, 2)], -1).gather(-1, order)
        for at, label in enumerate(labels or ()):
            count, total = self.by_label.get(label, (0, torch.zeros_like(self.sums)))
            length = real[at].sum()
            self.by_label[label] = (count + 1, total + kept[:, at].sum(1, dtype=torch.float64) / length)


@torch.inference_mode()
def neurons(
    model: Model,
    tokenizer: Tokenizer,
    texts: Iterable[tuple[str, str | None]],
    *,
    which: tuple[int, int] | None = None,
    top: int = 5,
    shown: int = 20,
    watch: Callable[[int], None] | None = None,
) -> list[Neuron]:
    """The most selective neurons, or one that is named, with the texts that excite them the most.

    Args:
        model: an encoder or a decoder, in eval mode.
        texts: each with its label, or None; read once.
        which: a layer and a neuron, counted from 1.
        top: texts for each neuron; `shown`: how many neurons.
        watch: called with how many texts were read.

    Raises:
        InputError: there are too few texts or tokens, no such neuron, labels that tell nothing apart, or feed-forwards
            of another kind.
    """
    last = _last(model)
    width = last[0].in_features
    if which is not None and not (1 <= which[0] <= len(last) and 1 <= which[1] <= width):
        raise InputError(f"there is no neuron {which[0]}:{which[1]}", mend=f"up to {len(last)}:{width}")
    watched, number = _Watched(len(last), width, top), 0
    kept: dict[int, str] = {}
    with _heard(last) as seen:
        stream = iter(texts)
        while some := list(islice(stream, _TEXTS)):
            rows, labels = [(text,) for text, _ in some], [label for _, label in some]
            kept |= {number + at: text for at, (text, _) in enumerate(some)}
            for group, given in grouped(model, tokenizer, rows):
                seen.clear()
                model(**given)
                real = given["attention_mask"].bool() & ~_special(tokenizer, given["input_ids"])
                told = [str(labels[at]) for at in group] if labels[0] is not None else None
                watched.add(torch.stack(seen), real, torch.tensor(group, device=real.device) + number, told)
            number += len(some)
            needed = set(watched.rows.unique().tolist())
            kept = {row: text for row, text in kept.items() if row in needed}
            if watch is not None:
                watch(len(some))
    _require_enough(watched, number)
    return _found(watched, kept, tokenizer, which, shown)


@torch.inference_mode()
def activations(model: Model, tokenizer: Tokenizer, found: Sequence[Neuron]) -> list[list[list[Token]]]:
    """What each neuron gives at every token of each of its texts, special tokens left out; the texts are read again."""
    last = _last(model)
    rows = list(dict.fromkeys((place.text,) for each in found for place in each.places))
    values: dict[tuple[int, int, str], Tensor] = {}
    wanted = [(each.layer, each.number, place.text) for each in found for place in each.places]
    with _heard(last) as seen:
        for group, given in grouped(model, tokenizer, rows):
            seen.clear()
            model(**given)
            here = {rows[row][0]: at for at, row in enumerate(group)}
            for layer, number, text in wanted:
                if text in here:
                    values[layer, number, text] = seen[layer - 1][here[text], :, number - 1].cpu()
    codes = {text: tokenizer([text], return_offsets_mapping=True).encodings[0] for (text,) in rows}

    def told(each: Neuron, text: str) -> list[Token]:
        code, given = codes[text], values[each.layer, each.number, text].tolist()
        spans = zip(code.offsets, code.special_tokens_mask, given, strict=False)  # of a cut text the first tokens
        return [Token(start, end, value) for (start, end), special, value in spans if not special and end > start]

    return [[told(each, place.text) for place in each.places] for each in found]


def _last(model: Model) -> list[nn.Linear]:
    """The last matrix of each feed-forward."""
    every = [getattr(each, "down", None) for each in model.modules()]
    last = [each for each in every if isinstance(each, nn.Linear)]
    if not last:
        raise InputError(f"models of the {model.family.name} family have no neurons that are known", where="model")
    return last


@contextmanager
def _heard(last: Sequence[nn.Linear]) -> Iterator[list[Tensor]]:
    """A list that each forward pass adds every layer's activations to, `[texts, time, neurons]`."""
    seen: list[Tensor] = []
    handles = [each.register_forward_pre_hook(lambda module, given: seen.append(given[0].float())) for each in last]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _require_enough(watched: _Watched, texts: int) -> None:
    """Refuse figures that would be chance."""
    mend = "read a corpus (on the command line, --input FILE)"
    if not watched.count:
        raise InputError("there is no text", mend=mend)
    if watched.count < LEAST_TOKENS:
        raise InputError(f"{watched.count} tokens are too few to tell what excites; {LEAST_TOKENS} at least", mend=mend)
    if texts <= watched.top:
        said = f"of {texts} text{'' if texts == 1 else 's'}, all are among the best {watched.top}"
        raise InputError(said, mend="read more" if texts < 2 else f"read more, or ask for fewer (--top {texts - 1})")
    counts = {name: count for name, (count, _) in watched.by_label.items()}
    if len(counts) == 1:
        raise InputError(f"all texts have the label {next(iter(counts))!r}, and telling apart takes two")
    if counts and max(counts.values()) < LEAST_TEXTS:
        raise InputError(f"no label has {LEAST_TEXTS} texts", mend="read more, or leave out the labels")


def _special(tokenizer: Tokenizer, ids: Tensor) -> Tensor:
    """Which tokens are special, `[texts, time]`: they stand in every text. One for an unknown word stands for text."""
    numbers = sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
    return torch.isin(ids, torch.tensor(numbers, device=ids.device, dtype=ids.dtype))


def _found(
    watched: _Watched, texts: dict[int, str], tokenizer: Tokenizer, which: tuple[int, int] | None, shown: int
) -> list[Neuron]:
    mean = watched.sums / watched.count
    deviation = (watched.squares / watched.count - mean.square()).clamp(min=1e-20).sqrt()
    names: list[str] = []
    chosen = torch.zeros_like(mean, dtype=torch.int64)
    best = watched.values.double()
    whole = torch.where(best.isinf(), torch.nan, best).nanmean(-1)
    selectivity = (whole - mean) / deviation
    if len(watched.by_label) > 1:
        names = list(watched.by_label)
        counts = torch.tensor([watched.by_label[name][0] for name in names], dtype=torch.float64)
        sums = torch.stack([watched.by_label[name][1] for name in names])
        inside = sums / counts[:, None, None]
        outside = (sums.sum(0) - sums) / (counts.sum() - counts)[:, None, None]
        few = counts < LEAST_TEXTS
        selectivity, chosen = ((inside - outside) / deviation).masked_fill(few[:, None, None], -torch.inf).max(0)
    width = mean.shape[1]
    order = selectivity.flatten().argsort(descending=True, stable=True)[:shown].tolist()
    if which is not None:
        order = [(which[0] - 1) * width + which[1] - 1]
    found = []
    for at in order:
        layer, number = divmod(at, width)
        places = []
        for row, token, value in zip(
            watched.rows[layer, number].tolist(),
            watched.tokens[layer, number].tolist(),
            watched.values[layer, number].tolist(),
            strict=True,
        ):
            if value > float("-inf"):
                start, end = tokenizer([texts[row]], return_offsets_mapping=True).encodings[0].offsets[token]
                places.append(Place(row + 1, texts[row], start, end, value))
        label = names[int(chosen[layer, number])] if names else None
        found.append(
            Neuron(
                layer=layer + 1,
                number=number + 1,
                mean=float(mean[layer, number]),
                deviation=float(deviation[layer, number]),
                selectivity=float(selectivity[layer, number]),
                label=label,
                places=places,
            )
        )
    return found


def in_text(found: list[Neuron]) -> Iterator[str]:
    """Each neuron with its texts, the token that excites it in brackets."""
    for each in found:
        label = "" if each.label is None else f", for {one_line(each.label, limit=40)}"
        yield f"layer {each.layer}, neuron {each.number}: selectivity {each.selectivity:.2f}{label}"
        for place in each.places:
            before, word, after = (
                place.text[: place.start][-50:],
                place.text[place.start : place.end],
                place.text[place.end :][:40],
            )
            yield f"  {place.value:>8.3f}  #{place.row}  {one_line(f'{before}⟦{word}⟧{after}', limit=120)}"
