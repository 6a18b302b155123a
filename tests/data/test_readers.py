"""Rows are read from every format and compression as they were written, one at a time, and are counted cheaply."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tsumugu.core.errors import InputError
from tsumugu.data.readers import Row, count_rows, read_rows, text_column, text_of

ROWS = [{"text": 'He said, "no"\nand left', "label": "a"}, {"text": "紡ぐ 🧵", "label": ""}, {"text": "", "label": "c"}]
CSV = 'text,label\r\n"He said, ""no""\nand left",a\r\n紡ぐ 🧵,\r\n,c\r\n'
FILES = {
    "rows.jsonl": "\n".join(json.dumps(each) for each in ROWS),
    "rows.ndjson": "\n\n".join(json.dumps(each, ensure_ascii=False) for each in ROWS) + "\n \n",
    "rows.json": json.dumps(ROWS, indent=2),
    "objects.json": " ".join(json.dumps(each) for each in ROWS),
    "rows.csv": CSV,
    "marked.csv": "\ufeff" + CSV,
    "loose.csv": "\r\n" + CSV.replace("\r\n", "\n\n"),
    "rows.tsv": CSV.replace("text,label", "text\tlabel")
    .replace('",a', '"\ta')
    .replace("🧵,", "🧵\t")
    .replace(",c", "\tc"),
    "UPPER.JSONL": "\n".join(json.dumps(each) for each in ROWS),
}
PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": None}


def packed(data: bytes, suffix: str) -> bytes:
    if suffix == "zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()
    return PACKERS[suffix](data)


def values(path, **options):
    return [row.values for row in read_rows(path, **options)]


@pytest.mark.parametrize("name", FILES)
def test_every_text_format_gives_the_same_rows(tmp_path: Path, name: str):
    (tmp_path / name).write_text(FILES[name], "utf-8", newline="")
    assert values(tmp_path / name) == ROWS


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv"])
def test_every_compression_gives_the_same_rows(tmp_path: Path, name: str, suffix: str):
    path = tmp_path / f"{name}.{suffix}"
    path.write_bytes(packed(FILES[name].encode(), suffix))
    assert values(path) == ROWS
    assert count_rows(path) is None


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_parts_one_after_another_are_one_text(tmp_path: Path, suffix: str):
    path = tmp_path / f"rows.txt.{suffix}"
    path.write_bytes(packed(b"one\ntw", suffix) + packed(b"o\n", suffix))
    assert values(path) == [{"text": "one"}, {"text": "two"}]


def test_a_text_file_gives_a_row_a_line_and_leaves_the_rest_alone(tmp_path: Path):
    path = tmp_path / "rows.txt"
    path.write_bytes("\ufeffone\r\n\n  two \u2028\x0b\x85 half\rcarriage\n\x00\nlast".encode())
    rows = list(read_rows(path))
    assert [row.values["text"] for row in rows] == ["one", "", "  two \u2028\x0b\x85 half\rcarriage", "\x00", "last"]
    assert [row.number for row in rows] == [1, 2, 3, 4, 5]
    assert count_rows(path) == 5
    assert rows[2].where == f"{path}, line 3"


def test_numbers_are_lines_in_json_lines_and_records_elsewhere(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('\n{"text": "x"}\n\n{"text": "y"}\n')
    (tmp_path / "a.csv").write_text('text\n"x\n\nx"\n\ny\n')
    assert [row.number for row in read_rows(tmp_path / "a.jsonl")] == [2, 4]
    assert [row.number for row in read_rows(tmp_path / "a.csv")] == [1, 2]


def test_a_csv_of_an_old_mac_and_fields_with_carriage_returns(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b'text,n\rone,1\r"t\rw\no",2\r')
    assert values(tmp_path / "a.csv") == [{"text": "one", "n": "1"}, {"text": "t\rw\no", "n": "2"}]


@pytest.mark.parametrize("name", [each for each in FILES if not each.endswith(".json")])
def test_counting_agrees_with_reading(tmp_path: Path, name: str):
    (tmp_path / name).write_text(FILES[name], "utf-8", newline="")
    assert count_rows(tmp_path / name) == len(ROWS)


def test_counting_says_none_where_it_would_cost(tmp_path: Path):
    (tmp_path / "rows.json").write_text("[{}]")
    assert count_rows(tmp_path / "rows.json") is None
    assert count_rows("-") is None


def test_parquet_keeps_types_and_nested_values_over_many_row_groups(tmp_path: Path):
    rows = [{"text": f"row {n}", "n": n, "deep": {"tags": ["a", "b"][: n % 3]}, "none": None} for n in range(5000)]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    assert values(path) == rows
    assert count_rows(path) == 5000
    assert [row.number for row in read_rows(path)][-1] == 5000
    assert values(path, columns=["n", "text"])[7] == {"n": 7, "text": "row 7"}


def test_parquet_columns_with_a_dot_are_columns_not_paths(tmp_path: Path):
    path = tmp_path / "rows.pq"
    pq.write_table(pa.table({"a": [{"b": 1}], "a.b": ["x"]}), path)
    assert values(path) == [{"a": {"b": 1}, "a.b": "x"}]
    assert values(path, columns=["a.b"]) == [{"a.b": "x"}]


def test_empty_tables_have_no_rows(tmp_path: Path):
    (tmp_path / "a.json").write_text(" [ ] ")
    (tmp_path / "a.csv").write_text("text,label\n")
    (tmp_path / "a.jsonl").write_text("\n")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    for name in ("a.json", "a.csv", "a.jsonl", "a.parquet"):
        assert values(tmp_path / name) == []


def test_json_objects_longer_than_a_piece_and_cut_anywhere(tmp_path: Path):
    rows = [
        {"text": "x" * size, "é": [1.5, True, None, {"\\": '"]}'}]} for size in (3_000_000, 1, 1_048_540, 1_048_576)
    ]
    for name, text in (("a.json", json.dumps(rows)), ("b.json", "\n".join(json.dumps(each) for each in rows))):
        (tmp_path / name).write_text(text)
        assert values(tmp_path / name) == rows


def test_the_format_can_be_said(tmp_path: Path):
    (tmp_path / "rows").write_bytes(gzip.compress(b'{"text": "x"}\n'))
    assert values(tmp_path / "rows", format="jsonl.gz") == [{"text": "x"}]
    (tmp_path / "rows.txt").write_text("text\nx\n")
    assert values(tmp_path / "rows.txt", format=".CSV") == [{"text": "x"}]


def test_columns_are_chosen_and_ordered(tmp_path: Path):
    (tmp_path / "a.csv").write_text("a,b,c\n1,2,3\n")
    assert [list(row.values.items()) for row in read_rows(tmp_path / "a.csv", columns=["c", "a"])] == [
        [("c", "3"), ("a", "1")]
    ]
    with pytest.raises(InputError, match=r"row 1: there is no column 'texts' \(columns: 'a', 'b', 'c'\)"):
        list(read_rows(tmp_path / "a.csv", columns=["a", "texts"]))


@pytest.mark.parametrize(
    ("format", "given"),
    [(None, "one\ntwo"), ("jsonl", '{"text": "one"}\n{"text": "two"}\n'), ("csv", "text\none\ntwo\n")],
)
def test_standard_input(format: str | None, given: str):
    code = (
        "from tsumugu.data.readers import read_rows\n"
        f"print([row.values['text'] for row in read_rows('-', format={format!r})])"
    )
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['one', 'two']"


def test_lines_from_a_pipe_are_given_as_they_come():
    code = (
        "from tsumugu.data.readers import read_rows\n"
        "for row in read_rows('-', format='jsonl'): print(row.values['text'], flush=True)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as child:
        for word in ("one", "two"):
            child.stdin.write(json.dumps({"text": word}) + "\n")
            assert child.stdout.readline() == word + "\n"


def test_the_room_loads_neither_torch_nor_numpy_for_text(tmp_path: Path):
    (tmp_path / "a.csv").write_text("text\nx\n")
    code = (
        "import sys\nfrom tsumugu.data.readers import read_rows\nfrom tsumugu.data.writers import open_writer\n"
        f"list(read_rows({str(tmp_path / 'a.csv')!r}))\n"
        "print({'torch', 'numpy', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("values", "column"),
    [
        ({"id": "1", "text": "x"}, "text"),
        ({"Sentence": "x", "body": "y"}, "Sentence"),
        ({"content": ["not a text"], "prompt": "x"}, "prompt"),
        ({"id": 1, "review": "x", "stars": 5.0}, "review"),
    ],
)
def test_the_text_column_is_guessed(values: dict, column: str):
    assert text_column(values) == column
    assert text_column(Row(1, values)) == column


def test_the_text_column_of_names_alone():
    assert text_column(["id", "BODY", "label"]) == "BODY"
    assert text_column(["review"]) == "review"
    assert text_column(["id", "review"], "review") == "review"


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        (["id", "review"], None, "not clear which .*'id', 'review'.*--text-column"),
        ({"id": 1}, None, "no column holds texts .*'id'.*--text-column"),
        (["id", "review"], "reviews", "no column 'reviews' .*'id', 'review'.*did you mean 'review'"),
        (Row(7, {"a": "x", "b": "y"}, "f.csv"), None, "^f.csv, row 7: "),
        ([f"c{n}" for n in range(1000)], None, r"1000 in all"),
    ],
)
def test_a_text_column_that_cannot_be_had(given, wanted: str | None, message: str):
    with pytest.raises(InputError, match=message) as caught:
        text_column(given, wanted)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("value", "message"), [(3, "a number"), (None, "null"), ([1], "a list"), (True, "true or false")]
)
def test_a_value_that_is_no_text_is_named_by_its_place(value, message: str):
    with pytest.raises(InputError, match=rf"^f\.jsonl, line 3, column 'text': .*{message}"):
        text_of(Row(3, {"text": value}, "f.jsonl", "line"), "text")
    with pytest.raises(InputError, match="no column 'text'"):
        text_of(Row(3, {"texts": value}, "f.jsonl", "line"), "text")
    assert text_of(Row(3, {"text": ""}), "text") == ""
