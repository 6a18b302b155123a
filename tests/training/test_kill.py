"""Runs that are killed, again and again, at any moment: they end bit by bit where the undisturbed ones do.

`TSUMUGU_KILLS=20` asks for more of it.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time

import pytest
from tests.training import killer
from tests.training.recipes import recipe, steps, weights

from tsumugu.training.runs import read_run

KILLS = int(os.environ.get("TSUMUGU_KILLS", "2"))


@pytest.fixture(scope="module")
def training():
    process = subprocess.Popen(
        [sys.executable, killer.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def run(values, folder, after=None):
        process.stdin.write(json.dumps({"values": values, "folder": str(folder), "after": after}) + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    yield run
    process.stdin.close()
    process.wait(30)


@pytest.mark.parametrize("kind", ["causal", "masked", "span-corruption"])
def test_killed_at_any_moment(kind, tmp_path, training):
    values = recipe(tmp_path, kind, train={"steps": 24}, checkpoints={"every": 2, "keep": 2})
    values["evaluation"] = {"every": 6, "rows": 8}
    began = time.monotonic()
    assert training(values, tmp_path / "whole") == "done"
    whole = time.monotonic() - began
    chance = random.Random(kind)
    for number in range(KILLS):
        folder, killed = tmp_path / f"killed-{number}", 0
        while killed < 3 and training(values, folder, chance.uniform(0.0, whole)) == "killed":
            killed += 1
        assert training(values, folder) == "done"  # one that was done already changes nothing
        assert read_run(folder).state == "done"
        one, other = weights(folder), weights(tmp_path / "whole")
        assert one.keys() == other.keys()
        assert [name for name in one if (one[name] != other[name]).any()] == []
        losses = [{step: each["loss"] for step, each in steps(place).items()} for place in (folder, tmp_path / "whole")]
        assert losses[0] == losses[1]
        left = [path.name for path in folder.rglob("*") if ".partial" in path.name or path.name.endswith(".deleted")]
        assert left == []
