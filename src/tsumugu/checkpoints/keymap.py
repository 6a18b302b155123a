"""Two-way maps between the names and layouts of checkpoints and ours.

A `Rule` joins a group of their tensors with a group of ours by an operation that can be undone. A `KeyMap` is a list of
rules, written out in full for one configuration, so that reading a name is one look-up, what is missing, unused or
wrong-shaped is known before a byte is read, and export is the same map read backwards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from tsumugu.core.errors import CheckpointError


class Operation(Protocol):
    """An invertible change of layout: their tensors -> ours, and back. Works on meta tensors too, to check shapes."""

    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]: ...

    def backward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]: ...


@dataclass(frozen=True)
class Same:
    """As it is."""

    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors

    def backward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors


@dataclass(frozen=True)
class Transpose:
    """`[in, out]` <-> `[out, in]`: GPT-2 keeps its matrices the other way round."""

    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [each.t() if each.dim() == 2 else each for each in tensors]

    def backward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return self.forward(tensors)


@dataclass(frozen=True)
class Split:
    """One tensor <-> several, cut along the rows into parts of the given sizes (a fused QKV)."""

    sizes: tuple[int, ...]

    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        (fused,) = tensors
        return torch.split(fused, list(self.sizes), dim=0)

    def backward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [torch.cat(list(tensors), dim=0)]


@dataclass(frozen=True)
class Copies:
    """One tensor of ours that they keep under several names; the first of them is the one that counts."""

    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors[:1]

    def backward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [tensors[0], tensors[0]]


@dataclass(frozen=True)
class InterleavedRotary:
    """Rows of a query or key projection: rotary pairs side by side (GGUF's llama) <-> half a head apart (ours).

    Source: the two layouts of Su et al. 2021, RoFormer, as stored by GGUF and by the Hugging Face Hub.
    """

    heads: int

    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [self._swap(each, len(each) // self.heads // 2, 2) for each in tensors]

    def backward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [self._swap(each, 2, len(each) // self.heads // 2) for each in tensors]

    def _swap(self, tensor: Tensor, first: int, second: int) -> Tensor:
        return tensor.reshape(self.heads, first, second, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


@dataclass(frozen=True)
class Shifted:
    """A scale that they keep as it is and we as its distance from `by` (GGUF's Gemma has `1 + weight`)."""

    by: float = 1.0

    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [each - self.by for each in tensors]

    def backward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [each + self.by for each in tensors]


@dataclass(frozen=True)
class MegatronHeads:
    """A fused query, key and value <-> the three, in the order of rows that a Megatron checkpoint of `version` has.

    Version 0 keeps them one after the other; version 1 has the three rows of each dimension side by side, head by head;
    2 and 3 keep each head's query, key and value one after the other.

    Source: Megatron-LM, megatron/checkpointing.py, `fix_query_key_value_ordering`.
    """

    heads: int
    version: int

    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        (fused,) = tensors
        sizes = [self.heads, len(fused) // self.heads // 3]
        sizes.insert(self._axis, 3)
        parts = fused.reshape(*sizes, *fused.shape[1:]).unbind(self._axis)
        return [each.reshape(len(fused) // 3, *fused.shape[1:]) for each in parts]

    def backward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        rows, rest = len(tensors[0]), tensors[0].shape[1:]
        parts = [each.reshape(self.heads, rows // self.heads, *rest) for each in tensors]
        return [torch.stack(parts, dim=self._axis).reshape(3 * rows, *rest)]

    @property
    def _axis(self) -> int:
        """Where the three stand among the rows' axes."""
        return {0: 0, 1: 2}.get(self.version, 1)


@dataclass(frozen=True)
class Chain:
    """Operations one after the other."""

    operations: tuple[Operation, ...]

    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        for each in self.operations:
            tensors = each.forward(tensors)
        return tensors

    def backward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        for each in reversed(self.operations):
            tensors = each.backward(tensors)
        return tensors


SAME = Same()


@dataclass(frozen=True)
class Rule:
    """Their names and ours, and how the tensors correspond."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    operation: Operation = SAME


def same(theirs: str, ours: str) -> Rule:
    """One tensor under two names."""
    return Rule((theirs,), (ours,))


def both(theirs: str, ours: str, *, bias: bool = True) -> list[Rule]:
    """The weight of a module and, when it has one, its bias."""
    return [same(f"{theirs}.{part}", f"{ours}.{part}") for part in (("weight", "bias") if bias else ("weight",))]


class Readable(Protocol):
    """What a checkpoint hands out for each name; a plain tensor is wrapped by `InMemory`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self, dtype: torch.dtype | None = None) -> Tensor: ...


@dataclass(frozen=True)
class InMemory:
    """A tensor that is already here, as a `Readable`."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.tensor if dtype is None else self.tensor.to(dtype)


@dataclass(frozen=True)
class Report:
    """How a checkpoint fits a model.

    Attributes:
        missing: ours that the checkpoint does not give.
        unused: theirs that nothing of ours asks for.
        mismatched: ours, with the shape found and the shape wanted.
        other_heads: theirs that belong to another head of the same family; known, and no error.
        absent: our modules that the model can do without, and that the checkpoint does not hold.
    """

    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    other_heads: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unused or self.mismatched)

    def without(self, ours: Container[str]) -> Report:
        """The same where what is called `ours` comes from elsewhere."""
        missing = tuple(name for name in self.missing if name not in ours)
        return replace(self, missing=missing, mismatched=tuple(each for each in self.mismatched if each[0] not in ours))

    def require(self, where: str) -> None:
        """Raise a `CheckpointError` with the three lists unless the checkpoint fits."""
        if self.fits:
            return
        wrong = [f"{name} is {_by(found)}, not {_by(wanted)}" for name, found, wanted in self.mismatched]
        parts = [
            f"{len(names)} {kind}: {', '.join(names[:6])}{', …' if len(names) > 6 else ''}"
            for kind, names in (("missing", self.missing), ("unused", self.unused), ("of the wrong shape", wrong))
            if names
        ]
        raise CheckpointError(
            f"the checkpoint does not fit the model: {'; '.join(parts)}",
            where=where,
            mend="check config.json against the weights (in Python, strict=False loads what fits)",
        )


@dataclass(frozen=True)
class KeyMap:
    """The names of one model.

    Attributes:
        rules: the correspondence.
        tied: their name of a tensor that is another one of theirs (`lm_head.weight`); exported only if a rule names it,
            and on reading used only where the other is absent.
        prefix: what their names begin with when a head is on top (`bert.`); read with or without it.
        renamed: pairs of a regular expression and its replacement, for older spellings; on reading only.
        ignored: regular expressions of theirs that carry no information (stored masks, tables of positions).
        other_heads: regular expressions of theirs that belong to heads this model was not built with.
        optional: our modules that may be left out as a whole (a pooler over a trunk that was trained without).
    """

    rules: tuple[Rule, ...]
    tied: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    renamed: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    other_heads: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def to_theirs(self, tensors: Mapping[str, Tensor], *, with_prefix: bool = True) -> dict[str, Tensor]:
        """Our tensors under their names and in their layout. `with_prefix=False` as a bare trunk is saved."""
        result: dict[str, Tensor] = {}
        for rule in self.rules:
            if self._module(rule) is not None and not any(name in tensors for name in rule.ours):
                continue
            given = rule.operation.backward([tensors[name] for name in rule.ours])
            result.update(zip(rule.theirs, given, strict=True))
        if not with_prefix:
            result = {name.removeprefix(self.prefix): tensor for name, tensor in result.items()}
        return result

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their tensors under our names and in our layout; those that do not fit are left out."""
        entries = {name: InMemory(tensor) for name, tensor in tensors.items()}
        return dict(self.plan(entries, None).tensors())

    def plan(self, entries: Mapping[str, Readable], wanted: Mapping[str, tuple[int, ...]] | None) -> Plan:
        """Compare names and shapes without reading a tensor.

        Args:
            entries: what the checkpoint holds, by their names.
            wanted: the shapes the model asks for, by our names; None: whatever the checkpoint gives.
        """
        names = self._resolve(entries)
        complete = [rule for rule in self.rules if all(name in names for name in rule.theirs)]
        mismatched, fitting = [], []
        given = {self._module(rule) for rule in complete}
        absent = tuple(module for module in self.optional if module not in given)
        got = {name for rule in complete for name in rule.ours}
        optional = tuple(f"{module}." for module in absent)
        missing = [name for name in wanted or () if name not in got and not name.startswith(optional)]
        for rule in complete:
            problems = self._misfits(rule, [entries[names[name]] for name in rule.theirs], wanted)
            mismatched += problems
            if not problems:
                fitting.append(rule)
        known = {name for rule in complete for name in rule.theirs} | set(self.tied)
        left = [actual for name, actual in names.items() if name not in known]
        other = tuple(name for name in left if _matches(self._spelled(name), self.other_heads))
        report = Report(
            missing=tuple(missing),
            unused=tuple(name for name in left if name not in other),
            mismatched=tuple(mismatched),
            other_heads=other,
            absent=absent,
        )
        return Plan(tuple(fitting), {name: entries[actual] for name, actual in names.items()}, report)

    def canonical(self, names: Iterable[str]) -> dict[str, str]:
        """Names as they are found to the names that the rules have for them; unknown ones as they are spelled now."""
        known = {name for rule in self.rules for name in rule.theirs} | set(self.tied)
        found = {}
        for actual in names:
            name = self._spelled(actual)
            found[actual] = self.prefix + name if name not in known and self.prefix + name in known else name
        return found

    def _resolve(self, entries: Mapping[str, Readable]) -> dict[str, str]:
        """Canonical names to the names found, ties filled in, what carries no information left out."""
        known = {name for rule in self.rules for name in rule.theirs} | set(self.tied)
        found = self.canonical(entries).items()
        names = {name: actual for actual, name in found if name in known or not _matches(name, self.ignored)}
        for tied, source in self.tied.items():
            if tied in names and source not in names:
                names[source] = names[tied]
        return names

    def _module(self, rule: Rule) -> str | None:
        """The optional module that a rule fills."""
        return next((each for each in self.optional if rule.ours[0].startswith(f"{each}.")), None)

    def _spelled(self, name: str) -> str:
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    @staticmethod
    def _misfits(
        rule: Rule, entries: Sequence[Readable], wanted: Mapping[str, tuple[int, ...]] | None
    ) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        if wanted is None:
            return []
        found = entries[0].shape
        try:
            shapes = [
                tuple(each.shape)
                for each in rule.operation.forward([torch.empty(each.shape, device="meta") for each in entries])
            ]
        except (RuntimeError, ValueError):
            shapes = [found] * len(rule.ours)
            return [(name, found, wanted[name]) for name in rule.ours if name in wanted]
        return [
            (name, shape, wanted[name])
            for name, shape in zip(rule.ours, shapes, strict=True)
            if name in wanted and shape != wanted[name]
        ]


@dataclass(frozen=True)
class Plan:
    """What a load will do, known before it reads: the rules that apply, and how well the checkpoint fits."""

    rules: tuple[Rule, ...]
    entries: Mapping[str, Readable]
    report: Report

    def tensors(
        self, dtype: torch.dtype | None = None, *, progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Read one rule's tensors after the other, floating point as `dtype`; None keeps each one's type."""
        for rule in self.rules:
            given = [self._read(self.entries[name], dtype) for name in rule.theirs]
            yield from zip(rule.ours, rule.operation.forward(given), strict=True)
            if progress is not None:
                progress(len(rule.theirs))

    @staticmethod
    def _read(entry: Readable, dtype: torch.dtype | None) -> Tensor:
        return entry.read(dtype if entry.dtype.is_floating_point else None)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a single number"
