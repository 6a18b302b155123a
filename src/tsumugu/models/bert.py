"""BERT: a bidirectional encoder, pre-trained to fill in hidden tokens.

Post-norm layers, learned positions, segments, a pooler over the first token. Loads bert-base and -large, their Japanese
and multilingual kin, and sentence-transformers' MiniLM.

Source: Devlin et al. 2019, BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tsumugu.blocks.attention import Attention
from tsumugu.blocks.embeddings import Embedding, Embeddings
from tsumugu.blocks.feedforward import FeedForward
from tsumugu.blocks.feedforward import activation as find_activation
from tsumugu.blocks.heads import ClassificationHead, MaskedLanguageModelHead, Pooler, SpanHead
from tsumugu.blocks.layer import Layer
from tsumugu.blocks.normalization import LayerNorm
from tsumugu.blocks.positions import LearnedPositions
from tsumugu.blocks.stack import Stack
from tsumugu.checkpoints.keymap import Copies, KeyMap, Rule, both, same
from tsumugu.core.config import Config, limits
from tsumugu.core.errors import ConfigError
from tsumugu.models.base import Family, label_names, label_tables, translate
from tsumugu.models.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class BertConfig(Config):
    """Hyperparameters of BERT; the defaults are those of bert-base-uncased."""

    vocab_size: int = limits(30522, low=1)
    hidden_size: int = limits(768, low=1)
    num_layers: int = limits(12, low=0)
    num_heads: int = limits(12, low=1)
    intermediate_size: int = limits(3072, low=1)
    activation: str = "gelu"
    max_positions: int = limits(512, low=1)
    num_segments: int = limits(2, low=1)
    norm_eps: float = limits(1e-12, low=0.0)
    dropout: float = limits(0.1, low=0.0, high=1.0)
    attention_dropout: float = limits(0.1, low=0.0, high=1.0)
    classifier_dropout: float | None = limits(None, low=0.0, high=1.0)
    initializer_range: float = limits(0.02, low=0.0)
    tie_embeddings: bool = True
    pad_token_id: int | None = 0
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")

    def check(self) -> None:
        if self.hidden_size % self.num_heads:
            self.refuse("num_heads", f"{self.num_heads} heads do not divide a width of {self.hidden_size}")
        find_activation(self.activation)

    @property
    def head_dropout(self) -> float:
        return self.dropout if self.classifier_dropout is None else self.classifier_dropout


WITH_POOLER = ("base", "sequence-classification", "pretraining")


def build(config: BertConfig, head: str) -> Encoder:
    """A BERT with fresh weights."""
    width = config.hidden_size
    return Encoder(
        FAMILY,
        config,
        head,
        embeddings=build_embeddings(config),
        encoder=build_stack(config),
        pooler=Pooler(width) if head in WITH_POOLER else None,
        head=_head(config, head),
    )


def build_embeddings(config: BertConfig) -> Embeddings:
    """Token, position and segment vectors, summed and normalised."""
    width = config.hidden_size
    return Embeddings(
        Embedding(config.vocab_size, width),
        position=LearnedPositions(config.max_positions, width),
        segment=Embedding(config.num_segments, width),
        norm=build_norm(config),
        dropout=config.dropout,
    )


def build_stack(config: BertConfig) -> Stack:
    """The layers; each normalises after its residual path."""
    width = config.hidden_size
    return Stack(
        Layer(
            attention=Attention(width, config.num_heads, dropout=config.attention_dropout),
            feed_forward=FeedForward(
                width, config.intermediate_size, activation=config.activation, dropout=config.dropout
            ),
            attention_norm=build_norm(config),
            feed_forward_norm=build_norm(config),
            norm_first=False,
            dropout=config.dropout,
        )
        for _ in range(config.num_layers)
    )


def build_norm(config: BertConfig) -> nn.Module:
    """One norm over the hidden states."""
    return LayerNorm(config.hidden_size, eps=config.norm_eps)


def _head(config: BertConfig, head: str) -> nn.Module | None:
    width = config.hidden_size
    match head:
        case "masked-lm" | "pretraining":
            return MaskedLanguageModelHead(
                width, config.vocab_size, activation=config.activation, norm=build_norm(config)
            )
        case "sequence-classification" | "token-classification":
            return ClassificationHead(width, len(config.labels), dropout=config.head_dropout)
        case "question-answering":
            return SpanHead(width)
    return None


def trunk_rules(config: BertConfig, prefix: str) -> list[Rule]:
    """The names of embeddings and layers, which BERT's descendants keep."""
    rules: list[Rule] = [
        same(f"{prefix}embeddings.word_embeddings.weight", "embeddings.token.weight"),
        same(f"{prefix}embeddings.position_embeddings.weight", "embeddings.position.weight"),
        same(f"{prefix}embeddings.token_type_embeddings.weight", "embeddings.segment.weight"),
        *both(f"{prefix}embeddings.LayerNorm", "embeddings.norm"),
    ]
    for i in range(config.num_layers):
        theirs, ours = f"{prefix}encoder.layer.{i}", f"encoder.layers.{i}"
        for part in ("query", "key", "value"):
            rules += both(f"{theirs}.attention.self.{part}", f"{ours}.attention.{part}")
        rules += both(f"{theirs}.attention.output.dense", f"{ours}.attention.output")
        rules += both(f"{theirs}.attention.output.LayerNorm", f"{ours}.attention_norm")
        rules += both(f"{theirs}.intermediate.dense", f"{ours}.feed_forward.up")
        rules += both(f"{theirs}.output.dense", f"{ours}.feed_forward.down")
        rules += both(f"{theirs}.output.LayerNorm", f"{ours}.feed_forward_norm")
    return rules


