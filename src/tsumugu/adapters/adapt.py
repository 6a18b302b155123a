"""Adding adapters to a network, choosing among them, merging them into its matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tsumugu.adapters.config import AdapterConfig, LoraConfig
from tsumugu.adapters.linear import AdaptedLinear, Branch
from tsumugu.adapters.names import Target, choose_saved, choose_targets
from tsumugu.adapters.prompt import SoftPrompt, fresh_prompt
from tsumugu.core.errors import ConfigError, InputError, UnknownNameError, did_you_mean
from tsumugu.models.base import Model
from tsumugu.models.decoder import Decoder

DEFAULT = "default"


@dataclass
class Adapter:
    """One adapter of a network.

    Attributes:
        config: how it was made.
        targets: the matrices that it has branches beside.
        saved: parameters of its own that stand in for the network's, by name.
        trainable: whether it is trained while it is active.
        prompt: what stands before every text.
    """

    config: AdapterConfig
    targets: list[Target] = field(default_factory=list)
    saved: dict[str, nn.Parameter] = field(default_factory=dict)
    trainable: bool = True
    prompt: SoftPrompt | None = None


class Adapters(Mapping[str, Adapter]):
    """The adapters of a network by name, as `model.adapters`.

    Attributes:
        active: those that take part, and how much each of them counts.
        merged: whether they are merged into the network's matrices.
    """

    def __init__(self) -> None:
        self._known: dict[str, Adapter] = {}
        self.active: dict[str, float] = {}
        self._own: dict[str, nn.Parameter] = {}
        self._before: dict[str, Tensor] = {}

    @property
    def merged(self) -> bool:
        return bool(self._before)

    def __getitem__(self, name: str) -> Adapter:
        if name not in self._known:
            raise UnknownNameError(f"there is no adapter {name!r}", mend=did_you_mean(name, self._known))
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def adapters_of(model: Model) -> Adapters:
    """The adapters of `model`.

    Raises:
        InputError: it has none.
    """
    if not isinstance(model.adapters, Adapters):
        raise InputError("the model has no adapter", where="model", mend="add_adapter or load_adapter comes first")
    return model.adapters


def add_adapter(model: Model, config: AdapterConfig, name: str = DEFAULT, *, seed: int = 0) -> Model:
    """Add an adapter to `model`, in place, and make it the active one: from now on only its parameters are trained.

    A fresh one of LoRA changes nothing that the model computes; a fresh prompt begins as some words.

    Args:
        model: with its weights.
        config: what to add.
        name: what it is called.
        seed: of its first weights.

    Raises:
        ConfigError: a name in the configuration names nothing, or an adapter of this name is there already.
    """
    saved = choose_saved(model, config.modules_to_save)
    copies = {each: nn.Parameter(_own(model, each).detach().clone()) for each in saved}
    generator = torch.Generator().manual_seed(seed)
    if isinstance(config, LoraConfig):
        targets = choose_targets(model, config.targets, saved)
        if not targets:
            raise ConfigError("nothing is left to adapt", where="targets")
        branches = {each.theirs: _fresh(model, each, config, generator) for each in targets}
        attach(model, name, Adapter(config, targets, copies), branches)
    else:
        with without_adapters(model):
            prompt = fresh_prompt(need_decoder(model), config, generator)
        attach(model, name, Adapter(config, saved=copies, prompt=prompt), {})
    set_adapter(model, name)
    return model


def attach(model: Model, name: str, adapter: Adapter, branches: Mapping[str, list[Branch]]) -> None:
    """Put an adapter beside `model`'s matrices, inactive.

    Args:
        branches: for each of its targets, by the reference library's name, one for each of our modules.
    """
    known = model.adapters if isinstance(model.adapters, Adapters) else Adapters()
    if name in known or not name or "." in name:
        what = "is there already" if name in known else "cannot be the name of an adapter"
        raise ConfigError(f"{name!r} {what}", where="name", mend="choose another")
    for each in model.parameters():
        each.requires_grad_(False)
    model.adapters = known
    known._known[name] = adapter
    for target in adapter.targets:
        for ours, branch in zip(target.ours, branches[target.theirs], strict=True):
            _adapted(model, ours).branches[name] = branch.train(model.training).requires_grad_(False)
    for path in adapter.saved:
        known._own.setdefault(path, _own(model, path))


def set_adapter(model: Model, names: str | Mapping[str, float] | None) -> None:
    """Choose which adapters take part: one, several with a weight each, or none (None).

    What is merged is taken out first.

    Raises:
        UnknownNameError: there is no such adapter.
        ConfigError: two of them have a module of their own in the same place, such as a classifier, or a prompt, or a
            prompt is weighed.
    """
    known = adapters_of(model)
    chosen = {} if names is None else {names: 1.0} if isinstance(names, str) else dict(names)
    owners: dict[str, str] = {}
    for name in chosen:
        for path in known[name].saved:
            if owners.setdefault(path, name) != name:
                what = f"{owners[path]!r} and {name!r} both have their own {path}"
                raise ConfigError(what, where="names", mend="choose one of them")
    prompts = [name for name in chosen if known[name].prompt is not None]
    if len(prompts) > 1 or any(chosen[name] != 1.0 for name in prompts):
        raise ConfigError("one prompt at a time, and with weight 1", where="names", mend=f"choose {prompts[0]!r} alone")
    unmerge_adapter(model)
    known.active = chosen
    if isinstance(model, Decoder):
        model.prompt = known[prompts[0]].prompt if prompts else None
        if model.prompt is not None:
            model.prompt.to(model.device)
    for name, adapter in known.items():
        trained = adapter.trainable and name in chosen
        for each in adapter.saved.values():
            each.requires_grad_(trained and each.dtype.is_floating_point)
        if adapter.prompt is not None:
            adapter.prompt.requires_grad_(trained)
    device = model.device
    for path, own in known._own.items():
        value = known[owners[path]].saved[path] if path in owners else own
        value.data = value.data.to(device)  # while it was put aside the model may have moved
        set_parameter(model, path, value)
    model.tie()
    for module in (each for each in model.modules() if isinstance(each, AdaptedLinear)):
        module.active = {name: weight for name, weight in chosen.items() if name in module.branches}
        for name, branch in module.branches.items():
            branch.requires_grad_(name in chosen and known[name].trainable)


@contextmanager
def without_adapters(model: Model) -> Iterator[None]:
    """The network as it was before, while the block runs. Nothing changes for a model without adapters."""
    if not isinstance(model.adapters, Adapters) or not model.adapters.active:
        yield
        return
    before = dict(model.adapters.active)
    set_adapter(model, None)
    try:
        yield
    finally:
        set_adapter(model, before)


@torch.no_grad()
def merge_adapter(model: Model, *, unload: bool = False) -> Model:
    """Merge the active adapters into the network's matrices, so that it computes as quickly as it did without them.

    The matrices that were there are kept, so that `unmerge_adapter` gives them back bit for bit.

    Args:
        unload: keep neither them nor any adapter: what remains is a plain model.

    Raises:
        InputError: a prompt is active, which has no place in matrices.
    """
    known = adapters_of(model)
    if any(known[name].prompt is not None for name in known.active):
        raise InputError("a prompt cannot be merged", where="model", mend="keep it as an adapter")
    layers = {name: each for name, each in model.named_modules() if isinstance(each, AdaptedLinear)}
    if not known.merged:
        for name, layer in layers.items():
            if layer.active:
                known._before[name] = layer.weight
                layer.weight, layer.active = layer.merged(), {}
    if unload:
        for name, layer in layers.items():
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, layer.plain())
        model.adapters = None
    return model


def unmerge_adapter(model: Model) -> Model:
    """Take merged adapters out of the network's matrices again, exactly; they are active as before."""
    known = adapters_of(model)
    for name, weight in known._before.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, AdaptedLinear)
        layer.weight = weight
        layer.active = {each: share for each, share in known.active.items() if each in layer.branches}
    known._before = {}
    return model


