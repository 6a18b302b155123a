"""Texts that join and leave are those that they would be alone; what was read once is not read again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engines.conftest import build, tokenizer  # noqa: F401  (fixtures)

import tsumugu as tg
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.engines import onnx_session, prefixes
from tsumugu.engines.native.library import load_library
from tsumugu.engines.session import open_session
from tsumugu.generation.continuous import ContinuousBatch
from tsumugu.generation.options import GenerationOptions


@pytest.fixture(scope="module", params=["torch", "onnx", "native"])
def model(request: pytest.FixtureRequest, build: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: F811
    if request.param == "native":
        try:
            load_library()
        except ConfigError as error:
            pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSUMUGU_HOME", str(folder / "home"))
        tg.save_model(build("llama", num_kv_heads=2, max_positions=128), folder / "model")
        return tg.load_model(folder / "model", engine=request.param)


@pytest.fixture(scope="module", params=["onnx", "native"])
def quick(request: pytest.FixtureRequest, build: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: F811
    """A model that keeps what it has read."""
    if request.param == "native":
        try:
            load_library()
        except ConfigError as error:
            pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("quick")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSUMUGU_HOME", str(folder / "home"))
        tg.save_model(build("llama", num_kv_heads=2, max_positions=512), folder / "model")
        return tg.load_model(folder / "model", engine=request.param)


ASKED = st.fixed_dictionaries(
    {
        "prompt": st.lists(st.integers(0, 259), min_size=1, max_size=60),
        "max_new_tokens": st.integers(1, 12),
        "temperature": st.sampled_from([0.0, 0.9]),
        "after": st.integers(0, 6),
    }
)


@settings(deadline=None, max_examples=12)
@given(asked=st.lists(ASKED, min_size=1, max_size=6), rows=st.integers(1, 3))
def test_each_text_is_the_one_it_would_be_alone(model: Any, asked: list[dict[str, Any]], rows: int) -> None:
    batch = ContinuousBatch(model, rows=rows)
    pending = [dict(each) for each in asked]
    requests: list[Any] = [None] * len(pending)
    for step in range(200):
        for number, each in enumerate(pending):
            if each["after"] == step:
                options = GenerationOptions(
                    max_new_tokens=each["max_new_tokens"],
                    do_sample=each["temperature"] > 0,
                    temperature=each["temperature"],
                    seed=number,
                )
                requests[number] = batch.submit(each["prompt"], options)
        batch.step()
        if step > 6 and not batch:
            break
    for number, (each, request) in enumerate(zip(asked, requests, strict=True)):
        drawn = {"temperature": 0.9, "seed": number} if each["temperature"] else {}
        alone = tg.generate(model, [each["prompt"]], max_new_tokens=each["max_new_tokens"], eos_token_id=(), **drawn)
        assert request.ended
        assert [*request.prompt, *request.tokens] == alone[0]


def test_shapes_stops_and_leaving_early(model: Any, tokenizer: Any) -> None:  # noqa: F811
    batch = ContinuousBatch(model, rows=2, tokenizer=tokenizer)
    shaped = batch.submit([65, 66], GenerationOptions(regex="[ab]{3,40}x", max_new_tokens=12, eos_token_id=259))
    stopped = batch.submit([5, 6, 7], GenerationOptions(stop_strings=("a", "e"), max_new_tokens=40))
    given_up = batch.submit([1, 2], GenerationOptions(max_new_tokens=40))
    never = batch.submit([1, 2], GenerationOptions(max_new_tokens=40))
    batch.cancel(never)
    while batch:
        batch.step()
        if len(given_up.tokens) == 3:
            batch.cancel(given_up)
    for request, options in (
        (shaped, {"regex": "[ab]{3,40}x", "eos_token_id": 259}),
        (stopped, {"stop_strings": ("a", "e")}),
    ):
        most = request.options.max_new_tokens
        alone = tg.generate(model, [request.prompt], tokenizer=tokenizer, max_new_tokens=most, **options)
        assert [*request.prompt, *request.tokens] == alone[0]
    assert (len(given_up.tokens), never.tokens) == (3, [])


def test_what_is_no_request_is_refused(model: Any) -> None:
    batch = ContinuousBatch(model, rows=1, capacity=16)
    with pytest.raises(InputError, match="empty"):
        batch.submit([], GenerationOptions())
    with pytest.raises(InputError, match="one text"):
        batch.submit([1], GenerationOptions(num_beams=2))
    with pytest.raises(InputError, match="16 at most"):
        batch.submit([1] * 16, GenerationOptions())


def read_tokens(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens, with padding, each call of the engine reads from now on."""
    counts: list[int] = []
    if model.interface["kind"] == "decoder":
        read = onnx_session._Run.read
        monkeypatch.setattr(
            onnx_session._Run, "read", lambda run, lengths: (counts.append(run.ids.size), read(run, lengths))
        )
        return counts
    run = model.engine.run
    monkeypatch.setattr(
        model.engine, "run", lambda cache, ids, *rest: (counts.append(len(ids)), run(cache, ids, *rest))
    )
    return counts


