"""Guessed tokens change nothing but how many steps a text takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.engines.conftest import build, tokenizer  # noqa: F401  (fixtures)

import tsumugu as tg
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.engines.native.library import load_library
from tsumugu.generation.sampling import distribution
from tsumugu.generation.speculative import PromptLookup


@pytest.fixture(scope="module", params=["torch", "onnx", "native"])
def models(request: pytest.FixtureRequest, build: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: F811
    """A model and a draft of the same vocabulary, on each engine."""
    if request.param == "native":
        try:
            load_library()
        except ConfigError as error:
            pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSUMUGU_HOME", str(folder / "home"))
        made = []
        for name, seed in (("model", 0), ("draft", 0), ("other", 1)):
            network = build("llama", num_kv_heads=2, seed=seed, max_positions=256)
            if name == "draft":  # much like the model, and yet not the same
                with torch.no_grad():
                    for parameter in network.parameters():
                        parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
            tg.save_model(network, folder / name)
            made.append(tg.load_model(folder / name, engine=request.param))
    return made


OPTIONS = [
    {},
    {"do_sample": True, "temperature": 0.7, "seed": 5},
    {"top_k": 9, "seed": 1, "num_return_sequences": 2},
    {"repetition_penalty": 1.3},
    {"eos_token_id": (3, 7, 11, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40)},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_text_is_the_same(models: Any, options: dict[str, Any]) -> None:
    model, draft, other = models
    prompts = [[5, 17, 3, 88, 5, 17, 3], [9, 9, 9, 9], [60, 2, 61]]
    plain = tg.generate(model, prompts, max_new_tokens=24, **options)
    for guessing in ({"prompt_lookup": 4}, {"draft": draft}, {"draft": other, "draft_tokens": 3}):
        assert tg.generate(model, prompts, max_new_tokens=24, **options, **guessing) == plain
    streamed = list(tg.generate(model, prompts[0], max_new_tokens=24, stream=True, **{**options, "prompt_lookup": 3}))
    assert len(streamed) >= 1


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.lists(st.integers(0, 6), min_size=1, max_size=40), count=st.integers(1, 9), tokens=st.integers(1, 30))
def test_any_prompt_any_guess(models: Any, prompt: list[int], count: int, tokens: int) -> None:
    model = models[0]
    plain = tg.generate(model, prompt, max_new_tokens=tokens)
    assert tg.generate(model, prompt, max_new_tokens=tokens, prompt_lookup=count) == plain


def test_stop_strings_and_shapes(models: Any, tokenizer: Any) -> None:  # noqa: F811
    model, draft, _ = models
    for options in ({"stop_strings": ("a", "e")}, {"regex": "[a-c]{4,9}(x|y)"}, {"json_schema": {"type": "boolean"}}):
        plain = tg.generate(model, [65, 66, 67, 65, 66], tokenizer=tokenizer, max_new_tokens=30, **options)
        for guessing in ({"prompt_lookup": 4}, {"draft": draft}):
            found = tg.generate(
                model, [65, 66, 67, 65, 66], tokenizer=tokenizer, max_new_tokens=30, **options, **guessing
            )
            assert found == plain


def test_draws_have_the_distribution_of_the_model(models: Any) -> None:
    """The second token of many texts, with a draft that errs, against its exact probabilities."""
    model, draft, other = models
    if isinstance(model, torch.nn.Module):
        pytest.skip("the same code, several times as slow")
    prompt, count = [5, 17, 3], 400
    for guesser in (draft, other):
        texts = tg.generate(
            model, prompt, max_new_tokens=2, temperature=0.8, seed=9, num_return_sequences=count, draft=guesser
        )
        second = np.array([text[4] for text in texts])
        options = tg.generation.options.GenerationOptions(do_sample=True, temperature=0.8)
        wanted = np.zeros(model.config.vocab_size)
        session = tg.engines.session.open_session(model, batch=1, capacity=5)
        first, _ = distribution(session.start([prompt]), options)
        for token in range(model.config.vocab_size):
            session.forget(np.array([1])) if token else None
            following, _ = distribution(session.extend([[token]]), options)
            wanted += first[0, token] * following[0]
        order = np.argsort(-wanted)
        bins = np.array_split(order, 12)
        seen = [int(np.isin(second, each).sum()) for each in bins]
        assert stats.chisquare(seen, [count * wanted[each].sum() for each in bins]).pvalue > 1e-3


def test_guesses_save_steps(models: Any) -> None:
    """A text that repeats itself takes few passes."""
    model = models[0]
    passes = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def open_session(self, **options: Any) -> Any:
            session = model.open_session(**options)
            extend = session.extend
            session.extend = lambda *given, **more: (passes.append(1), extend(*given, **more))[1]
            return session

    plain = tg.generate(model, [1, 2, 3], max_new_tokens=200, min_new_tokens=200)
    again = tg.generate(Counting(), plain[0][:-60], max_new_tokens=60, min_new_tokens=60, prompt_lookup=8)
    assert again == plain
    assert len(passes) < 60


def test_a_lookup_takes_the_latest_longest_match() -> None:
    guesser = PromptLookup()
    assert guesser.guess([1, 2, 3, 9, 7, 2, 3, 8, 1, 2, 3], 0, 2) == [9, 7]
    assert guesser.guess([2, 3, 9, 5, 2, 3, 8, 6, 2, 3], 0, 2) == [8, 6]
    assert guesser.guess([1, 2, 3], 0, 4) == []
    assert guesser.guess([4, 4, 4], 0, 4) == [4]


def test_what_cannot_be_guessed_is_said(models: Any, build: Callable[..., Any]) -> None:  # noqa: F811
    with pytest.raises(InputError, match="a draft with 99 tokens"):
        tg.generate(models[0], [1, 2], draft=build("llama", vocab_size=99))
    with pytest.raises(ConfigError, match="beams"):
        tg.generate(models[0], [1, 2], num_beams=2, prompt_lookup=2)
    with pytest.raises(InputError, match="beams"):
        tg.generate(models[0], [1, 2], num_beams=2, draft=models[1])
