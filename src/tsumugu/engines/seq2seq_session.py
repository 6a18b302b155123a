"""An encoder-decoder's texts being written on torch: what was read is kept once for a prompt, and asked each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tsumugu.blocks.kv_cache import CrossCache, KVCache
from tsumugu.blocks.mask import EVERYTHING, Mask, padding_mask
from tsumugu.core.errors import InputError
from tsumugu.engines.session import Logits, Rows
from tsumugu.engines.torch_session import as_numpy, padded
from tsumugu.models.encoder_decoder import EncoderDecoder


class Seq2SeqSession:
    """`tsumugu.engines.session.Session` for an `EncoderDecoder`.

    Prompts are padded on the right and the padding is hidden; every text begins with the start token. The keys and
    values of cross-attention are computed once.

    Args:
        model: with a language-modelling head.
        capacity: the longest a text may become, in tokens, the start token included.
    """

    def __init__(self, model: EncoderDecoder, *, capacity: int) -> None:
        if model.head_name != "seq2seq-lm":
            raise InputError(
                f"a model with head {model.head_name!r} does not generate text",
                where="model",
                mend="load it with task='seq2seq-lm'",
            )
        self.model, self.capacity = model, capacity
        self.cache: KVCache | None = None
        self.context: CrossCache | None = None
        self.mask: Mask = EVERYTHING
        self.origins = torch.empty(0, dtype=torch.int64)

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]]) -> Logits:
        """Read prompts; logits `[rows, vocab]` of the first token of each text."""
        model = self.model
        assert model.decoder is not None
        ids, lengths = padded(prompts)
        real = torch.arange(ids.shape[1]) < lengths[:, None]
        real = real.to(model.device)
        self.context = model.decoder.read(model.encode(model.ids(ids), real))
        self.mask = padding_mask(real)
        self.cache = model.new_cache(len(prompts), self.capacity)
        self.origins = torch.arange(len(prompts))
        return self._logits(torch.full((len(prompts), 1), model.config.decoder_start_token_id))

    @torch.inference_mode()
    def step(self, tokens: Rows) -> Logits:
        """Append one token to each row; logits `[rows, vocab]`."""
        return self._logits(torch.from_numpy(tokens)[:, None])

    @torch.inference_mode()
    def select(self, rows: Rows) -> None:
        """Go on with `rows` in that order."""
        assert self.cache is not None, "start comes first"
        assert self.context is not None
        chosen = torch.from_numpy(rows)
        origins = self.origins[chosen]
        self.cache.select(chosen.to(self.model.device))
        # Beams of one prompt change places all the time, but all of them have read the same.
        if not torch.equal(origins, self.origins):
            chosen = chosen.to(self.model.device)
            self.context.select(chosen)
            if self.mask.allowed is not None:
                self.mask = Mask(allowed=self.mask.allowed[chosen])
            self.origins = origins

    def _logits(self, tokens: Tensor) -> Logits:
        assert self.cache is not None, "start comes first"
        assert self.context is not None
        x = self.model.decode(self.model.ids(tokens), self.context, context_mask=self.mask, cache=self.cache)
        return as_numpy(self.model.logits(x))
