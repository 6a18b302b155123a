"""What training keeps on each device, part by part: weights, gradients, optimiser, activations, and room to work in.

Parameters are counted exactly, layer by layer, as tensor and pipeline parallelism cut them. Activations follow
Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, equations 1 to 6: for layers of
GPT's form these are their numbers to the byte, and for others (gates, grouped queries, no dropout, RMSNorm) the same
tally is made of what those layers keep.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn
from torch.nn import functional

from tsumugu.blocks.attention import Attention
from tsumugu.blocks.feedforward import GatedFeedForward
from tsumugu.blocks.layer import Layer
from tsumugu.blocks.normalization import RMSNorm
from tsumugu.core.config import Config, limits
from tsumugu.core.errors import ConfigError
from tsumugu.models.base import Model
from tsumugu.training.flops import Recompute
from tsumugu.training.hardware import Precision
from tsumugu.training.optimizers import OptimizerConfig, groups

HEAD_ROWS = 1024
"""How many positions' logits a head that computes them in chunks holds at once."""


@dataclass(frozen=True, kw_only=True)
class Setup(Config):
    """What is decided about a run apart from how it is spread over devices.

    Attributes:
        context: tokens that are read.
        target: tokens that an encoder-decoder writes; 0 for other models.
        batch: sequences in a step, over all devices.
        asked: the share of positions that the head predicts.
        precision: bf16 or fp16 keep weights and gradients in 2 bytes and a float32 copy of the weights; fp32 keeps 4.
        optimizer: its name.
        fused_attention: scores are never kept, as FlashAttention's kernels and their kin have it.
        full_logits: all logits of a micro-batch are kept in float32, where ours come in chunks.
        sequence_parallel: tensor parallelism also cuts what lies between its matrices.
    """

    context: int = limits(1024, low=1)
    target: int = limits(0, low=0)
    batch: int = limits(1, low=1)
    asked: float = limits(1.0, low=0.0, high=1.0)
    precision: Precision = "bf16"
    optimizer: str = "adamw"
    fused_attention: bool = True
    full_logits: bool = False
    sequence_parallel: bool = True

    @property
    def width(self) -> int:
        """Bytes of a weight or an activation."""
        return 4 if self.precision == "fp32" else 2


@dataclass(frozen=True)
class Layout:
    """How a run is spread over devices.

    Attributes:
        data, tensor, pipeline: devices in each direction; their product is all of them.
        micro_batch: sequences that one pass of one data-parallel rank takes.
        zero: what data-parallel ranks share out, and not each keeps: 1 the optimiser, 2 gradients too, 3 weights too.
        recompute: what the backward pass computes again.
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    micro_batch: int = 1
    zero: int = 0
    recompute: Recompute = "none"

    @property
    def devices(self) -> int:
        return self.data * self.tensor * self.pipeline


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest device, by part."""

    weights: float
    gradients: float
    optimizer: float
    master_weights: float
    activations: float
    buffers: float

    @property
    def total(self) -> float:
        return sum(getattr(self, each.name) for each in fields(self))

    def as_dict(self) -> dict[str, float]:
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"total": self.total}


@dataclass(frozen=True)
class Run:
    """Layers one upon another that are alike.

    Attributes:
        layer: one of them.
        count: how many.
        tokens: of a sequence, that they work on.
        read: of a sequence, that their cross-attention reads.
    """

    layer: Layer
    count: int
    tokens: int
    read: int


