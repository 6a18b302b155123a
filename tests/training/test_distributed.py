"""Several ranks on one machine: what they tell one another, train together, save, and how they fail together."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training import ranks
from tests.training.rank_groups import Ranks, free_port

from tsumugu.core.errors import ConfigError, TsumuguError
from tsumugu.training.distributed import World

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked from one process")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "checkpoints").mkdir()
    return folder


Together = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def together(group: Ranks, folder: Path) -> Together:
    def found(count: int, tensor: int, *checks: str) -> dict[str, Any]:
        results = folder / "results.json"
        results.unlink(missing_ok=True)
        codes, errors, _ = group.start(count, str(results), str(tensor), *checks)
        assert codes == [0] * count, errors
        assert errors == [""] * count
        found: dict[str, Any] = json.loads(results.read_text("utf-8"))
        return found

    return found


@pytest.fixture(scope="module")
def four(together: Together) -> dict[str, Any]:
    return together(4, 1, "messages", "same_as_alone", "resumed")


@pytest.fixture(scope="module")
def cut(together: Together) -> dict[str, Any]:
    return together(4, 2, "messages", "same_as_alone", "resumed", "refused")


@pytest.fixture(scope="module")
def two(together: Together, four: object, cut: object) -> dict[str, Any]:
    return together(2, 1, "messages", "families", "seldom", "unwritable", "loaded", "refused")


@pytest.fixture(scope="module")
def two_cut(together: Together, four: object, cut: object) -> dict[str, Any]:
    return together(2, 2, "families", "loaded")


def test_messages(four: dict[str, Any], cut: dict[str, Any], two: dict[str, Any]) -> None:
    for found in (four, cut, two):
        messages = found["messages"]
        assert messages.pop("told") == {"ブランチ": [0, None, "é"]}
        assert messages.pop("undefined") == ["nan", "inf"]
        assert messages == {"ints": True, "floats": True, "mixed": True, "failed": [1]}


def test_ranks_train_as_one_process_does(four: dict[str, Any], cut: dict[str, Any]) -> None:
    found = four["same_as_alone"] | cut["same_as_alone"]
    assert found.keys() == {"ddpx1", "fsdpx1", "ddpx2", "fsdpx2"}
    for layout, wrong in found.items():
        assert wrong["losses"] < 1e-6, layout
        assert wrong["norms"] < 1e-6, layout
        assert wrong["tensors"] < 1e-5, layout


@pytest.mark.parametrize("family", ranks.MODELS)
def test_every_family_has_the_gradients_of_one_process(
    two: dict[str, Any], two_cut: dict[str, Any], family: str
) -> None:
    found = two["families"] | two_cut["families"]
    for layout in ("ddpx1", "fsdpx1", "ddpx2", "fsdpx2"):
        loss, gradient = found[f"{family} {layout}"]
        assert loss < 1e-6, layout
        assert gradient < 1e-6, layout


def test_a_parameter_that_one_rank_uses_has_its_gradient_on_all(two: dict[str, Any]) -> None:
    # The pooler and the head for sentence pairs, with a weight and a bias each, are not used at all.
    assert two["seldom"] == {"seldom": [1.0, 1.0, 1.0], "unused": 4}


def test_resumed_is_never_stopped(four: dict[str, Any], cut: dict[str, Any]) -> None:
    found = four["resumed"] | cut["resumed"]
    assert found.keys() == {"adamw ddpx1", "muon fsdpx1", "adamw ddpx2", "muon fsdpx2"}
    assert all(found.values()), found


def test_four_ranks_checkpoint_loads_on_two_and_on_one(
    two: dict[str, Any], two_cut: dict[str, Any], folder: Path
) -> None:
    found = two["loaded"] | two_cut["loaded"]
    alone = ranks.loaded(ranks.ALONE, folder / "checkpoints")
    assert len(found) == 4 * 4  # layouts that wrote, layouts that read
    assert len(alone) == 4 * 2
    for name, wrong in (found | alone).items():
        assert wrong < 1e-5, name


def test_layouts_that_do_not_fit_are_refused(cut: dict[str, Any], two: dict[str, Any]) -> None:
    few, heads = cut["refused"]["refused"]
    assert "3 ranks cannot share matrices in a world of 4" in few
    assert "2 ranks do not divide 1 key and value heads" in heads
    assert len(two["refused"]["refused"]) == 1


def test_what_cannot_be_written_is_told_and_leaves_nothing(two: dict[str, Any]) -> None:
    found = two["unwritable"]
    first, second = found["full"]
    assert first == "…/one: the checkpoint was given up: rank 1 could not write its part"
    assert "File too large" in second
    assert found["unfinished"] == [
        "no tokenizer",
        "…/one: the checkpoint was given up: rank 0 could not write its part",
    ]
    assert found["no folder"] == "/dev/null/one: cannot be made: Not a directory"
    assert found["left"] == []
    assert found["after"] == ["nothing", "nothing"]


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        ("error 1", "rank 1 of 3 failed: shard-00000: row 7 holds no text; prepare it again"),
        ("error 0", "rank 0 of 3 failed: shard-00000: row 7 holds no text; prepare it again"),
        ("everywhere 9", "failed: data: the corpus is empty; prepare it"),
        ("killed 1", "of 3 lost the others: "),
        ("killed 0", "of 3 lost the others: "),
        ("ddp 1", "of 3 lost the others: "),
        ("fsdp 2", "of 3 lost the others: "),
    ],
)
def test_a_failure_is_told_once(group: Ranks, tmp_path: Path, failure: str, told: str) -> None:
    how, victim = failure.split()
    codes, errors, _ = group.start(3, str(tmp_path / "results"), "1", "fails", FAILURE=failure)
    lines = "".join(errors).splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("tsumugu: ")
    assert told in lines[0]
    killed = [] if how in ("error", "everywhere") else [-signal.SIGKILL]
    assert sorted(codes) == [*killed, *[1] * (2 - len(killed)), 2]
    if how == "error":
        assert codes[int(victim)] == 2


def test_a_bug_keeps_its_traceback(group: Ranks, tmp_path: Path) -> None:
    codes, errors, _ = group.start(2, str(tmp_path / "results"), "1", "fails", FAILURE="bug 1")
    assert codes == [1, 1]
    assert errors[0] == ""
    assert "ZeroDivisionError: a bug" in errors[1]


def test_rank_0_that_is_killed_with_its_store_is_noticed(group: Ranks, tmp_path: Path) -> None:
    codes, errors, _ = group.start(2, str(tmp_path / "results"), "1", "fails", own_store=True, FAILURE="killed 0")
    assert codes == [-signal.SIGKILL, 2]
    assert "rank 1 of 2 lost the others: " in errors[1]


def test_a_rank_that_does_not_come_is_named(group: Ranks, tmp_path: Path) -> None:
    _, errors, _ = group.start(2, str(tmp_path / "results"), "1", "fails", FAILURE="late 1")
    lines = [each for each in "".join(errors).splitlines() if "tsumugu: " in each]  # torch logs it too
    assert len(lines) == 1, errors
    assert lines[0].endswith(
        "failed: not all ranks came within 0.3 s: Rank 1 failed to pass monitoredBarrier in 300 ms"
    )


def test_ranks_that_are_never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(TsumuguError, match=r"rank 0 of 2 did not meet the others: .*MASTER_PORT"):
        World.open(device="cpu", patience=1.0)


@pytest.mark.parametrize(
    ("settings", "tensor", "reason"),
    [
        ({"RANK": "0"}, 1, "WORLD_SIZE: RANK is set and this is not"),
        ({"RANK": "two", "WORLD_SIZE": "2"}, 1, "RANK: 'two' is no number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, 1, "RANK: rank 2 is not one of 2"),
        ({"RANK": "1", "WORLD_SIZE": "4"}, 3, "Parallel.tensor: 3 does not divide 4 ranks"),
    ],
)
def test_environments_that_are_wrong(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], tensor: int, reason: str
) -> None:
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError, match=reason):
        World.open(tensor=tensor, device="cpu")


def test_one_process_is_a_world_of_its_own() -> None:
    with World.open(device="cpu") as world:
        assert (world.rank, world.size, world.main, world.device) == (0, 1, True, torch.device("cpu"))
        assert world.sum([1, 0.5]) == [1, 0.5]
        assert world.broadcast({"a": 1}) == {"a": 1}
        assert world.agree(True) == []
        assert world.agree(False) == [0]
        world.barrier()
