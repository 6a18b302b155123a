"""What bidirectional encoder families share: reading whole texts at once, and the heads over what was read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tsumugu.blocks.embeddings import Embeddings
from tsumugu.blocks.heads import IGNORE, Pooler, classification_loss, cross_entropy
from tsumugu.blocks.mask import EVERYTHING, document_mask, padding_mask
from tsumugu.blocks.stack import Stack
from tsumugu.core.config import Config
from tsumugu.core.errors import InputError
from tsumugu.core.tensors import TensorFormat, to_torch
from tsumugu.models.base import Family, Model, Output
from tsumugu.models.targets import read_targets, summed_loss


class Encoder(Model):
    """Token ids `[batch, time]` -> hidden states, or what the head makes of them.

    A family hands in its parts; its configuration has `hidden_size`, `vocab_size`, `max_positions` and `labels`. A head
    for whole texts reads the pooler's vector where there is a pooler, and all states where there is none.
    """

    def __init__(
        self,
        family: Family,
        config: Config,
        head_name: str,
        *,
        embeddings: Embeddings,
        encoder: Stack,
        pooler: Pooler | None = None,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__(family, config, head_name)
        self.embeddings, self.encoder, self.pooler, self.head = embeddings, encoder, pooler, head
        self.next_sentence = nn.Linear(self.config.hidden_size, 2) if head_name == "pretraining" else None
        if head_name in ("masked-lm", "pretraining") and self.config.tie_embeddings:
            self.tied = {"head.decoder.weight": "embeddings.token.weight"}
            self.tie()

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        labels: Any = None,
        *,
        targets: Any = None,
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
            position_ids: `[batch|1, time]`; counted by `positions` when left out.
            labels: for the loss; `[batch, time]` (-100 counts for nothing), or what `classification_loss` takes for a
                sequence classifier.
            targets: `[batch, time]`, as `labels` of hidden tokens. The loss is then a sum, and there are no logits: the
                head sees only what is asked for.
            next_sentence_label: `[batch]`, with the pre-training head; -100 counts for nothing. Its loss is added, as a
                sum where there are `targets`.
            start_positions, end_positions: `[batch]`, with the question-answering head; one past the end of the text
                (the answer was cut off) counts for nothing.
            document_ids: `[batch, time]`, when several texts are packed in a row.
            output_hidden_states: also give every layer's states.
            return_tensors: give pt, tf, jax or np; torch with its gradients when left out.

        Raises:
            InputError: ids outside the vocabulary, or a text longer than `longest`.
        """
        ids = self.ids(input_ids)
        wanted = read_targets(self, targets, labels, ids)
        if position_ids is None and ids.shape[1] > self.longest:
            raise InputError(
                f"{ids.shape[1]} tokens are more than the {self.longest} this model can read",
                where="input_ids",
                mend="truncate the text (truncation=True in the tokenizer)",
            )
        positions = self.indices(position_ids, "position_ids", self.config.max_positions)
        if positions is None:
            positions = self.positions(ids)
        real = self.real(attention_mask, ids)
        mask = EVERYTHING if real is None else padding_mask(real)
        if document_ids is not None:
            mask = mask & document_mask(to_torch(document_ids).to(ids.device))
        keep: list[Tensor] | None = [] if output_hidden_states else None
        segments = self.indices(token_type_ids, "token_type_ids", self.config.num_segments)
        x = self.embeddings(ids, positions=positions, segments=segments)
        # A text is classified by its first token: what the last layer makes of the others nobody asks.
        first = self.head_name == "sequence-classification" and keep is None
        x = self.encoder(x, mask=mask, keep=keep, first=first)
        if wanted is not None:
            output = Output(loss=summed_loss(self.head, x, wanted), next_sentence_logits=self._next_sentence(x))
        else:
            output = self._answer(x, None if labels is None else to_torch(labels).to(x.device))
        if next_sentence_label is not None and output.next_sentence_logits is not None:
            follows = to_torch(next_sentence_label)
            extra = cross_entropy(output.next_sentence_logits, follows, summed=wanted is not None)
            output.loss = extra if output.loss is None else output.loss + extra
        if start_positions is not None and output.start_logits is not None and output.end_logits is not None:
            start = cross_entropy(output.start_logits, _within(to_torch(start_positions), ids.shape[1]))
            end = cross_entropy(output.end_logits, _within(to_torch(end_positions), ids.shape[1]))
            output.loss = (start + end) / 2
        output.hidden_states = None if keep is None else tuple(keep)
        return output.converted(return_tensors)

    @property
    def longest(self) -> int:
        """The longest text this model can read, in tokens."""
        return int(self.config.max_positions)

    def positions(self, ids: Tensor) -> Tensor:
        """Where each token of `ids` `[batch, time]` stands, `[batch|1, time]`: counted from 0."""
        return torch.arange(ids.shape[1], device=ids.device)[None]

    def _answer(self, x: Tensor, labels: Tensor | None) -> Output:
        if self.head is None:
            return Output(last_hidden_state=x, pooler_output=None if self.pooler is None else self.pooler(x))
        if self.head_name == "question-answering":
            start, end = self.head(x)
            return Output(start_logits=start, end_logits=end)
        of_text = self.head_name == "sequence-classification"
        logits = self.head(self.pooler(x) if of_text and self.pooler is not None else x)
        return Output(
            loss=None if labels is None else (classification_loss if of_text else cross_entropy)(logits, labels),
            logits=logits,
            next_sentence_logits=self._next_sentence(x),
        )

    def _next_sentence(self, x: Tensor) -> Tensor | None:
        return None if self.next_sentence is None or self.pooler is None else self.next_sentence(self.pooler(x))


def _within(positions: Tensor, time: int) -> Tensor:
    return positions.masked_fill(positions >= time, IGNORE)