def need_decoder(model: Model) -> Decoder:
    """The same model.

    Raises:
        ConfigError: it is no decoder.
    """
    if not isinstance(model, Decoder):
        raise ConfigError(f"prompts are for decoders, not for {model.family.name}", where="method", mend="use lora")
    return model


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def set_parameter(model: nn.Module, path: str, value: nn.Parameter) -> None:
    """Make `value` the parameter at `path`."""
    owner, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(owner), leaf, value)


def _own(model: Model, path: str) -> nn.Parameter:
    """The network's own parameter at `path`, whichever adapter is active."""
    known = model.adapters
    return known._own[path] if isinstance(known, Adapters) and path in known._own else model.get_parameter(path)


def _adapted(model: Model, path: str) -> AdaptedLinear:
    """The layer at `path`, which takes branches from now on."""
    layer = model.get_submodule(path)
    if not isinstance(layer, AdaptedLinear):
        assert isinstance(layer, nn.Linear)
        layer = AdaptedLinear(layer)
        owner, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(owner), leaf, layer)
    return layer


def _fresh(model: Model, target: Target, config: LoraConfig, generator: torch.Generator) -> list[Branch]:
    """Branches that add nothing yet: down is drawn, up is 0.

    Source: Hu et al. 2021, section 4.1; the spread of `down` is that of a new `nn.Linear`.
    """
    layers = [model.get_submodule(name) for name in target.ours]
    weights = [each.weight for each in layers if isinstance(each, nn.Linear)]
    width, dtype, device = weights[0].shape[1], torch.promote_types(weights[0].dtype, torch.float32), weights[0].device
    drawn = torch.empty(config.rank, width, dtype=dtype).uniform_(-1, 1, generator=generator) * width**-0.5
    down = nn.Parameter(drawn.to(device))

    def up(weight: Tensor) -> nn.Parameter:
        return nn.Parameter(torch.zeros(weight.shape[0], config.rank, dtype=dtype, device=device))

    def magnitude(weight: Tensor) -> nn.Parameter | None:
        return nn.Parameter(weight.detach().to(dtype).norm(dim=1)) if config.dora else None

    return [
        Branch(down, up(each), scale=config.scale, dropout=config.dropout, magnitude=magnitude(each))
        for each in weights
    ]
