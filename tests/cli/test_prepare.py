"""``tsumugu prepare`` as a user types it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import pydoc_data.topics
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tsumugu.cli import main
from tsumugu.corpus.shards import Corpus
from tsumugu.text.tokenizer import Tokenizer
from tsumugu.text.training import train_tokenizer

ENGLISH = [text for text in pydoc_data.topics.topics.values() if text][:12]
JAPANESE = ["吾輩は猫である。名前はまだ無い。", "山路を登りながら、こう考えた。", "ｶﾞﾗｽと㌔と①"]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "small"
    train_tokenizer([*ENGLISH, *JAPANESE * 9], family="gpt2", vocab_size=500).save(folder)
    return folder


@pytest.fixture
def typed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer_folder: Path
) -> Any:
    """Run the program in this process, in a folder with texts; give its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("raw/more").mkdir(parents=True)
    Path("raw/a.txt").write_text("\n\n".join(ENGLISH), "utf-8")
    _rows(Path("raw/b.jsonl"), ["", *JAPANESE, *JAPANESE[:2]])
    Path("raw/more/c.txt.gz").write_bytes(gzip.compress(ENGLISH[0].encode()))
    Path("raw/notes.md").write_text("not a file of text that is known", "utf-8")
    Path("tokenizer").symlink_to(tokenizer_folder)

    def run(*arguments: object, given: str | None = None) -> tuple[int, str, str]:
        if given is not None:
            stream = io.TextIOWrapper(io.BytesIO(given.encode()), encoding="utf-8")
            monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(SystemExit) as leaving:
            main(["prepare", *map(str, arguments)])
        printed = capfd.readouterr()
        return int(leaving.value.code or 0), printed.out, printed.err

    return run


