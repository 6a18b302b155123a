"""Texts of encoder-decoders: the reference library's tokens, every one, and none that depends on how it is computed."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tests.generation.conftest import cut, left_padded, prompts, right_padded
from tests.models import references
from torch.nn import functional
from transformers import PreTrainedModel

import tsumugu as tg
from tsumugu.core.errors import InputError
from tsumugu.core.registry import FAMILIES
from tsumugu.core.tensors import convert_tensor, format_of, to_numpy
from tsumugu.engines.session import open_session
from tsumugu.generation.options import GenerationOptions
from tsumugu.generation.sampling import distribution
from tsumugu.models.encoder_decoder import EncoderDecoder

CASES = tuple(case for case in references.CASES if case.split()[0] in ("t5", "mt5", "umt5"))
SOME = ("t5 plain", "t5 v1.1 wide heads untied", "umt5 three layers")
START = 1
ENDS = [7, 11, 60, 61, 80, 81, 90]
ROWS = prompts(5, 5, 5, 5)
RAGGED = prompts(9, 3, 1, 6, seed=3)


class Pair(NamedTuple):
    """One network twice."""

    ours: EncoderDecoder
    theirs: PreTrainedModel


@pytest.fixture(scope="module")
def pairs() -> Callable[[str], Pair]:
    """A case of `references` -> the two, with no end token of their own."""

    @functools.cache
    def made(case: str) -> Pair:
        theirs = references.reference(case, "seq2seq-lm")
        theirs.config.eos_token_id = theirs.generation_config.eos_token_id = None
        family = FAMILIES[case.split()[0]]
        config = family.from_hub(json.loads(theirs.config.to_json_string()))
        if case.endswith("untied"):
            config = config.replace(tie_embeddings=False)
        ours = family.build(config, "seq2seq-lm").eval()
        ours.load_state_dict(ours.keymap.to_ours(theirs.state_dict()), strict=False)
        ours.tie()
        return Pair(ours, theirs)

    return made


def cacheable(theirs: PreTrainedModel) -> bool:
    """Its cache has as many layers as the encoder, and breaks where the decoder has more."""
    return bool(theirs.config.num_decoder_layers <= theirs.config.num_layers)


def ours_new(pair: Pair, rows: list[list[int]], ends: list[int] | None, **options: Any) -> list[list[int]]:
    """Our texts; each begins with the start token, and nothing of the prompt is in them."""
    found = tg.generate(pair.ours, rows, eos_token_id=ends, **options)
    assert all(text[0] == START for text in found)
    return [text[1:] for text in found]


def theirs_new(pair: Pair, rows: list[list[int]], ends: list[int] | None, **options: Any) -> list[list[int]]:
    """The reference library's."""
    ids, mask = right_padded(rows)
    options = {"do_sample": False, "pad_token_id": references.PAD, "eos_token_id": ends, **options}
    options["use_cache"] = cacheable(pair.theirs)
    with torch.no_grad():
        out = pair.theirs.generate(ids, attention_mask=mask, **options)
    assert (out[:, 0] == START).all()
    return [cut(row, ends or []) for row in out[:, 1:].tolist()]


@pytest.mark.parametrize("case", CASES)
def test_greedy_and_beams(case: str, pairs: Any) -> None:
    pair = pairs(case)
    lengths = set()
    for options in (
        {"max_new_tokens": 20},
        {"max_new_tokens": 14, "repetition_penalty": 1.3, "min_new_tokens": 4},
        {"max_new_tokens": 12, "num_beams": 3, "num_return_sequences": 3},
        {"max_new_tokens": 10, "num_beams": 4, "length_penalty": 0.5, "early_stopping": True},
    ):
        for rows, ends in ((ROWS, None), (RAGGED, ENDS)):
            found = ours_new(pair, rows, ends, **options)
            assert found == theirs_new(pair, rows, ends, **options)
            lengths |= set(map(len, found))
    assert len(lengths) > 2, "no text ended early"


@pytest.mark.parametrize("case", CASES)
def test_what_is_drawn_from(case: str, pairs: Any) -> None:
    """Along a text that the reference library drew, each step has its probabilities."""
    pair = pairs(case)
    shape = {"temperature": 1.3, "top_k": 20, "top_p": 0.9}
    torch.manual_seed(1)
    ids, mask = right_padded(RAGGED)
    with torch.no_grad():
        drawn = pair.theirs.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            use_cache=cacheable(pair.theirs),
            max_new_tokens=12,
            pad_token_id=references.PAD,
            output_scores=True,
            return_dict_in_generate=True,
            **shape,
        )
    options = GenerationOptions(do_sample=True, **shape)
    session = open_session(pair.ours, batch=len(RAGGED), capacity=13)
    logits = session.start(RAGGED)
    for step, scores in enumerate(drawn.scores):
        wanted = functional.softmax(scores.double(), -1).numpy()
        found = np.zeros_like(wanted)
        probabilities, candidates = distribution(logits, options)
        assert candidates is not None
        np.put_along_axis(found, candidates, probabilities, -1)
        assert np.abs(found - wanted).max() <= 1e-5
        logits = session.step(drawn.sequences[:, step + 1].numpy())


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalised": {"repetition_penalty": 1.3, "frequency_penalty": 0.3, "presence_penalty": 0.2},
    "sampled": {"do_sample": True, "seed": 5, "temperature": 1.2},
    "sampled, several": {"do_sample": True, "seed": 7, "num_return_sequences": 3, "top_p": 0.9},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", SOME)
