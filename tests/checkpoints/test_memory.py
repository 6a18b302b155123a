"""Loading needs the weights in their final type, and little more: measured in a process of its own, by the system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")

CHILD = """
import json, sys
from pathlib import Path
import torch
from tsumugu.checkpoints.load import open_checkpoint

def memory(word):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(word))

for line in sys.stdin:
    path, dtype = json.loads(line)
    tensors = open_checkpoint(Path(path)).tensors
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark of memory so far is forgotten
    before = memory("VmRSS")
    held = {name: entry.read(getattr(torch, dtype, None)) for name, entry in tensors.items()}
    for tensor in held.values():
        tensor.reshape(-1)[::256].sum()  # every page
    print(json.dumps({"size": sum(tensor.nbytes for tensor in held.values()), "added": memory("VmHWM") - before}))
    del tensors, held, tensor
"""
CASES = [
    ("safetensors", "as it is"),
    ("safetensors bf16", "float32"),
    ("safetensors", "bfloat16"),
    ("pt", "float32"),
    ("gguf", "float32"),
    ("npz", "float32"),
]
ROWS, COLUMNS, COUNT = 1024, 2048, 24  # 200 MB as float32


def write(folder: Path, kind: str) -> Path:
    tensors = {f"layer.{i}": torch.full((ROWS, COLUMNS), float(i + 1)) for i in range(COUNT)}
    path = folder / f"model{'.' + kind.split()[0]}"
    match kind:
        case "safetensors":
            safetensors.torch.save_file(tensors, path)
        case "safetensors bf16":
            safetensors.torch.save_file({name: value.bfloat16() for name, value in tensors.items()}, path)
        case "pt":
            torch.save({name: value.half() for name, value in tensors.items()}, path)
        case "gguf":
            writer = gguf.GGUFWriter(path, "llama")
            for name in tensors:
                blocks = np.ones((ROWS, COLUMNS // 32 * 34), np.uint8)
                writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
        case "npz":
            values = np.random.default_rng(0).integers(0, 9, (ROWS, COLUMNS)).astype("f2")  # no bomb: it packs badly
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                for name in tensors:
                    with archive.open(f"{name}.npy", "w") as stream:
                        np.lib.format.write_array(stream, values)
    return path


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, int]]:
    """All cases in one process, which gives large blocks back to the system as soon as they are free."""
    paths = {kind: write(tmp_path_factory.mktemp("weights"), kind) for kind, _ in CASES}
    told = "\n".join(json.dumps([str(paths[kind]), dtype]) for kind, dtype in CASES)
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=told, capture_output=True, text=True, check=True, env=environment
    )
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_peak_of_reading_everything(kind: str, dtype: str, measured: dict[tuple[str, str], dict[str, int]]) -> None:
    size, added = measured[kind, dtype]["size"], measured[kind, dtype]["added"]
    print(f"{kind} -> {dtype}: {added / size:.3f} of {size / 1e6:.0f} MB")
    assert size == ROWS * COLUMNS * COUNT * (2 if dtype == "bfloat16" else 4)
    assert 0.95 < added / size <= 1.15
