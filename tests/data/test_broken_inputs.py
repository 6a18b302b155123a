"""What cannot be read is one InputError that names the place and the mend, in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsumugu.core.errors import InputError
from tsumugu.data.readers import count_rows, read_rows

CHILD = """
import sys
from pathlib import Path
from tsumugu.core.errors import InputError
from tsumugu.data.readers import count_rows, read_rows
try:
    rows = longest = 0
    for row in read_rows(sys.argv[1]):
        rows += 1
        longest = max(longest, *(len(each) for each in row.values.values() if isinstance(each, str)))
    print(rows, longest)
except InputError as error:
    print(error)
status = Path("/proc/self/status").read_text()  # getrusage counts the parent before exec too
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def refused(path: Path | str, **options) -> str:
    with pytest.raises(InputError) as caught:
        list(read_rows(path, **options))
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 1200
    return line


def read_in_a_child(path: Path) -> tuple[str, int]:
    """What reading the file says, and the most memory that it took, in MiB."""
    done = subprocess.run([sys.executable, "-c", CHILD, path], capture_output=True, text=True, timeout=120, check=True)
    said, memory = done.stdout.splitlines()
    return said, int(memory)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "a.txt: the file is empty"),
        ("a.parquet", b"", "a.parquet: the file is empty"),
        ("a.txt.gz", gzip.compress(b"", mtime=0), "there is nothing in it"),
        ("a.json", b"\xef\xbb\xbf", "nothing in it"),
        ("a.json", b" \n ", "nothing in it"),
        ("a.csv", b"\n\n", "no header"),
        (
            "a.txt",
            b"fine\nabc\xff\xfe\n",
            r"a\.txt, line 2: byte 0xff at offset 8 is not UTF-8; .*--encoding-errors replace",
        ),
        ("a.txt", b"\xef\xbb\xbfab\xc3", r"line 1: byte 0xc3 at offset 5 is not UTF-8"),
        ("a.txt", "日本語".encode("shift_jis"), r"line 1: byte 0x93 at offset 0 is not UTF-8"),
        ("a.json", b'[{"a":\n"\xff"}]', r"line 2: byte 0xff at offset 8 is not UTF-8"),
        (
            "a.csv.gz",
            gzip.compress(b"text\n\xe9t\xe9\n", mtime=0),
            r"line 2: byte 0xe9 at offset 5 of the unpacked text",
        ),
        ("a.txt", "text".encode("utf-16"), "is UTF-16, not UTF-8"),
        ("a.csv", "text".encode("utf-16-be").join([b"\xfe\xff", b""]), "is UTF-16, not UTF-8"),
        ("a.jsonl", b'{"a": 1}\n{"a": }\n', "a.jsonl, line 2: broken JSON: .* column 7"),
        ("a.jsonl", b'{"a": 1}\n\n[1]\n', "line 3: not a JSON object"),
        ("a.jsonl", b'"text"\n', "line 1: not a JSON object"),
        ("a.jsonl", b'{"a": 1}{"a": 2}\n', "line 1: broken JSON"),
        ("a.jsonl", b'{"a": "\\ud83d"}\n', "line 1: .*surrogate"),
        ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "line 1: the JSON cannot be used"),
        ("a.jsonl", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 1: the JSON is nested too deep"),
        ("a.json", b'[{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]", "row 1: the JSON is nested too deep"),
        ("a.json", b'[\n{"a": 1},\n{"a": nul}\n]', "line 3: broken JSON"),
        ("a.json", b'[\n{"a": 1}\n{"a": 2}]', "line 3: broken JSON: Expecting ','"),
        ("a.json", b'[{"a": 1},\n]', "line 2: broken JSON: an object"),
        ("a.json", b'[{"a": 1}', "the array is not closed"),
        ("a.json", b'[{"a": "x', "broken JSON: Unterminated string"),
        ("a.json", b'[{"a": 1}] x', "after the array"),
        ("a.json", b'["a", "b"]', "an object"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", r"a\.csv, row 2 \(line 3\): 3 fields, but the header has 2; .*double quotes"),
        ("a.csv", b'a,b\n"1\n",2\n1\n', r"row 2 \(line 4\): 1 fields, but the header has 2"),
        ("a.csv", b'a,b\n1,2\n"x,2\n3,4\n', r"row 2 \(line 3\): a double quote is opened and never closed"),
        ("a.csv", b'a,b\n"x"y,2\n', r"row 1 \(line 2\): text follows a closing double quote"),
        ("a.csv", b"a,b,a\n1,2,3\n", "two columns have the name 'a'"),
        ("a.csv", b"id;text\n1;x\n", "looks divided by ';'"),
        ("a.tsv", b"id,text\n1,x\n", "looks divided by ','"),
        ("a.txt.gz", gzip.compress(b"text" * 1000, mtime=0)[:-9], "ends too early; copy or download"),
        ("a.txt.gz", b"plain text\n", "compressed data is broken"),
        ("a.txt.bz2", bz2.compress(b"text" * 1000)[:-9], "ends too early"),
        ("a.txt.bz2", b"plain text\n", "compressed data is broken"),
        ("a.txt.xz", lzma.compress(b"text" * 1000)[:-9], "ends too early"),
        ("a.txt.xz", b"plain text\n", "compressed data is broken"),
        ("a.txt.zst", b"plain text, longer than a frame's header\n", "compressed data is broken"),
        ("a.parquet", b"PAR1plain textPAR1", "cannot be read as Parquet"),
        ("a.parquet", b"text\n", "cannot be read as Parquet"),
        ("a.parquet", b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1", "cannot be read as Parquet"),
        ("a.xlsx", b"PK", r"the suffix \.xlsx is no format of rows; use one of \.txt"),
        ("rows", b"x", r"the name has no suffix; use one of \.txt"),
        ("a.parquet.gz", b"x", r"not wrapped in \.gz"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, data: bytes, message: str):
    path = tmp_path / name
    path.write_bytes(data)
    line = refused(path)
    assert line.startswith(str(path))
    assert re.search(message, line), line


def test_places_that_are_no_files(tmp_path: Path):
    assert "this is a folder" in refused(tmp_path)
    assert "no such file" in refused(tmp_path / "missing.txt")
    assert "name of the file is empty" in refused("")
    assert "null" in refused("a\0.txt")
    assert "Not a directory" in refused(Path(__file__) / "a.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    assert "loop.txt" in refused(tmp_path / "loop.txt")


def test_the_file_is_checked_before_the_first_row_is_asked_for(tmp_path: Path):
    with pytest.raises(InputError):
        read_rows(tmp_path / "missing.txt")
    with pytest.raises(InputError):
        count_rows(tmp_path / "missing.txt")


def test_options_that_do_not_exist(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x\n")
    assert "did you mean 'jsonl'?" in refused(tmp_path / "a.txt", format="jsonnl")
    assert "known: strict, replace" in refused(tmp_path / "a.txt", encoding_errors="ignore")
    assert "standard input" in refused("-", format="parquet")
    assert "no column 'txet'" in refused(tmp_path / "a.txt", columns=["txet"])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", b"a\xffb\n"),
        ("a.jsonl", b'{"text": "a\xffb"}'),
        ("a.jsonl", b'{"text": "a\\udc00b"}'),
        ("a.json", b'[{"text": "a\xffb"}]'),
        ("a.csv", b"text\na\xffb\n"),
        ("a.csv.gz", gzip.compress(b"text\na\xffb\n", mtime=0)),
    ],
)
def test_bytes_that_are_no_text_are_replaced_on_demand(tmp_path: Path, name: str, data: bytes):
    (tmp_path / name).write_bytes(data)
    assert [row.values for row in read_rows(tmp_path / name, encoding_errors="replace")] == [{"text": "a\ufffdb"}]


def test_parquet_texts_that_are_not_utf8(tmp_path: Path):
    path = tmp_path / "a.parquet"
    broken = pa.array([b"fine", None, b"a\xffb"]).view(pa.string())
    pq.write_table(pa.table({"n": [1, 2, 3], "text": broken}), path)
    assert "row 3, column 'text': byte 0xff at offset 1 of the value is not UTF-8" in refused(path)
    assert [row.values["text"] for row in read_rows(path, encoding_errors="replace")] == ["fine", None, "a\ufffdb"]
    assert [row.values["n"] for row in read_rows(path, columns=["n"])] == [1, 2, 3]


def test_parquet_columns_that_are_not_there_or_twice(tmp_path: Path):
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "a.parquet")
    assert "did you mean 'text'?" in refused(tmp_path / "a.parquet", columns=["texts"])
    pq.write_table(pa.Table.from_arrays([pa.array(["x"])] * 2, ["text", "text"]), tmp_path / "b.parquet")
    assert "two columns have the name 'text'" in refused(tmp_path / "b.parquet")


def test_parquet_cut_anywhere_is_refused(tmp_path: Path):
    whole = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"row {n}" for n in range(300)]}), whole, row_group_size=100)
    data = whole.read_bytes()
    for length in (1, 4, 12, len(data) // 2, len(data) - 9, len(data) - 1):
        (tmp_path / "cut.parquet").write_bytes(data[:length])
        assert "cannot be read as Parquet" in refused(tmp_path / "cut.parquet")
        with pytest.raises(InputError):
            count_rows(tmp_path / "cut.parquet")


@on_linux
def test_parquet_with_changed_bytes_is_read_or_refused_in_bounded_memory(tmp_path: Path):
    """In a child with little memory: a lying footer must neither end the process nor make it allocate."""
    whole = tmp_path / "a.parquet"
    table = pa.table({"text": [f"row {n} " * 9 for n in range(50)], "deep": [{"n": [n]} for n in range(50)]})
    pq.write_table(table, whole, row_group_size=20)
    code = """
import random, resource, sys
from pathlib import Path
from tsumugu.core.errors import InputError
from tsumugu.data.readers import count_rows, read_rows
data, path = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
list(read_rows(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
refused = 0
for seed in range(400):
    chance = random.Random(seed)
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8])):
        changed[chance.randrange(len(data) // 2, len(data)) if seed % 2 else chance.randrange(len(data))] = (
            chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)]))
    path.write_bytes(changed)
    try:
        count_rows(path)
        for row in read_rows(path):
            if row.number > 100_000: break
    except InputError as error:
        refused += 1
print(refused, int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024)
"""
    command = [sys.executable, "-c", code, whole, tmp_path / "changed.parquet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    refused_ones, memory = map(int, done.stdout.split())
    assert refused_ones > 50
    assert memory < 1024


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=200),
    name=st.sampled_from(
        ["a.txt", "a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt.gz", "a.csv.bz2", "a.json.xz", "a.txt.zst", "a.parquet"]
    ),
)
def test_any_bytes_are_rows_or_one_clear_error(tmp_path: Path, data: bytes, name: str):
    path = tmp_path / name
    path.write_bytes(data)
    for errors in ("strict", "replace"):
        try:
            rows = list(read_rows(path, encoding_errors=errors))
        except InputError as error:
            said = str(error)
        else:
            said = str(path)
            assert all(row.number >= 1 and isinstance(row.values, dict) for row in rows)
        assert str(path) in said


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(st.sampled_from('[]{}",:\\nu\n\r 01truefalsé;\t'), max_size=60),
    name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv"]),
)
def test_near_misses_of_json_and_csv_are_rows_or_one_clear_error(tmp_path: Path, text: str, name: str):
    test_any_bytes_are_rows_or_one_clear_error.hypothesis.inner_test(tmp_path, text.encode(), name)


