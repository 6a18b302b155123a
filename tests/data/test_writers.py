"""What is written is read back equal, and a file is there whole or not at all."""

from __future__ import annotations

import csv
import datetime
import gzip
import json
import math
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsumugu.core.errors import InputError
from tsumugu.data.readers import count_rows, read_rows
from tsumugu.data.writers import open_writer

TEXTS = ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.tsv.gz"]
on_posix = pytest.mark.skipif(os.name != "posix", reason="devices and signals of POSIX")


def write(path, rows, **options):
    with open_writer(path, **options) as writer:
        for row in rows:
            writer.write(row)


def values(path):
    return [row.values for row in read_rows(path)]


def refused(path, rows=(), **options) -> str:
    with pytest.raises(InputError) as caught:
        write(path, rows, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


unicode_text = st.text(max_size=30) | st.text('",;\t\r\n\\ \0é🧵\u2028', max_size=12)
tables = st.lists(st.text(max_size=8), min_size=1, max_size=4, unique=True).flatmap(
    lambda names: st.lists(st.fixed_dictionaries(dict.fromkeys(names, unicode_text)), min_size=1, max_size=5)
)
nested = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | unicode_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def looks_divided(rows) -> bool:
    """A header of one column with a separator in its name, which the reader refuses as a likely mistake."""
    return len(rows[0]) == 1 and any(mark in name for name in rows[0] for mark in ";\t,|")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=tables, name=st.sampled_from([*TEXTS, "a.parquet"]))
def test_texts_come_back_as_they_were(tmp_path: Path, rows, name: str):
    if any(mark in name for mark in (".csv", ".tsv")) and (
        looks_divided(rows) or next(iter(rows[0])).startswith("\ufeff")
    ):
        return
    write(tmp_path / name, rows)
    assert values(tmp_path / name) == rows
    assert count_rows(tmp_path / name) in (None, len(rows))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.text(max_size=5), nested, min_size=1, max_size=3), max_size=4))
def test_nested_values_come_back_from_json(tmp_path: Path, rows):
    for name in ("a.jsonl", "a.json.gz"):
        write(tmp_path / name, rows)
        if rows or name != "a.jsonl":
            assert values(tmp_path / name) == rows


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(unicode_text, min_size=1, max_size=5))
def test_a_text_file_has_a_line_for_each_row(tmp_path: Path, rows):
    write(tmp_path / "a.txt", [{"generated_text": text} for text in rows])
    lines = (tmp_path / "a.txt").read_bytes().decode().split("\n")
    assert lines == [*(text.replace("\r", r"\r").replace("\n", r"\n") for text in rows), ""]


def test_other_tools_read_what_is_written(tmp_path: Path):
    rows = [{"text": 'a "b",\nc', "n": 1}, {"text": "紡ぐ", "n": 2}]
    write(tmp_path / "a.csv", rows)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["text", "n"], ['a "b",\nc', "1"], ["紡ぐ", "2"]]
    write(tmp_path / "a.json", rows)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == rows
    write(tmp_path / "a.parquet", rows)
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == rows
    write(tmp_path / "a.jsonl.gz", rows)
    with gzip.open(tmp_path / "a.jsonl.gz", "rt", encoding="utf-8") as file:
        assert [json.loads(line) for line in file] == rows


def test_values_that_json_lacks(tmp_path: Path):
    row = {
        "array": np.float32([[1.5], [2]]),
        "number": np.int64(3),
        "nan": math.nan,
        "deep": [{"inf": -math.inf}, np.array([np.nan, 1.0])],
        "day": datetime.date(2024, 2, 29),
        "path": Path("a/b"),
        "pair": (1, 2),
    }
    expected = {
        "array": [[1.5], [2.0]],
        "number": 3,
        "nan": None,
        "deep": [{"inf": None}, [None, 1.0]],
        "day": "2024-02-29",
        "path": str(Path("a/b")),
        "pair": [1, 2],
    }
    write(tmp_path / "a.jsonl", [row])
    assert values(tmp_path / "a.jsonl") == [expected]
    assert "row 1: a value cannot be written: bytes" in refused(tmp_path / "b.jsonl", [{"x": b"raw"}])
    assert "surrogate" in refused(tmp_path / "b.jsonl", [{"x": "\udcff"}])
    assert not (tmp_path / "b.jsonl").exists()


def test_csv_keeps_nested_values_as_json_and_its_columns(tmp_path: Path):
    write(tmp_path / "a.csv", [{"a": [1, {"b": "é"}], "c": None, "d": True}, {"d": 0.5}])
    assert (tmp_path / "a.csv").read_text("utf-8") == 'a,c,d\n"[1, {""b"": ""é""}]",,true\n,,0.5\n'
    assert "row 2: the first row has no column 'b'; write .jsonl" in refused(tmp_path / "b.csv", [{"a": 1}, {"b": 1}])
    assert "without columns" in refused(tmp_path / "b.csv", [{}])


