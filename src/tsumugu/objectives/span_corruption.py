"""Span corruption: stretches of a text are taken out, a sentinel stands for each, and a decoder writes them.

The encoder reads ``a b <0> e f <1> </s>``, the decoder writes ``<0> c d <1> g h </s>``. How much raw text a row holds
is chosen so that what the encoder reads fills the context exactly. Documents follow one another without a mark between
them, as in T5's released code. UL2 is a mixture of such denoisers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from tsumugu.core.config import Config, limits
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.corpus.rows import Row, SlotRule
from tsumugu.objectives.base import IGNORE, Batch, ObjectiveConfig, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Denoiser(Config):
    """One way to take spans out of a text.

    Attributes:
        density: the share of the tokens that is taken out.
        mean_span: how long spans are on average; None: one span, the end of the text.
        share: how often rows are treated this way, against the shares of the other denoisers.
        mode: regular, sequential or extreme: which mode token stands before the text, if the tokenizer has it.
    """

    density: float = limits(0.15, low=0.01, high=0.99)
    mean_span: float | None = limits(3.0, low=1.0)
    share: float = limits(1.0, low=0.0)
    mode: Literal["R", "S", "X"] = "R"

    def counts(self, tokens: int) -> tuple[int, int]:
        """How many of `tokens` are taken out, and in how many spans. Of fewer than two tokens none is.

        Source: Raffel et al. 2020, section 3.1.4, and the released code, `random_spans_noise_mask`.
        """
        if tokens < 2:
            return 0, 0
        hidden = min(max(round(tokens * self.density), 1), tokens - 1)
        spans = 1 if self.mean_span is None else max(round(hidden / self.mean_span), 1)
        return hidden, min(spans, tokens - hidden)

    def lengths(self, tokens: int) -> tuple[int, int]:
        """What the encoder reads and the decoder writes for `tokens` of text, sentinels and end token included."""
        hidden, spans = self.counts(tokens)
        return tokens - hidden + spans + 1, hidden + spans + 1

    def raw_length(self, context: int) -> int:
        """The most tokens of text of which the encoder reads no more than `context`."""
        tokens = context
        while self.lengths(tokens + 1)[0] <= context:
            tokens += 1
        while tokens and self.lengths(tokens)[0] > context:
            tokens -= 1
        return tokens

    def choose(self, tokens: int, random: np.random.Generator) -> Bools:
        """Which tokens are taken out, `[tokens]`: stretches that stay and stretches that go in turn, a stay first."""
        hidden, spans = self.counts(tokens)
        if not spans:
            return np.zeros(tokens, bool)
        stay, go = _segments(tokens - hidden, spans, random), _segments(hidden, spans, random)
        return np.repeat(np.tile([False, True], spans), np.stack((stay, go), axis=1).ravel())


def _segments(total: int, count: int, random: np.random.Generator) -> Int64s:
    """The lengths of `count` stretches, none empty, that are `total` long together; each way to cut is as likely."""
    cuts = np.sort(random.permutation(total - 1)[: count - 1]) + 1
    return np.diff(cuts, prepend=0, append=total)


@dataclass(frozen=True, kw_only=True)
class SpanCorruptionConfig(ObjectiveConfig):
    """Short spans all over the text.

    Attributes:
        density: the share of the tokens that is taken out.
        mean_span: how long spans are on average, in tokens.

    Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning" (T5), section 3.1.4 and table 7.
    """

    density: float = limits(0.15, low=0.01, high=0.99)
    mean_span: float = limits(3.0, low=1.0)

    def build(self, vocabulary: Vocabulary, context: int) -> SpanCorruption:
        """The objective."""
        denoiser = Denoiser(density=self.density, mean_span=self.mean_span)
        return SpanCorruption("span-corruption", vocabulary, context, (denoiser,))


UL2_DENOISERS = (
    Denoiser(mode="R", mean_span=3.0, density=0.15),
    Denoiser(mode="R", mean_span=8.0, density=0.15),
    Denoiser(mode="S", mean_span=None, density=0.25),
    Denoiser(mode="X", mean_span=3.0, density=0.5),
    Denoiser(mode="X", mean_span=8.0, density=0.5),
    Denoiser(mode="X", mean_span=64.0, density=0.15),
    Denoiser(mode="X", mean_span=64.0, density=0.5),
)
"""Source: Tay et al. 2022, UL2, table 1."""


@dataclass(frozen=True, kw_only=True)
class UL2Config(ObjectiveConfig):
    """Each row through one of several denoisers: regular, sequential (the end of the text), extreme (long, or many).

    All rows hold as much text as the denoiser that shortens it least leaves room for; the others' are padded.

    Attributes:
        denoisers: the ways and their shares; where nothing is said, UL2's seven in equal shares.
        mode_tokens: what stands before a text of mode R, S and X, where the tokenizer has such tokens.

    Source: Tay et al. 2022, "UL2: Unifying Language Learning Paradigms", section 3.1.
    """

    denoisers: tuple[Denoiser, ...] = UL2_DENOISERS
    mode_tokens: tuple[str, str, str] = ("[NLU]", "[S2S]", "[NLG]")

    def check(self) -> None:
        """Some denoiser has a share."""
        if not any(each.share for each in self.denoisers):
            self.refuse("denoisers", "no denoiser has a share")

    def build(self, vocabulary: Vocabulary, context: int) -> SpanCorruption:
        """The objective."""
        modes = dict(zip("RSX", self.mode_tokens, strict=True))
        known = {mode: vocabulary.added[token] for mode, token in modes.items() if token in vocabulary.added}
        used = tuple(each for each in self.denoisers if each.share)
        return SpanCorruption("ul2", vocabulary, context, used, known)


class SpanCorruption:
    """See `SpanCorruptionConfig` and `UL2Config`.

    Args:
        name: its name in the registry.
        vocabulary: of the tokenizer.
        context: how many positions the encoder reads.
        denoisers: the ways to take out spans; each row goes one of them.
        modes: the token before a text, by the denoiser's mode.
    """

    head = "seq2seq-lm"
    weights: Mapping[str, float] = {"token": 1.0}
    slots = SlotRule()

    def __init__(
        self,
        name: str,
        vocabulary: Vocabulary,
        context: int,
        denoisers: Sequence[Denoiser],
        modes: Mapping[str, int] | None = None,
    ) -> None:
        self.name = name
        self._where = f"objective {name}"
        self._denoisers, self._modes = denoisers, dict(modes or {})
        if vocabulary.eos is None:
            raise ConfigError(
                "the tokenizer has no token that ends a text",
                where=self._where,
                mend="give it one (eos_token) before the corpus is prepared",
            )
        self._end, self._pad = np.array([vocabulary.eos]), vocabulary.eos if vocabulary.pad is None else vocabulary.pad
        self._sentinels = np.array(vocabulary.sentinels, np.int64)
        self._token_bytes = vocabulary.token_bytes
        self._row, self._context = self.length(context), context
        self._steps = max(each.lengths(self._row)[1] for each in denoisers)
        self._shares = np.cumsum([each.share for each in denoisers])
        self._check(context)

    def length(self, context: int) -> int:
        """How much raw text a row holds: as much as fits in `context` when the spans are out."""
        return min(each.raw_length(context - bool(self._modes)) for each in self._denoisers)

    def batch(self, rows: Sequence[Row], random: Sequence[np.random.Generator]) -> Batch:
        """`input_ids` and `attention_mask` `[rows, context]`, and `targets` `[rows, steps]` for the decoder.

        Tokens and padding count both of what is read and of what is written.
        """
        read = np.full((len(rows), self._context), self._pad, np.int64)
        written = np.full((len(rows), self._steps), IGNORE, np.int64)
        real = np.zeros_like(read)
        size = 0
        for number, (row, generator) in enumerate(zip(rows, random, strict=True)):
            tokens = np.concatenate([self._end[:0], *(each.tokens[each.start : each.stop] for each in row)])
            if len(tokens) > self._row:
                raise InputError(f"a row of {len(tokens)} tokens, longer than {self._row}", where=self._where)
            denoiser = self._pick(generator)
            hidden = denoiser.choose(len(tokens), generator)
            shown, spans = corrupt(tokens, hidden, self._sentinels)
            mode = self._modes.get(denoiser.mode)
            shown = np.concatenate((self._end[:0] if mode is None else [mode], shown, self._end))
            spans = np.concatenate((spans, self._end))
            read[number, : len(shown)], real[number, : len(shown)] = shown, 1
            written[number, : len(spans)] = spans
            size += int(self._token_bytes[tokens[hidden]].sum(dtype=np.int64))
        asked, seen = int(np.count_nonzero(written != IGNORE)), int(real.sum())
        inputs = {"input_ids": read, "attention_mask": real, "targets": written}
        return Batch(inputs, {"token": asked}, seen + asked, read.size + written.size - seen - asked, size)

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum over all that the decoder writes, sentinels and end token included."""
        return {"token": model(**inputs).loss}

    def _pick(self, random: np.random.Generator) -> Denoiser:
        if len(self._denoisers) == 1:
            return self._denoisers[0]
        place = random.random() * self._shares[-1]
        return self._denoisers[int(np.searchsorted(self._shares[:-1], place, side="right"))]

    def _check(self, context: int) -> None:
        if self._row < 2:
            raise ConfigError(f"a context of {context} has no room for two tokens and a span", where=self._where)
        most = max(self._denoisers, key=lambda each: each.counts(self._row)[1])
        spans, known = most.counts(self._row)[1], len(self._sentinels)
        if spans > known:
            mend = "train a tokenizer with <extra_id_…> tokens, as those of the t5 layout are"
            if known:
                mend = "shorten the context, or make spans longer (mean_span) or fewer (density)"
            way = f"density {most.density:g} and mean_span {most.mean_span:g}" if most.mean_span else "a span"
            what = f"{way} in a context of {context} ask for {spans} sentinels"
            raise ConfigError(f"{what}, and the tokenizer has {known or 'none'}", where=self._where, mend=mend)


def corrupt(tokens: Int64s, hidden: Bools, sentinels: Int64s) -> tuple[Int64s, Int64s]:
    """A text with a sentinel in the place of each span that is hidden, and the spans, each behind its sentinel.

    Args:
        tokens: `[tokens]`.
        hidden: which of them are taken out; neighbours are one span.
        sentinels: at least as many as spans.
    """
    begins = hidden.copy()
    begins[1:] &= ~hidden[:-1]
    number = np.cumsum(begins) - 1
    inputs = np.where(begins, sentinels[number], tokens)[begins | ~hidden] if begins.any() else tokens
    places = np.flatnonzero(begins[hidden])
    return inputs, np.insert(tokens[hidden], places, sentinels[: len(places)])
