"""Reading documents: every format, every division of plain text, and what is wrong with a file said in one line."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsumugu.core.errors import InputError
from tsumugu.corpus.documents import Reading, read_documents
from tsumugu.corpus.inputs import TextSource, find_sources

TEXTS = ["First text.\nWith two lines.", "二番目の文章。", "", "  indented", 'with "quotes", commas\tand tabs']


def read(path: Path, **options) -> list[tuple[str, str]]:
    source = TextSource(0, path.name, path)
    return [tuple(each) for each in read_documents(source, Reading(**options))]


def texts(path: Path, **options) -> list[str]:
    return [text for text, _ in read(path, **options)]


def write(folder: Path, kind: str) -> Path:
    """`TEXTS` in a format that keeps them."""
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        table = pa.table({"id": list(range(len(TEXTS))), "text": TEXTS, "more": [{"a": each} for each in TEXTS]})
        pq.write_table(table, path)
    elif kind == "json":
        path.write_text(json.dumps([{"text": each, "n": 1} for each in TEXTS]), "utf-8")
    elif kind.startswith("jsonl"):
        data = "".join(json.dumps({"n": 1, "text": each}, ensure_ascii=False) + "\n" for each in TEXTS).encode()
        pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": _zstd}
        path.write_bytes(pack[kind[6:]](data) if kind[5:] else data)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
            writer.writerows([["n", "text"], *([1, each] for each in TEXTS)])
    return path


def _zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


@pytest.mark.parametrize(
    "kind",
    ["jsonl", "jsonl.gz", "jsonl.bz2", "jsonl.xz", "jsonl.zst", "json", "csv", "tsv", "parquet"],
)
def test_a_row_is_a_document_in_every_format(tmp_path, kind):
    found = read(write(tmp_path, kind))
    assert [text for text, _ in found] == TEXTS
    assert found[1][1].startswith(f"{tmp_path / 'rows.'}{kind}, " if "/" in found[1][1] else f"rows.{kind}, ")


def test_no_text_is_an_empty_one_and_the_column_may_be_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "1", "b": "x"}\n{"a": "2", "b": null}\n', "utf-8")
    assert texts(path, column="b") == ["x", ""]
    with pytest.raises(InputError, match="which column"):
        texts(path)
    with pytest.raises(InputError, match=r"there is no column 'c'"):
        texts(path, column="c")
    path.write_text('{"text": "x"}\n{"text": 5}\n', "utf-8")
    with pytest.raises(InputError, match="line 2, column 'text': holds a number"):
        texts(path)


def test_plain_text_is_divided_as_asked(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\ntwo\r\n\r\n \t \n三\n\n\nfour".encode())
    whole = path.read_bytes().decode()
    assert read(path) == read(path, division="file") == [(whole, str(path))]
    assert texts(path, division="line") == ["one", "two", "", " \t ", "三", "", "", "four"]
    paragraphs = read(path, division="paragraph")
    assert paragraphs == [
        ("one\ntwo", f"{path}, line 1"),
        ("三", f"{path}, line 5"),
        ("four", f"{path}, line 8"),
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\r", codec="utf-8"), max_size=12), max_size=12))
def test_no_character_of_a_text_is_lost(tmp_path_factory, parts):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    text = "\n".join(parts)
    path.write_bytes(text.encode())
    text = text.removeprefix("\ufeff")  # a byte order mark is none of the text
    if any(path.read_bytes().startswith(mark) for mark in (b"\xff\xfe", b"\xfe\xff")):
        return
    assert texts(path) == [text]
    lines = texts(path, division="line")
    assert "\n".join(lines) in (text, text.removesuffix("\n"))
    paragraphs = texts(path, division="paragraph")
    assert [line for each in paragraphs for line in each.split("\n") if line.strip()] == [
        line for line in text.split("\n") if line.strip()
    ] or any(each in text for each in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")


def test_an_empty_file_is_an_empty_document(tmp_path):
    for name, data in (
        ("a.txt", b""),
        ("b.jsonl", b""),
        ("c.txt.gz", gzip.compress(b"")),
        ("d.jsonl.xz", lzma.compress(b"")),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        assert texts(path) == [""]
        assert texts(path, division="paragraph") == [""]


BROKEN = [
    ("a.txt", b"caf\xe9 au lait\n", r"a\.txt, line 1: byte 0xe9 at offset 3 is not UTF-8; .*replace"),
    ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', r"a\.jsonl, line 2: byte 0xff at offset 24 is not UTF-8"),
    ("a.txt", "text".encode("utf-16"), r"a\.txt: the text is UTF-16, not UTF-8; save it as UTF-8"),
    ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl, line 2: broken JSON"),
    (
        "a.txt.gz",
        gzip.compress(os.urandom(9999))[:-9],
        r"a\.txt\.gz: the compressed data ends too early; copy or download",
    ),
    ("a.txt.gz", b"no gzip at all", r"a\.txt\.gz: the compressed data is broken"),
    ("a.txt.zst", _zstd(b"x" * 999)[:-4], r"a\.txt\.zst: the compressed data"),
    ("a.txt.xz", lzma.compress(b"x" * 9999)[:-30], r"a\.txt\.xz: the compressed data ends too early"),
    ("a.txt.bz2", bz2.compress(b"x" * 9999)[:-3], r"a\.txt\.bz2: the compressed data ends too early"),
    ("a.parquet", b"PAR1 not really PAR1", r"a\.parquet: cannot be read as Parquet"),
    ("a.csv", b'text\nx\n"open', r"a\.csv, row 2 .*never closed"),
    ("a.pdf", b"%PDF", r"a\.pdf: the suffix \.pdf is no format"),
]


@pytest.mark.parametrize(("name", "data", "said"), BROKEN, ids=range(len(BROKEN)))
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path, name, data, said):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=said) as caught:
        texts(path)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_can_be_replaced(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9 au lait\n\xff")
    assert texts(path, encoding_errors="replace") == ["caf\ufffd au lait\n\ufffd"]
    assert texts(path, division="line", encoding_errors="replace") == ["caf\ufffd au lait", "\ufffd"]


HUGE = """
import resource, sys
from pathlib import Path
from tsumugu.core.errors import InputError
from tsumugu.corpus.documents import Reading, read_documents
from tsumugu.corpus.inputs import TextSource
path = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print(sum(len(each.text) for each in read_documents(TextSource(0, path.name, path), Reading(division=sys.argv[2]))))
except InputError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize("division", ["file", "paragraph", "line"])
def test_a_line_of_200_megabytes_is_refused_without_holding_it(tmp_path, division):
    path = tmp_path / "huge.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(200):
            file.write(b"x" * (1 << 20))
    done = subprocess.run(
        [sys.executable, "-c", HUGE, path, division], capture_output=True, text=True, check=True, timeout=100
    )
    said, grown = done.stdout.splitlines()
    assert "longer than 128 MiB" in said
    assert "huge.txt.gz" in said
    assert int(grown) < 700


