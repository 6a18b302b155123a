"""Whole runs on several ranks: the same as on one, killed and resumed, with other layouts, and under torchrun.

``TSUMUGU_KILLS=20`` kills every kind of run 20 times, and one under torchrun; see `test_kill.py` for runs on one rank.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from tests.training.rank_groups import Answer, Ranks
from tests.training.recipes import KINDS, recipe, steps, weights

from tsumugu.training.checkpointing import steps_in
from tsumugu.training.events import LOG, read_events
from tsumugu.training.runs import read_run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked from one process")
KILLS = int(os.environ.get("TSUMUGU_KILLS", "1"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
STILL = {
    "causal": {"residual_dropout": 0.0, "attention_dropout": 0.0, "embedding_dropout": 0.0},
    "masked": {"dropout": 0.0, "attention_dropout": 0.0},
    "span-corruption": {"dropout": 0.0},
}
Undisturbed = Callable[[str], Path]
Prepared = Callable[..., Path]


@pytest.fixture
def prepared(tmp_path: Path, undisturbed: Undisturbed) -> Prepared:
    """Writes a recipe over a text that is prepared already, and gives its path."""

    def write(kind: str, **sections: Any) -> Path:
        values = recipe(tmp_path, kind, **sections)
        values["data"] = {"context": values["data"]["context"], "corpus": [str(undisturbed(kind) / "corpus")]}
        del values["tokenizer"]
        path = tmp_path / f"{kind}.yaml"
        path.write_text(yaml.safe_dump(values), "utf-8")
        return path

    return write


def pretrain(group: Ranks, count: int, config: Path, folder: Path, *overrides: str, **options: Any) -> Answer:
    """`tsumugu pretrain` on `count` ranks; goes on with what is in the folder."""
    words = ("pretrain", "--config", str(config), "--output", str(folder), "--resume", "--quiet", *overrides)
    return group.start(count, "tsumugu", *words, **options)


def done(answer: Answer) -> None:
    assert set(answer.codes) == {0}, answer.errors
    assert set(answer.errors) == {""}


def losses(folder: Path) -> list[float]:
    """Of the steps in order, and after them those of held-back text."""
    events = read_events(folder / LOG)
    measured = {each.step: each.values["loss"] for each in events if each.kind == "evaluation"}
    return [each["loss"] for _, each in sorted(steps(folder).items())] + [each for _, each in sorted(measured.items())]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def written(folder: Path) -> int:
    """The length of a run's log."""
    return (folder / LOG).stat().st_size if (folder / LOG).is_file() else 0


def tidy(folder: Path) -> bool:
    """Whether nothing half-written is left."""
    return not list(folder.rglob(".*"))


@pytest.mark.parametrize("kind", ["causal", "masked", "span-corruption"])
def test_how_many_ranks_share_a_step_changes_nothing(
    kind: str, group: Ranks, prepared: Prepared, tmp_path: Path
) -> None:
    """One rank with four micro-batches, two with two, four with one: the same losses, with dropout too."""
    config = prepared(kind)
    curves = {}
    for count in (1, 2, 4):
        done(pretrain(group, count, config, tmp_path / str(count)))
        curves[count] = losses(tmp_path / str(count))
    assert len(curves[1]) == 8 + 2
    for count in (2, 4):
        wrong = max(abs(one - other) for one, other in zip(curves[count], curves[1], strict=True))
        assert wrong < 1e-6, (count, wrong)


LAYOUTS = {"fsdp": (2, "fsdp", 1), "tensor": (2, "ddp", 2), "fsdp and tensor": (4, "fsdp", 2)}


