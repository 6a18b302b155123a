"""The distribution that tokens are drawn from, the draws themselves, and penalties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tsumugu.generation.options import GenerationOptions
from tsumugu.generation.sampling import NUCLEUS, Sampler, distribution, draw


def spread_out(logits: np.ndarray, options: GenerationOptions) -> np.ndarray:
    """Probabilities over the whole vocabulary, `[rows, vocab]`."""
    probabilities, ids = distribution(logits, options)
    if ids is None:
        return probabilities
    out = np.zeros(logits.shape)
    np.put_along_axis(out, ids, probabilities, axis=-1)
    return out


def reference(logits: np.ndarray, options: GenerationOptions) -> np.ndarray:
    """The same by the reference library's chain of processors."""
    chain = LogitsProcessorList()
    if options.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        chain.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1.0:
        chain.append(TopPLogitsWarper(options.top_p))
    if options.min_p > 0.0:
        chain.append(MinPLogitsWarper(options.min_p))
    scores = chain(torch.zeros(len(logits), 1, dtype=torch.long), torch.from_numpy(logits).double())
    found: np.ndarray = scores.softmax(-1).numpy()
    return found


def normal(rows: int, vocab: int, *, std: float = 3.0, seed: int = 0) -> np.ndarray:
    found: np.ndarray = (np.random.default_rng(seed).standard_normal((rows, vocab)) * std).astype(np.float32)
    return found


@pytest.mark.parametrize("vocab", [1, 2, 50, 3000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 7, 10_000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 0.999999])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.6])
def test_distribution(vocab: int, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    options = GenerationOptions(do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = normal(6, vocab)
    assert np.abs(spread_out(logits, options) - reference(logits, options)).max() <= 1e-6


def test_a_nucleus_larger_than_what_is_sorted_first() -> None:
    """Nearly even logits: most of the vocabulary is in the nucleus."""
    logits = normal(3, 4 * NUCLEUS, std=0.01)
    logits[1] *= 1000
    options = GenerationOptions(do_sample=True, top_p=0.9)
    found = spread_out(logits, options)
    assert (found[0] > 0).sum() > NUCLEUS
    assert (found[1] > 0).sum() < NUCLEUS
    assert np.abs(found - reference(logits, options)).max() <= 1e-6


numbers = st.floats(-60, 60, width=32)


@settings(deadline=None, max_examples=150)
@given(
    rows=st.integers(1, 4).flatmap(
        lambda count: st.integers(1, 12).flatmap(
            lambda vocab: st.lists(
                st.lists(st.one_of(numbers, numbers, st.just(float("-inf"))), min_size=vocab, max_size=vocab).filter(
                    lambda row: max(row) > float("-inf")
                ),
                min_size=count,
                max_size=count,
            )
        )
    ),
    temperature=st.one_of(st.just(1.0), st.floats(1e-308, 100.0)),
    top_k=st.integers(0, 15),
    top_p=st.one_of(st.just(0.0), st.just(1.0), st.floats(0.0, 1.0)),
    min_p=st.one_of(st.just(0.0), st.just(1.0), st.floats(0.0, 1.0)),
    uniform=st.one_of(st.just(0.0), st.just(1 - 2.0**-53), st.floats(0.0, 1.0, exclude_max=True)),
)
def test_odd_shapes(
    rows: list[list[float]], temperature: float, top_k: int, top_p: float, min_p: float, uniform: float
) -> None:
    """Whatever is asked, it is a distribution over tokens that may occur, and the draw is one of them."""
    logits = np.array(rows, dtype=np.float32)
    options = GenerationOptions(do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    with np.errstate(all="raise", under="ignore"):
        found = spread_out(logits, options)
        tokens = draw(logits, options, np.full(len(rows), uniform))
    assert np.abs(found.sum(-1) - 1.0).max() <= 1e-9
    assert (found >= 0).all()
    assert (found[logits == -np.inf] == 0).all()
    every = np.arange(len(rows))
    # Probabilities, not logits, are compared: logits that differ in the last bit may round to one probability.
    assert (found[every, logits.argmax(-1)] == found.max(-1)).all(), "the likeliest token always may occur"
    assert (found[every, tokens] > 0).all()
    if top_k:
        assert ((found > 0).sum(-1) <= top_k).all()
    if top_p == 0.0 or min_p == 1.0:
        assert (found[every, tokens] == found.max(-1)).all()


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.7}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 9, "top_p": 0.9, "min_p": 0.02}],
    ids=str,
)
def test_draws_follow_the_distribution(options: dict[str, Any]) -> None:
    """A chi-square test over 20,000 draws of a fixed seed, and no draw of what has no probability."""
    count, vocab = 20_000, 12
    asked = GenerationOptions(do_sample=True, seed=1, **options)
    logits = np.repeat(normal(1, vocab, std=1.0), count, axis=0)
    tokens = draw(logits, asked, np.random.default_rng(5).random(count))
    probabilities = reference(logits[:1], asked)[0]
    observed = np.bincount(tokens, minlength=vocab)
    assert (observed[probabilities == 0] == 0).all()
    possible = probabilities > 0
    assert stats.chisquare(observed[possible], probabilities[possible] * count).pvalue > 0.01


