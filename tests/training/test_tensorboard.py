"""TensorBoard's files: read back with TensorBoard's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.training.run_folders import BEGAN, course

from tsumugu.training.events import Event

pytest.importorskip("tensorboardX")

# Without TensorFlow, which TensorBoard would load for nothing but its file system.
READER = """
import sys
sys.modules["tensorboard.compat.notf"] = sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
import json
found = EventAccumulator(sys.argv[1])
found.Reload()
tags = found.Tags()
scalars = {tag: [(each.step, each.wall_time, each.value) for each in found.Scalars(tag)] for tag in tags["scalars"]}
texts = {tag: [each.tensor_proto.string_val[0].decode() for each in found.Tensors(tag)] for tag in tags["tensors"]}
print(json.dumps([scalars, texts]))
"""


def read(folder: Path) -> tuple[dict[str, list[list[float]]], dict[str, list[str]]]:
    pytest.importorskip("tensorboard")
    done = subprocess.run([sys.executable, "-c", READER, str(folder)], capture_output=True, text=True, check=True)
    scalars, texts = json.loads(done.stdout)
    return scalars, texts


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Also over a resumption, in the same second: steps that were done again are there once."""
    from tsumugu.training.tensorboard import TensorBoard

    events = list(course(steps=20))
    sink = TensorBoard(tmp_path / "tb")
    for event in events:
        sink(event)
    sink(Event("sample", 20, BEGAN, {"prompt": "吾輩は", "text": "猫\nである"}))
    sink.close()
    sink = TensorBoard(tmp_path / "tb")
    sink(Event("resumed", 10, BEGAN + 60, {"from": "step-00000010"}))
    losses = {"token": 1.0, "pair": float("nan")}
    sink(Event("step", 11, BEGAN + 61, {"loss": 9.0, "losses": losses, "mfu": 0.5, "lr": None}))
    sink.close()
    sink.close()
    scalars, texts = read(tmp_path / "tb")
    assert [step for step, _, _ in scalars["train/loss"]] == list(range(1, 12))
    assert scalars["train/loss"][0][2] == pytest.approx(events[1].values["loss"], rel=1e-6)
    assert scalars["train/loss"][0][1] == events[1].time
    assert scalars["train/loss"][-1] == [11, BEGAN + 61, 9.0]
    assert [step for step, _, _ in scalars["train/lr"]] == list(range(1, 11))
    assert scalars["train/mfu"] == [[11, BEGAN + 61, 0.5]]
    assert scalars["train/loss_token"][0][2] == 1.0
    assert [step for step, _, _ in scalars["evaluation/bits_per_byte"]] == [10]
    assert "    family: gpt2" in texts["run/text_summary"][0]


def test_a_rollback_and_fewer_steps(tmp_path: Path) -> None:
    from tsumugu.training.tensorboard import TensorBoard

    sink = TensorBoard(tmp_path, every=5)
    for event in course(steps=20):
        sink(event)
    sink(Event("rollback", 20, BEGAN, {"to": 10, "reason": "spike"}))
    sink(Event("step", 15, BEGAN, {"loss": 7.0}))
    sink(Event("sample", 15, BEGAN, {"prompt": None, "text": "猫\nである"}))
    sink.close()
    scalars, texts = read(tmp_path)
    assert [(step, value) for step, _, value in scalars["train/loss"]][2:] == [(15, 7.0)]
    assert texts["sample/text_summary"] == ["    猫\n    である"]


def test_without_the_library_its_extra_is_named() -> None:
    code = """
import sys
sys.modules["tensorboardX"] = None
from tsumugu.core.errors import MissingExtraError
from tsumugu.training.tensorboard import TensorBoard
try:
    TensorBoard("nowhere")
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "writing files for TensorBoard needs tensorboardX; pip install 'tsumugu[tensorboard]'\n"
