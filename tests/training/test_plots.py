"""Plots: drawn from logs, without a display, the same bytes from the same log, whatever the run is called."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tests.training.run_folders import BEGAN, course, make, write

from tsumugu.core.errors import InputError
from tsumugu.training import plots
from tsumugu.training.events import LOG, Event, read_events
from tsumugu.training.plots import Curves, Plots, plot_run, plot_runs


def texts(path: Path) -> list[str]:
    root = ElementTree.parse(path).getroot()
    return [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_plots_of_a_run(tmp_path: Path) -> None:
    folder = make(tmp_path / "tiny")
    found = plot_run(folder, folder, formats=("svg", "png"))
    assert [each.name for each in found] == ["loss.svg", "loss.png", "lr.svg", "lr.png"]
    shown = texts(folder / "loss.svg")
    assert "tiny" in shown
    assert "validation" in shown
    assert "best: 2.0060 at step 20, 1.0030 bits per byte" in shown
    assert "learning rate" in texts(folder / "lr.svg")
    for each in found:
        assert each.suffix == ".svg" or each.read_bytes().startswith(b"\x89PNG")
    assert not [each for each in folder.iterdir() if each.name.startswith(".")]


def test_the_same_log_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    """Also where a user's own style says otherwise, and where there is no display."""
    folder = make(tmp_path / "tiny")
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nbackend: TkAgg\nsvg.fonttype: path\n")
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    plot_run(folder, here)
    code = f"from tsumugu.training.plots import plot_run; plot_run({str(folder)!r}, {str(there)!r})"
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment |= {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    for name in ("loss.svg", "lr.svg"):
        assert (here / name).read_bytes() == (there / name).read_bytes()


@pytest.mark.parametrize("name", ["青空文庫の学習", "$a_b$ \\frac", "_hidden", "<b>&amp;", "a\x07b", "x" * 300])
@pytest.mark.filterwarnings("error")
def test_a_name_breaks_nothing(tmp_path: Path, name: str) -> None:
    events = list(course(name, steps=20))
    plot_run(events, tmp_path, formats=("svg", "png") if name.startswith("青") else ("svg",))
    title = name.replace("\x07", "\\x07")[:80]
    assert title in texts(tmp_path / "loss.svg")


@pytest.mark.parametrize(
    "events",
    [
        [],
        [Event("start", 0, 0.0)],
        [Event("step", 1, 0.0, {"loss": math.nan, "lr": None})],
        [Event("step", 1, 0.0, {"loss": 2.0, "lr": 0.1})],
        [Event("evaluation", 0, 0.0, {"loss": math.inf}), Event("evaluation", 1, 0.0, {"loss": 1.0})],
        [Event("step", i, 0.0, {"loss": 1e299 * (i % 2), "lr": 10**400}) for i in range(1, 9)],
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_log_with_hardly_anything_in_it(tmp_path: Path, events: list[Event]) -> None:
    assert len(plot_run(events, tmp_path)) == 2
    ElementTree.parse(tmp_path / "loss.svg")


def test_what_a_rollback_took_back_is_not_drawn() -> None:
    first, again = list(course(steps=20)), list(course(steps=30, rate=0.2))[1:]
    curves = Curves.of([*first, Event("rollback", 20, BEGAN, {"to": 10}), *(e for e in again if e.step > 10)])
    assert curves.steps["step"] == list(range(1, 31))
    assert curves.steps["loss"][10:] == [each.values["loss"] for each in again if each.kind == "step"][10:]
    assert curves.evaluations["step"] == [10, 20, 30]
    assert curves.best is not None


def test_points_are_thinned_and_smoothed_without_lag() -> None:
    x = [float(i) for i in range(100_000)]
    y = [2 * value + (math.nan if value % 1000 == 0 else 0) for value in x]
    thin_x, thin_y = plots._thinned(x, y)
    assert len(thin_x) == len(thin_y) <= plots._POINTS
    assert all(b == pytest.approx(2 * a) for a, b in zip(thin_x, thin_y, strict=True))
    assert plots._smoothed(thin_y) == pytest.approx(thin_y, rel=1e-3)  # a straight line stays where it is


def test_several_runs_in_one_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # names are shown up to a length
    folders = [make(Path(name), rate=rate) for name, rate in (("slow", 0.05), ("_速い", 0.2))]
    found = {}
    for by in ("step", "tokens", "seconds"):
        target = tmp_path / f"{by}.svg"
        plot_runs(folders, target, by=by)  # type: ignore[arg-type]
        shown = texts(target)
        assert {"slow", "_速い"} <= set(shown)
        found[by] = [each for each in shown if re.fullmatch(r"[\d.]+( k)?", each)]
    assert "40" in found["step"]
    assert "20 k" in found["tokens"]
    assert "10" in found["seconds"]
    twins = [folders[0], make(Path("other") / "slow")]
    plot_runs(twins, tmp_path / "twins.svg")
    assert {str(each) for each in twins} <= set(texts(tmp_path / "twins.svg"))


def test_what_cannot_be_drawn_says_so(tmp_path: Path) -> None:
    folder = make(tmp_path / "tiny", steps=5)
    with pytest.raises(InputError, match=r"a plot cannot be a \.gif; use \.svg or \.png"):
        plot_runs([folder], tmp_path / "a.gif")
    with pytest.raises(InputError, match="did you mean 'tokens'"):
        plot_runs([folder], tmp_path / "a.svg", by="token")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no run"):
        plot_runs([], tmp_path / "a.svg")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["tiny"]


def test_the_folder_is_made(tmp_path: Path) -> None:
    folder = make(tmp_path / "tiny", steps=5)
    drawn = plot_run(folder, tmp_path / "reports" / "tiny")
    assert [each.relative_to(tmp_path / "reports").as_posix() for each in drawn] == ["tiny/loss.svg", "tiny/lr.svg"]
    assert all(each.stat().st_size for each in drawn)


def test_the_sink_draws_at_the_end_from_the_log(tmp_path: Path) -> None:
    folder = make(tmp_path / "tiny")
    sink = Plots(folder)
    events = read_events(folder / LOG)
    for event in events[:-1]:
        sink(event)
    assert not (folder / "loss.svg").exists()  # no 30 seconds have gone by
    sink._next = 0.0
    sink(next(each for each in events if each.kind == "checkpoint"))
    before = (folder / "loss.svg").read_bytes()
    assert before
    (folder / "loss.svg").unlink()
    sink(events[-1])
    sink.close()
    assert (folder / "loss.svg").read_bytes() == before


def test_a_plot_that_cannot_be_written_stops_no_training(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", course(steps=5))
    (folder / LOG).write_text("broken\n")
    Plots(folder)(Event("end", 5, BEGAN))
    Plots(tmp_path / "gone")(Event("end", 5, BEGAN))


def test_matplotlib_is_loaded_when_a_plot_is_drawn() -> None:
    code = "import sys, tsumugu.training.plots, tsumugu.cli.runs; print({'matplotlib', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
