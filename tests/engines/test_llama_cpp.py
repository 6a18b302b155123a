"""What we write as GGUF, llama.cpp reads, and says what we say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import tsumugu as tg
from tsumugu.models.base import Model
from tsumugu.text.tokenizer import Tokenizer

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived",
    "def fibonacci(n):\n    ",
    "Water boils at",
    "The three most important things in life are",
]
TOKENS = 16

CHILD = """
import json, sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.warmup, params.n_gpu_layers, params.cpuparams.n_threads = 1024, False, 0, 1
params.n_parallel = 1
server = xllamacpp.Server(params)
for prompt in json.loads(sys.argv[2]):
    asked = {"prompt": prompt, "max_tokens": int(sys.argv[3]), "temperature": 0, "cache_prompt": False, "logprobs": 1}
    answer = server.handle_completions(asked)["choices"][0]
    print("\\n@" + json.dumps([each["id"] for each in answer["logprobs"]["content"]]))
"""


def llama_cpp(path: Path, prompts: Sequence[str] = PROMPTS) -> list[list[int]]:
    """The tokens of the greedy continuation of each prompt by llama.cpp, in a process of its own."""
    pytest.importorskip("xllamacpp")
    command = [sys.executable, "-c", CHILD, str(path), json.dumps(prompts), str(TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line[1:]) for line in done.stdout.splitlines() if line.startswith("@")]


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> Model:
    return tg.load_model(smollm2_path)


@pytest.mark.weights
@pytest.mark.parametrize(("storage", "tie"), [("F32", 0.0), ("F16", 0.0), ("Q8_0", 0.25)])
def test_real_weights_written_as_gguf_say_the_same_in_llama_cpp(
    storage: str, tie: float, model: Model, smollm2_path: Path, tmp_path: Path
) -> None:
    """Each token that llama.cpp writes is the one that we find likeliest, read back from the same file.

    With eight-bit weights llama.cpp multiplies eight-bit activations and we float32 ones: of two tokens that are nearly
    equal to us, logits within `tie`, it may take the other.
    """
    path = tmp_path / f"smollm2-{storage}.gguf"
    tokenizer = tg.load_tokenizer(smollm2_path)
    tg.save_model(model, path, tokenizer=tokenizer, storage=storage)
    ours = tg.load_model(path)
    assert max(behind(ours, tokenizer, path, PROMPTS)) <= tie


def behind(ours: Model, tokenizer: Tokenizer, path: Path, prompts: Sequence[str]) -> list[float]:
    """How far, at most, llama.cpp's tokens lie behind our likeliest ones, in logits, for each prompt."""
    found = []
    for prompt, tokens in zip(prompts, llama_cpp(path, prompts), strict=True):
        assert tokens
        before = tokenizer.encode(prompt)
        with torch.inference_mode():
            logits = ours([before + tokens]).logits[0, len(before) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        found.append(float((logits.amax(-1) - chosen).max()))
    return found
