"""Fill in the middle: a text's middle moves behind its end, so that a model that reads to the right learns to fill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tsumugu.core.config import limits
from tsumugu.core.errors import ConfigError
from tsumugu.corpus.rows import Piece, Row, SlotRule
from tsumugu.objectives.base import ObjectiveConfig, Vocabulary
from tsumugu.objectives.causal import Causal, Stretch

# Prefix, middle, suffix, as models on the hub have them: StarCoder, Qwen and CodeGemma, SantaCoder, Code Llama.
_KNOWN = (
    ("<fim_prefix>", "<fim_middle>", "<fim_suffix>"),
    ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    ("<fim-prefix>", "<fim-middle>", "<fim-suffix>"),
    ("▁<PRE>", "▁<MID>", "▁<SUF>"),
)


@dataclass(frozen=True, kw_only=True)
class FillInTheMiddleConfig(ObjectiveConfig):
    """Causal modelling of texts of which some have their middle moved to the end.

    Two places cut a text in prefix, middle and suffix; every two places are as likely. Prefix-suffix-middle (PSM) reads
    ``<prefix> p <suffix> s <middle> m end``, suffix-prefix-middle (SPM) ``<prefix> <suffix> s <middle> p m end``. A
    document that packing cut is filled in piece by piece. Cuts fall between tokens.

    Attributes:
        rate: the share of texts so treated; the others stay as they are.
        spm_rate: of these, the share of SPM.
        tokens: the tokens for prefix, middle and suffix; None: those of a known model, if the tokenizer has them.
        document_mask: as `CausalConfig`.

    Source: Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle", section 3 and
    appendix D (the order of SPM).
    """

    packing: ClassVar[str] = "best-fit"
    rate: float = limits(0.5, low=0.0, high=1.0)
    spm_rate: float = limits(0.5, low=0.0, high=1.0)
    tokens: tuple[str, str, str] | None = None
    document_mask: bool | None = None

    def build(self, vocabulary: Vocabulary, context: int) -> FillInTheMiddle:
        """The objective."""
        return FillInTheMiddle(vocabulary, context, self)


class FillInTheMiddle(Causal):
    """See `FillInTheMiddleConfig`."""

    name = "fill-in-the-middle"
    slots = SlotRule(per_document=1, per_piece=4)  # three marks, and an end where the text itself has not ended

    def __init__(self, vocabulary: Vocabulary, context: int, config: FillInTheMiddleConfig) -> None:
        super().__init__(vocabulary, context, document_mask=bool(config.document_mask))
        self._rate, self._spm_rate = config.rate, config.spm_rate
        names = config.tokens or next((each for each in _KNOWN if all(map(vocabulary.added.__contains__, each))), None)
        lacking = [name for name in names or _KNOWN[0] if name not in vocabulary.added]
        if names is None or lacking:
            raise ConfigError(
                f"the tokenizer has no tokens {', '.join(lacking)}",
                where=f"objective {self.name}",
                mend="train it with these as special tokens, or name the ones that it has in `tokens`",
            )
        self._prefix, self._middle, self._suffix = (np.array([vocabulary.added[name]]) for name in names)

    def _stretches(self, row: Row, random: np.random.Generator) -> list[Stretch]:
        draws = random.random((len(row), 4)).tolist()
        return [
            self._filled(piece, spm=way < self._spm_rate, cuts=(one, other))
            if chance < self._rate and piece.start < len(piece.tokens)
            else self._plain(piece)
            for piece, (chance, way, one, other) in zip(row, draws, strict=True)
        ]

    def _filled(self, piece: Piece, *, spm: bool, cuts: tuple[float, float]) -> Stretch:
        before = self._start if piece.start == 0 else piece.tokens[piece.start - 1 : piece.start]
        text = piece.tokens[piece.start : piece.stop]
        first, last = sorted(int(each * (len(text) + 1)) for each in cuts)
        prefix, middle, suffix = text[:first], text[first:last], text[last:]
        if spm:
            parts = [before, self._prefix, self._suffix, suffix, self._middle, prefix, middle, self._end]
        else:
            parts = [before, self._prefix, prefix, self._suffix, suffix, self._middle, middle, self._end]
        return Stretch(parts, len(text) + 4)
