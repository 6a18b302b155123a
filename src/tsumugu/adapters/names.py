"""Which parts of a network are meant: by our names, by the reference library's, and how the two correspond.

What can be adapted is a matrix of the checkpoint. GPT-2 has query, key and value in one, so they are adapted together:
one matrix down, and one up that is cut where the fused one is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from tsumugu.adapters.config import SHORTHANDS
from tsumugu.adapters.linear import AdaptedLinear
from tsumugu.blocks.attention import Attention
from tsumugu.blocks.feedforward import FeedForward, GatedFeedForward
from tsumugu.checkpoints.keymap import SAME, Chain, Operation, Transpose
from tsumugu.core.errors import ConfigError, did_you_mean
from tsumugu.models.base import Model

HEADS = ("sequence-classification", "token-classification", "question-answering")
"""Heads that are new where a model is fine-tuned, so that they are trained whole."""


@dataclass(frozen=True)
class Target:
    """A matrix that can be adapted.

    Attributes:
        theirs: the module's name in the reference library.
        ours: our modules that it is made of.
        rows: cuts what has the matrix's rows into those of ours.
        transposed: the checkpoint keeps it as `[in, out]`.
    """

    theirs: str
    ours: tuple[str, ...]
    rows: Operation
    transposed: bool


def find_targets(model: Model) -> list[Target]:
    """All matrices of `model` that can be adapted, in the order of its checkpoint."""
    modules = dict(model.named_modules())
    found = []
    for rule in model.keymap.rules:
        names = [name.removesuffix(".weight") for name in rule.ours]
        if len(rule.theirs) != 1 or not rule.theirs[0].endswith(".weight"):
            continue
        if not all(type(modules.get(name)) in (nn.Linear, AdaptedLinear) for name in names):
            continue
        parts = rule.operation.operations if isinstance(rule.operation, Chain) else (rule.operation,)
        rows = tuple(each for each in parts if not isinstance(each, Transpose))
        found.append(
            Target(
                shown(model, rule.theirs[0]).removesuffix(".weight"),
                tuple(names),
                Chain(rows) if rows else SAME,
                len(rows) < len(parts),
            )
        )
    return found


def choose_targets(model: Model, words: Sequence[str], saved: Iterable[str]) -> list[Target]:
    """The matrices that `words` name (see `LoraConfig.targets`), without those whose parameters are in `saved`.

    Raises:
        ConfigError: a word names nothing.
    """
    targets, left = find_targets(model), set(saved)
    chosen: dict[str, Target] = {}
    for word in words:
        meant = [each for each in targets if _is_meant(model, each, word)]
        if not meant:
            known = {name.rpartition(".")[2] for each in targets for name in (each.theirs, *each.ours)}
            mend = did_you_mean(word, {*known, *SHORTHANDS})
            raise ConfigError(f"no matrix that can be adapted is called {word!r}", where="targets", mend=mend)
        chosen |= {each.theirs: each for each in meant}
    return [each for each in chosen.values() if not any(f"{name}.weight" in left for name in each.ours)]


def choose_saved(model: Model, words: Sequence[str] | None) -> list[str]:
    """Our names of the parameters that are trained whole; what the checkpoint keeps as one goes together.

    Raises:
        ConfigError: a word names nothing.
    """
    names = [
        name for name, _ in model.named_parameters() if ".branches." not in name and not name.startswith("prompt.")
    ]
    if words is None:
        report = model.load_report
        lost = () if report is None else (*report.missing, *(name for name, _, _ in report.mismatched))
        chosen = {name for name in lost if name in names}
        if model.head_name in HEADS:
            chosen |= {name for name in names if name.startswith("head.")}
    else:
        chosen = set()
        for word in words:
            meant = {
                ours
                for rule in model.keymap.rules
                for ours in rule.ours
                if any(_within(word, name) for name in (ours, *(shown(model, each) for each in rule.theirs)))
            } & set(names)
            if not meant:
                known = {part for name in names for part in name.split(".")[:-1] if not part.isdigit()}
                raise ConfigError(
                    f"no module is called {word!r}", where="modules_to_save", mend=did_you_mean(word, known)
                )
            chosen |= meant
    chosen |= {name for rule in model.keymap.rules if chosen & set(rule.ours) for name in rule.ours}
    return [name for name in names if name in chosen]


def saved_modules(model: Model, saved: Iterable[str]) -> list[str]:
    """The modules of the reference library that hold the parameters `saved`, the outermost that hold nothing else."""
    wanted = set(saved)
    theirs = {shown(model, name): wanted.issuperset(rule.ours) for rule in model.keymap.rules for name in rule.theirs}
    found: dict[str, None] = {}
    for name in (name for name, is_saved in theirs.items() if is_saved):
        parts = name.split(".")
        for depth in range(1, len(parts)):
            module = ".".join(parts[:depth])
            if all(kept for other, kept in theirs.items() if other.startswith(f"{module}.")):
                found[module] = None
                break
    return list(found)


def shown(model: Model, theirs: str) -> str:
    """A name as the reference library's class for this head has it: a bare trunk's lack the prefix."""
    return theirs.removeprefix(model.keymap.prefix) if model.head_name == "base" else theirs


def _is_meant(model: Model, target: Target, word: str) -> bool:
    if word in SHORTHANDS:
        inside = not any(name.startswith(("head.", "next_sentence")) for name in target.ours)
        if word == "all-linear" or not inside:
            return inside
        owner = model.get_submodule(target.ours[0].rpartition(".")[0])
        return isinstance(owner, Attention if word == "attention" else (FeedForward, GatedFeedForward))
    return any(
        name == word or name.endswith(f".{word}") or fnmatchcase(name, word) for name in (target.theirs, *target.ours)
    )


def _within(word: str, name: str) -> bool:
    """Whether the parameter `name` lies in a module called `word`."""
    module = name.rpartition(".")[0]
    return f".{word}." in f".{module}."
