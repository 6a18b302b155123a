"""Optimisers by name, and which parameters they treat alike.

Every group of parameters carries a `name` and a `scale`: the training loop sets `group["lr"]` to the learning rate of
the step times `group["scale"]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn
from torch.optim import SGD, Adafactor, AdamW, Optimizer

from tsumugu.blocks.embeddings import Embeddings
from tsumugu.blocks.stack import Stack
from tsumugu.core.config import Config, limits
from tsumugu.core.errors import ConfigError, did_you_mean
from tsumugu.training.sparse_gradients import RowAdamW
from tsumugu.training.updates import Combined, Lion, Muon

DEFAULTS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8},
    "muon": {"lr": 2e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "momentum": 0.95},
    "lion": {"lr": 1e-4, "weight_decay": 1.0, "betas": (0.95, 0.98)},
    "adafactor": {"lr": 1e-2, "weight_decay": 0.0},
    "sgd": {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9},
}
"""What each optimiser takes, and its value where nothing is said.

Source: AdamW: Loshchilov & Hutter 2019, with the betas and the decay of Brown et al. 2020, GPT-3, appendix B. Muon:
Jordan et al. 2024, with the decay of Liu et al. 2025, Moonlight; the rest of the parameters is AdamW's. Lion: Chen et
al. 2023, section 5: the betas of its language models, a rate 3 to 10 times smaller than AdamW's and a decay that much
larger. Adafactor: Shazeer & Stern 2018; its rate bounds the relative step, as 1 / sqrt(step) does. SGD: Nesterov's
momentum, Sutskever et al. 2013.
"""

HEADS = ("head", "next_sentence", "pooler")
"""Parts of a model over its hidden layers; Muon leaves their matrices to AdamW."""

WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module")
"""What DistributedDataParallel, torch.compile and activation checkpointing add to the names of parameters."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """How parameters are updated. What is None has the optimiser's own value, see `DEFAULTS`.

    Attributes:
        name: adamw; muon (for hidden matrices, AdamW for the rest); lion; adafactor; sgd.
        lr: the peak of the learning rate.
        weight_decay: the share that matrices shrink by in a step, times the learning rate. Norms, biases and other
            vectors do not shrink, embeddings only with `decay_embeddings`. (sgd adds it to the gradient.)
        betas: the decays of the moments.
        eps: added to the denominator.
        momentum: the decay of the momentum.
        layer_decay: each layer's learning rate is that of the layer above it times this (ELECTRA, fine-tuning).
        frozen: patterns of parameters' names that are not trained, such as `embeddings.*`.
    """

    name: Literal["adamw", "muon", "lion", "adafactor", "sgd"] = "adamw"
    lr: float | None = limits(None, low=0.0)
    weight_decay: float | None = limits(None, low=0.0)
    betas: tuple[float, float] | None = limits(None, low=0.0, high=1.0)
    eps: float | None = limits(None, low=0.0)
    momentum: float | None = limits(None, low=0.0, high=1.0)
    decay_embeddings: bool = False
    layer_decay: float = limits(1.0, low=0.0, high=1.0)
    frozen: tuple[str, ...] = ()

    def check(self) -> None:
        own = DEFAULTS[self.name]
        for key in ("betas", "eps", "momentum"):
            if getattr(self, key) is not None and key not in own:
                self.refuse(key, f"{self.name} has no {key}", mend=f"it takes {', '.join(own)}")

    def filled(self) -> OptimizerConfig:
        """The same with the optimiser's own values where there was None."""
        return self.replace(**{key: each for key, each in DEFAULTS[self.name].items() if getattr(self, key) is None})


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The optimiser of `model`'s parameters that require gradients; freezes those that `config.frozen` names.

    Hand in the model that holds the parameters as they are trained: after `fully_shard`, before or after
    DistributedDataParallel. Groups are those of `groups`.

    Raises:
        ConfigError: a pattern names nothing, nothing is left to train, or Adafactor meets sharded parameters.
    """
    config = config.filled()
    freeze(model, config.frozen)
    found = groups(model, config)
    if not found:
        raise ConfigError("no parameter is left to train", where="OptimizerConfig.frozen")
    values = {key: getattr(config, key) for key in DEFAULTS[config.name]}
    for group in found:
        group |= {"lr": values["lr"] * group["scale"], "weight_decay": values["weight_decay"] * group.pop("decays")}
    match config.name:
        case "lion":
            return Lion(found, **values)
        case "adafactor":
            if any(hasattr(each, "device_mesh") for group in found for each in group["params"]):
                raise ConfigError(
                    "torch's Adafactor steps no sharded parameters", where="OptimizerConfig.name", mend="use adamw"
                )
            return Adafactor(found, **values)
        case "sgd":
            return SGD(found, **values, nesterov=values["momentum"] > 0)
    momentum = values.pop("momentum", None)
    hidden = [group for group in found if group["name"].startswith("hidden")]
    rest = [group for group in found if not group["name"].startswith("hidden")]
    parts: list[Optimizer] = []
    if hidden:
        parts.append(Muon(hidden, lr=values["lr"], momentum=momentum, weight_decay=values["weight_decay"]))
    if rest:
        # The fused step is one pass over all parameters; there is none for tensors without data.
        fused = all(each.device.type != "meta" for group in rest for each in group["params"])
        parts.append(RowAdamW(rest, **values) if fused else AdamW(rest, **values))
    return parts[0] if len(parts) == 1 else Combined(parts)


def groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Parameters that are treated alike, as `params`, `name`, `scale` (of the learning rate) and `decays` (0 or 1).

    Names are `hidden` (with muon: matrices of hidden layers), `matrices`, `embeddings` and `vectors`, with `@depth`
    after them where `layer_decay` tells depths apart. A parameter that has two names, such as a tied one, is an
    embedding if it is one anywhere. No group is empty; frozen parameters are in none.
    """
    tables = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    linear = {id(each.weight) for each in model.modules() if isinstance(each, nn.Linear)}
    depths, top = _depths(model)
    made: dict[str, dict[str, Any]] = {}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        part = next(word for word in name.split(".") if word not in WRAPPERS)
        if id(param) in tables:
            kind = "embeddings"
        elif param.dim() < 2:
            kind = "vectors"
        elif config.name == "muon" and id(param) in linear and part not in HEADS:
            kind = "hidden"
        else:
            kind = "matrices"
        depth, scale = depths.get(id(param), 0 if kind == "embeddings" else top), 1.0
        label = kind
        if config.layer_decay != 1.0:
            label, scale = f"{kind}@{depth}", config.layer_decay ** (top - depth)
        decays = kind in ("hidden", "matrices") or (kind == "embeddings" and config.decay_embeddings)
        made.setdefault(label, {"params": [], "name": label, "scale": scale, "decays": float(decays)})
        made[label]["params"].append(param)
    return list(made.values())


