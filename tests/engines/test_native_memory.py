"""The kernels read and write nothing beyond what they were given, as the compiler's own watcher sees it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.engines.conftest import Build
from tests.engines.test_native import kernels

import tsumugu as tg

__all__ = ["kernels"]

WATCHED = """
import sys
from pathlib import Path

import numpy as np

from tsumugu.engines.load import load_model
from tsumugu.engines.native import encoder, library, network
from tsumugu.engines.session import open_session

library.FLAGS = (*library.FLAGS, "-march=haswell", "-O1", "-g", "-fsanitize=address")
encoder.SMALL = network.SMALL = 0
folder = Path(sys.argv[1])
for quantize, kv_cache in ((None, "float32"), ("int8", "int8"), ("int4", "float32")):
    model = load_model(folder / "decoder", engine="native", quantize=quantize, kv_cache=kv_cache, threads=3)
    session = open_session(model, batch=3, capacity=37)
    session.start([[259], list(range(36)), [0] * 17])
    session.step(np.array([1, 2, 3]))
    session.select(np.array([2, 0, 0, 2]))
    session.extend([[5] * 19, [6], [], [7, 8]], every=True)
for quantize in (None, "int8"):
    model = load_model(folder / "encoder", engine="native", quantize=quantize, threads=3)
    real = np.arange(61) < np.array([61, 1, 0, 33, 32])[:, None]
    for mode in ("mean", "cls"):
        model.pooled(np.full(real.shape, 259), real, np.ones(real.shape, int), mode=mode)
    model(np.full((1, 1), 259), np.zeros((1, 1), int))
print("read", "torch" in sys.modules)
"""


def test_nothing_is_touched_beyond_its_end(build: Build, cache: Path, tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    watcher = compiler and subprocess.check_output([compiler, "-print-file-name=libasan.so"], text=True).strip()
    if not watcher or not Path(watcher).is_absolute():
        pytest.skip("no gcc with an address sanitizer")
    sizes = {"num_kv_heads": 1, "intermediate_size": 33, "head_dim": 10, "max_positions": 37}
    tg.save_model(build("llama", hidden_size=44, **sizes), tmp_path / "decoder")
    tg.save_model(build("bert", "base", hidden_size=44, intermediate_size=33), tmp_path / "encoder")
    for quantize in (None, "int8", "int4"):
        tg.load_model(tmp_path / "decoder", engine="native", quantize=quantize)
    for quantize in (None, "int8"):
        tg.load_model(tmp_path / "encoder", engine="native", quantize=quantize)
    environment = os.environ | {"LD_PRELOAD": watcher, "ASAN_OPTIONS": "detect_leaks=0", "CC": compiler or ""}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "read False\n"), done.stderr[-3000:]