def test_a_text_file_holds_the_result_column(tmp_path: Path):
    write(tmp_path / "a.txt", [{"text": "in", "generated_text": "out", "score": 1}])
    write(tmp_path / "b.txt", [{"text": "in", "generated_text": "out"}], field="text")
    write(tmp_path / "c.txt", [{"similarity": 0.5}, {"similarity": None}])
    write(tmp_path / "d.txt", [{"title": "x", "n": 1}])
    assert [(tmp_path / f"{each}.txt").read_text() for each in "abcd"] == ["out\n", "in\n", "0.5\n\n", "x\n"]
    assert "not clear which (columns: 'a', 'b')" in refused(tmp_path / "e.txt", [{"a": "x", "b": "y"}])
    assert "no column 'c'" in refused(tmp_path / "e.txt", [{"a": "x"}], field="c")


def test_no_rows_are_a_file_too(tmp_path: Path):
    for name in ("a.json", "a.parquet"):
        write(tmp_path / name, [])
        assert values(tmp_path / name) == []
    write(tmp_path / "a.csv", [])
    assert (tmp_path / "a.csv").read_bytes() == b""


def test_parquet_widens_its_types_when_later_rows_ask_for_it(tmp_path: Path):
    rows = [{"a": None, "m": {"x": 1}, "e": [1, 2]}] * 1500 + [{"a": "s", "m": {"y": "z"}, "e": [0.5], "n": 3}]
    write(tmp_path / "a.parquet", rows)
    got = values(tmp_path / "a.parquet")
    assert len(got) == 1501
    assert got[1400] == {"a": None, "m": {"x": 1, "y": None}, "e": [1.0, 2.0], "n": None}
    assert got[-1] == {"a": "s", "m": {"x": None, "y": "z"}, "e": [0.5], "n": 3}
    assert [each.name for each in tmp_path.iterdir()] == ["a.parquet"]


def test_parquet_keeps_the_types_of_arrays(tmp_path: Path):
    write(tmp_path / "a.parquet", [{"v": np.float32([1, 2]), "m": np.ones((2, 2)), "raw": b"\xff", "s": np.float32(2)}])
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert schema.field("v").type == pa.list_(pa.float32())
    assert values(tmp_path / "a.parquet") == [
        {"v": [1.0, 2.0], "m": [[1.0, 1.0], [1.0, 1.0]], "raw": b"\xff", "s": 2.0}
    ]


def test_long_rows_do_not_wait_for_a_full_row_group(tmp_path: Path):
    write(tmp_path / "a.parquet", [{"text": "x" * 3_000_000}] * 12)
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": 1}] * 3 + [{"a": "x"}] + [{"a": 1}] * 3, "row 4, column 'a': the value does not go with the column"),
        ([{"a": 1}] * 1500 + [{"a": "x"}], "row 1501, column 'a': the value does not go"),
        ([{"a": 1}] * 1000 + [{"a": "x"}], "row 1001 or later, column 'a': string does not go with int64"),
        ([{"a": 1}, {"a": 2**70}], "row 2, column 'a'"),
        ([{"a": {}}], "Parquet cannot keep these columns"),
        ([{"a": "\ud800"}], "row 1, column 'a'"),
        ([{}], "row 1: a row without columns"),
    ],
)
def test_rows_that_parquet_cannot_keep(tmp_path: Path, rows, message: str):
    assert message in refused(tmp_path / "a.parquet", rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.csv.gz", "a.parquet"])
def test_an_exception_leaves_nothing_and_the_old_file_untouched(tmp_path: Path, name: str):
    path = tmp_path / name
    for before in (None, b"the file before"):
        if before is not None:
            path.write_bytes(before)
        with pytest.raises(KeyboardInterrupt), open_writer(path) as writer:  # noqa: PT012
            for number in range(2500):
                writer.write({"text": f"row {number}"})
            raise KeyboardInterrupt
        assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == ({name: before} if before else {})


def test_the_file_appears_at_the_end_only(tmp_path: Path):
    with open_writer(tmp_path / "a.jsonl") as writer:
        writer.write({"a": 1})
        assert not (tmp_path / "a.jsonl").exists()
    assert values(tmp_path / "a.jsonl") == [{"a": 1}]
    with pytest.raises(RuntimeError):
        writer.write({"a": 2})


def test_names_modes_and_links_are_kept(tmp_path: Path):
    target, link = tmp_path / ("x" * 249 + ".jsonl"), tmp_path / "link.jsonl"
    target.write_text("before")
    target.chmod(0o640)
    link.symlink_to(target.name)
    write(link, [{"a": 1}])
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert values(target) == [{"a": 1}]
    fresh = tmp_path / "fresh.jsonl"
    write(fresh, [])
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o666 & ~mask


def test_targets_that_are_refused_before_any_work(tmp_path: Path):
    source = tmp_path / "in.csv"
    source.write_text("text\nx\n")
    (tmp_path / "link.csv").symlink_to(source)
    cases = {
        "the output is the input file": lambda: open_writer(source, input_path=source),
        "the output is the input": lambda: open_writer(tmp_path / "link.csv", input_path=str(source)),
        "there is no folder": lambda: open_writer(tmp_path / "no" / "a.csv"),
        "mkdir -p": lambda: open_writer(tmp_path / "no" / "a.csv"),
        "this is a folder": lambda: open_writer(tmp_path, format="csv"),
        "no format of rows": lambda: open_writer(tmp_path / "a.xlsx"),
        "did you mean 'jsonl'": lambda: open_writer(tmp_path / "a", format="jsonll"),
        "read but not written": lambda: open_writer(tmp_path / "a.csv.xz"),
        "not wrapped": lambda: open_writer(tmp_path / "a.parquet.gz"),
        "needs a file": lambda: open_writer(None, format="parquet"),
        "not a directory": lambda: open_writer(source / "a.csv"),
    }
    for message, attempt in cases.items():
        with pytest.raises(InputError) as caught:
            attempt()
        assert message in str(caught.value).replace("Not a", "not a")
    assert source.read_text() == "text\nx\n"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.csv", "link.csv"]


DENIED = """
import os, tempfile
from pathlib import Path
from tsumugu.core.errors import InputError
from tsumugu.data.readers import read_rows
from tsumugu.data.writers import open_writer
if os.geteuid() == 0: os.setuid(65534)  # the superuser may do everything
with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    Path("a.csv").write_text("before")
    for mode, attempt in ((0o200, read_rows), (0o400, open_writer)):
        Path("a.csv").chmod(mode)
        try: attempt("a.csv")
        except InputError as error: print(error)
    Path(folder).chmod(0o500)
    try: open_writer("b.csv")
    except InputError as error: print(error)
    Path(folder).chmod(0o700)
"""


@on_posix
def test_files_and_folders_without_permission():
    done = subprocess.run([sys.executable, "-c", DENIED], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "a.csv: the file may not be read (permission denied)",
        "a.csv: the file may not be written (permission denied)",
        "b.csv: its folder may not be written (permission denied)",
    ]


@on_posix
def test_devices_and_pipes_are_written_to_and_stay_what_they_are(tmp_path: Path):
    write("/dev/null", [{"a": 1}])
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)  # noqa: PTH116
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE, text=True) as cat:
        write(fifo, [{"a": 1}])
        assert cat.stdout.read() == '{"a": 1}\n'
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_device_is_one_clear_line():
    assert (
        refused("/dev/full", [{"a": 1}])
        == "/dev/full: cannot be written: No space left on device; make room on the disk"
    )


