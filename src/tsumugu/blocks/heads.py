"""From hidden states to answers: language modelling, classification of texts and tokens, spans, sentence vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tsumugu.blocks.cross_entropy import linear_cross_entropy
from tsumugu.blocks.dropout import Dropout
from tsumugu.blocks.feedforward import activation
from tsumugu.core.pooling import PoolingMode

IGNORE = -100
"""A label that counts for nothing in a loss."""


def cross_entropy(logits: Tensor, labels: Tensor, *, summed: bool = False) -> Tensor:
    """Mean, or sum, over the labels that are not `IGNORE`. Logits `[..., classes]`, labels `[...]`, in float32."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    labels = labels.flatten().to(logits.device, torch.int64)
    return functional.cross_entropy(
        wide.flatten(0, -2), labels, ignore_index=IGNORE, reduction="sum" if summed else "mean"
    )


def shifted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Each position predicts the next label. Logits `[batch, time, vocab]`, labels `[batch, time]`."""
    return cross_entropy(logits[:, :-1], labels[:, 1:])


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """How far a text classifier is off. Logits `[batch, labels]`.

    Several labels and `[batch]` of classes: cross-entropy; `[batch, labels]` of shares, each on its own: binary
    cross-entropy; a single label is a number to predict (similarity, rating), `[batch]`: mean squared error.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if logits.shape[-1] == 1:
        return functional.mse_loss(wide.flatten(), labels.flatten().to(wide))
    if labels.dim() > 1:
        return functional.binary_cross_entropy_with_logits(wide, labels.to(wide))
    return cross_entropy(logits, labels)


class LanguageModelHead(nn.Linear):
    """States `[..., dim]` -> logits over the vocabulary `[..., vocab]`. Its weight may be the token embedding's own.

    With `softcap` logits stay within plus and minus that: `softcap * tanh(logits / softcap)`.

    Source: the cap: Gemma Team 2024, Gemma 2, section 2.
    """

    def __init__(self, hidden_size: int, vocab_size: int, *, bias: bool = True, softcap: float | None = None) -> None:
        super().__init__(hidden_size, vocab_size, bias=bias)
        self.softcap = softcap

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """The sum of cross-entropies of states `[n, dim]` with targets `[n]`, without ever holding all logits."""
        return linear_cross_entropy(states, self.weight, self.bias, targets, softcap=self.softcap)


class MaskedLanguageModelHead(nn.Module):
    """Dense, activation, norm, then the vocabulary. States `[..., dim]` -> logits `[..., vocab]`.

    Source: Devlin et al. 2019, BERT, section 3.1, and its released code.
    """

    def __init__(self, hidden_size: int, vocab_size: int, *, activation: str, norm: nn.Module) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = _activation(activation)
        self.norm = norm
        self.decoder = nn.Linear(hidden_size, vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.decoder(self._transform(x))
        return logits

    def loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """The sum of cross-entropies of states `[n, dim]` with targets `[n]`, without ever holding all logits."""
        return linear_cross_entropy(self._transform(states), self.decoder.weight, self.decoder.bias, targets)

    def _transform(self, x: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(x)))


class Pooler(nn.Module):
    """The first token through a dense layer and tanh. States `[batch, time, dim]` -> `[batch, dim]`."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x[:, 0]))


class ClassificationHead(nn.Module):
    """One score for each label, from a text's vector `[batch, dim]` or each token's `[batch, time, dim]`."""

    def __init__(self, hidden_size: int, num_labels: int, *, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, num_labels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(x))
        return logits


class FirstTokenHead(nn.Module):
    """One score for each label from the first token, through a dense layer and tanh.

    States `[batch, time, dim]` -> `[batch, labels]`.

    Source: Liu et al. 2019, RoBERTa (released code).
    """

    def __init__(self, hidden_size: int, num_labels: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.classifier = nn.Linear(hidden_size, num_labels)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.tanh(self.dense(self.dropout(x[:, 0])))
        return self.classifier(self.dropout(first))


class SpanHead(nn.Module):
    """Scores for being the first and the last token of an answer. States `[batch, time, dim]` -> twice `[batch, time]`.

    Source: Devlin et al. 2019, BERT, section 4.2.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.spans = nn.Linear(hidden_size, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        start, end = self.spans(x).unbind(-1)
        return start, end


def pool(states: Tensor, real: Tensor, mode: PoolingMode = "mean") -> Tensor:
    """One vector a text from its tokens' states.

    Args:
        states: `[batch, time, dim]`.
        real: `[batch, time]`, non-zero where a token is no padding.
        mode: mean, the first token (cls), maximum, the last real token, or the sum over the root of the length.

    Source: Reimers & Gurevych 2019, Sentence-BERT, section 3.
    """
    weights = real.to(states.dtype)[..., None]
    match mode:
        case "cls":
            first = real.bool().byte().argmax(1)
            return states[torch.arange(len(states), device=states.device), first]
        case "max":
            return states.masked_fill(weights == 0, float("-inf")).amax(1)
        case "last":
            return states[torch.arange(len(states), device=states.device), last_real(real)]
        case "mean":
            return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        case "mean_sqrt_len":
            return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9).sqrt()


def last_real(real: Tensor) -> Tensor:
    """`[batch]`: the index of the last non-zero of each row of `real` `[batch, time]`."""
    return (real.bool() * torch.arange(real.shape[1], device=real.device)).argmax(1)


_activation = activation
