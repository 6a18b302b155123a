"""`tg.quantize`: what is written is read by every engine and by llama.cpp, and nothing half written is left."""

from __future__ import annotations

import copy
import functools
import pydoc_data.topics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engines.conftest import Build
from tests.engines.test_llama_cpp import PROMPTS, behind
from tests.engines.test_onnx_decoders import distance, round_inputs, rounded_matrix

import tsumugu as tg
from tsumugu.checkpoints.load import open_checkpoint
from tsumugu.core.errors import CheckpointError, ConfigError, InputError, TsumuguError
from tsumugu.engines.native.library import load_library
from tsumugu.engines.onnx_weights import Scheme
from tsumugu.engines.session import open_session
from tsumugu.hub.progress import Silent
from tsumugu.quantization.calibrate import calibrated
from tsumugu.quantization.grids import GRIDS
from tsumugu.quantization.texts import calibration_windows
from tsumugu.text.tokenizer import Tokenizer

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_kv_heads": 2}
KINDS = {(8, None): "Q8_0", (4, True): "Q4_0", (4, None): "Q4_1"}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "calibration.txt"
    path.write_text("\n".join(pydoc_data.topics.topics.values())[:60_000], "utf-8")
    return path


@pytest.fixture(params=["llama", "gemma3"])
def source(request: pytest.FixtureRequest, build: Build, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    more: dict[str, Any] = {"llama": {}, "gemma3": {"head_dim": 16, "query_scale": 16.0, "window": 4, "num_layers": 7}}
    model = build(request.param, eos_token_id=259, bos_token_id=259, **SIZES | more[request.param])
    return tg.save_model(model, tmp_path / "model", tokenizer=tokenizer)


@pytest.mark.parametrize(("bits", "symmetric"), KINDS, ids=KINDS.values())
def test_every_engine_computes_with_the_same_numbers(
    bits: int, symmetric: bool | None, source: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSUMUGU_HOME", str(tmp_path / "home"))
    path = tg.quantize(source, tmp_path / "small.gguf", bits=bits, symmetric=symmetric, calibrate=texts, tokens=1024)
    kind = KINDS[bits, symmetric]
    found = {name: each.storage for name, each in open_checkpoint(path).tensors.items()}
    assert {each for name, each in found.items() if ".attn_" in name and "norm" not in name} == {kind}
    assert {each for name, each in found.items() if ".ffn_" in name and "norm" not in name} == {kind}
    assert found["token_embd.weight"] == "Q8_0"
    assert {each for name, each in found.items() if "norm" in name} == {"F32"}
    ids = list(range(3, 40))
    reference, expected = tg.load_model(path), tg.load_model(source)
    windows = calibration_windows(tg.load_tokenizer(source), [texts], tokens=1024, longest=64)
    for name, each in calibrated(expected, windows, GRIDS[kind]).items():  # type: ignore[arg-type]
        assert torch.equal(reference.get_parameter(f"{name}.weight"), each.values()), name
    prompts = [ids[start : start + 9] for start in range(0, 28, 4)]
    wanted = following(reference, prompts)
    for engine in ("native", "onnx") if has_compiler() else ("onnx",):
        assert np.abs(logits(tg.load_model(path, engine=engine), prompts) - wanted).max() <= 1e-4, engine
        found = logits(tg.load_model(path, engine=engine, quantize="auto"), prompts)
        rounded = following(computing_in_8_bits(reference, engine, kind), prompts)
        assert np.median([distance(*each) for each in zip(found, rounded, strict=True)]) <= 1e-5, engine


def computing_in_8_bits(model: Any, engine: str, kind: str) -> Any:
    """torch with what matrices are multiplied with rounded as an engine does, and what it rounds anew of matrices.

    A number on the edge between two may be rounded either way, which layers then enlarge: most texts show none.
    """
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            size = 32
            if engine == "onnx" and kind == "Q4_1" and name != "head":
                size = Scheme.parse("auto", quantized_already=True).group_for(module.in_features, 8)
                module.weight.data = torch.from_numpy(rounded_matrix(engine, module.weight, 8, size))
            module.register_forward_pre_hook(functools.partial(round_inputs, size))
    return model


def following(model: Any, texts: list[list[int]]) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = model(texts).logits[:, -1].numpy()
    return found


def has_compiler() -> bool:
    try:
        load_library()
    except ConfigError:
        return False
    return True


def logits(model: Any, texts: list[list[int]]) -> np.ndarray:
    found: np.ndarray = open_session(model, batch=len(texts), capacity=64).start(texts)
    return found


@pytest.fixture(scope="module")
def beginning(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first layers of real weights."""
    model: Any = tg.load_model(smollm2_path)
    del model.decoder.layers[2:]
    model.config = model.config.replace(num_layers=2)
    folder = tmp_path_factory.mktemp("beginning")
    return tg.save_model(model, folder / "model", tokenizer=tg.load_tokenizer(smollm2_path))


@pytest.mark.weights
@pytest.mark.parametrize("symmetric", [True, False])
def test_llama_cpp_says_the_same(symmetric: bool, beginning: Path, texts: Path, tmp_path: Path) -> None:
    """Within what llama.cpp's 8-bit activations change."""
    path = tg.quantize(beginning, tmp_path / "small.gguf", symmetric=symmetric, calibrate=texts, tokens=512)
    assert max(behind(tg.load_model(path), tg.load_tokenizer(path), path, PROMPTS[:2])) <= 0.25


def test_the_same_twice_and_a_folder(source: Path, texts: Path, tmp_path: Path) -> None:
    one = tg.quantize(source, tmp_path / "one", calibrate=[texts], tokens=256)
    assert one == tmp_path / "one" / "model.gguf"
    two = tg.quantize(source, tmp_path / "two.gguf", calibrate=[texts], tokens=256)
    assert one.read_bytes() == two.read_bytes()
    plain = tg.quantize(source, tmp_path / "plain.gguf")
    assert plain.stat().st_size == one.stat().st_size
    assert plain.read_bytes() != one.read_bytes()
    assert tg.load_model(tmp_path / "one").load_report.fits  # type: ignore[union-attr]


class Interrupting(Silent):
    """The user's Ctrl-C after the first layer."""

    def done(self, count: int) -> None:
        raise KeyboardInterrupt


def test_an_interruption_leaves_nothing(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(KeyboardInterrupt):
        tg.quantize(source, target / "model.gguf", progress=Interrupting())
    assert not target.exists()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"bits": 3}, "3 bits are not known; choose 4 or 8"),
    ({"bits": 8, "symmetric": False}, "groups of 8 bits have no least value"),
    ({"method": "awq"}, "unknown method 'awq'"),
    ({"method": "gptq"}, "gptq needs texts"),
    ({"method": "nearest", "calibrate": "x.txt"}, "nearest reads no texts"),
    ({"calibrate": "nothing.txt"}, "there is no such file"),
    ({"calibrate": "short.txt"}, "2 tokens of text are too few"),
    ({"calibrate": "short.txt", "tokens": 5}, "5 tokens are too few"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[each[1] for each in WRONG])
def test_what_does_not_go_together(
    options: dict[str, Any],
    message: str,
    build: Build,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tg.save_model(build("llama", **SIZES), tmp_path / "model", tokenizer=tokenizer)
    (tmp_path / "short.txt").write_text("ab", "utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TsumuguError, match=message):
        tg.quantize(source, tmp_path / "target" / "small.gguf", **options)
    assert not (tmp_path / "target").exists()


def test_a_family_without_a_gguf_form(build: Build, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = tg.save_model(build("gpt2", hidden_size=64), tmp_path / "model", tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match="the gpt2 family has no GGUF form here; gemma3 and llama have"):
        tg.quantize(source, tmp_path / "small.gguf")


def test_windows_come_evenly_from_all_texts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "{letter * 600}"}}\n' for letter in "abcd"), "utf-8")
    windows = calibration_windows(tokenizer, [tmp_path / "rows.jsonl"], tokens=512, longest=128)
    assert windows.shape == (4, 128)
    assert (windows[:, 0] == tokenizer.bos_token_id).all()
    assert [tokenizer.decode([int(row[64])]) for row in windows] == list("abcd")
    short = calibration_windows(tokenizer, [tmp_path / "rows.jsonl"], tokens=1 << 20, longest=1 << 20)
    assert short.shape[1] == 512
    with pytest.raises(InputError, match="at least 128"):
        calibration_windows(tokenizer, [tmp_path / "rows.jsonl"], tokens=20, longest=128)
