"""ELECTRA: a bidirectional encoder, pre-trained to tell which tokens a small generator has replaced.

BERT's layers over embeddings that may be narrower than they are. The generator is one more ELECTRA with a head for
hidden tokens; what is kept and fine-tuned is the discriminator. Loads google/electra-small, -base and -large of either
kind, and the Japanese ELECTRAs.

Source: Clark et al. 2020, ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tsumugu.blocks.dropout import Dropout
from tsumugu.blocks.embeddings import Embedding, Embeddings
from tsumugu.blocks.feedforward import activation as find_activation
from tsumugu.blocks.heads import IGNORE, ClassificationHead, MaskedLanguageModelHead, SpanHead
from tsumugu.blocks.normalization import LayerNorm
from tsumugu.blocks.positions import LearnedPositions
from tsumugu.checkpoints.keymap import KeyMap, Rule, both, same
from tsumugu.core.config import limits
from tsumugu.core.errors import ConfigError
from tsumugu.models import bert
from tsumugu.models.base import Family, Output, label_names, label_tables, translate
from tsumugu.models.bert import BertConfig, build_stack, trunk_rules
from tsumugu.models.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class ElectraConfig(BertConfig):
    """Hyperparameters of ELECTRA; the defaults are those of the small discriminator.

    Attributes:
        embedding_size: the width of the embeddings, which a matrix brings to `hidden_size` where the two differ.
        generator_size: the width of the generator that it is trained with, as a share of `hidden_size`.
    """

    embedding_size: int = limits(128, low=1)
    hidden_size: int = limits(256, low=1)
    num_heads: int = limits(4, low=1)
    intermediate_size: int = limits(1024, low=1)
    generator_size: float = limits(0.25, low=0.0, high=1.0)

    @property
    def generator(self) -> ElectraConfig:
        """The generator's: as deep, but narrower, with heads of 64 where they fit, over the same embeddings.

        Source: Clark et al. 2020, section 3.2 and table 6; the released code, `get_generator_config`.
        """
        width = max(1, round(self.hidden_size * self.generator_size))
        heads = next(count for count in range(max(1, width // 64), 0, -1) if width % count == 0)
        return self.replace(hidden_size=width, num_heads=heads, intermediate_size=4 * width)


class FactorisedEmbeddings(Embeddings):
    """Token ids `[batch, time]` -> hidden states `[batch, time, dim]`, from narrower vectors through one matrix.

    Source: Lan et al. 2020, ALBERT, section 3.1.
    """

    def __init__(self, token: Embedding, *, projection: nn.Module | None, **parts: Any) -> None:
        super().__init__(token, **parts)
        self.projection = projection

    def forward(self, input_ids: Tensor, *, positions: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        x = super().forward(input_ids, positions=positions, segments=segments)
        return x if self.projection is None else self.projection(x)


class TokenScoreHead(nn.Module):
    """How likely each token was replaced. States `[batch, time, dim]` -> logits `[batch, time]`.

    Source: Clark et al. 2020, section 2, and the released code.
    """

    def __init__(self, hidden_size: int, *, activation: str) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = find_activation(activation)
        self.score = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.score(self.activation(self.dense(x))).squeeze(-1)
        return logits


class TextHead(nn.Module):
    """One score for each label from the first token, through a dense layer and gelu.

    States `[batch, time, dim]` -> `[batch, labels]`.

    Source: Clark et al. 2020 (released code).
    """

    def __init__(self, hidden_size: int, num_labels: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = find_activation("gelu")
        self.classifier = nn.Linear(hidden_size, num_labels)

    def forward(self, x: Tensor) -> Tensor:
        first = self.activation(self.dense(self.dropout(x[:, 0])))
        logits: Tensor = self.classifier(self.dropout(first))
        return logits


class Electra(Encoder):
    """Token ids `[batch, time]` -> hidden states, or what the head makes of them.

    With head `replaced-token` the logits are `[batch, time]`, and labels 1 where a token was replaced, 0 where it was
    not, and -100 where nothing is asked.
    """

    def _answer(self, x: Tensor, labels: Tensor | None) -> Output:
        if self.head is None or not isinstance(self.head, TokenScoreHead):
            return super()._answer(x, labels)
        logits = self.head(x)
        return Output(loss=None if labels is None else binary_loss(logits, labels, "mean"), logits=logits)


def binary_loss(logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """Binary cross-entropy over the labels that are not `IGNORE`. Both `[batch, time]`; computed in float32."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    asked = labels != IGNORE
    return functional.binary_cross_entropy_with_logits(wide[asked], labels[asked].to(wide), reduction=reduction)


