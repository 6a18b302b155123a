"""What a model computes: its network as a list of blocks with shapes, what it predicts, its tokenizer, its papers."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from torch import nn

from tsumugu.anatomy.papers import papers_of
from tsumugu.blocks.attention import Attention
from tsumugu.blocks.embeddings import Embeddings
from tsumugu.blocks.feedforward import ACTIVATIONS
from tsumugu.blocks.layer import Layer
from tsumugu.blocks.positions import RotaryPositions
from tsumugu.blocks.stack import Stack
from tsumugu.models.base import HEADS, Model
from tsumugu.text.tokenizer import Tokenizer

Block = dict[str, Any]
"""One box of a diagram: `kind`, `title`, `lines` about it, `parameters`; a stack has `inner` blocks and a `count`.

`residual` says around how many boxes, this one the last of them, a residual path leads.
"""

_WRITERS = ("causal-lm", "masked-lm", "pretraining", "seq2seq-lm")


def describe_algorithm(model: Model, tokenizer: Tokenizer | None, *, model_type: str | None, pooled: bool) -> Block:
    """The algorithm of a model, whose weights need not be there, as plain JSON values.

    Args:
        model: may lie on the meta device.
        tokenizer: its own, where there is one.
        model_type: the word of config.json, which tells kin of one family apart.
        pooled: whether files beside the model turn its states into one vector a text.
    """
    about = None if tokenizer is None else describe_tokenizer(tokenizer)
    kind = None if about is None else about["algorithm"]
    papers = papers_of(model.family.name, model_type, kind, sentences=pooled)
    return {
        "family": model.family.name,
        "model_type": model_type,
        "summary": model.family.summary,
        "architecture": model.family.architecture(model.head_name),
        "head": model.head_name,
        "predicts": "one vector for a text" if pooled else HEADS.get(model.head_name, model.head_name),
        "blocks": blocks_of(model),
        "tokenizer": about,
        "papers": [{"citation": each.line, "url": each.url, "bibtex": each.bibtex} for each in papers],
    }


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """How a tokenizer cuts texts: its algorithm, vocabulary, special tokens and steps."""
    steps = json.loads(tokenizer.backend.to_str())
    model = steps["model"]
    return {
        "algorithm": model.get("type"),
        "vocabulary": len(tokenizer),
        "merges": len(model["merges"]) if "merges" in model else None,
        "byte_fallback": bool(model.get("byte_fallback")),
        "normalizer": _kinds(steps.get("normalizer")),
        "pre_tokenizer": _kinds(steps.get("pre_tokenizer")),
        "special_tokens": {role: tokenizer.special_tokens_map[role] for role in sorted(tokenizer.special_tokens_map)},
        "max_length": tokenizer.model_max_length,
        "chat_template": bool(tokenizer.chat_template),
    }


def blocks_of(model: Model) -> list[Block]:
    """The network of a model as blocks, in the order in which data goes through them."""
    config = model.config
    blocks: list[Block] = [_block("ids", "token ids", ["[batch, time]"])]
    rotary = next((each for each in model.children() if isinstance(each, RotaryPositions)), None)
    notes = [] if rotary is None else [f"rotary positions, θ = {config.rope_theta:,.0f}"]
    activation = str(getattr(config, "activation", ""))
    window = getattr(config, "window", None)
    windows = getattr(config, "windows", None) or (() if window is None else (window,) * config.num_layers)
    seen: set[int] = set()
    parts = dict(model.named_children())
    for name in sorted(parts, key=lambda each: _place(each, list(parts))):
        child = parts[name]
        if isinstance(child, Embeddings):
            blocks.append(_embeddings(child))
        elif isinstance(child, Stack):
            blocks += _stack(name, child, notes, activation if activation in ACTIVATIONS else "", windows)
        elif not isinstance(child, RotaryPositions) and any(True for _ in child.parameters()):
            blocks.append(_other(name, child, seen))
        seen.update(id(each) for each in child.parameters())
    blocks.append(_block("output", _given(model.head_name), [_shape(model)]))
    return blocks


def _place(name: str, order: list[str]) -> float:
    """Where a part is used: positions just before the stack that they are the positions of."""
    stack = name.removesuffix("_positions")
    return order.index(stack) - 0.5 if stack != name and stack in order else order.index(name)


def _given(head: str) -> str:
    return "logits" if head not in ("base", "encoder") else "hidden states"


def _shape(model: Model) -> str:
    match model.head_name:
        case head if head in _WRITERS:
            return f"[batch, time, {model.config.vocab_size:,}]"
        case "sequence-classification":
            return f"[batch, {len(model.config.labels)}]"
        case "token-classification":
            return f"[batch, time, {len(model.config.labels)}]"
        case "question-answering":
            return "twice [batch, time]"
        case "replaced-token" | "replaced-token-pair":
            return "[batch, time]"
    return f"[batch, time, {model.config.hidden_size:,}]"


def _embeddings(module: Embeddings) -> Block:
    parts = {"token": module.token, "position": module.position, "segment": module.segment}
    lines = [f"{name} {_size(each)}" for name, each in parts.items() if each is not None]
    if module.norm is not None:
        lines.append(f"then {_norm(module.norm)}")
    return _block("embeddings", "embeddings", lines, module)


def _stack(
    name: str, stack: Stack, notes: list[str], activation: str, windows: Sequence[int | None]
) -> Iterator[Block]:
    """The layers, like ones as one box that says which they are, and the norm after them."""
    spans = [*windows, *[None] * len(stack.layers)]
    alike: dict[str, list[int]] = {}
    for place, (layer, window) in enumerate(zip(stack.layers, spans, strict=False)):
        span = [] if window is None else [f"sees the last {window:,} tokens"]
        alike.setdefault(json.dumps(_layer(layer, [*notes, *span], activation)), []).append(place)
    for signature, places in alike.items():
        blocks, count = json.loads(signature), len(places)
        total = sum(each["parameters"] for each in blocks) * count
        found = {"kind": "stack", "title": name, "count": count, "inner": blocks, "lines": [], "parameters": total}
        yield found if len(alike) == 1 else {**found, "layers": _ranges(places)}
    if stack.norm is not None:
        yield _norm_block(stack.norm)


def _ranges(places: Sequence[int]) -> str:
    """Numbers of layers, such as 0-4, 6-10."""
    edges = [i for i, each in enumerate(places) if i == 0 or places[i - 1] != each - 1]
    parts = [places[a:b] for a, b in zip(edges, [*edges[1:], len(places)], strict=True)]
    return "layers " + ", ".join(f"{each[0]}-{each[-1]}" if len(each) > 1 else str(each[0]) for each in parts)


def _layer(layer: nn.Module, notes: list[str], activation: str) -> list[Block]:
    if not isinstance(layer, Layer):
        return [_other("layer", layer)]
    parts: list[tuple[Block, nn.Module, nn.Module | None]] = []
    attention = _attention("self-attention", layer.attention, notes)
    parts.append((attention, layer.attention_norm, layer.attention_output_norm))
    if layer.cross_attention is not None and layer.cross_norm is not None:
        parts.append((_attention("cross-attention", layer.cross_attention, []), layer.cross_norm, None))
    feed_forward = _feed_forward(layer.feed_forward, activation)
    parts.append((feed_forward, layer.feed_forward_norm, layer.feed_forward_output_norm))
    found = []
    for block, norm, output_norm in parts:
        around = [block] if output_norm is None else [block, _norm_block(output_norm)]
        if layer.norm_first:
            around.insert(0, _norm_block(norm))
        around[-1]["residual"] = len(around)
        found += around if layer.norm_first else [*around, _norm_block(norm)]
    return found


def _norm_block(norm: nn.Module) -> Block:
    return _block("norm", _norm(norm), [_size(norm)], norm)


def _attention(title: str, module: Attention, notes: list[str]) -> Block:
    heads = f"{module.num_heads} heads of {module.head_dim}"
    if module.num_kv_heads != module.num_heads:
        heads += f", {module.num_kv_heads} of keys and values"
    lines = [heads, *(f"{name} {_size(getattr(module, name))}" for name in ("query", "key", "value", "output"))]
    return _block("attention", title, [*lines, *notes], module)


def _feed_forward(module: nn.Module, activation: str) -> Block:
    gated = isinstance(getattr(module, "gate", None), nn.Module)
    lines = [f"{name} {_size(each)}" for name, each in module.named_children() if isinstance(each, nn.Linear)]
    title = f"{'gated ' if gated else ''}feed-forward"
    return _block("feed-forward", title, [*lines, *([activation] if activation else [])], module)


def _other(name: str, module: nn.Module, seen: Collection[int] = ()) -> Block:
    """Any part of a network; parameters that an earlier part has, `seen`, are told and not counted again."""
    own = [(inner, each) for inner, each in module.named_parameters() if id(each) not in seen]
    lines = [f"{inner.removesuffix('.weight')} {_by(each.shape)}" for inner, each in own if each.dim() > 1][:5]
    if len(own) < len(list(module.parameters())):
        lines.append("weights shared with the token embedding")
    return {**_block("head", name.replace("_", " "), lines), "parameters": sum(each.numel() for _, each in own)}


def _block(kind: str, title: str, lines: list[str], module: nn.Module | None = None) -> Block:
    count = 0 if module is None else sum(each.numel() for each in module.parameters())
    return {"kind": kind, "title": title, "lines": lines, "parameters": count}


def _norm(module: nn.Module) -> str:
    return type(module).__name__


def _size(module: nn.Module) -> str:
    weight = getattr(module, "weight", None)
    return "" if weight is None else _by(weight.shape)


def _by(shape: Any) -> str:
    return " × ".join(f"{each:,}" for each in shape)


def _kinds(step: dict[str, Any] | None) -> list[str]:
    """The types of the steps of a normaliser or pre-tokeniser, in order."""
    if step is None:
        return []
    inner = step.get("normalizers", step.get("pretokenizers"))
    return [kind for each in inner for kind in _kinds(each)] if inner is not None else [str(step.get("type"))]
