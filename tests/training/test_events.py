"""The stream of events and its log: what is written is read back, whatever happened in between."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.training.run_folders import course, end, write

from tsumugu.core.errors import InputError, TsumuguError
from tsumugu.training.events import LOG, Event, JsonLines, Stream, merit, read_events, settled, truncate_events

# Text as a model may write it: any code point, half surrogate pairs too.
TEXT = st.text(st.characters(codec=None), max_size=20)
NUMBER = st.floats() | st.integers(-(2**60), 2**60)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "loss": NUMBER,
        "losses": st.dictionaries(st.sampled_from(["token", "pair"]), NUMBER),
        "mfu": st.none() | NUMBER,
        "text": TEXT | st.sampled_from(["NaN", "Infinity"]),
        "prompt": TEXT,
        "what": TEXT,
    },
)
EVENTS = st.builds(
    Event,
    kind=st.sampled_from(["step", "sample", "warning", "end"]),
    step=st.integers(0, 10**12),
    time=st.integers(0, 4 * 10**12).map(lambda x: x / 1000),
    values=VALUES,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b and type(a) is type(b))


@given(st.lists(EVENTS, max_size=5))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, events: list[Event]) -> None:
    path = tmp_path_factory.mktemp("log") / LOG
    sink = JsonLines(path)
    for event in events:
        sink(event)
    sink.close()
    found = read_events(path)
    assert len(found) == len(events)
    for a, b in zip(events, found, strict=True):
        assert (a.kind, a.step, a.time) == (b.kind, b.step, b.time)
        assert same(dict(a.values), dict(b.values))


def test_any_reader_takes_numbers_that_json_lacks(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / LOG)
    sink(Event("step", 1, 0.0, {"loss": math.nan, "losses": {"token": -math.inf}, "lr": 1e-3}))
    sink.close()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    line = json.loads((tmp_path / LOG).read_text(), parse_constant=refuse)
    assert line["values"] == {"loss": "NaN", "losses": {"token": "-Infinity"}, "lr": 0.001}


def test_a_value_that_is_no_json_is_refused_at_once() -> None:
    with pytest.raises(TypeError):
        Event("step", 1, 0.0, {"loss": object()}).to_json()


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_cut_last_line_is_passed_over_and_taken_off(tmp_path: Path, cut: int) -> None:
    log = write(tmp_path / "run", course(steps=5)) / LOG
    os.truncate(log, log.stat().st_size - cut)
    whole = 6 if cut == 1 else 5  # without its line break the last line is still a whole event
    assert len(read_events(log)) == whole
    sink = JsonLines(log)
    sink(end(5))
    sink.close()
    found = read_events(log)
    assert len(found) == whole + 1
    assert found[-1].kind == "end"


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    log = write(tmp_path / "run", course(steps=5)) / LOG
    lines = log.read_text().splitlines()
    for broken in (
        "{",
        "[]",
        '{"kind":"step"}',
        '{"kind":"step","step":true,"time":0,"values":{}}',
        "\0\0",
        "9" * 5000,
    ):
        log.write_text("\n".join([*lines[:2], broken, *lines[2:]]) + "\n")
        with pytest.raises(InputError) as error:
            read_events(log)
        assert str(error.value).startswith(f"{log}:3: not ")


WRITER = """
import sys
from tsumugu.training.events import Event, JsonLines
sink = JsonLines(sys.argv[1])
print("begun", flush=True)
for step in range(1, 10**9):
    sink(Event("step", step, 0.0, {"loss": 1.0, "text": "か" * (step % 500)}))
"""


def test_a_kill_costs_at_most_the_line_it_cuts(tmp_path: Path) -> None:
    """Killed for real, again and again, each time going on in the same log: every step is there, in order."""
    log = tmp_path / LOG
    rounds = int(os.environ.get("TSUMUGU_KILLS", "3"))
    written = 0
    for _ in range(rounds):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(log)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        steps = [each.step for each in read_events(log)]
        assert len(steps) > written
        assert steps[written:] == list(range(1, len(steps) - written + 1))
        written = len(steps)


FULL = """
import resource, signal, sys
from tsumugu.core.errors import TsumuguError
from tsumugu.training.events import Event, JsonLines
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
sink = JsonLines(sys.argv[1])
try:
    for step in range(1, 100):
        sink(Event("step", step, 0.0, {"loss": 1.0}))