@dataclass
class PairOutput(Output):
    """What a generator and a discriminator give together.

    Attributes:
        loss: the generator's, summed over its targets.
        replaced_loss: the discriminator's, summed over all real tokens.
    """

    replaced_loss: Any = None


class ElectraPair(Electra):
    """A discriminator with the generator that it is trained with, over one table of embeddings.

    Called with `noise` it runs both; without, it is the discriminator alone. All of the embeddings are shared, but for
    the matrices that bring them to the two widths.

    Source: Clark et al. 2020, sections 2 and 3.2, and the released code.
    """

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__(FAMILY, config, PAIR, **parts(config, "replaced-token"))
        self.generator = build(config.generator, "masked-lm")
        for part in ("token", "position", "segment", "norm"):
            setattr(self.generator.embeddings, part, getattr(self.embeddings, part))
        self.generator.tie()
        if self.generator.tied:
            self.tied = {"generator.head.decoder.weight": "embeddings.token.weight"}

    def forward(self, *inputs: Any, noise: Any = None, **named: Any) -> Output:
        """One pass of the discriminator; with `noise` first one of the generator, whose guesses it then judges.

        Args:
            inputs, named: as for any encoder. With `noise`: `input_ids` with hidden tokens, and `targets` `[batch,
                time]`, the tokens that they hide (-100: none).
            noise: `[batch, time]`, numbers from [0, 1) that choose the tokens which the generator puts in. Padding is
                0 in `attention_mask` or -1 in `document_ids`, and is not judged.
        """
        if noise is None:
            return super().forward(*inputs, **named)
        return self._both(*inputs, noise=noise, **named)

    def _both(self, input_ids: Tensor, *, targets: Tensor, noise: Tensor, **named: Any) -> PairOutput:
        guess = self.generator(input_ids, targets=targets, output_hidden_states=True, **named)
        asked = targets != IGNORE
        original = torch.where(asked, targets, input_ids)
        text = original.clone()
        text[asked] = self._draw(guess.hidden_states[-1][asked], noise[asked])
        replaced = (text != original).long()
        for name, padding in (("attention_mask", 0), ("document_ids", -1)):
            if named.get(name) is not None:
                replaced = replaced.masked_fill(named[name] == padding, IGNORE)
        scores = super().forward(text, **named).logits
        return PairOutput(loss=guess.loss, replaced_loss=binary_loss(scores, replaced, "sum"))

    @torch.no_grad()
    def _draw(self, states: Tensor, noise: Tensor) -> Tensor:
        """A token for each of the generator's states `[n, dim]`, by the place of `noise` `[n]` among the shares.

        Taken in pieces, so that no more than a few million logits are held at once.
        """
        assert self.generator.head is not None
        vocab, drawn = int(self.config.vocab_size), torch.empty_like(noise, dtype=torch.int64)
        step = max(1, DRAWN // vocab)
        for at in range(0, len(noise), step):
            some = slice(at, at + step)
            shares = self.generator.head(states[some]).float().softmax(-1).cumsum(-1, dtype=torch.float64)
            places = noise[some, None] * shares[:, -1:]
            drawn[some] = torch.searchsorted(shares, places, right=True).squeeze(-1).clamp(max=vocab - 1)
        return drawn


PAIR = "replaced-token-pair"
"""The head of the discriminator that has its generator beside it."""

DRAWN = 1 << 22
"""How many logits are held at once when the generator's tokens are drawn."""


def build(config: ElectraConfig, head: str) -> Electra:
    """An ELECTRA with unset weights."""
    if head == PAIR:
        return ElectraPair(config)
    return Electra(FAMILY, config, head, **parts(config, head))


def parts(config: ElectraConfig, head: str) -> dict[str, Any]:
    """Embeddings, layers and head."""
    width, narrow = config.hidden_size, config.embedding_size
    embeddings = FactorisedEmbeddings(
        Embedding(config.vocab_size, narrow),
        position=LearnedPositions(config.max_positions, narrow),
        segment=Embedding(config.num_segments, narrow),
        norm=LayerNorm(narrow, eps=config.norm_eps),
        dropout=config.dropout,
        projection=nn.Linear(narrow, width) if width != narrow else None,
    )
    return {"embeddings": embeddings, "encoder": build_stack(config), "head": _head(config, head)}


def _head(config: ElectraConfig, head: str) -> nn.Module | None:
    width, narrow, labels = config.hidden_size, config.embedding_size, len(config.labels)
    match head:
        case "replaced-token":
            return TokenScoreHead(width, activation=config.activation)
        case "masked-lm":
            norm = LayerNorm(narrow, eps=config.norm_eps)
            guess = MaskedLanguageModelHead(narrow, config.vocab_size, activation="gelu", norm=norm)
            guess.dense = nn.Linear(width, narrow)
            return guess
        case "sequence-classification":
            return TextHead(width, labels, dropout=config.head_dropout)
        case "token-classification":
            return ClassificationHead(width, labels, dropout=config.head_dropout)
        case "question-answering":
            return SpanHead(width)
    return None


def keymap(config: ElectraConfig, head: str) -> KeyMap:
    """The names on the hub, as `ElectraForPreTraining` and its siblings write them.

    Of a pair, the discriminator's are these; the generator's begin with `generator.`, and no other program reads them.
    """
    rules = trunk_rules(config, "electra.")
    if config.embedding_size != config.hidden_size:
        rules += both("electra.embeddings_project", "embeddings.projection")
    tied: dict[str, str] = {}
    match head:
        case "replaced-token" | "replaced-token-pair":
            rules += both("discriminator_predictions.dense", "head.dense")
            rules += both("discriminator_predictions.dense_prediction", "head.score")
        case "masked-lm":
            rules += both("generator_predictions.dense", "head.dense")
            rules += both("generator_predictions.LayerNorm", "head.norm")
            rules.append(same("generator_lm_head.bias", "head.decoder.bias"))
            if config.tie_embeddings:
                tied = {"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"}
            else:
                rules.append(same("generator_lm_head.weight", "head.decoder.weight"))
        case "sequence-classification":
            rules += both("classifier.dense", "head.dense") + both("classifier.out_proj", "head.classifier")
        case "token-classification":
            rules += both("classifier", "head.classifier")
        case "question-answering":
            rules += both("qa_outputs", "head.spans")
    if head == PAIR:
        shared = ("embeddings.token.", "embeddings.position.", "embeddings.segment.", "embeddings.norm.")
        rules += [
            Rule(tuple(f"generator.{name}" for name in rule.theirs), tuple(f"generator.{name}" for name in rule.ours))
            for rule in keymap(config.generator, "masked-lm").rules
            if not rule.ours[0].startswith(shared)
        ]
    return KeyMap(
        tuple(rules),
        tied=tied,
        prefix="electra.",
        renamed=((r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
        ignored=(r"embeddings\.position_ids$",),
        other_heads=(
            r"^discriminator_predictions\.",
            r"^generator_predictions\.",
            r"^generator_lm_head\.",
            r"^generator\.",
            r"^classifier\.",
            r"^qa_outputs\.",
        ),
    )


NAMES = {**bert.NAMES, "embedding_size": "embedding_size", "generator_size": "generator_size"}
"""config.json's names and ours; the generator's size is ours alone."""


def from_hub(data: Mapping[str, Any]) -> ElectraConfig:
    """The content of config.json -> configuration."""
    if data.get("position_embedding_type", "absolute") != "absolute":
        raise ConfigError("only absolute positions are known", where="config.json position_embedding_type")
    if data.get("is_decoder"):
        raise ConfigError("ELECTRA as a decoder is not known", where="config.json is_decoder")
    values = translate(data, NAMES, ElectraConfig)
    return ElectraConfig.from_dict({**values, "labels": label_names(data)}, where="config.json")


def to_hub(config: ElectraConfig, head: str) -> dict[str, Any]:
    """Configuration and head -> the content of config.json."""
    values = {theirs: getattr(config, ours) for theirs, ours in NAMES.items()}
    architecture = FAMILY.architecture("replaced-token" if head == PAIR else head)
    return {"architectures": [architecture], "model_type": "electra", **values, **label_tables(config.labels)}


FAMILY = Family(
    name="electra",
    summary="bidirectional encoder, trained to tell which tokens were replaced: as BERT",
    model_types=("electra",),
    config_class=ElectraConfig,
    build=build,
    keymap=keymap,
    from_hub=from_hub,
    to_hub=to_hub,
    architectures={
        "ElectraForPreTraining": "replaced-token",
        "ElectraModel": "base",
        "ElectraForMaskedLM": "masked-lm",
        "ElectraForSequenceClassification": "sequence-classification",
        "ElectraForTokenClassification": "token-classification",
        "ElectraForQuestionAnswering": "question-answering",
        "ElectraPair": PAIR,
    },
)
