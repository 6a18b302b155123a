"""Preparing a corpus: what is in it, counted independently; the same for any number of workers; what is told of it."""

from __future__ import annotations

import gzip
import io
import json
import random
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpus.conftest import ENGLISH, JAPANESE

from tsumugu.core.errors import ConfigError, InputError, MissingExtraError
from tsumugu.corpus import blocks, encoding
from tsumugu.corpus.cleaning import Cleaning
from tsumugu.corpus.duplicates import digest
from tsumugu.corpus.encoding import encode_document
from tsumugu.corpus.normalization import normalized
from tsumugu.corpus.prepare import prepare
from tsumugu.corpus.shards import Corpus
from tsumugu.text.tokenizer import Tokenizer


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def texts_of(corpus: Corpus) -> list[str]:
    tokenizer = corpus.tokenizer()
    return [tokenizer.decode(corpus.document(number).tolist()) for number in range(len(corpus))]


def rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": each}, ensure_ascii=False) + "\n" for each in texts), "utf-8")
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Files of several formats, with empty documents, copies, and copies that differ a little."""
    folder = tmp_path / "raw"
    folder.mkdir()
    draw = random.Random(1)
    japanese = [each * draw.randrange(1, 4) + str(number) for number in range(30) for each in JAPANESE]
    rows(folder / "a.jsonl", ["", *ENGLISH[:30], " \n", *ENGLISH[10:20], ENGLISH[3].replace("the", "teh", 1)])
    (folder / "b.txt.gz").write_bytes(gzip.compress("\n\n".join(japanese).encode()))
    pq.write_table(pa.table({"text": [*ENGLISH[25:40], None, *JAPANESE]}), folder / "c.parquet")
    (folder / "d.txt").write_bytes(b"line one\r\nline two\x00 ends\r\n")
    return folder


def test_the_corpus_is_what_an_independent_count_finds(tmp_path, raw, tokenizer):
    documents = [json.loads(line)["text"] for line in (raw / "a.jsonl").read_text("utf-8").splitlines()]
    documents += [gzip.decompress((raw / "b.txt.gz").read_bytes()).decode()]
    documents += [each or "" for each in pq.read_table(raw / "c.parquet")["text"].to_pylist()]
    documents += [(raw / "d.txt").read_bytes().decode()]
    expected, empty = {}, 0
    for text in documents:
        text = text.replace("\r\n", "\n").replace("\x00", "")
        empty += not text.strip()
        if text.strip():
            expected.setdefault(text, None)

    corpus = prepare([raw], tmp_path / "corpus", tokenizer=tokenizer, workers=1)
    assert texts_of(corpus) == list(expected)
    assert [each.tolist() for each in map(corpus.document, range(len(corpus)))] == [
        tokenizer.encode(each, add_special_tokens=False) for each in expected
    ]
    assert corpus.characters == sum(map(len, expected))
    assert corpus.bytes == sum(len(each.encode()) for each in expected)
    assert corpus.document_bytes.tolist() == [len(each.encode()) for each in expected]
    assert corpus.tokens == sum(len(tokenizer.encode(each)) for each in expected)
    report = corpus.source_report
    assert report["read"]["documents"] == len(documents)
    assert report["dropped"]["empty"]["documents"] == empty == 3
    assert report["dropped"]["exact duplicate"]["documents"] == len(documents) - empty - len(expected)
    assert set(report["dropped"]) == {"empty", "exact duplicate"}
    assert report["changed"] == 1
    assert report["kept"] == {
        "documents": corpus.documents,
        "characters": corpus.characters,
        "bytes": corpus.bytes,
        "tokens": corpus.tokens,
    }
    assert corpus.sources == [{"input": str(raw), "files": 4, "documents": len(documents), "kept": len(expected)}]
    assert corpus.token_bytes[np.concatenate([corpus.document(at) for at in range(len(corpus))])].sum() == corpus.bytes
    corpus.verify()
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]


FULL = Cleaning(
    normalize="nfkc",
    near_duplicates=0.8,
    languages=("en", "ja"),
    filters=("characters>=40", "digits<=0.4", "repetition"),
)


def test_the_files_are_the_same_for_any_number_of_workers(tmp_path, raw, tokenizer_folder, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 20_000)
    found = [
        contents(
            prepare(
                [raw],
                tmp_path / f"corpus-{workers}",
                tokenizer=tokenizer_folder,
                cleaning=FULL,
                document="paragraph",
                validation_share=0.2,
                shard_tokens=10_000,
                workers=workers,
            ).path
        )
        for workers in (1, 2, 3)
    ]
    assert found[0] == found[1] == found[2]
    assert {"shard-00001.bin", "validation/shard-00000.bin", "report.json"} <= set(found[0])
    report = json.loads(found[0]["report.json"])
    dropped = {reason: each["documents"] for reason, each in report["dropped"].items()}
    assert dropped["exact duplicate"] > 0
    assert dropped["near duplicate"] > 0
    assert dropped["characters>=40"] > 0
    assert (
        sum(dropped.values()) + report["kept"]["documents"] + report["held_back"]["documents"]
        == (report["read"]["documents"])
    )
    for each in report["dropped"].values():
        assert len(each["examples"]) == min(each["documents"], 3)


@settings(max_examples=15, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=20),
    block=st.integers(1, 60),
    shard=st.integers(1, 40),
)
def test_any_documents_come_back_in_normal_form(tmp_path_factory, tokenizer, texts, block, shard):
    folder = tmp_path_factory.mktemp("any")
    source = rows(folder / "rows.jsonl", texts)
    normal = [normalized(each) for each in texts]
    expected = list(dict.fromkeys(each for each in normal if each.strip()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block)
        if not expected:
            with pytest.raises(InputError, match="is left to train on"):
                prepare([source], folder / "corpus", tokenizer=tokenizer, workers=1)
            assert sorted(each.name for each in folder.iterdir()) == ["rows.jsonl"]
            return
        corpus = prepare([source], folder / "corpus", tokenizer=tokenizer, workers=1, shard_tokens=shard)
    assert texts_of(corpus) == expected


def test_special_tokens_in_a_text_are_plain_text(tmp_path, tokenizer):
    text = "Here <|endoftext|> is no end."
    corpus = prepare([rows(tmp_path / "a.jsonl", [text])], tmp_path / "corpus", tokenizer=tokenizer, workers=1)
    assert tokenizer.eos_token_id in tokenizer.encode(text)
    assert tokenizer.eos_token_id not in corpus.document(0).tolist()
    assert texts_of(corpus) == [text]


def test_duplicates_may_be_kept(tmp_path, tokenizer):
    source = rows(tmp_path / "a.jsonl", ["one", "two", "one", ""])
    cleaning = Cleaning(exact_duplicates=False)
    corpus = prepare([source], tmp_path / "corpus", tokenizer=tokenizer, workers=1, cleaning=cleaning)
    assert texts_of(corpus) == ["one", "two", "one"]
    assert set(corpus.source_report["dropped"]) == {"empty"}


@pytest.mark.parametrize("kind", ["bytes", "pieces", "words"])
def test_a_long_document_is_encoded_in_parts_as_it_is_whole(tokenizer, kind, monkeypatch):
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    if kind == "pieces":
        backend = tokenizers.Tokenizer(models.Unigram())
        backend.normalizer = normalizers.NFKC()
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=500, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        )
        backend.train_from_iterator([*ENGLISH[::9], *JAPANESE], trainer)
        tokenizer = Tokenizer(backend, special_tokens={"unk": "<unk>"})
    if kind == "words":
        backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]"], show_progress=False)
        backend.train_from_iterator([*ENGLISH[::9], *JAPANESE], trainer)
        tokenizer = Tokenizer(backend, special_tokens={"unk": "[UNK]"})
    monkeypatch.setattr(encoding, "_PART", 10_000)
    text = "\n".join([*ENGLISH[:30], *JAPANESE, *ENGLISH[30:45]])
    assert len(text) > 100_000
    for each in (text, text.replace("\n", " ")):
        found, whole = encode_document(tokenizer, each), tokenizer.encode(each, add_special_tokens=False)
        assert len(found) == len(whole)
        # Of cuts that are equally likely (0 000, 000 0) Unigram takes one by how the sums before it were rounded.
        assert sum(a != b for a, b in zip(found, whole, strict=True)) <= (len(whole) // 1000 if kind == "pieces" else 0)
        assert kind == "words" or tokenizer.decode(found) == tokenizer.decode(whole)
    endless = encode_document(tokenizer, "x" * 60_000)
    assert kind == "words" or tokenizer.decode(endless).strip() == "x" * 60_000


# --- validation


def test_a_share_is_held_back_by_content(tmp_path, tokenizer):
    texts = [f"document number {number}" for number in range(400)]
    source = rows(tmp_path / "a.jsonl", texts)
    corpus = prepare([source], tmp_path / "one", tokenizer=tokenizer, workers=1, validation_share=0.25)
    assert corpus.validation is not None
    held = texts_of(corpus.validation)
    assert held == [each for each in texts if int.from_bytes(digest(each.encode())[:8], "little") < 2**62]
    assert texts_of(corpus) == [each for each in texts if each not in held]
    assert 60 < len(held) < 140
    assert corpus.validation.settings["held_back"] is True
    assert corpus.source_report["held_back"]["documents"] == len(held)
    corpus.verify()
    other = prepare(
        [rows(tmp_path / "b.jsonl", ["new", *texts[::-1]])],
        tmp_path / "two",
        tokenizer=tokenizer,
        workers=1,
        validation_share=0.25,
    )
    assert other.validation is not None
    assert set(texts_of(other.validation)) >= set(held)  # more text moves no document across


def test_named_validation_documents_are_taken_out_of_the_training_text(tmp_path, tokenizer):
    train = rows(tmp_path / "train.jsonl", ["one", "shared", "two"])
    held = rows(tmp_path / "held.jsonl", ["shared", "mine"])
    corpus = prepare([tmp_path], tmp_path / "corpus", tokenizer=tokenizer, validation=[held], workers=1)
    assert train.exists()
    assert corpus.validation is not None
    assert texts_of(corpus.validation) == ["shared", "mine"]
    assert texts_of(corpus) == ["one", "two"]
    assert [each["kept"] for each in corpus.sources] == [2, 2]


# --- standard input


class Standard:
    """Bytes in place of standard input."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)

    def isatty(self) -> bool:
        return False