@pytest.mark.parametrize(
    ("kind", "layouts"),
    [("causal", ["fsdp", "fsdp and tensor"]), ("masked", ["tensor"]), ("span-corruption", ["fsdp"])],
)
def test_how_weights_are_shared_changes_nothing(
    kind: str, layouts: list[str], group: Ranks, prepared: Prepared, tmp_path: Path
) -> None:
    """Losses, those of held-back text by the averages, and the models that are saved."""
    options: dict[str, Any] = {"model": {"config": KINDS[kind]["model"]["config"] | STILL[kind]}, "train": {"ema": 0.9}}
    if kind == "span-corruption":
        options["optimizer"] = {"name": "adamw"}  # torch's Adafactor steps no sharded parameters
    config = prepared(kind, **options)
    done(pretrain(group, 1, config, tmp_path / "alone"))
    expected, model = losses(tmp_path / "alone"), weights(tmp_path / "alone")
    for name in layouts:
        count, way, tensor = LAYOUTS[name]
        folder = tmp_path / name
        done(pretrain(group, count, config, folder, "--parallel.kind", way, "--parallel.tensor", str(tensor)))
        wrong = max(abs(one - other) for one, other in zip(losses(folder), expected, strict=True))
        assert wrong < 1e-5, (name, wrong)
        mine = weights(folder)
        for key in [each for each in model if each.startswith("model.safetensors/")]:
            assert np.abs(mine[key] - model[key]).max() < 1e-5, (name, key)


def test_what_four_ranks_saved_goes_on_with_other_numbers_and_layouts(
    group: Ranks, prepared: Prepared, tmp_path: Path
) -> None:
    options = {"model": {"config": KINDS["causal"]["model"]["config"] | STILL["causal"]}, "checkpoints": {"keep": 9}}
    config = prepared("causal", **options)
    four = tmp_path / "four"
    done(pretrain(group, 4, config, four, "--parallel.kind", "fsdp"))
    expected = losses(four)
    for step, path in steps_in(four / "checkpoints").items():
        if step > 3:
            shutil.rmtree(path)
    for count, kind, tensor in ((1, "fsdp", 1), (2, "fsdp", 1), (2, "ddp", 2)):
        folder = tmp_path / f"{count} {kind} {tensor}"
        shutil.copytree(four, folder)
        layout = ("--parallel.kind", kind, "--parallel.tensor", str(tensor))
        done(group.start(count, "tsumugu", "resume", str(folder), "--quiet", *layout))
        assert "resumed" in [each.kind for each in read_events(folder / LOG)]
        wrong = max(abs(one - other) for one, other in zip(losses(folder), expected, strict=True))
        assert wrong < 1e-5, (folder.name, wrong)


@pytest.mark.parametrize("kind", ["causal", "masked", "span-corruption"])
def test_killed_anywhere_and_resumed_is_never_stopped(
    kind: str, group: Ranks, prepared: Prepared, tmp_path: Path
) -> None:
    chance, count = random.Random(7), 2
    config = prepared(kind)
    whole = pretrain(group, count, config, tmp_path / "whole")
    done(whole)
    expected, curve = weights(tmp_path / "whole"), losses(tmp_path / "whole")
    kills = attempts = 0
    while kills < KILLS:
        folder = tmp_path / f"killed-{attempts}"
        finished = False
        while not finished:
            attempts += 1
            assert attempts < 6 * KILLS + 20
            if kills < KILLS:
                # Mostly all of them, as when a machine goes down; else one, and the others must notice.
                victims = range(count) if chance.random() < 0.6 else [chance.randrange(count)]
                moment, seen = chance.random() * 1.2 * whole.seconds, written(folder)
                answer = pretrain(group, count, config, folder, kill=victims, after=moment)
            else:
                answer = pretrain(group, count, config, folder)
            kills += -signal.SIGKILL in answer.codes
            finished = set(answer.codes) == {0}
            for code, error in zip(answer.codes, answer.errors, strict=True):
                assert code in (0, 1, 2, -signal.SIGKILL, -signal.SIGTERM)
                assert code != -signal.SIGTERM or written(folder) == seen  # they had not met yet
                assert "Traceback" not in error, error
                assert code != 2 or "lost the others" in error or "did not meet the others" in error, error
        assert same(weights(folder), expected)
        assert losses(folder) == curve
        assert tidy(folder)
    print(f"{kind} on {count} ranks: killed {kills} times in {attempts} attempts, the same bits")


def children_of(torchrun: subprocess.Popen[str]) -> list[psutil.Process]:
    """The ranks, by their numbers."""
    found = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in psutil.Process(torchrun.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess, KeyError):
                found[int(each.environ()["RANK"])] = each
    return [each for _, each in sorted(found.items())]


