"""Why a model answered so: what each token of a text adds to one number that the model gives.

Token embeddings are the features: a hook puts others in their place, so every family's own forward pass is what is
explained. The methods are captum's. Attributions of integrated gradients and of Shapley sampling sum up to the number
less what it is when nothing is said (the baseline); how far they miss is told.

Sources: Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks"; Shrikumar et al. 2016, "Not Just a Black
Box" (input x gradient); Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks" (occlusion);
Castro et al. 2009, "Polynomial calculation of the Shapley value based on sampling"; Petsiuk et al. 2018, "RISE"
(deletion and insertion); Adebayo et al. 2018, "Sanity Checks for Saliency Maps" (random weights).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tsumugu.anatomy.targets import Question
from tsumugu.core.errors import InputError, MissingExtraError, did_you_mean
from tsumugu.models.base import Model

Method = Literal["integrated-gradients", "input-x-gradient", "occlusion", "shapley"]
METHODS: tuple[str, ...] = get_args(Method)
COMPLETE = ("integrated-gradients", "shapley")
"""Methods whose attributions sum up to the difference."""
Baseline = Literal["pad", "mask", "zero"]

_CLOSE = 1e-3
_MOST_STEPS = 512
_ROWS = 16  # computed together


@dataclass(frozen=True)
class Explanation:
    """What each token adds.

    Attributes:
        answer: what is explained, in words; `value`: the number; `empty`: the number at the baseline.
        tokens: `[time]`, as they are shown; `attributions`: `[time]`, 0 for tokens that are no features.
        set_aside: `[time]`, what the method gives to those; only input x gradient, which knows no baseline, gives any.
        missed: how far the attributions' sum is from `value - empty`; for the other two methods it need not be near 0.
        fixed: `[time]`, True where a token is no feature (special tokens, the other text of a pair).
    """

    task: str
    method: str
    answer: str
    value: float
    empty: float
    tokens: list[str]
    attributions: list[float]
    fixed: list[bool]
    set_aside: list[float]
    missed: float
    settings: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return dict(vars(self))


class Substituted:
    """A score of a model as a function of token embeddings.

    Args:
        model: whose `embeddings.token` is replaced.
        question: the ids and what is read off the output.
    """

    def __init__(self, model: Model, question: Question) -> None:
        if not hasattr(model, "embeddings") or hasattr(model, "encoder_positions"):
            raise InputError(f"models of the {model.family.name} family cannot be explained yet", where="model")
        self.model, self.question = model, question
        self.embedding: torch.nn.Module = model.embeddings.token  # type: ignore[union-attr, assignment]

    def embedded(self, ids: Tensor) -> Tensor:
        """`[1, time]` -> `[1, time, dim]`, without a gradient."""
        with torch.no_grad():
            found: Tensor = self.embedding(ids)
        return found.detach().clone()

    def __call__(self, embeddings: Tensor) -> Tensor:
        """`[rows, time, dim]` -> `[rows]`."""
        rows = embeddings.shape[0]
        handle = self.embedding.register_forward_hook(lambda module, given, found: embeddings)
        try:
            output = self.model(self.question.ids.expand(rows, -1), **self.question.arguments(rows))
        finally:
            handle.remove()
        return self.question.score(output)


def explain(
    model: Model,
    question: Question,
    *,
    method: str = "integrated-gradients",
    baseline: str = "pad",
    steps: int = 50,
    samples: int = 25,
    seed: int = 0,
    check: bool = False,
) -> Explanation:
    """What each token adds to the score that a question asks for.

    Args:
        model: in eval mode.
        question: of `targets`.
        method: integrated-gradients, input-x-gradient, occlusion, or shapley.
        baseline: what a token becomes when it is taken away: the pad or mask token, or a vector of zeros.
        steps: of the path of integrated gradients; doubled, up to 512, while the sum misses by more than 1e-3.
        samples: orders of tokens that Shapley values are sampled over.
        seed: of those orders and of random weights.
        check: also measure deletion, insertion, and what is left with random weights.

    Raises:
        UnknownNameError, InputError: no such method or baseline.
        MissingExtraError: captum is not installed.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}", where="method", mend=did_you_mean(method, METHODS))
    function = Substituted(model, question)
    inputs = function.embedded(question.ids)
    empty = _taken_away(function, inputs, baseline)
    found, used = _attributions(function, inputs, empty, method, steps, samples, seed)
    with torch.no_grad():
        value, nothing = float(function(inputs)), float(function(empty))
    every = found.sum(-1)[0].double()
    tokens = every.masked_fill(question.fixed, 0.0)
    settings: dict[str, Any] = {"baseline": baseline, **used}
    checks: dict[str, Any] = {}
    if check:
        checks = {
            "deletion": _curve(function, inputs, empty, tokens, insert=False),
            "insertion": _curve(function, inputs, empty, tokens, insert=True),
            "random_order": _curve(function, inputs, empty, _random_order(tokens, seed), insert=False),
            "rank_correlation_with_random_weights": _randomised(
                model, question, tokens, method, baseline, steps, samples, seed
            ),
        }
    return Explanation(
        task=question.task,
        method=method,
        answer=question.answer,
        value=value,
        empty=nothing,
        tokens=question.tokens,
        attributions=tokens.tolist(),
        fixed=question.fixed.tolist(),
        set_aside=(every - tokens).tolist(),
        missed=float(tokens.sum()) - (value - nothing),
        settings=settings,
        checks=checks,
    )