def test_standard_input_is_text_or_what_the_format_says(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Standard("one\n二\n\nthree".encode()))
    corpus = prepare(["-"], tmp_path / "text", tokenizer=tokenizer, document="line", workers=1)
    assert texts_of(corpus) == ["one", "二", "three"]
    monkeypatch.setattr(sys, "stdin", Standard(gzip.compress(b'{"text": "packed"}\n')))
    corpus = prepare(["-"], tmp_path / "rows", tokenizer=tokenizer, format="jsonl.gz", workers=1)
    assert texts_of(corpus) == ["packed"]
    assert not [each for each in corpus.path.iterdir() if "standard" in each.name]


def test_a_dataset_is_an_input_like_any(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["one", "two", "one"]}).save_to_disk(str(tmp_path / "saved"))
    corpus = prepare([f"hf:{tmp_path / 'saved'}"], tmp_path / "corpus", tokenizer=tokenizer, workers=1)
    assert texts_of(corpus) == ["one", "two"]


# --- what is refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "workers: 0 workers"),
        ({"validation_share": 1.0}, "validation_share"),
        ({"validation_share": -0.1}, "validation_share"),
        ({"document": "word"}, "document: 'word'"),
        ({"shard_tokens": 0}, "shard_tokens"),
        ({"tokenizer": "./nowhere"}, "no such file or folder"),
        ({"text_column": "body"}, "there is no column 'body'"),
        ({"format": "xml"}, "unknown format 'xml'"),
        ({"inputs": []}, "no input is given"),
        ({"inputs": ["no.jsonl"]}, r"no\.jsonl: there is no such file"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(tmp_path, tokenizer, options, said):
    source = rows(tmp_path / "a.jsonl", ["one"])
    given = {"inputs": [source], "target": tmp_path / "corpus", "tokenizer": tokenizer, "workers": 1, **options}
    with pytest.raises((InputError, OSError), match=said):
        prepare(**given)
    assert [each.name for each in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_cleaning_that_cannot_be_is_refused():
    for wrong in ({"near_duplicates": 0.1}, {"near_duplicates": 1.5}, {"normalize": "nfd"}, {"filters": ("x>=1",)}):
        with pytest.raises(ConfigError):
            Cleaning(**wrong)


@pytest.mark.parametrize(
    ("missing", "options", "extra"),
    [("rensa", {"near_duplicates": 0.8}, "clean"), ("py3langid", {"languages": ("ja",)}, "clean")],
)
def test_a_missing_library_is_named_before_anything_is_begun(tmp_path, tokenizer, monkeypatch, missing, options, extra):
    from tsumugu.corpus import languages

    languages._loaded.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=rf"needs {missing}; pip install 'tsumugu\[{extra}\]'"):
        prepare([tmp_path], tmp_path / "corpus", tokenizer=tokenizer, cleaning=Cleaning(**options))
    assert not list(tmp_path.iterdir())
    languages._loaded.cache_clear()


def test_nothing_left_is_said_with_the_reasons(tmp_path, tokenizer):
    source = rows(tmp_path / "a.jsonl", ["", "short", "also", "also"])
    corpus = tmp_path / "corpus"
    with pytest.raises(InputError, match=r"none of 4 documents is left .*\(empty 1, characters>=9 3\)"):
        prepare([source], corpus, tokenizer=tokenizer, cleaning=Cleaning(filters=("characters>=9",)), workers=1)
    with pytest.raises(InputError, match="all are held back"):
        prepare([rows(tmp_path / "b.jsonl", ["x"])], corpus, tokenizer=tokenizer, validation_share=0.999999999)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_a_folder_is_replaced_only_when_told_and_only_if_it_is_a_corpus(tmp_path, tokenizer):
    source = rows(tmp_path / "a.jsonl", ["one"])
    target = tmp_path / "corpus"
    prepare([source], target, tokenizer=tokenizer, workers=1)
    rows(source, ["two"])
    with pytest.raises(InputError, match="the folder is there already"):
        prepare([source], target, tokenizer=tokenizer, workers=1)
    assert texts_of(Corpus.open(target)) == ["one"]
    assert texts_of(prepare([source], target, tokenizer=tokenizer, workers=1, force=True)) == ["two"]
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("precious", "utf-8")
    with pytest.raises(InputError, match="no prepared corpus"):
        prepare([source], other, tokenizer=tokenizer, workers=1, force=True)
    with pytest.raises(InputError, match="this is no folder"):
        prepare([source], other / "thesis.txt", tokenizer=tokenizer, workers=1, force=True)
    assert (other / "thesis.txt").read_text("utf-8") == "precious"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.jsonl", "corpus", "mine"]