@on_linux
def test_one_line_of_50_mb_is_one_row(tmp_path: Path):
    path = tmp_path / "long.txt"
    path.write_bytes(b"spin " * 10_000_000 + b"\nnext\n")
    said, memory = read_in_a_child(path)
    assert said == "2 50000000"
    assert memory < 300


@on_linux
def test_many_rows_take_no_more_memory_than_few(tmp_path: Path):
    line = "x" * 990
    with (tmp_path / "many.csv").open("w") as file:
        file.write("id,text\n")
        file.writelines(f"{number},{line}\n" for number in range(40_000))
    with (tmp_path / "many.json").open("w") as file:
        file.write("[" + ",\n".join(json.dumps({"text": line}) for _ in range(40_000)) + "]")
    for name in ("many.csv", "many.json"):
        said, memory = read_in_a_child(tmp_path / name)
        assert said == "40000 990"
        assert memory < 48, name


@on_linux
def test_a_parquet_file_is_streamed(tmp_path: Path):
    path = tmp_path / "many.parquet"
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for part in range(10):
            texts = [f"{part} {number} " + "x" * 100_000 for number in range(250)]
            writer.write_table(pa.table({"text": texts}, schema))
    assert path.stat().st_size > 240_000_000
    said, memory = read_in_a_child(path)
    assert said.startswith("2500 100")
    assert memory < 250


@on_linux
@pytest.mark.parametrize("name", ["bomb.txt.gz", "bomb.json.gz", "bomb.csv.gz", "lines.csv.gz"])
def test_a_packed_row_without_end_is_refused_before_it_fills_the_memory(tmp_path: Path, name: str):
    path = tmp_path / name
    start = {"bomb.txt.gz": b"", "bomb.json.gz": b'[{"text": "', "bomb.csv.gz": b'text\n"', "lines.csv.gz": b'text\n"'}
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start[name])
        line = b"spin " * 1000 + (b"\n" if name == "lines.csv.gz" else b"")
        for _ in range(140):
            file.write(line * 209)
    assert path.stat().st_size < 3_000_000
    said, memory = read_in_a_child(path)
    assert "longer than" in said
    assert memory < 700