def wait_for(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (folder / LOG).is_file() or max(steps(folder), default=0) < step:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_torchrun_restarts_what_was_killed(group: Ranks, prepared: Prepared, tmp_path: Path) -> None:
    """One rank is killed, and torchrun begins again; or torchrun goes too, and the run is begun again by hand."""
    chance, kills = random.Random(11), KILLS
    more = {"evaluation": {"every": 20}, "checkpoints": {"every": 5}}
    config = prepared("causal", train={"steps": 40 + 10 * kills}, **more)
    done(pretrain(group, 2, config, tmp_path / "whole"))
    folder = tmp_path / "run"
    words = ["pretrain", "--config", str(config), "--output", str(folder), "--quiet"]
    killed = {"a rank": 0, "all": 0}
    code: int | None = None
    while code is None:
        command = [*TORCHRUN, "--max-restarts", str(kills), "-m", "tsumugu", *words]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as torchrun:
            while sum(killed.values()) < kills and torchrun.poll() is None:
                seen, patience = written(folder), time.monotonic() + chance.choice((100, 100, 100, 4 * chance.random()))
                while torchrun.poll() is None and written(folder) == seen and time.monotonic() < patience:
                    time.sleep(0.02)
                time.sleep(chance.random() * 0.5)
                victims = children_of(torchrun)
                if len(victims) < 2:
                    continue
                if sum(killed.values()) == 0 or chance.random() < 0.6:
                    chance.choice(victims).kill()
                    killed["a rank"] += 1
                    psutil.wait_procs(victims)
                else:
                    for each in (psutil.Process(torchrun.pid), *victims):
                        each.kill()
                    killed["all"] += 1
                    words = ["resume", str(folder), "--quiet"]
                    break
            _, errors = torchrun.communicate(timeout=200)
        code = None if torchrun.returncode == -signal.SIGKILL else torchrun.returncode
    assert code == 0, errors
    assert "Traceback" not in errors
    assert same(weights(folder), weights(tmp_path / "whole"))
    assert losses(folder) == losses(tmp_path / "whole")
    assert tidy(folder)
    assert killed["a rank"] > 0
    print(f"under torchrun: killed {killed}, the same bits")


def test_sigterm_to_torchrun_saves_and_leaves(group: Ranks, prepared: Prepared, tmp_path: Path) -> None:
    config = prepared("causal", train={"steps": 100_000}, evaluation={"every": 0}, checkpoints={"every": 0})
    folder = tmp_path / "run"
    words = ["pretrain", "--config", str(config), "--output", str(folder), "--quiet"]
    with subprocess.Popen([*TORCHRUN, "-m", "tsumugu", *words], stderr=subprocess.PIPE, text=True) as torchrun:
        wait_for(folder, 5, torchrun)
        ranks = children_of(torchrun)
        torchrun.terminate()
        _, errors = torchrun.communicate(timeout=200)
    assert not any(each.is_running() for each in ranks)
    assert errors.count("tsumugu resume") == 1, errors
    run = read_run(folder)
    assert run.state == "stopped"
    assert (folder / "last").read_text("utf-8").strip() == f"step-{max(steps(folder)):08}"
    assert tidy(folder)
    last = max(steps(folder)) + 2
    done(group.start(2, "tsumugu", "resume", str(folder), "--quiet", "--train.steps", str(last)))
    assert read_run(folder).steps == last


def test_a_run_that_is_there_is_told_once(group: Ranks, prepared: Prepared, tmp_path: Path) -> None:
    config = prepared("causal", train={"steps": 2})
    done(pretrain(group, 1, config, tmp_path / "run"))
    before = (tmp_path / "run" / LOG).read_bytes()
    words = ("pretrain", "--config", str(config), "--output", str(tmp_path / "run"), "--quiet")
    answer = group.start(2, "tsumugu", *words)
    assert sorted(answer.codes) == [1, 2]
    assert "".join(answer.errors).count("tsumugu: ") == 1
    assert "there is a run in this folder" in "".join(answer.errors)
    assert (tmp_path / "run" / LOG).read_bytes() == before
    assert json.loads((tmp_path / "run" / "environment.json").read_text("utf-8"))