def test_files_of_any_size_are_read_in_little_memory(tmp_path):
    path = tmp_path / "lines.jsonl.gz"
    row = json.dumps({"text": "word " * 200}).encode() + b"\n"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(100):
            file.write(row * 1000)
    done = subprocess.run(
        [sys.executable, "-c", HUGE, path, "auto"], capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout.splitlines()[0] == str(100_000 * 1000)
    assert int(done.stdout.splitlines()[1]) < 60


def names(folder: Path, *inputs: str, **options) -> list[str]:
    return [
        os.path.relpath(each.name, folder) for each in find_sources([str(folder / each) for each in inputs], **options)
    ]


def test_folders_and_patterns_stand_for_files_in_the_order_of_their_names(tmp_path):
    for name in (
        "b.txt",
        "a/2.jsonl.gz",
        "a/10.TXT",
        "a/.hidden.txt",
        ".git/x.txt",
        "a/readme.md",
        "c.parquet",
        "d[1].txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x", "utf-8")
    assert names(tmp_path, ".") == ["a/10.TXT", "a/2.jsonl.gz", "b.txt", "c.parquet", "d[1].txt"]
    assert names(tmp_path, "*.txt", "a/*") == ["b.txt", "d[1].txt", "a/10.TXT", "a/2.jsonl.gz", "a/readme.md"]
    assert names(tmp_path, "**/*.TXT") == ["a/10.TXT"]
    assert names(tmp_path, "d[1].txt", "b.txt", "b.txt", ".") == [
        "d[1].txt",
        "b.txt",
        "a/10.TXT",
        "a/2.jsonl.gz",
        "c.parquet",
    ]
    held = find_sources([str(tmp_path)], [str(tmp_path / "b.txt")])
    assert [(Path(each.name).name, each.held_back) for each in held][:2] == [("b.txt", True), ("10.TXT", False)]
    assert len(held) == 5
    (tmp_path / "none").mkdir()
    for wrong, said in (("no.txt", "no such file"), ("*.csv", "no file fits"), ("none", "no file of text")):
        with pytest.raises(InputError, match=said):
            find_sources([str(tmp_path / wrong)])
    with pytest.raises(InputError, match="empty"):
        find_sources([""])
    with pytest.raises(InputError, match="no input"):
        find_sources([], [str(tmp_path / "b.txt")])


def test_a_dataset_on_disk_is_read_by_its_splits(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    rows = {"train": ["a", "b", "三"], "test": ["c"]}
    whole = datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": each}) for name, each in rows.items()})
    whole.save_to_disk(str(tmp_path / "saved"))
    files = tmp_path / "files"
    files.mkdir()
    for name, each in rows.items():
        (files / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in each), "utf-8")
    for home in (tmp_path / "saved", files):
        for name, expected in rows.items():
            found = list(read_documents(TextSource(0, f"hf:{home}:{name}", None), Reading()))
            assert [each.text for each in found] == expected
            assert found[0].where == f"hf:{home}:{name}, row 1"
        assert [each.text for each in read_documents(TextSource(0, f"hf:{home}", None), Reading())] == rows["train"]
        with pytest.raises(InputError, match="dev"):
            list(read_documents(TextSource(0, f"hf:{home}:dev", None), Reading()))
    with pytest.raises(InputError, match="hf:"):
        list(read_documents(TextSource(0, f"hf:{tmp_path / 'nowhere'}", None), Reading()))
