"""A disk that fills while a run saves: one line, nothing half written, and the run ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess

import pytest
import yaml
from tests.training.recipes import recipe, steps, weights

from tsumugu.cli import main
from tsumugu.training.checkpointing import find_checkpoint, steps_in
from tsumugu.training.pretrain import train
from tsumugu.training.runs import read_run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, in memory; only root may have one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@contextlib.contextmanager
def filled(place, room):
    """Only `room` bytes are left on the disk that `place` is on."""
    ballast, free = place / "ballast", os.statvfs(place)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - room)
    yield
    ballast.unlink()


@contextlib.contextmanager
def limited(size):
    """No file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def begun(tmp_path, undisturbed, folder):
    """A run that has saved its beginning, and spent its time."""
    values = recipe(tmp_path)
    values["data"] = {"corpus": [str(undisturbed("causal") / "corpus")], "context": 24}
    values.pop("tokenizer")
    values["train"]["minutes"] = 0
    assert train(values, folder, quiet=True).steps == 0
    return folder


def go_on(folder, capsys):
    """What `tsumugu resume` says on standard error, and the code it leaves with."""
    with pytest.raises(SystemExit) as left:
        main(["resume", str(folder), "--train.minutes", "10", "--quiet"])
    return left.value.code, capsys.readouterr().err.splitlines()


def check_resumable(folder, whole, capsys):
    found = steps_in(folder / "checkpoints")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [each.name for each in found.values()]
    assert find_checkpoint(folder, "last").name == found[max(found)].name
    assert list(folder.rglob("*.partial")) == []
    yaml.safe_load((folder / "recipe.yaml").read_text("utf-8"))
    assert go_on(folder, capsys) == (0, [])
    assert read_run(folder).state == "done"
    one, other = weights(folder), weights(whole)
    assert one.keys() == other.keys()
    assert [name for name in one if (one[name] != other[name]).any()] == []
    losses = [{step: each["loss"] for step, each in steps(place).items()} for place in (folder, whole)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.4])
def test_a_full_disk_is_one_line_and_the_run_goes_on(share, tmp_path, small_disk, undisturbed, capsys):
    whole = undisturbed("causal")
    folder = begun(tmp_path, undisturbed, small_disk / "run")
    size = sum(path.stat().st_size for path in (whole / "checkpoints" / "step-00000008").rglob("*") if path.is_file())
    with filled(small_disk, int(share * size)):
        code, lines = go_on(folder, capsys)
    print(lines)
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith(f"tsumugu: {folder}")
    assert ".partial" not in lines[0]
    assert "No space left on device; make room on the disk" in lines[0]
    check_resumable(folder, whole, capsys)


def test_a_limit_of_files_is_one_line_and_the_run_goes_on(tmp_path, undisturbed, capsys):
    whole = undisturbed("causal")
    folder = begun(tmp_path, undisturbed, tmp_path / "run")
    largest = max(path.stat().st_size for path in (whole / "checkpoints" / "step-00000008").rglob("*"))
    with limited(largest // 2):
        code, lines = go_on(folder, capsys)
    print(lines)
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith(f"tsumugu: {folder}")
    assert ".partial" not in lines[0]
    assert "File too large; make room on the disk" in lines[0]
    check_resumable(folder, whole, capsys)
