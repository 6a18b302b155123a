"""What changed between two checkpoints: configuration, tokenizer, and every tensor, whatever formats they are in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tsumugu.anatomy.describe import Opened, open_model
from tsumugu.anatomy.parameters import part_of
from tsumugu.checkpoints.keymap import Readable
from tsumugu.engines.torch import recognise
from tsumugu.text.tokenizer import Tokenizer

_CHUNK = 1 << 22


def compare(first: str | Path, second: str | Path, *, watch: Callable[[str], None] | None = None) -> dict[str, Any]:
    """The differences of two models, as plain JSON values.

    Models of one family are compared under our names, so that a GGUF file and a folder of the hub can be laid side by
    side; others under the names of their files.

    Returns:
        `same`: whether nothing differs; `config`: keys with both values; `tokenizer`: what differs; `tensors`: names
        only `added` or `removed`, those of another `reshaped` shape, and those `changed`, the most changed first:
        `relative` is the norm of the difference over the norm of the first, `cosine` that of the angle between them,
        `largest` the greatest difference of one number, `share` how many numbers differ.

    Raises:
        HubError: there is no such model.
        CheckpointError: files are broken.
    """
    one, other = open_model(first), open_model(second)
    both = one.model is not None and other.model is not None and one.model.family is other.model.family
    left, right = (_readers(each, ours=both) for each in (one, other))
    tensors = _tensors(left, right, ours=both, watch=watch)
    config = _config(one, other)
    tokenizer = _tokenizers(one.tokenizer(), other.tokenizer())
    differing = any(tensors[key] for key in ("added", "removed", "reshaped", "changed"))
    return {
        "first": {"name": one.name, "format": one.checkpoint.format, "tensors": len(one.checkpoint.tensors)},
        "second": {"name": other.name, "format": other.checkpoint.format, "tensors": len(other.checkpoint.tensors)},
        "same": not (differing or config or tokenizer),
        "config": config,
        "tokenizer": tokenizer,
        "tensors": tensors,
    }


Reader = Callable[[], torch.Tensor]


def _readers(opened: Opened, *, ours: bool) -> dict[str, tuple[tuple[int, ...], Reader]]:
    """Names to shapes, and to what reads the tensor."""
    entries = opened.checkpoint.tensors
    if not ours:
        return {name: (entry.shape, entry.read) for name, entry in entries.items()}
    plan = recognise(opened.checkpoint, None)[3].plan(entries, None)
    found: dict[str, tuple[tuple[int, ...], Reader]] = {}
    for rule in plan.rules:
        given = [plan.entries[name] for name in rule.theirs]
        shapes = rule.operation.forward([torch.empty(each.shape, device="meta") for each in given])
        for index, (name, shape) in enumerate(zip(rule.ours, shapes, strict=True)):

            def read(given: list[Readable] = given, index: int = index, rule: Any = rule) -> torch.Tensor:
                made: torch.Tensor = rule.operation.forward([each.read() for each in given])[index]
                return made

            found[name] = (tuple(shape.shape), read)
    for name in plan.report.other_heads:  # heads that are there beside the one that is built
        found[name] = (plan.entries[name].shape, plan.entries[name].read)
    return found


def _tensors(
    left: dict[str, tuple[tuple[int, ...], Reader]],
    right: dict[str, tuple[tuple[int, ...], Reader]],
    *,
    ours: bool,
    watch: Callable[[str], None] | None,
) -> dict[str, Any]:
    changed, reshaped, equal = [], [], 0
    for name in left.keys() & right.keys():
        if left[name][0] != right[name][0]:
            reshaped.append({"name": name, "first": list(left[name][0]), "second": list(right[name][0])})
            continue
        found = _change(left[name][1](), right[name][1]())
        if watch is not None:
            watch(name)
        if found is None:
            equal += 1
        else:
            changed.append({"name": name, "part": part_of(name, (name,) if ours else ()), **found})
    return {
        "added": [{"name": name, "shape": list(right[name][0])} for name in right if name not in left],
        "removed": [{"name": name, "shape": list(left[name][0])} for name in left if name not in right],
        "reshaped": sorted(reshaped, key=lambda each: str(each["name"])),
        "changed": sorted(changed, key=lambda each: (-_finite(each["relative"]), str(each["name"]))),
        "equal": equal,
    }


def _finite(value: float | None) -> float:
    return math.inf if value is None else value


def _change(one: torch.Tensor, other: torch.Tensor) -> dict[str, float | int | None] | None:
    """How two tensors of one shape differ; None where all numbers are equal."""
    sums = dict.fromkeys(("first", "second", "apart", "product"), 0.0)
    largest, count = 0.0, 0
    left, right = one.reshape(-1), other.reshape(-1)
    for start in range(0, left.numel(), _CHUNK):
        a, b = left[start : start + _CHUNK].double(), right[start : start + _CHUNK].double()
        unequal = (a != b) & ~(a.isnan() & b.isnan())
        if not bool(unequal.any()):
            sums["first"] += float(a.square().sum())
            sums["second"] += float(b.square().sum())
            sums["product"] += float((a * b).sum())
            continue
        count += int(unequal.sum())
        apart = a - b
        largest = max(largest, float(apart.abs().max()))
        for key, value in (
            ("first", a.square()),
            ("second", b.square()),
            ("apart", apart.square()),
            ("product", a * b),
        ):
            sums[key] += float(value.sum())
    if not count:
        return None
    scale = math.sqrt(sums["first"] * sums["second"])
    found = {
        "relative": math.sqrt(sums["apart"] / sums["first"]) if sums["first"] else math.inf,
        "cosine": sums["product"] / scale if scale else math.nan,
        "largest": largest,
        "share": count / left.numel(),
    }
    return {key: value if math.isfinite(value) else None for key, value in found.items()}


def _config(one: Opened, other: Opened) -> dict[str, list[Any]]:
    values = [
        {"family": each.model.family.name, "head": each.model.head_name, **each.model.config.to_dict()}
        if each.model is not None
        else dict(each.checkpoint.config or {})
        for each in (one, other)
    ]
    keys = dict.fromkeys([*values[0], *values[1]])
    pairs = {key: [each.get(key) for each in values] for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _tokenizers(one: Tokenizer | None, other: Tokenizer | None) -> dict[str, Any]:
    """What differs of two tokenizers; empty where nothing does."""
    if one is None or other is None:
        return {} if one is other else {"only": "second" if one is None else "first"}
    found: dict[str, Any] = {}
    left, right = one.get_vocab(), other.get_vocab()
    moved = sum(right.get(token, number) != number for token, number in left.items())
    added, removed = [each for each in right if each not in left], [each for each in left if each not in right]
    if added or removed or moved:
        found["vocabulary"] = {
            "added": len(added),
            "removed": len(removed),
            "renumbered": moved,
            "examples_added": sorted(added)[:5],
            "examples_removed": sorted(removed)[:5],
        }
    if one.special_tokens_map != other.special_tokens_map:
        found["special_tokens"] = [dict(one.special_tokens_map), dict(other.special_tokens_map)]
    if one.chat_template != other.chat_template:
        found["chat_template"] = [_digest(one.chat_template), _digest(other.chat_template)]
    steps = [json.loads(each.backend.to_str()) for each in (one, other)]
    for step in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if steps[0].get(step) != steps[1].get(step):
            found[step] = "differs"
    return found


def _digest(value: Any) -> str | None:
    return None if value is None else hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]
