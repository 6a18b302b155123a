"""Stop strings: a text ends with the token that completes one, wherever its pieces lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.engines.conftest import Build

import tsumugu as tg
from tsumugu.text.tokenizer import Tokenizer

OPTIONS = {"max_new_tokens": 40, "do_sample": True, "seed": 4, "temperature": 3.0}


def speaking(build: Build, tokens: list[int]) -> Any:
    """A model that writes nothing but `tokens`: one column of its states is always 1; there all others weigh -100."""
    model = build("gpt2", eos_token_id=None, tie_embeddings=False)
    silent = torch.ones(260, dtype=torch.bool)
    silent[tokens] = False
    with torch.no_grad():
        model.get_parameter("decoder.norm.weight")[0] = 0
        model.get_parameter("decoder.norm.bias")[0] = 1
        model.get_parameter("head.weight")[silent, 0] = -100
    return model


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_stop_strings(width: int, build: Build, tokenizer: Tokenizer) -> None:
    model = speaking(build, tokenizer.convert_tokens_to_ids([*"abcdefghijklmnopqrstuvwxyz.,!?", "the", "an"]))
    prompts = [tokenizer.encode(text) for text in ("the", "and", "once upon")]
    texts = tg.generate(model, prompts, **OPTIONS)
    news = [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
    stops = [tokenizer.decode(new[start : start + width]) for new in news for start in (0, 4, 11, 20, 33)]
    for chosen in [[each] for each in stops] + [stops[:2], stops[3:9]]:
        found = tg.generate(model, prompts, tokenizer=tokenizer, stop_strings=chosen, **OPTIONS)
        for prompt, new, text in zip(prompts, news, found, strict=True):
            counts = range(1, len(new) + 1)
            ends = [n for n in counts if any(stop in tokenizer.decode(new[:n]) for stop in chosen)]
            assert text == prompt + new[: min(ends, default=len(new))]


def test_characters_of_several_tokens(build: Build, tokenizer: Tokenizer) -> None:
    """A stop string whose bytes come one by one is found with its last, and not before."""
    first, last = tokenizer.encode("é")
    (letter,) = tokenizer.encode("a")
    model = speaking(build, [first, last, letter])
    prompts = [tokenizer.encode(text) for text in ("the", "and", "once upon", "a hand")]
    whole = tg.generate(model, prompts, **OPTIONS)
    found = tg.generate(model, prompts, tokenizer=tokenizer, stop_strings="éa", **OPTIONS)
    for prompt, text, cut in zip(prompts, whole, found, strict=True):
        new = text[len(prompt) :]
        ends = [i + 3 for i in range(len(new) - 2) if new[i : i + 3] == [first, last, letter]]
        assert cut == prompt + new[: min(ends, default=len(new))]
    assert found != whole, "the case is tried"
