"""The formulas by which papers count training operations, so that their figures can be compared with ours.

`flops.count_flops` counts what a network really multiplies. Papers leave things out (the scores of attention, the
embeddings) or put things in (recomputation, a product for looking a token up); each function here is one paper's way.
All give floating-point operations for each token of training, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from tsumugu.blocks.feedforward import GatedFeedForward
from tsumugu.blocks.layer import Layer
from tsumugu.core.errors import InputError, UnknownNameError, did_you_mean
from tsumugu.models.base import Model
from tsumugu.training.flops import Recompute


@dataclass(frozen=True)
class Shape:
    """The numbers that formulas need.

    Attributes:
        layers, width: of the stack.
        inner: width of all heads together.
        heads: query heads.
        feed_forward: width of the position-wise network.
        matrices: how many matrices that network has, 2 or with a gate 3.
        vocab: rows of the embedding table.
        parameters: all of them.
    """

    layers: int
    width: int
    inner: int
    heads: int
    feed_forward: int
    matrices: int
    vocab: int
    parameters: int

    @classmethod
    def of(cls, model: Model) -> Shape:
        """The shape of a model; of both stacks together, with the widths of the first, where there are two."""
        layers = [each for each in model.modules() if isinstance(each, Layer)]
        if not layers:
            raise InputError("a model without layers has no shape")
        attention, network = layers[0].attention, layers[0].feed_forward
        up = network.get_submodule("up")
        assert isinstance(up, nn.Linear)
        return cls(
            layers=len(layers),
            width=attention.query.in_features,
            inner=attention.num_heads * attention.head_dim,
            heads=attention.num_heads,
            feed_forward=up.out_features,
            matrices=3 if isinstance(network, GatedFeedForward) else 2,
            vocab=model.config.vocab_size,
            parameters=model.num_parameters(),
        )

    @property
    def matrix_parameters(self) -> int:
        """The matrices of the layers alone: Kaplan's N."""
        return self.layers * self.width * (4 * self.inner + self.matrices * self.feed_forward)


def six_n(shape: Shape, context: int, recompute: Recompute = "none") -> float:
    """6 N: two operations for each parameter forward and four backward; neither scores nor recomputation.

    Source: Kaplan et al. 2020, section 2.1, with all parameters as N: Brown et al. 2020, GPT-3, table D.1.
    """
    return 6.0 * shape.parameters


def three_n(shape: Shape, context: int, recompute: Recompute = "none") -> float:
    """3 N: in an encoder-decoder a token passes through half of the parameters.

    Source: Brown et al. 2020, GPT-3, table D.1 (the rows of T5).
    """
    return 3.0 * shape.parameters


def kaplan(shape: Shape, context: int, recompute: Recompute = "none") -> float:
    """3 (2 N + 2 L s d): N without embeddings, and scores of the causal half of the square.

    Source: Kaplan et al. 2020, Scaling Laws for Neural Language Models, table 1.
    """
    return 3.0 * (2 * shape.matrix_parameters + 2 * shape.layers * context * shape.inner)


def palm(shape: Shape, context: int, recompute: Recompute = "none") -> float:
    """6 N + 12 L H Q T: all parameters, and the whole square of scores.

    Source: Chowdhery et al. 2022, PaLM, appendix B.
    """
    return 6.0 * shape.parameters + 12.0 * shape.layers * shape.inner * context


def chinchilla(shape: Shape, context: int, recompute: Recompute = "none") -> float:
    """Three times what a forward pass multiplies, the softmax, and a product for looking each token up.

    Source: Hoffmann et al. 2022, Training Compute-Optimal Large Language Models, appendix F.
    """
    attention = 8 * shape.width * shape.inner + 4 * context * shape.inner + 3 * shape.heads * context
    network = 2 * shape.matrices * shape.width * shape.feed_forward
    return 3.0 * (shape.layers * (attention + network) + 4 * shape.width * shape.vocab)


def megatron(shape: Shape, context: int, recompute: Recompute = "full") -> float:
    """96 l h^2 (1 + s / 6h + V / 16lh) with full recomputation, 72 l h^2 (1 + s / 6h + V / 12lh) with none.

    For networks of GPT's form only: feed-forward four times as wide, heads together as wide as the states. The formula
    for selective recomputation, 72 l h^2 (1 + s / 3h + V / 12lh), adds three times what computing the scores once more
    takes; `flops.Count.training` adds it once.

    Source: Narayanan et al. 2021, Efficient Large-Scale Language Model Training on GPU Clusters, equation 3;
    Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, appendix A.
    """
    layers, width, vocab = shape.layers, shape.width, shape.vocab
    if recompute == "full":
        return 96.0 * layers * width**2 * (1 + context / (6 * width) + vocab / (16 * layers * width))
    scores = context / ((3 if recompute == "selective" else 6) * width)
    return 72.0 * layers * width**2 * (1 + scores + vocab / (12 * layers * width))


CONVENTIONS: dict[str, Callable[[Shape, int, Recompute], float]] = {
    "6n": six_n,
    "3n": three_n,
    "kaplan": kaplan,
    "palm": palm,
    "chinchilla": chinchilla,
    "megatron": megatron,
}


def conventional_flops(name: str, model: Model, context: int, recompute: Recompute = "none") -> float:
    """Floating-point operations of training for each token, as the convention called `name` counts them.

    Raises:
        UnknownNameError: no convention is called so.
    """
    if name not in CONVENTIONS:
        raise UnknownNameError(f"unknown convention {name!r}", mend=did_you_mean(name, CONVENTIONS))
    return CONVENTIONS[name](Shape.of(model), context, recompute)
