"""RoBERTa: BERT trained longer and better, with positions counted from behind the padding token.

No segments to speak of, no next-sentence task. Loads roberta-base and -large, XLM-RoBERTa, and what is built on them,
such as the Japanese RoBERTas.

Source: Liu et al. 2019, RoBERTa: A Robustly Optimized BERT Pretraining Approach; Conneau et al. 2020, XLM-RoBERTa.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tsumugu.blocks.heads import ClassificationHead, FirstTokenHead, MaskedLanguageModelHead, Pooler, SpanHead
from tsumugu.checkpoints.keymap import Copies, KeyMap, Rule, both, same
from tsumugu.core.config import limits
from tsumugu.core.errors import ConfigError
from tsumugu.models.base import Family, label_names, label_tables, translate
from tsumugu.models.bert import NAMES, BertConfig, build_embeddings, build_norm, build_stack, trunk_rules
from tsumugu.models.encoder import Encoder

CROSS_LINGUAL = "xlm-roberta"


@dataclass(frozen=True, kw_only=True)
class RobertaConfig(BertConfig):
    """Hyperparameters of RoBERTa; the defaults are those of roberta-base.

    `max_positions` counts the rows of the table, of which those up to the padding token's are never read.
    """

    vocab_size: int = limits(50265, low=1)
    max_positions: int = limits(514, low=1)
    num_segments: int = limits(1, low=1)
    norm_eps: float = limits(1e-5, low=0.0)
    pad_token_id: int = limits(1, low=0)
    model_type: str = "roberta"

    def check(self) -> None:
        super().check()
        if self.pad_token_id + 1 >= self.max_positions:
            self.refuse("pad_token_id", f"{self.pad_token_id} leaves none of the {self.max_positions} positions")


class Roberta(Encoder):
    """Token ids `[batch, time]` -> hidden states, or what the head makes of them."""

    @property
    def longest(self) -> int:
        """The longest text this model can read, in tokens."""
        return int(self.config.max_positions) - int(self.config.pad_token_id) - 1

    def positions(self, ids: Tensor) -> Tensor:
        """`[batch, time]`: real tokens counted from one past the padding token's id, padding at that id."""
        pad = self.config.pad_token_id
        real = (ids != pad).long()
        return real.cumsum(1) * real + pad


def build(config: RobertaConfig, head: str) -> Roberta:
    """A RoBERTa with fresh weights."""
    return Roberta(
        FAMILY,
        config,
        head,
        embeddings=build_embeddings(config),
        encoder=build_stack(config),
        pooler=Pooler(config.hidden_size) if head == "base" else None,
        head=_head(config, head),
    )


def _head(config: RobertaConfig, head: str) -> nn.Module | None:
    width, labels = config.hidden_size, len(config.labels)
    match head:
        case "masked-lm":
            return MaskedLanguageModelHead(width, config.vocab_size, activation="gelu", norm=build_norm(config))
        case "sequence-classification":
            return FirstTokenHead(width, labels, dropout=config.head_dropout)
        case "token-classification":
            return ClassificationHead(width, labels, dropout=config.head_dropout)
        case "question-answering":
            return SpanHead(width)
    return None


def keymap(config: RobertaConfig, head: str) -> KeyMap:
    """The names on the hub, as `RobertaForMaskedLM` and its siblings write them."""
    rules = trunk_rules(config, "roberta.")
    tied: dict[str, str] = {}
    match head:
        case "base":
            rules += both("roberta.pooler.dense", "pooler.dense")
        case "masked-lm":
            rules += both("lm_head.dense", "head.dense") + both("lm_head.layer_norm", "head.norm")
            biases = ("lm_head.decoder.bias", "lm_head.bias")
            if config.tie_embeddings:
                rules += [same(biases[1], "head.decoder.bias")]
                tied |= {biases[0]: biases[1], "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight"}
            else:
                rules += [Rule(biases, ("head.decoder.bias",), Copies())]
                rules += [same("lm_head.decoder.weight", "head.decoder.weight")]
                tied |= {biases[0]: biases[1], biases[1]: biases[0]}
        case "sequence-classification":
            rules += both("classifier.dense", "head.dense") + both("classifier.out_proj", "head.classifier")
        case "token-classification":
            rules += both("classifier", "head.classifier")
        case "question-answering":
            rules += both("qa_outputs", "head.spans")
    return KeyMap(
        tuple(rules),
        tied=tied,
        prefix="roberta.",
        renamed=((r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
        ignored=(r"embeddings\.position_ids$",),
        other_heads=(r"^lm_head\.", r"^(roberta\.)?pooler\.", r"^classifier\.", r"^qa_outputs\."),
        optional=("pooler",) if head == "base" else (),
    )


def from_hub(data: Mapping[str, Any]) -> RobertaConfig:
    """The content of config.json -> configuration."""
    if data.get("position_embedding_type", "absolute") != "absolute":
        raise ConfigError("only absolute positions are known", where="config.json position_embedding_type")
    if data.get("is_decoder"):
        raise ConfigError("RoBERTa as a decoder is not known", where="config.json is_decoder")
    values = translate(data, NAMES, RobertaConfig)
    values |= {"model_type": data.get("model_type", "roberta"), "labels": label_names(data)}
    return RobertaConfig.from_dict(values, where="config.json")


def to_hub(config: RobertaConfig, head: str) -> dict[str, Any]:
    """Configuration and head -> the content of config.json."""
    values = {theirs: getattr(config, ours) for theirs, ours in NAMES.items()}
    prefix = "XLMRoberta" if config.model_type == CROSS_LINGUAL else "Roberta"
    architecture = FAMILY.architecture(head, prefix=prefix)
    return {
        "architectures": [architecture],
        "model_type": config.model_type,
        **values,
        **label_tables(config.labels),
    }


FAMILY = Family(
    name="roberta",
    summary="bidirectional encoder, trained longer: as BERT (also XLM-RoBERTa)",
    model_types=("roberta", CROSS_LINGUAL),
    config_class=RobertaConfig,
    build=build,
    keymap=keymap,
    from_hub=from_hub,
    to_hub=to_hub,
    architectures={
        f"{prefix}{suffix}": head
        for head, suffix in {
            "base": "Model",
            "masked-lm": "ForMaskedLM",
            "sequence-classification": "ForSequenceClassification",
            "token-classification": "ForTokenClassification",
            "question-answering": "ForQuestionAnswering",
        }.items()
        for prefix in ("Roberta", "XLMRoberta")
    },
)
