"""What decoder-only families share: reading tokens left to right, with or without a cache of those already read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tsumugu.blocks.embeddings import Embeddings
from tsumugu.blocks.heads import (
    ClassificationHead,
    LanguageModelHead,
    classification_loss,
    cross_entropy,
    last_real,
    shifted_cross_entropy,
)
from tsumugu.blocks.kv_cache import Beginning, Cache, KeysValues, KVCache, Recorder
from tsumugu.blocks.mask import Mask, causal_mask, document_mask, padding_mask
from tsumugu.blocks.positions import RotaryPositions, Rotation
from tsumugu.blocks.stack import Stack
from tsumugu.core.config import Config
from tsumugu.core.errors import InputError
from tsumugu.core.registry import FUNCTIONS
from tsumugu.core.tensors import TensorFormat, to_torch
from tsumugu.models.base import Family, Model, Output
from tsumugu.models.targets import read_targets, summed_loss

LOSSES = {
    "causal-lm": shifted_cross_entropy,
    "sequence-classification": classification_loss,
    "token-classification": cross_entropy,
}
"""How far each head is off from its labels."""


class Decoder(Model):
    """Token ids `[batch, time]` -> logits of the next token, or hidden states, or labels.

    A family hands in its parts; its configuration has `hidden_size`, `vocab_size`, `max_positions`, `num_kv_heads`,
    `head_dim`, `num_layers`, `tie_embeddings`, `pad_token_id`, `labels` and, where attention is windowed, `window`, or
    `windows` where it is not so in every layer; `logit_softcap` where logits are bounded. `rotary` is one for all
    layers or, as a sequence, one for each; those that are the same object are computed once.

    Attributes:
        prompt: what stands before every text, as vectors or as keys and values; see `tsumugu.adapters.prompt`.
    """

    def __init__(
        self,
        family: Family,
        config: Config,
        head_name: str,
        *,
        embeddings: Embeddings,
        decoder: Stack,
        rotary: RotaryPositions | Sequence[RotaryPositions] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(family, config, head_name)
        self.embeddings, self.decoder = embeddings, decoder
        self.prompt: nn.Module | None = None
        self.rotary: nn.Module | None
        self.rotary = nn.ModuleList(rotary) if isinstance(rotary, Sequence) else rotary
        width, labels = self.config.hidden_size, len(self.config.labels)
        self.head: nn.Module | None = None
        match head_name:
            case "causal-lm":
                softcap = getattr(self.config, "logit_softcap", None)
                self.head = LanguageModelHead(width, self.config.vocab_size, bias=False, softcap=softcap)
                if self.config.tie_embeddings:
                    self.tied = {"head.weight": "embeddings.token.weight"}
                    self.tie()
            case "sequence-classification":
                self.head = ClassificationHead(width, labels, bias=False)
            case "token-classification":
                self.head = ClassificationHead(width, labels, dropout=dropout)

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        labels: Any = None,
        *,
        targets: Any = None,
        cache: KVCache | None = None,
        document_ids: Any = None,
        prefix: Any = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool = False,
        return_tensors: TensorFormat | str | None = None,
    ) -> Output:
        """One pass. All inputs may be torch, TensorFlow, JAX or NumPy tensors, or lists.

        Args:
            input_ids: `[batch, time]`; with a cache only the new tokens.
            attention_mask: `[batch, time]`, non-zero where a token is real; not together with a cache.
            position_ids: `[batch|1, time]`; counted from 0, or from what the cache holds, when left out.
            labels: for the loss; `[batch, time]` as `input_ids` (shifted here; -100 counts for nothing), or what
                `classification_loss` takes for a sequence classifier.
            targets: `[batch, time]`, what each position is to predict (not shifted; -100: nothing is asked). The loss
                is then a sum, and there are no logits: the head sees only what is asked for.
            cache: keys and values of earlier tokens; the new ones are added to it.
            document_ids: `[batch, time]`, when several texts are packed in a row.
            prefix: `[batch, time]`, non-zero where a token is of a prefix, which is read in both directions; with a
                cache only while that is empty.
            logits_to_keep: only for the last so many positions (0: all), or for one position of each row, `[batch]`.
            output_hidden_states: also give every layer's states.
            return_tensors: give pt, tf, jax or np; torch with its gradients when left out.

        Raises:
            InputError: ids outside the vocabulary, or more tokens than `max_positions`.
        """
        ids = self.ids(input_ids)
        wanted = read_targets(self, targets, labels, ids)
        time = ids.shape[1]
        held: Beginning | KVCache | None = cache
        if cache is None and self.prompt is not None:
            held = Beginning(self.prompt(self))
        offset = 0 if held is None else held.offset
        end = time if held is None else held.filled + time
        if position_ids is None and end > self.config.max_positions:
            raise InputError(
                f"{end} tokens are more than the {self.config.max_positions} this model can read",
                where="input_ids",
                mend="shorten the text or generate fewer tokens",
            )
        positions = self.indices(position_ids, "position_ids", self.config.max_positions)
        if positions is None:
            steps = torch.arange(time, device=ids.device)[None]
            positions = steps + (offset[:, None] if isinstance(offset, Tensor) else offset)
        elif isinstance(held, Beginning):
            positions = positions + held.filled
        real = self.real(attention_mask, ids)
        keep: list[Tensor] | None = [] if output_hidden_states else None
        mask = self._mask(ids, end, offset, real, document_ids, prefix)
        x = self.states(ids, positions=positions, mask=mask, cache=held, keep=keep)
        if wanted is not None:
            output = Output(loss=summed_loss(self.head, x, wanted))
        else:
            output = self._answer(x, ids, real, None if labels is None else to_torch(labels), logits_to_keep)
        output.hidden_states = None if keep is None else tuple(keep)
        return output.converted(return_tensors)

    def states(
        self,
        ids: Tensor,
        *,
        positions: Tensor,
        mask: Mask | Sequence[Mask],
        cache: Cache | None = None,
        keep: list[Tensor] | None = None,
    ) -> Tensor:
        """What enters the head, `[batch, time, dim]`, where each token stands and what it sees are said in full.

        Args:
            ids: `[batch, time]`, checked already.
            positions: `[batch|1, time]`.
            mask: in all layers or in each; over the keys of the cache and the new ones.
            cache: keys and values of earlier tokens; the new ones are added to it.
            keep: collects every layer's states.
        """
        x = self.embeddings(ids, positions=positions)
        rotation = self._rotation(positions, x.dtype)
        return self.decoder(x, mask=mask, rotation=rotation, cache=cache, keep=keep)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """A cache for `batch` rows of up to `capacity` tokens, that holds nothing but the prompt."""
        config = self.config
        with torch.no_grad():
            begun = Beginning([] if self.prompt is None else self.prompt(self))
        cache = KVCache(
            config.num_layers,
            batch,
            config.num_kv_heads,
            begun.filled + capacity,
            config.head_dim,
            dtype=self.dtype,
            device=self.device,
        )
        for index, (keys, values) in enumerate(begun.layers):
            cache.keys[index, :, :, : begun.filled] = keys
            cache.values[index, :, :, : begun.filled] = values
        cache.advance(begun.filled)
        return cache

    def begin(self, vectors: Tensor) -> list[KeysValues]:
        """What each layer keeps of vectors `[time, dim]` that stand in place of a text's first tokens."""
        steps = torch.arange(len(vectors), device=vectors.device)[None]
        x = self.embeddings.placed(vectors[None], positions=steps)
        recorder = Recorder()
        mask = self._mask(steps, len(vectors), 0, None, None, None)
        self.decoder(x, mask=mask, rotation=self._rotation(steps, x.dtype), cache=recorder)
        return [recorder.layers[index] for index in range(len(recorder.layers))]

    def open_session(self, *, batch: int, capacity: int, prefix: Any = None) -> Any:
        """A `Session` of the reference engine."""
        return FUNCTIONS["torch-session"](self, capacity=capacity, prefix=prefix)

    def open_scorer(self, *, prefix: Sequence[int]) -> Any:
        """A `Scorer` of the reference engine."""
        return FUNCTIONS["torch-scorer"](self, prefix)

    def read_prefix(self, ids: Sequence[int]) -> Any:
        """What prompts begin with, read once, for sessions of the reference engine."""
        return FUNCTIONS["torch-prefix"](self, ids)

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation | list[Rotation] | None:
        """How queries and keys are turned: one rotation for all layers, or one for each."""
        if not isinstance(self.rotary, nn.ModuleList):
            return None if self.rotary is None else self.rotary(positions, dtype)
        layers = list(self.rotary)  # once: while a graph is traced, each look gives other objects
        made = {each: each(positions, dtype) for each in dict.fromkeys(layers)}
        return [made[each] for each in layers]

    def _mask(
        self, ids: Tensor, keys: int, offset: int | Tensor, real: Tensor | None, document_ids: Any, prefix: Any
    ) -> Mask | list[Mask]:
        """What each token sees: one mask for all layers, or one for each."""
        windows = getattr(self.config, "windows", None)
        documents = None if document_ids is None else document_mask(to_torch(document_ids).to(ids.device))
        if documents is not None and documents.allowed is not None and keys > ids.shape[1]:
            documents = Mask(allowed=functional.pad(documents.allowed, (keys - ids.shape[1], 0), value=True))
        of_prefix = None if prefix is None else to_torch(prefix).to(ids.device)
        if of_prefix is not None and (of_prefix.shape != ids.shape or keys != ids.shape[1]):
            what = f"shape {list(of_prefix.shape)} is not that of the {keys} tokens that are read"
            raise InputError(what, where="prefix", mend="give the prefix with the first tokens only")

        def windowed(window: int | None) -> Mask:
            mask = causal_mask(ids.shape[1], keys, offset=offset, window=window, prefix=of_prefix, device=ids.device)
            if real is not None:
                mask = mask & padding_mask(functional.pad(real, (keys - real.shape[1], 0), value=1))
            return mask if documents is None else mask & documents

        if windows is None:
            return windowed(getattr(self.config, "window", None))
        made = {window: windowed(window) for window in dict.fromkeys(windows)}
        return [made[window] for window in windows]

    def _answer(
        self, x: Tensor, ids: Tensor, real: Tensor | None, labels: Tensor | None, logits_to_keep: int | Tensor
    ) -> Output:
        if self.head is None:
            return Output(last_hidden_state=x)
        if self.head_name == "sequence-classification":
            if real is None:
                pad = self.config.pad_token_id
                real = torch.ones_like(ids) if pad is None else ids != pad
            x = x[torch.arange(x.shape[0], device=x.device), last_real(real)]
        elif isinstance(logits_to_keep, Tensor):
            x = x[torch.arange(x.shape[0], device=x.device), logits_to_keep][:, None]
        elif logits_to_keep:
            x = x[:, -logits_to_keep:]
        logits = self.head(x)
        return Output(loss=None if labels is None else LOSSES[self.head_name](logits, labels), logits=logits)