def keymap(config: BertConfig, head: str) -> KeyMap:
    """The names on the hub, as `BertForPreTraining` and its siblings write them."""
    rules = trunk_rules(config, "bert.")
    tied: dict[str, str] = {}
    if head in WITH_POOLER:
        rules += both("bert.pooler.dense", "pooler.dense")
    if head in ("masked-lm", "pretraining"):
        rules += both("cls.predictions.transform.dense", "head.dense")
        rules += both("cls.predictions.transform.LayerNorm", "head.norm")
        biases = ("cls.predictions.decoder.bias", "cls.predictions.bias")
        if config.tie_embeddings:
            rules += [same(biases[1], "head.decoder.bias")]
            tied |= {biases[0]: biases[1], "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}
        else:
            # Where the weights are two, the names of the bias may be too, and the decoder's own is the one that counts.
            rules += [Rule(biases, ("head.decoder.bias",), Copies())]
            rules += [same("cls.predictions.decoder.weight", "head.decoder.weight")]
            tied |= {biases[0]: biases[1], biases[1]: biases[0]}
    if head == "pretraining":
        rules += both("cls.seq_relationship", "next_sentence")
    if head in ("sequence-classification", "token-classification"):
        rules += both("classifier", "head.classifier")
    if head == "question-answering":
        rules += both("qa_outputs", "head.spans")
    return KeyMap(
        tuple(rules),
        tied=tied,
        prefix="bert.",
        renamed=((r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
        ignored=(r"embeddings\.position_ids$",),
        other_heads=(r"^cls\.", r"^(bert\.)?pooler\.", r"^classifier\.", r"^qa_outputs\."),
        optional=("pooler",) if head == "base" else (),
    )


NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "hidden_act": "activation",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "num_segments",
    "layer_norm_eps": "norm_eps",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "classifier_dropout": "classifier_dropout",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "tie_embeddings",
    "pad_token_id": "pad_token_id",
}
"""config.json's names and ours."""


def from_hub(data: Mapping[str, Any]) -> BertConfig:
    """The content of config.json -> configuration."""
    if data.get("position_embedding_type", "absolute") != "absolute":
        raise ConfigError("only absolute positions are known", where="config.json position_embedding_type")
    if data.get("is_decoder"):
        raise ConfigError("BERT as a decoder is not known", where="config.json is_decoder")
    return BertConfig.from_dict(
        {**translate(data, NAMES, BertConfig), "labels": label_names(data)}, where="config.json"
    )


def to_hub(config: BertConfig, head: str) -> dict[str, Any]:
    """Configuration and head -> the content of config.json."""
    values = {theirs: getattr(config, ours) for theirs, ours in NAMES.items()}
    return {"architectures": [FAMILY.architecture(head)], "model_type": "bert", **values, **label_tables(config.labels)}


FAMILY = Family(
    name="bert",
    summary="bidirectional encoder: classification, tagging, spans, sentence vectors, hidden tokens",
    model_types=("bert",),
    config_class=BertConfig,
    build=build,
    keymap=keymap,
    from_hub=from_hub,
    to_hub=to_hub,
    architectures={
        "BertModel": "base",
        "BertForMaskedLM": "masked-lm",
        "BertForPreTraining": "pretraining",
        "BertForSequenceClassification": "sequence-classification",
        "BertForTokenClassification": "token-classification",
        "BertForQuestionAnswering": "question-answering",
    },
)
