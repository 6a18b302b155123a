"""How many floating-point operations a model spends, counted part by part from the network as it is built.

Matrix products are counted, two operations for each multiplication and its addition; what is done element by element
(norms, activations, softmax, optimiser) is not, as in the literature. The model may stand on the meta device.

The backward pass spends two products for each one of the forward pass: one for the gradient of what is multiplied, one
for that of the weight. Frozen weights need none of the latter, and below the lowest trained parameter none is needed.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from typing import Literal

from torch import nn

from tsumugu.blocks.attention import Attention
from tsumugu.blocks.layer import Layer
from tsumugu.blocks.stack import Stack
from tsumugu.core.errors import InputError
from tsumugu.models.base import Model
from tsumugu.models.decoder import Decoder
from tsumugu.models.encoder import Encoder
from tsumugu.models.encoder_decoder import EncoderDecoder

Recompute = Literal["none", "selective", "full"]
"""What the backward pass computes again instead of keeping it: nothing, the scores of attention, or whole layers."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations by part.

    Attributes:
        projections: queries, keys and values, and what attention gives.
        scores: queries times keys, and the weighted sum of the values.
        feed_forward: the position-wise networks.
        head: what predicts, a pooler included.
        embeddings: 0 where a table is looked up and nothing more.
    """

    projections: float = 0
    scores: float = 0
    feed_forward: float = 0
    head: float = 0
    embeddings: float = 0

    @property
    def total(self) -> float:
        return self.layers + self.head + self.embeddings

    @property
    def layers(self) -> float:
        """What is spent in the layers, all but head and embeddings."""
        return self.projections + self.scores + self.feed_forward

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, factor: float) -> Flops:
        return Flops(*(each * factor for each in astuple(self)))

    def as_dict(self) -> dict[str, float]:
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"total": self.total}


@dataclass(frozen=True)
class Count:
    """What one sequence costs.

    Attributes:
        forward, backward: the two passes; computing again what was not kept is in neither.
        tokens: how many tokens the sequence has, what is read and what is written together.
    """

    forward: Flops
    backward: Flops
    tokens: int

    def training(self, recompute: Recompute = "none") -> Flops:
        """Forward, backward, and what is computed again in between."""
        again = {
            "none": Flops(),
            "selective": Flops(scores=self.forward.scores),
            "full": Flops(self.forward.projections, self.forward.scores, self.forward.feed_forward),
        }
        return self.forward + self.backward + again[recompute]


def flops_per_token(
    model: Model,
    context: int,
    *,
    target: int | None = None,
    asked: float = 1.0,
    masked: bool = False,
    recompute: Recompute = "none",
) -> float:
    """What training spends for each token; the arguments are those of `count_flops`.

    The utilisation of hardware that papers state (MFU) leaves `masked` and `recompute` as they are here.

    Source: Chowdhery et al. 2022, PaLM, appendix B (what utilisation counts).
    """
    found = count_flops(model, context, target=target, asked=asked, masked=masked)
    return found.training(recompute).total / found.tokens


def count_flops(
    model: Model, context: int, *, target: int | None = None, asked: float = 1.0, masked: bool = False
) -> Count:
    """The cost of one sequence, forward and backward.

    Args:
        model: of any family, not wrapped; which of its parameters require gradients counts.
        context: tokens that are read.
        target: tokens that an encoder-decoder writes; as many as it reads when left out.
        asked: the share of positions whose tokens a language model's head predicts; 0.15 for usual masked training.
        masked: count only the pairs of tokens that causal masks and windows let through, not the whole square.

    Raises:
        InputError: lengths below 1, or a kind of model that this does not know.
    """
    target = context if target is None else target
    if min(context, target) < 1:
        raise InputError("a sequence has at least one token", where="context")
    walk = _Walk()
    if isinstance(model, Decoder):
        walk.embeddings(model.embeddings, context)
        for layer, window in zip(_layers(model.decoder), _windows(model), strict=True):
            walk.layer(layer, context, causal_pairs(context, window) if masked else context**2)
        _finish(walk, model, model.decoder, context, asked)
        return walk.count(context)
    if isinstance(model, Encoder):
        walk.embeddings(model.embeddings, context)
        layers = _layers(model.encoder)
        of_first = model.head_name == "sequence-classification"
        for layer in layers:
            walk.layer(layer, context, context**2, asking=1 if of_first and layer is layers[-1] else None)
        _finish(walk, model, model.encoder, context, asked)
        generator = getattr(model, "generator", None)
        if generator is None:
            return walk.count(context)
        # ELECTRA's generator is trained with it, over the same tokens.
        other = count_flops(generator, context, asked=asked, masked=masked)
        return Count(walk.forward + other.forward, walk.backward + other.backward, context)
    if isinstance(model, EncoderDecoder):
        walk.embeddings(model.embeddings, context + target)
        embedded = walk.reached
        for layer in _layers(model.encoder):
            walk.layer(layer, context, context**2)
        if model.decoder is None:
            return walk.count(context)
        walk.context, walk.reached = walk.reached, embedded
        for layer in _layers(model.decoder):
            walk.layer(layer, target, causal_pairs(target) if masked else target**2, read=context)
        _finish(walk, model, model.decoder, target, asked)
        return walk.count(context + target)
    raise InputError(f"operations of a {type(model).__name__} are not counted")


def generation_flops(model: Model, prompt: int, new: int) -> Flops:
    """What writing `new` tokens after a prompt costs with a cache; the head sees only positions that are drawn from.

    For an encoder-decoder the prompt is what it reads.
    """
    if min(prompt, new) < 1:
        raise InputError("a prompt and its continuation have at least one token each")
    walk = _Walk()
    if isinstance(model, Decoder):
        walk.embeddings(model.embeddings, prompt + new - 1)
        if model.head_name != "causal-lm":
            raise InputError(f"a model with the head {model.head_name!r} writes no text")
        for layer, window in zip(_layers(model.decoder), _windows(model), strict=True):
            # The prompt at once, then each new token but the last, which nothing is drawn after.
            pairs = causal_pairs(prompt + new - 1, window)
            walk.layer(layer, prompt + new - 1, pairs)
        _finish(walk, model, model.decoder, new, 1.0)
        return walk.forward
    if isinstance(model, EncoderDecoder) and model.decoder is not None:
        walk.embeddings(model.embeddings, prompt + new)
        for layer in _layers(model.encoder):
            walk.layer(layer, prompt, prompt**2)
        for layer in _layers(model.decoder):
            walk.layer(layer, new, causal_pairs(new), read=prompt)
        _finish(walk, model, model.decoder, new, 1.0)
        return walk.forward
    raise InputError(f"a {type(model).__name__} writes no text")


def causal_pairs(tokens: int, window: int | None = None) -> int:
    """How many pairs of a token and one that it sees there are, where each sees itself and what came before it.

    With a window a token sees at most that many, itself included.
    """
    window = tokens if window is None else min(window, tokens)
    return window * (window + 1) // 2 + (tokens - window) * window


class _Walk:
    """Adds up what parts cost, in the order in which a forward pass meets them.

    Attributes:
        reached: whether anything below this point is trained, so that gradients flow through it.
        context: the same of the states that cross-attention reads.
    """

    def __init__(self) -> None:
        self.forward, self.backward = Flops(), Flops()
        self.reached = self.context = False

    def count(self, tokens: int) -> Count:
        return Count(self.forward, self.backward, tokens)

    def parameters(self, module: nn.Module | None) -> None:
        """A part that multiplies no matrices, such as a norm."""
        if module is not None:
            self.reached |= any(each.requires_grad for each in module.parameters())

    def embeddings(self, module: nn.Module, tokens: float) -> None:
        """Tables, and a projection where a family has one."""
        self.linear("embeddings", module, tokens, reached=any(each.requires_grad for each in module.parameters()))
        self.parameters(module)

    def linear(self, part: str, module: nn.Module | None, tokens: float, *, reached: bool | None = None) -> None:
        """All matrices in `module`, each applied to so many tokens."""
        if module is None:
            return
        reached = self.reached if reached is None else reached
        for each in module.modules():
            if isinstance(each, nn.Linear):
                product = 2 * tokens * each.in_features * each.out_features
                self._add(part, product, product * (reached + each.weight.requires_grad))

    def layer(self, layer: Layer, tokens: int, pairs: int, *, read: int = 0, asking: int | None = None) -> None:
        """One layer over so many tokens, of which so many pairs meet in attention, and which reads so many others.

        With `asking`, only so many of them ask all tokens and go on; then all pairs of these count.
        """
        self._residual(layer.attention_norm, layer.norm_first)
        if asking is None:
            self._attention(layer.attention, tokens, tokens, pairs, reached=self.reached)
        else:
            self._attention(layer.attention, asking, tokens, asking * tokens, reached=self.reached)
            tokens = asking
        self.parameters(layer.attention_output_norm)
        self._residual(layer.attention_norm, not layer.norm_first)
        if layer.cross_attention is not None:
            self._residual(layer.cross_norm, layer.norm_first)
            self._attention(layer.cross_attention, tokens, read, tokens * read, reached=self.context)
            self._residual(layer.cross_norm, not layer.norm_first)
        self._residual(layer.feed_forward_norm, layer.norm_first)
        self.linear("feed_forward", layer.feed_forward, tokens)
        self.parameters(layer.feed_forward)
        self.parameters(layer.feed_forward_output_norm)
        self._residual(layer.feed_forward_norm, not layer.norm_first)

    def _residual(self, norm: nn.Module | None, here: bool) -> None:
        if here:
            self.parameters(norm)

    def _attention(self, attention: Attention, tokens: int, read: int, pairs: int, *, reached: bool) -> None:
        self.linear("projections", attention.query, tokens)
        for each in (attention.key, attention.value):
            self.linear("projections", each, read, reached=reached)
        query, key, value = (
            below or any(each.requires_grad for part in parts if part is not None for each in part.parameters())
            for below, parts in (
                (self.reached, (attention.query, attention.query_norm)),
                (reached, (attention.key, attention.key_norm)),
                (reached, (attention.value,)),
            )
        )
        self.reached = query or key or value
        # Forward: queries times keys, and weights times values. Backward: what each of the four gets, if it asks.
        product = 2 * pairs * attention.num_heads * attention.head_dim
        self._add("scores", 2 * product, product * (query + key + (query or key) + value))
        self.linear("projections", attention.output, tokens)
        self.parameters(attention.output)

    def _add(self, part: str, forward: float, backward: float) -> None:
        self.forward += Flops(**{part: forward})
        self.backward += Flops(**{part: backward})


def _finish(walk: _Walk, model: Decoder | Encoder | EncoderDecoder, stack: Stack, tokens: int, asked: float) -> None:
    """The norm after the last layer, and the heads."""
    walk.parameters(stack.norm)
    pooler, following = getattr(model, "pooler", None), getattr(model, "next_sentence", None)
    of_text = model.head_name == "sequence-classification"
    of_vocabulary = model.head_name in ("causal-lm", "masked-lm", "pretraining", "seq2seq-lm")
    states = walk.reached
    walk.linear("head", pooler, 1)
    walk.parameters(pooler)
    walk.linear("head", following, 1)
    if not (of_text and pooler is not None):
        walk.reached = states
    if model.head is None:
        return
    # A head of several layers is trained from its first on.
    positions = 1 if of_text else tokens * asked if of_vocabulary else tokens
    for each in model.head.modules():
        if not list(each.children()):
            walk.linear("head", each, positions)
            walk.parameters(each)


def _layers(stack: Stack) -> list[Layer]:
    return [each for each in stack.layers if isinstance(each, Layer)]


def _windows(model: Decoder) -> tuple[int | None, ...]:
    """How many tokens a token of each layer sees; None for all before it."""
    config = model.config
    windows = getattr(config, "windows", None)
    return windows if windows is not None else (getattr(config, "window", None),) * len(_layers(model.decoder))
