"""What encoder-decoder families share: reading one text at once, writing another left to right while looking at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tsumugu.blocks.embeddings import Embeddings
from tsumugu.blocks.heads import IGNORE, LanguageModelHead, cross_entropy
from tsumugu.blocks.kv_cache import CrossCache, KVCache
from tsumugu.blocks.mask import EVERYTHING, Mask, causal_mask, padding_mask
from tsumugu.blocks.positions import RelativePositions
from tsumugu.blocks.stack import Stack
from tsumugu.core.config import Config
from tsumugu.core.errors import InputError
from tsumugu.core.registry import FUNCTIONS
from tsumugu.core.tensors import TensorFormat, to_torch
from tsumugu.models.base import Family, Model, Output
from tsumugu.models.targets import read_targets, summed_loss


class EncoderDecoder(Model):
    """Token ids to read `[batch, time]` and to write `[batch, steps]` -> logits of what is written next.

    With head `base` it gives the decoder's states, with head `encoder` there is no decoder and it gives the encoder's.
    A family hands in its parts; its configuration has `hidden_size`, `vocab_size`, `num_decoder_layers`, `num_heads`,
    `head_dim`, `tie_embeddings`, `decoder_start_token_id` and `pad_token_id`.

    Args:
        embeddings: of both texts.
        encoder, decoder: the two stacks.
        encoder_positions, decoder_positions: relative biases, one for all layers of a stack or one for each.
        output_scale: a factor on what the decoder gives, before the vocabulary.
    """

    def __init__(
        self,
        family: Family,
        config: Config,
        head_name: str,
        *,
        embeddings: Embeddings,
        encoder: Stack,
        encoder_positions: Sequence[RelativePositions],
        decoder: Stack | None,
        decoder_positions: Sequence[RelativePositions],
        output_scale: float = 1.0,
    ) -> None:
        super().__init__(family, config, head_name)
        self.embeddings, self.encoder, self.decoder = embeddings, encoder, decoder
        self.encoder_positions = nn.ModuleList(encoder_positions)
        self.decoder_positions = nn.ModuleList(decoder_positions)
        self.output_scale = output_scale
        self.head: nn.Module | None = None
        if head_name == "seq2seq-lm":
            self.head = LanguageModelHead(self.config.hidden_size, self.config.vocab_size, bias=False)
            if self.config.tie_embeddings:
                self.tied = {"head.weight": "embeddings.token.weight"}
                self.tie()

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        labels: Any = None,
        *,
        targets: Any = None,
        encoder_outputs: Any = None,
        output_hidden_states: bool = False,
        return_tensors: TensorFormat | str | None = None,
    ) -> Output:
        """One pass. All inputs may be torch, TensorFlow, JAX or NumPy tensors, or lists.

        Args:
            input_ids: `[batch, time]`, what is read; not needed with `encoder_outputs`.
            attention_mask: `[batch, time]`, non-zero where a token that is read is real.
            decoder_input_ids: `[batch, steps]`, what was written so far, the start token first; the labels or targets
                shifted right when left out.
            decoder_attention_mask: `[batch, steps]`, non-zero where one of them is real.
            labels: `[batch, steps]`, what should be written; -100 counts for nothing.
            targets: `[batch, steps]`, as `labels`. The loss is then a sum, and there are no logits: the head sees only
                what is asked for.
            encoder_outputs: what was read before: the output of such a pass, its states `[batch, time, dim]`, or a
                tuple that begins with them.
            output_hidden_states: also give every layer's states.
            return_tensors: give pt, tf, jax or np; torch with its gradients when left out.

        Raises:
            InputError: nothing to read or to write, or ids outside the vocabulary.
        """
        due = None if labels is None else to_torch(labels).to(self.device)
        written = None if decoder_input_ids is None else self.ids(decoder_input_ids)
        wanted = read_targets(self, targets, labels, written)
        read: list[Tensor] | None = [] if output_hidden_states else None
        if encoder_outputs is not None:
            states, read = _states(encoder_outputs).to(self.device), None
            real = self.real(attention_mask, states[..., 0])
        elif input_ids is not None:
            ids = self.ids(input_ids)
            real = self.real(attention_mask, ids)
            states = self.encode(ids, real, keep=read)
        else:
            raise InputError("there is nothing to read", where="input_ids", mend="give input_ids or encoder_outputs")
        if self.decoder is None:
            output = Output(last_hidden_state=states, hidden_states=None if read is None else tuple(read))
            return output.converted(return_tensors)
        if written is None:
            right = due if wanted is None else wanted
            if right is None:
                mend = "give decoder_input_ids or labels, or targets"
                raise InputError("there is nothing to write", where="decoder_input_ids", mend=mend)
            written = self.ids(self.shifted(right))
        begun = self.real(decoder_attention_mask, written)
        keep: list[Tensor] | None = [] if output_hidden_states else None
        seen = EVERYTHING if real is None else padding_mask(real)
        x = self.decode(written, states, real=begun, context_mask=seen, keep=keep)
        logits = loss = None
        if wanted is not None:
            loss = summed_loss(self.head, self._scaled(x), wanted)
        elif self.head is not None:
            logits = self.logits(x)
            loss = None if due is None else cross_entropy(logits, due)
        output = Output(
            loss=loss,
            logits=logits,
            last_hidden_state=x if self.head is None else None,
            hidden_states=None if keep is None else tuple(keep),
            encoder_last_hidden_state=states,
            encoder_hidden_states=None if read is None else tuple(read),
        )
        return output.converted(return_tensors)

    def encode(self, ids: Tensor, real: Tensor | None = None, *, keep: list[Tensor] | None = None) -> Tensor:
        """What is read `[batch, time]` -> its states `[batch, time, dim]`; `real` is non-zero where a token is."""
        mask = EVERYTHING if real is None else padding_mask(real)
        time = ids.shape[1]
        return self.encoder(self.embeddings(ids), mask=_biased(mask, self.encoder_positions, time, time), keep=keep)

    def decode(
        self,
        ids: Tensor,
        context: Tensor | CrossCache,
        *,
        real: Tensor | None = None,
        context_mask: Mask = EVERYTHING,
        cache: KVCache | None = None,
        keep: list[Tensor] | None = None,
    ) -> Tensor:
        """What was written `[batch, steps]` -> the decoder's states `[batch, steps, dim]`.

        Args:
            ids: with a cache only the new tokens; all rows are equally long.
            context: what `encode` gave, or what the decoder's `read` made of that.
            real: `[batch, steps]`, non-zero where a token is real; not together with a cache.
            context_mask: which of the tokens that were read are seen.
            cache: keys and values of earlier tokens; the new ones are added to it.
            keep: collects every layer's states.
        """
        assert self.decoder is not None, "this model was built without a decoder"
        steps = ids.shape[1]
        offset = 0 if cache is None else cache.filled
        mask = causal_mask(steps, offset + steps, offset=offset, device=ids.device)
        if real is not None:
            mask = mask & padding_mask(real)
        return self.decoder(
            self.embeddings(ids),
            mask=_biased(mask, self.decoder_positions, steps, offset + steps, offset),
            cache=cache,
            context=context,
            context_mask=context_mask,
            keep=keep,
        )

    def logits(self, x: Tensor) -> Tensor:
        """The decoder's states `[..., dim]` -> logits over the vocabulary `[..., vocab]`."""
        assert self.head is not None, "this model was built without a head"
        return self.head(self._scaled(x))

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.output_scale == 1.0 else x * self.output_scale

    def shifted(self, labels: Tensor) -> Tensor:
        """Labels `[batch, steps]` -> what the decoder has written when each of them is due: the start token first.

        A label that counts for nothing is read as the pad token.
        """
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        ids = labels.roll(1, dims=-1)
        ids[..., 0] = start
        return ids.masked_fill(ids == IGNORE, start if pad is None else pad)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for the decoder of `batch` texts of up to `capacity` tokens."""
        config = self.config
        return KVCache(
            config.num_decoder_layers,
            batch,
            config.num_heads,
            capacity,
            config.head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    def open_session(self, *, batch: int, capacity: int) -> Any:
        """A `Session` of the reference engine."""
        return FUNCTIONS["seq2seq-session"](self, capacity=capacity)


def _biased(mask: Mask, positions: nn.ModuleList, queries: int, keys: int, offset: int = 0) -> Mask | list[Mask]:
    """The mask with the relative bias of all layers, or a list with that of each."""
    masks = [mask.with_bias(each(queries, keys, offset=offset)) for each in positions]
    return masks[0] if len(masks) == 1 else masks


def _states(given: Any) -> Tensor:
    """The encoder's states from whatever form they were given in."""
    if isinstance(given, Output):
        given = given.last_hidden_state if given.encoder_last_hidden_state is None else given.encoder_last_hidden_state
    elif isinstance(given, tuple):
        given = given[0]
    states = to_torch(given)
    if states.dim() != 3:
        raise InputError(f"expected [batch, time, dim], found {list(states.shape)}", where="encoder_outputs")
    return states
