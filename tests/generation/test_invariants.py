"""What must not depend on how it is computed: batches, caches, padding, tensor kinds, streams, seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.generation.conftest import CONTEXT, Pair, left_padded, prompts, right_padded

import tsumugu as tg
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.core.registry import FAMILIES
from tsumugu.core.tensors import convert_tensor, format_of, to_numpy

RAGGED = prompts(9, 3, 1, 6, seed=3)
ENDS = [7, 11, 60, 61, 80, 81, 90]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalised": {"repetition_penalty": 1.3, "frequency_penalty": 0.3, "presence_penalty": 0.2},
    "sampled": {"do_sample": True, "seed": 5, "temperature": 1.2},
    "sampled, cut": {"do_sample": True, "seed": 6, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    "sampled, several": {"do_sample": True, "seed": 7, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "beams, early": {"num_beams": 4, "early_stopping": True, "length_penalty": 0.5},
}


@pytest.mark.parametrize("way", WAYS)
def test_batched_is_single(pair: Pair, way: str) -> None:
    options = {"eos_token_id": ENDS, "max_new_tokens": 14, **WAYS[way]}
    together = tg.generate(pair.ours, RAGGED, **options)
    alone = [text for prompt in RAGGED for text in tg.generate(pair.ours, [prompt], **options)]
    assert together == alone


def test_cached_is_uncached(pair: Pair) -> None:
    """Each token is the argmax of a forward pass over all before it."""
    for prompt, text in zip(RAGGED, tg.generate(pair.ours, RAGGED, eos_token_id=None, max_new_tokens=20), strict=True):
        ids = list(prompt)
        for _ in range(20):
            with torch.no_grad():
                ids.append(int(pair.ours(torch.tensor([ids])).logits[0, -1].argmax()))
        assert text == ids


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("side", [left_padded, right_padded])
def test_padding_on_either_side_and_lists_are_the_same(pairs: Any, way: str, side: Any) -> None:
    model = pairs("llama grouped").ours
    options = {"eos_token_id": ENDS, "max_new_tokens": 10, **WAYS[way]}
    copies = options.get("num_return_sequences", 1)
    texts = tg.generate(model, RAGGED, **options)
    padded = tg.generate(model, *side(RAGGED), pad_token_id=98, **options)
    for index, text in enumerate(texts):
        new = text[len(RAGGED[index // copies]) :]
        assert padded[index, 9 : 9 + len(new)].tolist() == new
        assert (padded[index, 9 + len(new) :] == 98).all()


@pytest.mark.parametrize("kind", ["pt", "np", "jax", "tf"])
def test_tensors_of_any_kind(pairs: Any, kind: str) -> None:
    model = pairs("gpt2 plain").ours
    ids, mask = left_padded(RAGGED)
    wanted = model.generate(ids, attention_mask=mask, max_new_tokens=5)
    found = tg.generate(model, convert_tensor(ids, kind), convert_tensor(mask, kind), max_new_tokens=5)
    assert format_of(found) == kind
    assert np.array_equal(to_numpy(found), wanted.numpy())
    small = convert_tensor(ids.to(torch.int32), kind)
    assert np.array_equal(to_numpy(tg.generate(model, small, mask, max_new_tokens=5)), wanted.numpy())


def test_one_row_without_a_batch(pairs: Any) -> None:
    model = pairs("gpt2 plain").ours
    wanted = tg.generate(model, [[5, 6, 8]], max_new_tokens=5)
    assert tg.generate(model, [5, 6, 8], max_new_tokens=5) == wanted
    assert tg.generate(model, torch.tensor([5, 6, 8]), max_new_tokens=5).tolist() == wanted
    assert tg.generate(model, [np.int64(5), np.int64(6), np.int64(8)], max_new_tokens=5) == wanted


@pytest.mark.parametrize("way", [each for each in WAYS if "beams" not in each])
def test_streams(pairs: Any, way: str) -> None:
    model = pairs("llama grouped").ours
    options = {"eos_token_id": ENDS, "max_new_tokens": 12, **WAYS[way]}
    copies = options.get("num_return_sequences", 1)
    wanted = [text[len(RAGGED[i // copies]) :] for i, text in enumerate(tg.generate(model, RAGGED, **options))]
    found: list[list[int]] = [[] for _ in wanted]
    for step in tg.generate(model, RAGGED, stream=True, **options):
        for row, token in enumerate(step):
            if token is not None:
                found[row].append(token)
    assert found == wanted
    if copies == 1:
        alone = list(tg.generate(model, RAGGED[0], stream=True, **options))
        assert alone == wanted[0]


def test_a_stream_gives_its_tokens_as_they_come(pairs: Any) -> None:
    stream = tg.generate(pairs("llama grouped").ours, RAGGED[0], stream=True, eos_token_id=None, max_new_tokens=30)
    first = next(stream)
    assert isinstance(first, int)
    stream.close()


def test_seeds(pairs: Any) -> None:
    model = pairs("llama grouped").ours
    options = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 12, "eos_token_id": None}

    def texts(seed: int | None) -> Any:
        return tg.generate(model, RAGGED, seed=seed, **options)

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)
    assert texts(None) != texts(None)
    several = tg.generate(model, RAGGED[0], seed=1, num_return_sequences=4, **options)
    assert len({tuple(each) for each in several}) == 4
    assert several[0] == texts(1)[0]


def test_sampling_leaves_the_global_generators_alone(pairs: Any) -> None:
    state, others = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
    tg.generate(pairs("gpt2 plain").ours, RAGGED, do_sample=True, max_new_tokens=3)
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(others, np.random.get_state()[1])  # type: ignore[index] # noqa: NPY002


def test_generation_stops_where_the_context_ends(pair: Pair) -> None:
    """Each text at its own end, so that a batch is still what its rows are alone."""
    rows = prompts(CONTEXT - 3, CONTEXT - 10, CONTEXT - 1, seed=4)
    texts = tg.generate(pair.ours, rows, eos_token_id=None, max_new_tokens=20)
    assert [len(text) for text in texts] == [CONTEXT] * 3
    assert texts == [tg.generate(pair.ours, row, eos_token_id=None, max_new_tokens=20)[0] for row in rows]
    short = tg.generate(pair.ours, rows[1], eos_token_id=None, max_new_tokens=4)[0]
    assert texts[1][: len(short)] == short


@pytest.mark.parametrize("options", [{}, {"min_new_tokens": 8}], ids=str)
def test_beams_stop_where_the_context_ends(pair: Pair, options: dict[str, Any]) -> None:
    rows = prompts(CONTEXT - 3, CONTEXT - 6, seed=4)
    for row in rows:
        (text,) = tg.generate(pair.ours, row, eos_token_id=None, max_new_tokens=20, num_beams=3, **options)
        assert len(text) == CONTEXT
    together = tg.generate(pair.ours, rows, eos_token_id=None, max_new_tokens=20, num_beams=3, **options)
    assert [len(text) for text in together] == [CONTEXT] * 2
    alone = [tg.generate(pair.ours, row, eos_token_id=None, max_new_tokens=20, num_beams=3)[0] for row in rows]
    assert together == alone


@pytest.mark.parametrize("length", [CONTEXT, CONTEXT + 5])
def test_prompts_that_are_too_long(pair: Pair, length: int) -> None:
    (prompt,) = prompts(length)
    with pytest.raises(InputError, match=f"{length} tokens and the model reads {CONTEXT} at most.*truncation=True"):
        tg.generate(pair.ours, prompt, max_new_tokens=4)
    (text,) = tg.generate(pair.ours, prompt, max_new_tokens=4, truncation=True, eos_token_id=None)
    assert text[:length] == prompt
    (wanted,) = tg.generate(pair.ours, prompt[-CONTEXT + 1 :], max_new_tokens=4, eos_token_id=None)
    assert text[length:] == wanted[CONTEXT - 1 :]


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {}, "there is no prompt"),
        ([[]], {}, "prompt 0 is empty"),
        ([[5], []], {}, "prompt 1 is empty"),
        ([[5, 99]], {}, "token id 99 is outside the vocabulary of 99"),
        ([[5, -1]], {}, "token id -1 is outside"),
        (torch.tensor([[5.0]]), {}, "whole numbers"),
        (torch.zeros(1, 1, 1, dtype=torch.long), {}, "whole numbers"),
        ([[5]], {"attention_mask": [[1, 1]]}, "attention_mask"),
        ([[5, 6]], {"attention_mask": [[0, 0]]}, "prompt 0 is empty"),
        ([[5, 6]], {"max_length": 2}, "2 tokens already"),
        ([[5]], {"stop_strings": "x"}, "stop strings need a tokenizer"),
        ([[5]], {"stream": True, "num_beams": 2}, "beams are known only at the end"),
        ([[5]], {"stream": True, "stop_strings": "x"}, "stop strings need a tokenizer"),
    ],
    ids=str,
)
def test_inputs_that_are_refused(pairs: Any, given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tg.generate(pairs("gpt2 plain").ours, given, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_token": 3}, "did you mean 'max_new_tokens'"),
        ({"max_new_tokens": 0}, "too small"),
        ({"temperature": -1.0}, "too small"),
        ({"top_p": 1.5}, "too large"),
        ({"num_beams": 2, "do_sample": True}, "beams are not drawn"),
        ({"num_beams": 2, "num_return_sequences": 3}, "more than the 2 beams"),
        ({"num_return_sequences": 2, "do_sample": False}, "greedy search finds one text"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "more than max_new_tokens"),
        ({"stop_strings": ["a", ""]}, "empty text would stop everything"),
        ({"num_beams": 2, "stop_strings": "a"}, "stop_strings"),
        ({"eos_token_id": "end"}, "expected int"),
    ],
    ids=str,
)
def test_options_that_are_refused(pairs: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tg.generate(pairs("gpt2 plain").ours, [[5]], **options)


def test_only_decoders_write() -> None:
    for name, head in (("bert", "masked-lm"), ("llama", "base")):
        family = FAMILIES[name]
        config = family.config_class(vocab_size=9, hidden_size=4, num_heads=2, num_layers=1, intermediate_size=4)
        model = family.build(config, head).eval()
        with pytest.raises(InputError, match="does not generate text"):
            tg.generate(model, [[5, 6]])


def test_who_names_an_option_of_drawing_means_drawing(pairs: Any) -> None:
    ours = pairs("llama grouped").ours
    plain = tg.generate(ours, [[5, 6, 7]], max_new_tokens=12)
    drawn = {"max_new_tokens": 12, "seed": 1}
    for options in ({"temperature": 3.0}, {"top_k": 30}, {"top_p": 0.99, "temperature": 3.0}, {"min_p": 0.001}):
        implied = tg.generate(ours, [[5, 6, 7]], **drawn, **options)
        assert implied == tg.generate(ours, [[5, 6, 7]], **drawn, **options, do_sample=True)
        assert tg.generate(ours, [[5, 6, 7]], **drawn, **options, do_sample=False) == plain
    assert len(tg.generate(ours, [[5, 6, 7]], **drawn, num_return_sequences=3)) == 3
    assert tg.generate(ours, [[5, 6, 7]], **drawn, temperature=0.0) == plain