def same(model: Any, found: np.ndarray, wanted: np.ndarray) -> bool:
    """Bit for bit on the native engine; on the other a text that is read in other pieces differs by rounding."""
    if model.interface["kind"] == "native":
        return np.array_equal(found, wanted)
    return bool(np.abs(found - wanted).max() <= 1e-4)


def test_a_prompt_is_read_once(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "prefixes", prefixes.Prefixes())
    draw = np.random.default_rng(0)
    prompt = draw.integers(0, 260, 150).tolist()
    first = tg.generate(quick, [prompt], max_new_tokens=40, eos_token_id=())[0]
    counts = read_tokens(quick, monkeypatch)
    assert tg.generate(quick, [prompt], max_new_tokens=40, eos_token_id=())[0] == first
    assert counts[0] == 1, "the last token alone"
    counts.clear()
    longer = [*first, *draw.integers(0, 260, 30).tolist()]
    found = open_session(quick, batch=1, capacity=300).start([longer]).copy()
    assert sum(counts) <= 32, "a conversation goes on where it was"
    quick.prefixes = prefixes.Prefixes()
    assert same(quick, open_session(quick, batch=1, capacity=300).start([longer]), found)


def test_what_a_batch_shares_is_read_once(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "prefixes", prefixes.Prefixes())
    shared = list(range(100, 200))
    prompts = [[*shared, *range(row, row + 3 + row)] for row in range(4)]
    alone = [open_session(quick, batch=1, capacity=128).start([prompt])[0].copy() for prompt in prompts]
    quick.prefixes = prefixes.Prefixes()
    counts = read_tokens(quick, monkeypatch)
    for _ in range(2):
        counts.clear()
        assert same(quick, open_session(quick, batch=4, capacity=128).start(prompts), np.stack(alone))
    assert sum(counts) == sum(len(prompt) - 100 for prompt in prompts)
    counts.clear()
    other = [[1, 2, 3], [4, 5]]
    open_session(quick, batch=2, capacity=128).start(other)
    assert sum(counts) == (5 if quick.interface["kind"] == "native" else 6)


def test_what_is_kept_is_bounded() -> None:
    kept = prefixes.Prefixes(room=40_000)
    array = np.zeros(2_000, np.float32)
    texts = [[number, *range(40)] for number in range(6)]
    for text in texts:
        kept.keep(text, (array, array))
        kept.find(texts[0])
    assert kept.size <= 40_000
    assert kept.find(texts[0])[0] == 41
    assert kept.find(texts[1])[0] == 0
    kept.keep([*texts[0], 9], (array, array))
    assert kept.size <= 40_000
    assert kept.find([*texts[0], 9, 9])[0] == 42


def test_torch_is_asked_without_gradients(model: Any) -> None:
    batch = ContinuousBatch(model, rows=1)
    request = batch.submit([1, 2, 3], GenerationOptions(max_new_tokens=2))
    while batch:
        batch.step()
    assert len(request.tokens) <= 2
    assert not torch.is_inference_mode_enabled()
