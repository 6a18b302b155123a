"""A classifier of the family's own form whose head reads the mean of all tokens, where it would read the first one.

Classifiers of the BERT and RoBERTa families read the first token through a dense layer and tanh. So the network grows
by one layer, of which only the form is used: its attention is even (queries and keys are 0) and makes much of the mean,
next to nothing of the token itself; its norm gives that unit variance. It is never trained, and the reference library
loads a file that holds it.

A network that was pre-trained by hidden tokens alone has never used its first token for anything. A few thousand pairs
are too few to teach it; the mean holds from the beginning what each token has found in the other text.

Source: Reimers & Gurevych 2019, Sentence-BERT, table 6 (the mean against the first token).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tsumugu.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from tsumugu.models.base import Model
    from tsumugu.tuning.recipe import ModelSection

MUCH = 1024.0
"""How much more the mean of all tokens counts than the first token itself."""


def one_layer_more(section: ModelSection) -> tuple[dict[str, Any], str]:
    """The hyperparameters of the network that has room for the mean, and the name of its fresh layer.

    Raises:
        ConfigError: the family's classifier has another form.
    """
    from tsumugu.checkpoints.load import open_checkpoint
    from tsumugu.engines.torch import recognise
    from tsumugu.hub.resolve import resolve

    family, found, *_ = recognise(open_checkpoint(resolve(section.source).path), "base")
    if family.name not in ("bert", "roberta"):
        raise ConfigError(
            f"the classifier of the {family.name} family cannot read the mean of its tokens",
            where="model",
            mend="use a model of the bert or roberta family, or leave out model.pooling and setfit",
        )
    config: Any = found
    count = int(section.config.get("num_layers", config.num_layers))
    return {**section.config, "num_layers": count + 1}, f"encoder.layers.{count}."


def read_the_mean(model: Model, scale: float) -> None:
    """Set the last layer, which learns nothing, and the head's dense layer so that the head reads the mean.

    Args:
        model: a classifier whose last layer is fresh.
        scale: what the dense layer multiplies the mean by, which has unit variance, before tanh.
    """
    import torch

    from tsumugu.blocks.heads import FirstTokenHead, Pooler

    network: Any = model
    dense = next(each.dense for each in model.modules() if isinstance(each, Pooler | FirstTokenHead))
    layer, unit = network.encoder.layers[-1], torch.eye(model.config.hidden_size)
    attention, inner = layer.attention, layer.feed_forward
    for part in (attention.query, attention.key, attention.value, attention.output, inner.up, inner.down):
        _set(part, torch.zeros_like(part.weight))
    _set(attention.value, MUCH * unit)
    _set(attention.output, unit)
    _set(dense, scale * unit)
    layer.requires_grad_(False)
    for part in layer.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    attention.dropout = 0.0


def _set(module: nn.Linear, weight: Any) -> None:
    import torch

    module.weight.data = weight.to(module.weight)
    module.bias.data = torch.zeros_like(module.bias)