def test_seeds_give_even_and_independent_draws() -> None:
    """Over steps of one text, over texts of one prompt, and over seeds."""
    options = GenerationOptions(do_sample=True, seed=11, max_new_tokens=2000)
    steps = Sampler(options, [[1]] * 3, [0, 1, 2], 4).draws
    assert steps is not None
    seeds = np.array(
        [Sampler(options.replace(seed=seed), [[1]], [0], 4).draws[0, 0] for seed in range(500)]  # type: ignore[index]
    )
    for sample in (*steps, steps[:, ::50].ravel(), seeds):
        assert stats.kstest(sample, "uniform").pvalue > 0.01 / 5  # five looks
    assert np.abs(np.corrcoef(steps) - np.eye(3)).max() < 0.08


def test_a_text_is_drawn_by_its_number_whatever_else_is_in_the_batch() -> None:
    options = GenerationOptions(do_sample=True, seed=3, max_new_tokens=4, num_return_sequences=2)
    logits = normal(4, 30)
    together = Sampler(options, [[1]] * 4, [0, 1, 0, 1], 30)
    for step in range(4):
        if step == 2:
            together.select(np.array([0, 3]))
            logits = logits[[0, 3]]
        tokens = together.pick(logits, step)
        for row, number in enumerate([0, 1, 0, 1] if step < 2 else [0, 1]):
            alone = Sampler(options, [[1]], [number], 30)
            assert alone.pick(logits[row : row + 1], step)[0] == tokens[row]


def test_repetition_penalty() -> None:
    prompts = [[1, 4, 4], [0, 2, 9]]
    logits = normal(2, 10)
    for penalty in (1.5, 0.5):
        sampler = Sampler(GenerationOptions(repetition_penalty=penalty), prompts, [0, 0], 10)
        wanted = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(prompts), torch.from_numpy(logits)).numpy()
        assert np.abs(sampler.adjusted(logits, 0) - wanted).max() <= 1e-6


def test_all_penalties_by_hand() -> None:
    """Frequency and presence count what was written, not the prompt; repetition counts both."""
    options = GenerationOptions(repetition_penalty=1.2, frequency_penalty=0.4, presence_penalty=0.25)
    prompts, vocab = [[1, 2], [3, 3]], 8
    sampler = Sampler(options, prompts, [0, 0], vocab)
    written: list[list[int]] = [[], []]
    for step in range(12):
        logits = normal(2, vocab, std=1.0, seed=step % 3)
        wanted = logits.astype(np.float64)
        for row in range(2):
            for token in range(vocab):
                value = float(logits[row, token])
                if token in prompts[row] or token in written[row]:
                    value = value * 1.2 if value < 0 else value / 1.2
                count = written[row].count(token)
                wanted[row, token] = value - 0.4 * count - (0.25 if count else 0.0)
        before = logits.copy()
        assert np.abs(sampler.adjusted(logits, step) - wanted).max() <= 1e-6
        tokens = sampler.pick(logits, step)
        assert np.array_equal(logits, before), "the logits belong to the session"
        assert tokens.tolist() == wanted.argmax(-1).tolist()
        for row in range(2):
            written[row].append(int(tokens[row]))
    assert max(max(each.count(token) for token in each) for each in written) > 1


def test_no_end_before_min_new_tokens() -> None:
    options = GenerationOptions(min_new_tokens=2, eos_token_id=(3, 5))
    sampler = Sampler(options, [[1]], [0], 6)
    logits = np.array([[0, 0, 0, 9, 0, 8]], dtype=np.float32)
    for step in range(2):
        assert sampler.adjusted(logits, step)[0].tolist() == [0, 0, 0, -np.inf, 0, -np.inf]
    assert sampler.adjusted(logits, 2) is logits


def test_an_end_outside_the_vocabulary_never_comes() -> None:
    sampler = Sampler(GenerationOptions(min_new_tokens=2, eos_token_id=50256), [[1]], [0], 6)
    assert sampler.pick(normal(1, 6), 0) == normal(1, 6).argmax()


def test_temperature_zero_is_greedy() -> None:
    sampler = Sampler(GenerationOptions(do_sample=True, temperature=0.0), [[1]] * 5, [0] * 5, 9)
    logits = normal(5, 9)
    assert sampler.pick(logits, 0).tolist() == logits.argmax(-1).tolist()


def test_of_equal_logits_the_smaller_id_comes_first() -> None:
    logits = np.zeros((2, 50), dtype=np.float32)
    logits[1, 40:] = 1.0
    for count in (1, 2, 7):
        options = GenerationOptions(do_sample=True, top_k=count)
        _, ids = distribution(logits, options)
        assert ids is not None
        assert ids.tolist() == [list(range(count)), list(range(40, 40 + count))]
