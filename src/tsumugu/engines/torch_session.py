"""A decoder's texts being continued on torch: one cache, allocated once, rows of any lengths side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tsumugu.blocks.kv_cache import KVCache
from tsumugu.core.errors import InputError
from tsumugu.engines.session import Logits, Rows
from tsumugu.models.decoder import Decoder


class TorchPrefix:
    """The beginning of many texts, read once: its tokens, and a cache that texts branch from.

    Args:
        model: with a causal head.
        ids: may be empty.
    """

    @torch.inference_mode()
    def __init__(self, model: Decoder, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self.cache = model.new_cache(1, len(self.ids))
        if self.ids:
            model(torch.tensor([self.ids]), cache=self.cache, logits_to_keep=1)

    def __len__(self) -> int:
        return len(self.ids)


class TorchSession:
    """`tsumugu.engines.session.TokenSession` for a `Decoder`.

    Prompts are padded on the right, where causal attention never looks; each row's next token then goes to that row's
    own end. So a row computes what it would compute alone.

    Args:
        model: with a causal head.
        capacity: the longest a row may become, in tokens.
        prefix: what all prompts begin with; they are read from there on.
    """

    def __init__(self, model: Decoder, *, capacity: int, prefix: TorchPrefix | None = None) -> None:
        if model.head_name != "causal-lm":
            raise InputError(
                f"a model with head {model.head_name!r} does not generate text",
                where="model",
                mend="load it with task='causal-lm'",
            )
        self.model, self.capacity, self.prefix = model, capacity, prefix
        self.cache: KVCache | None = None

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]]) -> Logits:
        """Read prompts; logits `[rows, vocab]` of what follows each."""
        before = 0 if self.prefix is None else len(self.prefix)
        soft = 0 if self.prefix is None else self.prefix.cache.filled - before
        if self.prefix is not None:
            begun = self.prefix.ids
            if not all(len(prompt) > before and list(prompt[:before]) == begun for prompt in prompts):
                raise InputError("a prompt does not begin with the prefix, or ends with it", where="prefix")
        ids, lengths = padded([prompt[before:] for prompt in prompts])
        room = max(self.capacity, before + ids.shape[1])
        if self.prefix is None:
            self.cache = self.model.new_cache(len(prompts), room)
        else:
            self.cache = self.prefix.cache.branched(len(prompts), soft + room)
        lengths = self.cache.lengths + lengths.to(self.model.device)
        output = self.model(ids, cache=self.cache, logits_to_keep=lengths - self.cache.lengths - 1)
        self.cache.set_lengths(lengths)
        return as_numpy(output.logits)

    @torch.inference_mode()
    def begin(self, rows: int) -> None:
        """Rows without any token, in place of `start`."""
        self.cache = self.model.new_cache(rows, self.capacity)
        self.cache.set_lengths(self.cache.lengths)

    @torch.inference_mode()
    def step(self, tokens: Rows) -> Logits:
        """Append one token to each row; logits `[rows, vocab]`."""
        assert self.cache is not None, "start comes first"
        return as_numpy(self.model(torch.from_numpy(tokens)[:, None], cache=self.cache).logits)

    @torch.inference_mode()
    def extend(self, texts: Sequence[Sequence[int]], *, every: bool = False) -> Logits:
        """Append some tokens to each row, or none; logits of what follows the last of each, or every token."""
        assert self.cache is not None, "start comes first"
        before = self.cache.lengths.clone()
        ids, counts = padded(texts)
        positions = before[:, None] + torch.arange(ids.shape[1], device=before.device)
        positions = positions.clamp(max=self.model.config.max_positions - 1)  # of padding, which nothing sees
        if int(before.max()) + ids.shape[1] > self.cache.capacity:
            self.cache = self.cache.widened(int(before.max()) + ids.shape[1])
        logits = self.model(ids, position_ids=positions, cache=self.cache).logits
        self.cache.set_lengths(before + counts.to(before.device))
        asked = [(row, at) for row, n in enumerate(counts.tolist()) for at in range(0 if every else max(0, n - 1), n)]
        found: Logits = logits[[row for row, _ in asked], [at for _, at in asked]].float().cpu().numpy()
        return found

    @torch.inference_mode()
    def forget(self, counts: Rows) -> None:
        """Take back the last tokens of each row, `[rows]`."""
        assert self.cache is not None, "start comes first"
        self.cache.set_lengths(self.cache.lengths - torch.from_numpy(counts).to(self.model.device))

    @torch.inference_mode()
    def select(self, rows: Rows) -> None:
        """Go on with `rows` in that order."""
        assert self.cache is not None, "start comes first"
        self.cache.select(torch.from_numpy(rows).to(self.model.device))


def padded(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of any lengths as ids `[rows, longest]`, zeros on the right, and their lengths `[rows]`."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    return ids, lengths


def as_numpy(logits: torch.Tensor | None) -> Logits:
    """The last position's logits, `[rows, time, vocab]` -> `[rows, vocab]`."""
    assert logits is not None
    array: Logits = logits[:, -1].float().cpu().numpy()
    return array.astype(np.float32, copy=False)