def freeze(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Take the gradients from parameters whose names fit a pattern (`*` and `?` stand for any characters).

    Raises:
        ConfigError: a pattern fits no name.
    """
    named = {_plain(name): each for name, each in model.named_parameters(remove_duplicate=False)}
    for pattern in patterns:
        fitting = [name for name in named if fnmatchcase(name, pattern)]
        if not fitting:
            raise ConfigError(
                f"no parameter fits {pattern!r}", where="OptimizerConfig.frozen", mend=did_you_mean(pattern, named)
            )
        for name in fitting:
            named[name].requires_grad_(False)


def _plain(name: str) -> str:
    return ".".join(word for word in name.split(".") if word not in WRAPPERS)


def _depths(model: nn.Module) -> tuple[dict[int, int], int]:
    """By id, the layer from 1 of every parameter in a stack, and the depth over all. A decoder lies on an encoder.

    What belongs to the embeddings (their norm, ELECTRA's matrix on them) is below the first layer, as they are.
    """
    embeddings = (each for each in model.modules() if isinstance(each, Embeddings))
    depths = {id(each): 0 for part in embeddings for each in part.parameters()}
    depth = 0
    for stack in (each for each in model.modules() if isinstance(each, Stack)):
        for layer in stack.layers:
            depth += 1
            depths |= {id(each): depth for each in layer.parameters()}
        depths |= {id(each): depth for each in stack.parameters() if id(each) not in depths}
    return depths, depth + 1