class Footprint:
    """What one model needs in any layout. The model may stand on the meta device.

    Raises:
        ConfigError: an optimiser that does not exist, or a model without layers.
    """

    def __init__(self, model: Model, setup: Setup) -> None:
        self.setup = setup
        self.runs = _runs(model, setup)
        self.parameters = model.num_parameters()
        self._states = optimizer_states(model, setup.optimizer) / max(self.parameters, 1)
        self._tied = bool(model.tied)
        self._head = sum(each.numel() for each in model.head.parameters()) if isinstance(model.head, nn.Module) else 0
        embeddings: Any = model.embeddings
        self._table = embeddings.token.weight.numel()
        in_layers = sum(_cut(each.layer, 1) * each.count for each in self.runs)
        # What belongs to no layer and is not cut: positions, norms, poolers, relative biases.
        own_head = self._head - (self._table if self._tied else 0)
        self._rest = self.parameters - in_layers - self._table - own_head
        self._dropout = embeddings.dropout.p > 0
        self.vocab, self.hidden = len(embeddings.token.weight), self.runs[-1].layer.attention.query.in_features

    def weights(self, layout: Layout) -> float:
        """Parameters on the fullest device, were no data-parallel rank to share any out."""
        tensor, pipeline = layout.tensor, layout.pipeline
        layers = sum(each.count * _cut(each.layer, tensor) for each in self.runs) / pipeline
        if pipeline == 1:
            own_head = self._head - (self._table if self._tied else 0)
            return layers + (self._table + own_head) / tensor + self._rest
        # The first stage holds the table, the last a head of the same size, be it a copy.
        return layers + max(self._table, self._head) / tensor + self._rest

    def of(self, layout: Layout) -> Memory:
        """What the fullest device holds, in bytes."""
        setup = self.setup
        held, mixed = self.weights(layout), setup.precision != "fp32"
        share = [1 / layout.data if layout.zero >= stage else 1.0 for stage in (1, 2, 3)]
        return Memory(
            weights=setup.width * held * share[2],
            gradients=setup.width * held * share[1],
            optimizer=4 * self._states * held * share[0],
            master_weights=4 * held * share[0] if mixed else 0,
            activations=self.activations(layout),
            buffers=self.buffers(layout),
        )

    def activations(self, layout: Layout) -> float:
        """Kept for the backward pass, by the first stage: as many micro-batches are under way as there are stages.

        Source: Korthikanti et al. 2022, section 4 and table 2.
        """
        setup, count, split = self.setup, layout.micro_batch, self._split(layout)
        whole = count * self.layer_activations(layout)
        steps = max(setup.batch // (layout.data * count), 1)
        kept = whole * min(layout.pipeline, steps) / layout.pipeline
        if self._dropout:
            kept += min(layout.pipeline, steps) * count * (setup.context + setup.target) * self.hidden / split
        if layout.pipeline == 1:
            last = self.runs[-1].tokens * count
            kept += 2 * setup.width * last * self.hidden / split
            if setup.full_logits:
                kept += 4 * last * setup.asked * self.vocab / layout.tensor
        return kept

    def layer_activations(self, layout: Layout) -> float:
        """Bytes that all layers keep of one sequence, were there no pipeline."""
        return sum(each.count * layer_activations(each, self.setup, layout) for each in self.runs)

    def buffers(self, layout: Layout) -> float:
        """Room to work in: logits under way, a layer that is computed again, the layers that ZeRO gathers."""
        setup, count = self.setup, layout.micro_batch
        rows = count * self.runs[-1].tokens * setup.asked
        room = 4 * 2 * min(HEAD_ROWS, rows) * self.vocab / layout.tensor if not setup.full_logits else 0
        if layout.recompute == "full":
            plain = replace(layout, recompute="none")
            room += count * max(layer_activations(each, setup, plain) for each in self.runs)
        if layout.zero == 3 and layout.data > 1:
            # The layer at work, the one that is fetched meanwhile, and the gradients of the former.
            room += 3 * setup.width * max(_cut(each.layer, layout.tensor) for each in self.runs)
        return room

    def _split(self, layout: Layout) -> int:
        return layout.tensor if self.setup.sequence_parallel else 1


def layer_activations(run: Run, setup: Setup, layout: Layout) -> float:
    """Bytes that one layer of a run keeps of one sequence, on one of the devices that share it.

    Source: Korthikanti et al. 2022, equations 1 (one device), 2 (tensor parallel), 4 (sequence parallel), 6
    (selective recomputation).
    """
    split = layout.tensor if setup.sequence_parallel else 1
    layer, tokens, read = run.layer, run.tokens, run.read
    width, byte = layer.attention.query.in_features, setup.width
    if layout.recompute == "full":
        return byte * tokens * width / split
    norms = [layer.attention_norm, layer.cross_norm, layer.feed_forward_norm]
    # What enters a norm, and what enters the part behind it; RMSNorm has its input wide and keeps what it divided.
    between = 0.0
    for norm in (*norms, layer.attention_output_norm, layer.feed_forward_output_norm):
        if norm is not None:
            between += width * ((4 if isinstance(norm, RMSNorm) else byte) + byte)
            between += width * byte if isinstance(norm, RMSNorm) else 0
    parts = sum(norm is not None for norm in norms)
    between += width * ((parts - 1) * (layer.dropout.p > 0) + (_dropout(layer.feed_forward, "dropout") > 0))
    within = _feed_forward(layer.feed_forward) * byte + _inner_mask(layer.feed_forward)
    kept = tokens * (between / split + within / layout.tensor)
    stored = not setup.fused_attention and layout.recompute == "none"
    kept += _attention(layer.attention, tokens, tokens, byte, stored=stored) / layout.tensor
    if layer.cross_attention is not None:
        kept += _attention(layer.cross_attention, tokens, read, byte, stored=stored) / layout.tensor
    return kept


def _attention(attention: Attention, tokens: int, read: int, byte: int, *, stored: bool) -> float:
    """Queries, keys, values, the result, and the scores where they are stored."""
    inner = attention.num_heads * attention.head_dim
    read_inner = attention.num_kv_heads * attention.head_dim
    kept = byte * (2 * tokens * inner + 2 * read * read_inner)
    for norm, normed in ((attention.query_norm, tokens * inner), (attention.key_norm, read * read_inner)):
        kept += normed * (4 + byte) if norm is not None else 0  # its input wide, and what it divided
    if stored:
        # The softmax; with dropout its mask and what is left of it.
        kept += tokens * read * attention.num_heads * (byte + (byte + 1) * (attention.dropout > 0))
    return float(kept)


def _feed_forward(network: nn.Module) -> int:
    """Numbers of the widened states that are kept for each token."""
    up: Any = network.get_submodule("up")
    if isinstance(network, GatedFeedForward):
        return 4 * int(up.out_features)  # gate, activated gate, value, their product
    from_output = getattr(network, "activation", None) is functional.relu  # its gradient needs no input
    return (1 + (_dropout(network, "inner_dropout") > 0 if from_output else 1)) * int(up.out_features)


def _inner_mask(network: nn.Module) -> int:
    up: Any = network.get_submodule("up")
    return int(up.out_features) if _dropout(network, "inner_dropout") > 0 else 0


def _dropout(network: nn.Module, name: str) -> float:
    return float(getattr(getattr(network, name, None), "p", 0.0))


def optimizer_states(model: Model, name: str) -> int:
    """How many float32 numbers the optimiser called `name` keeps for the parameters of `model`."""
    config = OptimizerConfig.from_dict({"name": name})
    total = 0
    for group in groups(model, config):
        for each in group["params"]:
            if name == "adafactor" and each.dim() > 1:
                total += each.numel() // each.shape[-1] + each.numel() // each.shape[-2]
            elif name in ("adafactor", "sgd", "lion") or (name == "muon" and group["name"].startswith("hidden")):
                total += each.numel()
            else:
                total += 2 * each.numel()
    return total


def _runs(model: Any, setup: Setup) -> list[Run]:
    """The layers of a model in the order in which they are passed."""
    lengths = {"encoder": (setup.context, 0), "decoder": (setup.target or setup.context, setup.context)}
    stacks = {name: getattr(model, name, None) for name in lengths}
    found = [] if getattr(model, "generator", None) is None else _runs(model.generator, setup)
    for name, stack in stacks.items():
        if stack is not None:
            if not len(stack.layers):
                raise ConfigError("a model without layers is not planned", where="num_layers")
            read = lengths[name][1] if stacks["encoder"] is not None else 0
            found.append(Run(stack.layers[0], len(stack.layers), lengths[name][0], read))
    return found


def _cut(layer: Layer, tensor: int) -> float:
    """Parameters of a layer on one of `tensor` devices.

    Queries, keys, values and what widens are cut by rows with their biases, what attention gives and what narrows by
    columns; norms and the biases after a sum are whole everywhere. Fewer key and value heads than devices are copied.
    """
    if tensor == 1:
        return float(sum(each.numel() for each in layer.parameters()))
    total = 0.0
    for name, each in layer.named_parameters():
        owner, _, leaf = name.rpartition(".")
        part = owner.rpartition(".")[2]
        if part in ("query", "up", "gate") or (part in ("output", "down") and leaf == "weight"):
            total += each.numel() / tensor
        elif part in ("key", "value"):
            total += each.numel() / min(tensor, layer.attention.num_kv_heads)
        else:
            total += each.numel()
    return total