def _rows(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": each}, ensure_ascii=False) + "\n" for each in texts), "utf-8")


def _texts(folder: str) -> list[str]:
    corpus = Corpus.open(folder)
    tokenizer = corpus.tokenizer()
    return [tokenizer.decode(corpus.document(number).tolist()) for number in range(len(corpus))]


GIVEN = ("-t", "tokenizer", "-o", "corpus")


def test_prepare_show_and_verify(typed: Any) -> None:
    code, out, err = typed("raw", *GIVEN)
    assert (code, err) == (0, "")
    assert "8 documents read" in out
    assert [line.split()[:4] for line in out.splitlines() if line.startswith(" exact")] == [
        ["exact", "duplicate", "2", "25.00"]
    ]
    assert "empty: b.jsonl, line 1" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "…" not in out.split("\ncorpus\n")[1]  # every heading and number is whole
    assert _texts("corpus") == ["\n\n".join(ENGLISH), *JAPANESE, ENGLISH[0]]

    code, shown, err = typed("show", "corpus", "-n", 2)
    assert (code, err) == (0, "")
    assert shown.startswith(out)
    assert '"inputs": ["raw"]' in shown
    assert [line.split()[0] for line in shown.splitlines()[-2:]] == ["0", "1"]
    assert JAPANESE[0] in shown.splitlines()[-1]
    assert typed("verify", "corpus") == (0, "corpus: 5 documents, all as they were prepared\n", "")

    shard = Path("corpus/shard-00000.bin")
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    code, out, err = typed("verify", "corpus")
    assert (code, out) == (2, "")
    assert err.startswith(f"tsumugu: {shard}: has changed since it was prepared")
    assert err.count("\n") == 1


def test_every_option_arrives(typed: Any) -> None:
    pq.write_table(pa.table({"title": ["a", "b"], "body": ["One\r\ntwo\x07 three", "ｶﾞﾗｽ four"]}), "rows.parquet")
    Path("held.txt").write_text("Held back.\nOne\r\ntwo\x07 three\n", "utf-8")
    options = ("--validation", "held.txt", "--validation-share", 0.25, "--document", "line", "--workers", 1)
    options += ("--shard-tokens", 50, "--normalize", "nfkc", "--near-duplicates", 0.9, "--keep-duplicates")
    options += ("--language", "en", "--language", "ja", "--filter", "characters>=2", "--filter", "digits<=0.5")
    options += ("--keep-newlines", "--keep-controls", "--text-column", "body", "--encoding-errors", "replace", "-q")
    Path("short.txt").write_text(ENGLISH[0][:2000], "utf-8")
    assert typed("rows.parquet", "short.txt", *options, *GIVEN) == (0, "", "")
    corpus = Corpus.open("corpus")
    expected = {
        "inputs": ["rows.parquet", "short.txt"],
        "validation": ["held.txt"],
        "validation_share": 0.25,
        "document": "line",
        "text_column": "body",
        "format": None,
        "encoding_errors": "replace",
        "shard_tokens": 50,
        "normalize": "nfkc",
        "newlines": False,
        "controls": False,
        "exact_duplicates": False,
        "near_duplicates": 0.9,
        "languages": ["en", "ja"],
        "filters": ["characters>=2", "digits<=0.5"],
    }
    assert {key: value for key, value in corpus.settings.items() if key != "tokenizer"} == expected
    assert len(corpus.shards) > 1
    assert corpus.validation is not None
    assert set(corpus.source_report["dropped"]) == {
        "empty",
        "language",
        "characters>=2",
        "digits<=0.5",
        "near duplicate",
    }


def test_json_says_all_there_is(typed: Any) -> None:
    code, out, err = typed("raw", *GIVEN, "--validation", "raw/more", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    corpus = Corpus.open("corpus")
    assert corpus.validation is not None
    assert found["checksum"] == corpus.checksum
    assert found["training"]["documents"] + found["validation"]["documents"] == 5
    assert found["training"]["tokens"] == corpus.tokens
    assert found["training"]["characters_per_token"] == corpus.characters / corpus.tokens
    assert found["training"]["document_tokens"]["most"] == corpus.lengths.max()
    assert found["report"]["dropped"]["exact duplicate"]["documents"] == 2
    assert typed("show", "corpus", "--json") == (0, out, "")


@pytest.mark.parametrize(
    ("name", "pack"),
    [("x.txt", bytes), ("x.txt.gz", gzip.compress), ("x.txt.bz2", bz2.compress), ("x.txt.zst", None)],
)
def test_packed_files_and_patterns(typed: Any, name: str, pack: Any) -> None:
    data = "\n".join(JAPANESE).encode()
    pack = pack or (lambda each: pa.Codec("zstd").compress(each, asbytes=True))
    Path(name).write_bytes(pack(data))
    assert typed("x.*", *GIVEN, "--document", "line", "-q") == (0, "", "")
    assert _texts("corpus") == JAPANESE


def test_standard_input_and_columns(typed: Any) -> None:
    assert typed("-", *GIVEN, "--document", "line", "-q", given="一行目\n二行目\n") == (0, "", "")
    assert _texts("corpus") == ["一行目", "二行目"]
    given = "name,words\nx,猫\ny,犬\n"
    options = ("--input-format", "csv", "--text-column", "words", "-q", "--force")
    assert typed("-", *GIVEN, *options, given=given) == (0, "", "")
    assert _texts("corpus") == ["猫", "犬"]
    Path("table.csv").write_text(given, "utf-8")
    code, _, err = typed("table.csv", "-t", "tokenizer", "-o", "other")
    assert code == 2
    assert err == (
        "tsumugu: table.csv, row 1: it is not clear which column holds the text (columns: 'name', 'words'); "
        "name it with --text-column\n"
    )


def _broken(name: str) -> None:
    if name == "latin.txt":
        Path(name).write_bytes("good\ncaf\xe9\n".encode("latin-1"))
    elif name == "wide.txt":
        Path(name).write_text("wide", "utf-16")
    elif name == "cut.txt.gz":
        Path(name).write_bytes(gzip.compress("\n".join(ENGLISH).encode())[:2000])
    elif name == "cut.jsonl":
        Path(name).write_text('{"text": "whole"}\n{"text": "cu', "utf-8")
    elif name == "empty.txt":
        Path(name).write_text("", "utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.txt", *GIVEN), "nowhere.txt: there is no such file or folder"),
        (("*.nothing", *GIVEN), "*.nothing: no file fits this pattern"),
        (("tokenizer/..", "-t", "raw", "-o", "corpus"), "raw: no tokenizer here; expected"),
        (("raw", "-t", "tokenizer", "-o", "raw"), "raw: the folder is there already; choose another name"),
        (("raw", "-t", "tokenizer", "-o", "raw", "--force"), "raw: this folder is no prepared corpus"),
        (("raw", *GIVEN, "--filter", "character>=3"), "filters: there is no measure 'character'; did you mean"),
        (("raw", *GIVEN, "--filter", "gofer"), "filters: there is no set of rules 'gofer'; did you mean 'gopher'?"),
        (("raw", *GIVEN, "--near-duplicates", 7), "near_duplicates: 7.0 is too large; at most 1.0"),
        (("raw", *GIVEN, "--language", "jp"), "languages: unknown language 'jp'"),
        (("raw", *GIVEN, "--workers", 0), "workers: 0 workers cannot work; at least 1"),
        (("raw", *GIVEN, "--validation-share", 1), "validation_share: a share of 1.0 cannot be held back"),
        (("raw", *GIVEN, "--documents", "line"), "unknown option: --documents; did you mean --document?"),
        (("latin.txt", *GIVEN), "latin.txt, line 2: byte 0xe9 at offset 8 is not UTF-8; save the file as UTF-8, or"),
        (("wide.txt", *GIVEN), "wide.txt: the text is UTF-16, not UTF-8"),
        (("cut.txt.gz", *GIVEN), "cut.txt.gz: the compressed data ends too early"),
        (("cut.jsonl", *GIVEN), "cut.jsonl, line 2: broken JSON"),
        (("empty.txt", *GIVEN), "none of 1 documents is left to train on (empty 1)"),
        (("show", "raw"), "raw: this is no prepared corpus; make one with tsumugu prepare"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(typed: Any, arguments: tuple[Any, ...], said: str) -> None:
    _broken(str(arguments[0]))
    before = sorted(each.name for each in Path().iterdir())
    code, out, err = typed(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert said in err
    assert sorted(each.name for each in Path().iterdir()) == before


IMPATIENT = """
from tsumugu.cli import main
from tsumugu.corpus import blocks, prepare
blocks.BLOCK_BYTES, prepare._SECONDS = 20_000, 0.0  # settle often
main()
"""


def test_interrupted_it_says_so_and_the_same_command_goes_on(typed: Any, tmp_path: Path) -> None:
    """Ctrl-C comes when some documents are settled, but not all."""
    text = "\n".join(f"{number} {each[:900]}".replace("\n", " ") for number in range(500) for each in ENGLISH[:2])
    Path("many.txt").write_text(text, "utf-8")
    words = ["prepare", "many.txt", "-t", "tokenizer", "-o", "corpus", "--document", "line", "-j", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    settled = tmp_path / ".corpus.preparing" / "state.json"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None and not settled.is_file():
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it was done before the signal came")
    assert process.returncode == 130
    assert err.splitlines()[0] == "what is done is kept: the same command goes on from there"
    assert not Path("corpus").exists()
    code, _, err = typed(*words[1:], "--normalize", "nfc")
    assert code == 2
    assert (
        'begun with other settings (normalize was "none", is "nfc"); give the same, or start anew with --force' in err
    )
    assert typed(*words[1:], "-q") == (0, "", "")
    assert typed(*words[1:5], "whole", *words[6:], "-q")[0] == 0
    assert Corpus.open("corpus").checksum == Corpus.open("whole").checksum
    assert Tokenizer.from_folder("corpus/tokenizer").encode("猫")