def test_batched_is_single_and_padding_is_nothing(case: str, way: str, pairs: Any) -> None:
    model = pairs(case).ours
    options = {"eos_token_id": ENDS, "max_new_tokens": 14, **WAYS[way]}
    together = tg.generate(model, RAGGED, **options)
    assert together == [text for prompt in RAGGED for text in tg.generate(model, [prompt], **options)]
    for padded in (left_padded(RAGGED), right_padded(RAGGED)):
        found = tg.generate(model, *padded, pad_token_id=98, **options)
        for row, text in zip(found.tolist(), together, strict=True):
            assert row == text + [98] * (len(row) - len(text))


@pytest.mark.parametrize("case", SOME)
def test_cached_is_uncached(case: str, pairs: Any) -> None:
    """Each token is the argmax of a whole forward pass, the encoder's included."""
    model = pairs(case).ours
    for prompt, text in zip(RAGGED, tg.generate(model, RAGGED, eos_token_id=None, max_new_tokens=20), strict=True):
        written = [START]
        with torch.no_grad():
            for _ in range(20):
                written.append(int(model([prompt], decoder_input_ids=[written]).logits[0, -1].argmax()))
        assert text == written


@pytest.mark.parametrize("case", SOME)
def test_rows_change_places_and_leave(case: str, pairs: Any) -> None:
    """After any selection every row goes on with its own text and its own prompt."""
    model = pairs(case).ours
    generator = np.random.default_rng(0)
    session = open_session(model, batch=8, capacity=16)
    logits = session.start(RAGGED)
    rows = [(number, [START]) for number in range(len(RAGGED))]
    for chosen in ([0, 0, 1, 1, 2, 3], [1, 0, 3, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 2, 5], [1], [0, 0]):
        session.select(np.array(chosen))
        rows = [rows[each] for each in chosen]
        tokens = generator.integers(4, 99, len(rows))
        rows = [(number, [*text, int(token)]) for (number, text), token in zip(rows, tokens, strict=True)]
        logits = session.step(tokens)
        for (number, text), found in zip(rows, logits, strict=True):
            with torch.no_grad():
                wanted = model([RAGGED[number]], decoder_input_ids=[text]).logits[0, -1].numpy()
            assert np.abs(found - wanted).max() <= 1e-5


@pytest.mark.parametrize("kind", ["pt", "np", "jax", "tf"])
def test_tensors_of_any_kind(kind: str, pairs: Any) -> None:
    model = pairs("t5 plain").ours
    ids, mask = left_padded(RAGGED)
    wanted = tg.generate(model, ids, mask, max_new_tokens=5)
    assert wanted.shape == (4, 6)
    found = model.generate(convert_tensor(ids, kind), attention_mask=convert_tensor(mask, kind), max_new_tokens=5)
    assert format_of(found) == kind
    assert np.array_equal(to_numpy(found), wanted.numpy())


def test_lengths_and_streams(pairs: Any) -> None:
    pair = pairs("t5 plain")
    for length in (2, 6, 13):
        assert ours_new(pair, ROWS, None, max_length=length) == theirs_new(pair, ROWS, None, max_length=length)
    with pytest.raises(InputError, match="1 tokens already"):
        tg.generate(pair.ours, ROWS, max_length=1)
    (long,) = prompts(300)
    (text,) = tg.generate(pair.ours, long, eos_token_id=None, max_new_tokens=40)
    assert len(text) == 41, "relative positions set no limit"
    assert list(tg.generate(pair.ours, long, eos_token_id=None, max_new_tokens=40, stream=True)) == text[1:]


@pytest.mark.parametrize("head", ["base", "encoder"])
def test_only_the_language_model_writes(head: str, pairs: Any) -> None:
    ours = pairs("t5 plain").ours
    model = ours.family.build(ours.config, head).eval()
    with pytest.raises(InputError, match=rf"head '{head}' does not generate text; load it with task='seq2seq-lm'"):
        tg.generate(model, [[5, 6]])
