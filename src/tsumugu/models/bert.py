"""BERT: a bidirectional encoder, pre-trained to fill in hidden tokens.

Post-norm layers, learned positions, segments, a pooler over the first token. Loads bert-base and -large, their Japanese
and multilingual kin, and sentence-transformers' MiniLM.

Source: Devlin et al. 2019, BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tsumugu.blocks.attention import Attention
from tsumugu.blocks.embeddings import Embedding, Embeddings
from tsumugu.blocks.feedforward import FeedForward
from tsumugu.blocks.feedforward import activation as find_activation
from tsumugu.blocks.heads import (
    IGNORE,
    ClassificationHead,
    MaskedLanguageModelHead,
    Pooler,
    SpanHead,
    classification_loss,
    cross_entropy,
)
from tsumugu.blocks.layer import Layer
from tsumugu.blocks.mask import EVERYTHING, document_mask, padding_mask
from tsumugu.blocks.normalization import LayerNorm
from tsumugu.blocks.positions import LearnedPositions
from tsumugu.blocks.stack import Stack
from tsumugu.checkpoints.keymap import Copies, KeyMap, Rule, both, same
from tsumugu.core.config import Config, limits
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.core.tensors import TensorFormat, to_torch
from tsumugu.models.base import Family, Model, Output, label_names, label_tables, translate


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


class Bert(Model):
    """Token ids `[batch, time]` -> hidden states, or what the head makes of them."""

    def __init__(self, config: BertConfig, head_name: str) -> None:
        super().__init__(FAMILY, config, head_name)
        width = config.hidden_size
        self.embeddings = Embeddings(
            Embedding(config.vocab_size, width),
            position=LearnedPositions(config.max_positions, width),
            segment=Embedding(config.num_segments, width),
            norm=_norm(config),
            dropout=config.dropout,
        )
        self.encoder = Stack(
            Layer(
                attention=Attention(width, config.num_heads, dropout=config.attention_dropout),
                feed_forward=FeedForward(
                    width, config.intermediate_size, activation=config.activation, dropout=config.dropout
                ),
                attention_norm=_norm(config),
                feed_forward_norm=_norm(config),
                norm_first=False,
                dropout=config.dropout,
            )
            for _ in range(config.num_layers)
        )
        self.pooler = Pooler(width) if head_name in WITH_POOLER else None
        self.head: nn.Module | None = None
        self.next_sentence = nn.Linear(width, 2) if head_name == "pretraining" else None
        dropout = config.dropout if config.classifier_dropout is None else config.classifier_dropout
        match head_name:
            case "masked-lm" | "pretraining":
                self.head = MaskedLanguageModelHead(
                    width, config.vocab_size, activation=config.activation, norm=_norm(config)
                )
                if config.tie_embeddings:
                    self.tied = {"head.decoder.weight": "embeddings.token.weight"}
                    self.tie()
            case "sequence-classification" | "token-classification":
                self.head = ClassificationHead(width, len(config.labels), dropout=dropout)
            case "question-answering":
                self.head = SpanHead(width)

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        labels: Any = None,
        *,
        next_sentence_label: Any = None,
        start_positions: Any = None,
        end_positions: Any = None,
        document_ids: Any = None,
        output_hidden_states: bool = False,
        return_tensors: TensorFormat | str | None = None,
    ) -> Output:
        """One pass. All inputs may be torch, TensorFlow, JAX or NumPy tensors, or lists.

        Args:
            input_ids: `[batch, time]`.
            attention_mask: `[batch, time]`, non-zero where a token is real.
            token_type_ids: `[batch, time]`, which of two texts a token is from.
            position_ids: `[batch|1, time]`; counted from 0 when left out.
            labels: for the loss; `[batch, time]` (-100 counts for nothing), or what `classification_loss` takes for a
                sequence classifier.
            next_sentence_label: `[batch]`, with the pre-training head.
            start_positions, end_positions: `[batch]`, with the question-answering head; one past the end of the text
                (the answer was cut off) counts for nothing.
            document_ids: `[batch, time]`, when several texts are packed in a row.
            output_hidden_states: also give every layer's states.
            return_tensors: give pt, tf, jax or np; torch with its gradients when left out.

        Raises:
            InputError: ids outside the vocabulary, or a text longer than `max_positions`.
        """
        ids = self.ids(input_ids)
        if position_ids is None and ids.shape[1] > self.config.max_positions:
            raise InputError(
                f"{ids.shape[1]} tokens are more than the {self.config.max_positions} this model can read",
                where="input_ids",
                mend="truncate the text (truncation=True in the tokenizer)",
            )
        positions = self._on_device(position_ids)
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        mask = EVERYTHING if attention_mask is None else padding_mask(to_torch(attention_mask).to(ids.device))
        if document_ids is not None:
            mask = mask & document_mask(to_torch(document_ids).to(ids.device))
        keep: list[Tensor] | None = [] if output_hidden_states else None
        x = self.embeddings(ids, positions=positions, segments=self._on_device(token_type_ids))
        x = self.encoder(x, mask=mask, keep=keep)
        output = self._answer(x, None if labels is None else to_torch(labels).to(x.device))
        if next_sentence_label is not None and output.next_sentence_logits is not None:
            extra = cross_entropy(output.next_sentence_logits, to_torch(next_sentence_label))
            output.loss = extra if output.loss is None else output.loss + extra
        if start_positions is not None and output.start_logits is not None and output.end_logits is not None:
            start = cross_entropy(output.start_logits, _within(to_torch(start_positions), ids.shape[1]))
            end = cross_entropy(output.end_logits, _within(to_torch(end_positions), ids.shape[1]))
            output.loss = (start + end) / 2
        output.hidden_states = None if keep is None else tuple(keep)
        return output.converted(return_tensors)

    def _answer(self, x: Tensor, labels: Tensor | None) -> Output:
        pooled = None if self.pooler is None else self.pooler(x)
        if self.head is None:
            return Output(last_hidden_state=x, pooler_output=pooled)
        if self.head_name == "question-answering":
            start, end = self.head(x)
            return Output(start_logits=start, end_logits=end)
        of_text = self.head_name == "sequence-classification"
        logits = self.head(pooled if of_text else x)
        return Output(
            loss=None if labels is None else (classification_loss if of_text else cross_entropy)(logits, labels),
            logits=logits,
            next_sentence_logits=None if self.next_sentence is None else self.next_sentence(pooled),
        )

    def _on_device(self, given: Any) -> Tensor | None:
        return None if given is None else to_torch(given).to(self.device, torch.int64)


def _within(positions: Tensor, time: int) -> Tensor:
    return positions.masked_fill(positions >= time, IGNORE)


WITH_POOLER = ("base", "sequence-classification", "pretraining")


def build(config: BertConfig, head: str) -> Bert:
    """A BERT with fresh weights."""
    return Bert(config, head)


def keymap(config: BertConfig, head: str) -> KeyMap:
    """The names on the hub, as `BertForPreTraining` and its siblings write them."""
    rules: list[Rule] = [
        same("bert.embeddings.word_embeddings.weight", "embeddings.token.weight"),
        same("bert.embeddings.position_embeddings.weight", "embeddings.position.weight"),
        same("bert.embeddings.token_type_embeddings.weight", "embeddings.segment.weight"),
        *both("bert.embeddings.LayerNorm", "embeddings.norm"),
    ]
    for i in range(config.num_layers):
        theirs, ours = f"bert.encoder.layer.{i}", f"encoder.layers.{i}"
        for part in ("query", "key", "value"):
            rules += both(f"{theirs}.attention.self.{part}", f"{ours}.attention.{part}")
        rules += both(f"{theirs}.attention.output.dense", f"{ours}.attention.output")
        rules += both(f"{theirs}.attention.output.LayerNorm", f"{ours}.attention_norm")
        rules += both(f"{theirs}.intermediate.dense", f"{ours}.feed_forward.up")
        rules += both(f"{theirs}.output.dense", f"{ours}.feed_forward.down")
        rules += both(f"{theirs}.output.LayerNorm", f"{ours}.feed_forward_norm")
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


def _norm(config: BertConfig) -> nn.Module:
    return LayerNorm(config.hidden_size, eps=config.norm_eps)


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