def _taken_away(function: Substituted, inputs: Tensor, baseline: str) -> Tensor:
    """The embeddings `[1, time, dim]` of a text in which every feature is taken away."""
    question, model = function.question, function.model
    if baseline not in get_args(Baseline):
        raise InputError(f"unknown baseline {baseline!r}", where="baseline", mend="pad, mask or zero")
    number = {"pad": model.config.pad_token_id, "mask": question.mask_token_id, "zero": None}[baseline]
    if baseline == "mask" and number is None:
        raise InputError("the tokenizer has no mask token", where="baseline", mend="use pad or zero")
    away = torch.zeros_like(inputs) if number is None else function.embedded(torch.full_like(question.ids, number))
    return torch.where(question.fixed[None, :, None], inputs, away)


def _attributions(
    function: Substituted, inputs: Tensor, empty: Tensor, method: str, steps: int, samples: int, seed: int
) -> tuple[Tensor, dict[str, Any]]:
    """`[1, time, dim]`, and the settings that were used."""
    try:
        from captum.attr import FeatureAblation, InputXGradient, IntegratedGradients, ShapleyValueSampling
    except ImportError:
        raise MissingExtraError("captum", extra="explain", purpose="explaining answers") from None
    if method == "integrated-gradients":
        while True:
            way = IntegratedGradients(function, multiply_by_inputs=True)
            found, delta = way.attribute(
                inputs, baselines=empty, n_steps=steps, internal_batch_size=_ROWS, return_convergence_delta=True
            )
            if float(delta.abs().max()) <= _CLOSE / 2 or 2 * steps > _MOST_STEPS:
                return found.detach(), {"steps": steps}
            steps *= 2
    if method == "input-x-gradient":
        return InputXGradient(function).attribute(inputs.requires_grad_()).detach(), {}
    features = _features(function.question)
    with torch.no_grad():
        if method == "occlusion":
            found = FeatureAblation(function).attribute(
                inputs, baselines=empty, feature_mask=features, perturbations_per_eval=_ROWS
            )
            settings = {}
        else:
            torch.manual_seed(seed)
            found = ShapleyValueSampling(function).attribute(
                inputs, baselines=empty, feature_mask=features, n_samples=samples, perturbations_per_eval=_ROWS
            )
            settings = {"samples": samples, "seed": seed}
    # Every dimension of a token got the whole of the token's share.
    found = found / inputs.shape[-1]
    return torch.where(function.question.fixed[None, :, None], torch.zeros_like(found), found), settings


def _features(question: Question) -> Tensor:
    """A number for each feature, `[1, time, 1]`; what is fixed is one feature of its own, the first."""
    numbers = torch.cumsum((~question.fixed).long(), 0)
    found = torch.where(question.fixed, torch.zeros_like(numbers), numbers)[None, :, None]
    return found - found.min()


def _curve(function: Substituted, inputs: Tensor, empty: Tensor, tokens: Tensor, *, insert: bool) -> dict[str, Any]:
    """The score while features are taken away (or put in), the most important first; and the area under it."""
    free = torch.nonzero(~function.question.fixed)[:, 0]
    order = free[torch.argsort(tokens[free], descending=True, stable=True)]
    start, end = (empty, inputs) if insert else (inputs, empty)
    rows = [start]
    for place in order:
        row = rows[-1].clone()
        row[:, place] = end[:, place]
        rows.append(row)
    with torch.no_grad():
        stacked = torch.cat(rows)
        scores = torch.cat([function(stacked[i : i + _ROWS]) for i in range(0, len(stacked), _ROWS)]).double()
    area = float(torch.trapezoid(scores)) / max(len(order), 1)
    return {"scores": scores.tolist(), "area": area}


def _random_order(tokens: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tokens.shape, generator=generator, dtype=tokens.dtype)


def _randomised(
    model: Model,
    question: Question,
    tokens: Tensor,
    method: str,
    baseline: str,
    steps: int,
    samples: int,
    seed: int,
) -> float:
    """Spearman's correlation of attributions with those of the same network with shuffled weights.

    Near 1, an explanation would not depend on what the model learnt.
    """
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    done = set()
    with torch.no_grad():
        for each in other.parameters():
            if id(each) not in done:
                done.add(id(each))
                flat = each.reshape(-1)
                each.copy_(flat[torch.randperm(len(flat), generator=generator)].reshape(each.shape))
    function = Substituted(other, question)
    inputs = function.embedded(question.ids)
    empty = _taken_away(function, inputs, baseline)
    found, _ = _attributions(function, inputs, empty, method, steps, samples, seed)
    free = ~question.fixed
    return _spearman(tokens[free], found.sum(-1)[0].double()[free])


def _spearman(one: Tensor, other: Tensor) -> float:
    if len(one) < 2:
        return 0.0
    ranks = torch.stack([each.argsort().argsort().double() for each in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])


def in_words(explanation: Explanation, question: Question) -> list[tuple[str, float, bool]]:
    """Tokens that share characters put together: what is shown, the sum of their attributions, whether it is fixed.

    Of what is fixed, the number is what was set aside.
    """
    found: list[tuple[str, float, bool]] = []
    for group in question.groups:
        total = sum(explanation.attributions[place] + explanation.set_aside[place] for place in group)
        found.append((question.shown(group), total, all(explanation.fixed[place] for place in group)))
    return found