LIMITED = """
import resource, sys
from tsumugu.core.errors import InputError
from tsumugu.data.writers import open_writer
if sys.argv[2] == "limit": resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    with open_writer(sys.argv[1]) as writer:
        for number in range(3000):
            text = "".join(chr(0x4E00 + number * 7919 * at % 20_000) for at in range(400))
            writer.write({"text": text})
except InputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv.gz", "a.parquet"])
def test_a_disk_without_room_leaves_the_old_file_and_one_line(tmp_path: Path, name: str):
    (tmp_path / name).write_text("before")
    command = [sys.executable, "-X", "dev", "-c", LIMITED, tmp_path / name, "limit"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (
        done.stdout
        == f"{tmp_path / name}: cannot be written: File too large; make room on the disk; nothing was left behind\n"
    )
    assert done.stderr == ""
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {name: "before"}


@pytest.mark.skipif(sys.platform != "linux", reason="a small disk as Linux has it")
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv.gz", "a.parquet"])
def test_a_small_disk_that_is_full(tmp_path: Path, name: str):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small disk cannot be mounted here")
    try:
        command = [sys.executable, "-X", "dev", "-c", LIMITED, tmp_path / name, "disk"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert "No space left on device; make room on the disk; nothing was left behind\n" in done.stdout
        assert done.stderr == ""
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@on_posix
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv.gz", "a.parquet"])
@pytest.mark.parametrize("before", [None, "the file before"])
def test_a_killed_process_leaves_no_half_written_target(tmp_path: Path, name: str, before: str | None):
    path = tmp_path / name
    if before is not None:
        path.write_text(before)
    code = (
        "import itertools, sys\nfrom tsumugu.data.writers import open_writer\n"
        "with open_writer(sys.argv[1]) as writer:\n"
        "    for number in itertools.count():\n"
        "        writer.write({'text': f'row {number}'})\n"
        "        if number == 5000: print('busy', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "busy\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert (path.read_text() if path.exists() else None) == before
    write(path, [{"text": "again"}])
    assert values(path) == [{"text": "again"}]


STDOUT = """
import sys
from tsumugu.data.writers import open_writer
print("first", flush=False)
try:
    with open_writer(sys.argv[1] if len(sys.argv) > 1 else None) as writer:
        for number in range(100_000):
            writer.write({"n": number})
except BrokenPipeError:
    import os
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(141)
"""


@on_posix
def test_standard_output_is_json_lines_that_come_at_once():
    command = [sys.executable, "-c", STDOUT.replace("range(100_000)", "range(2)")]
    for more in ([], ["-"]):
        done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
        assert done.stdout == 'first\n{"n": 0}\n{"n": 1}\n'


@on_posix
def test_a_reader_that_goes_away_is_told_as_a_broken_pipe():
    with subprocess.Popen([sys.executable, "-c", STDOUT], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"first\n"
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 141