except TsumuguError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sink(Event("end", step - 1, 0.0, {"reason": "failed"}))
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on the size of files")
def test_a_line_for_which_there_is_no_room_is_taken_back(tmp_path: Path) -> None:
    log = tmp_path / LOG
    done = subprocess.run([sys.executable, "-c", FULL, str(log)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{log}: cannot be written: File too large; make room on the disk, then resume the run\n"
    events = read_events(log)
    assert [each.step for each in events[:-1]] == list(range(1, len(events)))
    assert events[-1].kind == "end"
    assert sum(len(each.to_json()) + 1 for each in events[:-1]) <= 1000


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(TsumuguError, match="cannot be written: Is a directory"):
        JsonLines(tmp_path)


def told(events: list[Event]) -> list[str]:
    return [f"{each.kind} {each.step}" for each in events]


def script(*words: str) -> list[Event]:
    pairs = [each.split() for each in words]
    return [Event(kind, int(step), float(i)) for i, (kind, step) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("words", "step", "kept"),
    [
        # What came after the checkpoint goes, what belongs to its step stays, in whatever order it was told.
        (
            "start 0|step 1|step 2|checkpoint 2|evaluation 2|step 3",
            2,
            "start 0|step 1|step 2|checkpoint 2|evaluation 2",
        ),
        ("start 0|step 1|step 2|step 3|checkpoint 2|step 4", 2, "start 0|step 1|step 2|checkpoint 2"),
        # Without a checkpoint: from the beginning.
        ("start 0|step 1|step 2", 0, "start 0"),
        # The end of an attempt goes when it is later, stays when it is not.
        ("start 0|step 1|checkpoint 1|end 1", 1, "start 0|step 1|checkpoint 1|end 1"),
        # Later attempts from the same checkpoint go.
        ("start 0|step 1|checkpoint 1|resumed 1|step 2|resumed 1|step 2", 1, "start 0|step 1|checkpoint 1"),
        # An attempt that a rollback ended stays: it is history.
        (
            "start 0|step 1|checkpoint 1|step 2|step 3|rollback 3|step 2|checkpoint 2|step 3",
            2,
            "start 0|step 1|checkpoint 1|step 2|step 3|rollback 3|step 2|checkpoint 2",
        ),
        ("step 5|step 6", 4, ""),
    ],
)
def test_going_on_from_a_checkpoint(tmp_path: Path, words: str, step: int, kept: str) -> None:
    folder = write(tmp_path / "run", script(*words.split("|")))
    found = truncate_events(folder / LOG, step)
    assert told(found) == [each for each in kept.split("|") if each]
    assert told(read_events(folder / LOG)) == told(found)
    assert sorted(each.name for each in folder.iterdir()) == [LOG, "recipe.yaml"]


def test_lines_that_stay_are_not_touched(tmp_path: Path) -> None:
    log = write(tmp_path / "run", course(steps=20)) / LOG
    before = log.read_bytes()
    truncate_events(log, 10)
    assert before.startswith(log.read_bytes())
    with log.open("ab") as file:
        file.write(b'{"kind":"st')
    truncate_events(log, 10)
    assert before.startswith(log.read_bytes())


def test_what_was_done_again_counts_once() -> None:
    events = script("start 0", "step 1", "step 2", "evaluation 2", "step 3", "rollback 3", "step 2", "evaluation 2")
    assert told(settled(events)) == ["start 0", "step 1", "rollback 3", "step 2", "evaluation 2"]
    plain = list(course(steps=30))
    assert settled(plain) == plain


def test_a_stream_hands_every_event_to_every_sink(tmp_path: Path) -> None:
    class Closing:
        def __init__(self) -> None:
            self.seen: list[Event] = []
            self.closed = 0

        def __call__(self, event: Event) -> None:
            self.seen.append(event)

        def close(self) -> None:
            self.closed += 1
            raise OSError("gone")

    first, second = Closing(), Closing()
    log = JsonLines(tmp_path / LOG)
    stream = Stream([first, log, second])
    before = time.time()
    made = stream.emit("step", 3, {"loss": 1.0})
    assert before <= made.time <= time.time()
    assert first.seen == second.seen == [made]
    with pytest.raises(OSError, match="gone"):
        stream.close()
    assert first.closed == second.closed == 1
    log.close()  # twice is no harm
    assert [each.step for each in read_events(tmp_path / LOG)] == [3]


def test_reading_a_log_loads_no_framework() -> None:
    code = "import sys, tsumugu.training.events, tsumugu.training.runs\n"
    code += "print({'torch', 'numpy', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_best_evaluation_has_the_best_score_then_the_least_loss():
    found = [
        {"loss": 0.5, "scores": {"accuracy": 0.8}},
        {"loss": 0.7, "scores": {"accuracy": 0.9}},
        {"loss": 0.6, "scores": {"accuracy": 0.9}},
        {"loss": 0.1, "scores": {"accuracy": 0.2}},
    ]
    assert max(found, key=merit) == found[2]
    assert max([{"loss": 2.0}, {"loss": 1.0}, {"loss": 3.0}], key=merit) == {"loss": 1.0}
    assert merit({}) is None
    assert merit({"loss": None, "scores": {}}) is None
