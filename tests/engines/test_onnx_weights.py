"""The compiled engine on real weights: torch's tokens, and no torch."""

from __future__ import annotations

import os
import pydoc_data.topics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.text.corpus import varied_texts

import tsumugu as tg
from tsumugu.engines.session import open_session

pytestmark = pytest.mark.weights

COUNT = int(os.environ.get("TSUMUGU_PROMPTS", "6"))
"""How many prompts are continued; 100 in the figures that the documentation gives."""
TOKENS = 32
SENTENCES = [line.strip() for line in pydoc_data.topics.topics["assignment"].splitlines() if len(line.split()) > 9][:40]


@pytest.mark.parametrize("engine", ["onnx", "native"])
def test_float32_writes_what_torch_writes(engine: str, smollm2_path: Path) -> None:
    tokenizer = tg.load_tokenizer(smollm2_path)
    encoded = [tokenizer.encode(text)[:48] for text in varied_texts(2 * COUNT + 50)]
    texts = [ids for ids in encoded if len(ids) > 3][:COUNT]
    model, quick = tg.load_model(smollm2_path), tg.load_model(smollm2_path, engine=engine)
    logits = open_session(model, batch=COUNT, capacity=64).start(texts)
    found = open_session(quick, batch=COUNT, capacity=64).start(texts)
    assert np.abs(found - logits).max() <= 1e-3 * np.abs(logits).max()
    ours = tg.generate(quick, texts, max_new_tokens=TOKENS, min_new_tokens=TOKENS)
    theirs = tg.generate(model, texts, max_new_tokens=TOKENS, min_new_tokens=TOKENS)
    assert ours == theirs


def test_sentence_vectors_are_those_of_torch(minilm_path: Path) -> None:
    texts = varied_texts(60)
    wanted = tg.pipeline("sentence-embedding", minilm_path).encode(texts)  # type: ignore[attr-defined]
    whole = tg.pipeline("sentence-embedding", minilm_path, engine="onnx").encode(texts)  # type: ignore[attr-defined]
    assert np.abs(whole - wanted).max() <= 1e-5
    eight = tg.pipeline("sentence-embedding", minilm_path, quantize="int8").encode(SENTENCES)  # type: ignore[attr-defined]
    exact = tg.pipeline("sentence-embedding", minilm_path).encode(SENTENCES)  # type: ignore[attr-defined]
    assert (eight * exact).sum(1).min() >= 0.99


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        (["run", "text-generation", "The capital of France is", "-m", "smollm2", "-n", "4"], "Paris"),
        (["embed", "A text.", "-m", "minilm"], "embedding"),
        (["similarity", "A cat sits.", "A cat is sitting.", "-m", "minilm"], "0.9"),
    ],
)
def test_the_command_line_runs_without_torch(
    typed: list[str], wanted: str, smollm2_path: Path, minilm_path: Path
) -> None:
    """Compiled once, a task is solved by a process that never imports torch."""
    program = f"""
import sys
from tsumugu.cli import main
try:
    main({typed!r})
except SystemExit as leaving:
    print(leaving.code, "torch" in sys.modules, "transformers" in sys.modules)
"""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[-1] == "0 False False"
    assert wanted in done.stdout
