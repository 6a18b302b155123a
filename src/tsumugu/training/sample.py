"""A text written by the model in training, to be read by whoever looks on."""

from __future__ import annotations

from typing import Any

from tsumugu.core.errors import TsumuguError
from tsumugu.generation.generate import beginnings, complete, fitting, resolve_options
from tsumugu.models.base import Model
from tsumugu.text.tokenizer import Tokenizer


def write_sample(
    model: Model, tokenizer: Tokenizer, prompt: str, *, new_tokens: int, temperature: float, seed: int
) -> str:
    """What follows a prompt; the same for the same weights and seed. An empty prompt begins a text."""
    ids = tokenizer.encode(prompt, add_special_tokens=False) if prompt else []
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if model.head_name == "causal-lm" and begin is not None:
        ids = [begin, *ids]
    options: dict[str, Any] = {"max_new_tokens": new_tokens, "do_sample": temperature > 0, "seed": seed % (1 << 31)}
    if temperature > 0:
        options["temperature"] = temperature
    if model.head_name == "causal-lm":
        options["max_new_tokens"] = max(1, min(new_tokens, model.config.max_positions - len(ids)))
    try:
        given = fitting(ids or [0], model.config.max_positions, True)
        written = complete(model, [given], resolve_options(model, beginnings(model, [given]), options), tokenizer)[0]
    except TsumuguError as error:
        return f"({error})"
    return tokenizer.decode(list(written), skip_special_tokens=True)
