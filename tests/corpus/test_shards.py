"""The folder of shards: what is written is read back, and a broken folder is told from a whole one."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from tsumugu.core.errors import InputError
from tsumugu.corpus.shard_writer import ShardWriter, ids_type, tidy
from tsumugu.corpus.shards import Corpus, write_corpus
from tsumugu.corpus.token_bytes import token_bytes
from tsumugu.text.tokenizer import Tokenizer


def words_of(count: int) -> Tokenizer:
    """A tokenizer with `count` ids, the last of them special."""
    vocab = {f"w{index}": index for index in range(count - 1)} | {"<end>": count - 1}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(backend, special_tokens={"eos": "<end>"})


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return words_of(300)


@pytest.fixture
def corpus(tmp_path: Path, tokenizer: Tokenizer) -> Corpus:
    rows = [(np.arange(n, dtype=np.int64) % 290, 3 * n) for n in (5, 1, 7, 20, 2, 2)]
    return write_corpus(tmp_path / "corpus", rows, tokenizer, shard_tokens=10)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=12), min_size=1, max_size=12),
    shard_tokens=st.integers(1, 30),
)
def test_documents_come_back_as_they_were_written(tmp_path_factory, tokenizer, rows, shard_tokens):
    folder = tmp_path_factory.mktemp("round") / "corpus"
    corpus = write_corpus(folder, ((row, 2 * len(row)) for row in rows), tokenizer, shard_tokens=shard_tokens)
    assert [corpus.document(number).tolist() for number in range(len(corpus))] == rows
    assert corpus.lengths.tolist() == [len(row) for row in rows]
    assert corpus.document_bytes.tolist() == [2 * len(row) for row in rows]
    assert (corpus.documents, corpus.tokens, corpus.bytes) == (
        len(rows),
        sum(map(len, rows)),
        2 * sum(map(len, rows)),
    )
    assert all(each.tokens <= shard_tokens or each.documents == 1 for each in corpus.shards)
    corpus.verify()
    shutil.rmtree(folder)


def test_a_corpus_is_a_read_only_view_of_16_bit_shards(corpus):
    assert [each.documents for each in corpus.shards] == [2, 1, 1, 2]
    ids = corpus.document(3)
    assert ids.dtype == np.uint16
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1
    assert {each.name for each in corpus.path.iterdir()} >= {"corpus.json", "tokenizer", "token_bytes.npy"}
    assert not list(corpus.path.glob("*.docs"))
    with pytest.raises(IndexError):
        corpus.document(6)
    with pytest.raises(IndexError):
        corpus.document(-1)


def test_a_large_vocabulary_takes_32_bits(tmp_path):
    tokenizer = words_of(70000)
    corpus = write_corpus(tmp_path / "corpus", [([69998, 3], 4)], tokenizer)
    assert corpus.document(0).dtype == np.uint32
    assert corpus.document(0).tolist() == [69998, 3]
    corpus.verify()
    assert ids_type(1 << 16) == np.dtype("<u2")


def test_another_process_opens_it_by_its_path(corpus):
    again = pickle.loads(pickle.dumps(corpus))
    assert again.checksum == corpus.checksum
    assert again.document(3).tolist() == corpus.document(3).tolist()


def test_the_tokenizer_comes_along(corpus, tokenizer):
    assert corpus.tokenizer().encode("w1 w2 w77") == tokenizer.encode("w1 w2 w77") == [1, 2, 77]
    assert corpus.vocab_size == 300


def test_the_checksum_stands_for_the_data(tmp_path, tokenizer, corpus):
    rows = [(corpus.document(each), int(corpus.document_bytes[each])) for each in range(len(corpus))]
    same = write_corpus(tmp_path / "same", rows, tokenizer, shard_tokens=10)
    other = write_corpus(tmp_path / "other", rows[::-1], tokenizer, shard_tokens=10)
    assert same.checksum == corpus.checksum != other.checksum
    assert other.checksum != write_corpus(tmp_path / "third", rows[::-1], words_of(301), shard_tokens=10).checksum


@pytest.mark.parametrize("row", [[], [300], [-1]])
def test_what_is_no_document_is_refused_and_leaves_nothing(tmp_path, tokenizer, row):
    with pytest.raises(InputError, match="document 1"):
        write_corpus(tmp_path / "corpus", [([1], 1), (row, 1)], tokenizer)
    with pytest.raises(InputError, match="no document"):
        write_corpus(tmp_path / "corpus", [], tokenizer)
    assert not list(tmp_path.iterdir())


def add(writer: ShardWriter, row: np.ndarray) -> None:
    writer.add(row, np.array([len(row)]), np.array([2 * len(row)]))


def test_a_writer_takes_many_documents_at_once_as_it_takes_them_one_by_one(tmp_path):
    lengths = np.array([3, 1, 9, 2, 2, 5, 1, 1])
    ids = np.arange(lengths.sum())
    for name, steps in (("one", range(1, 9)), ("many", [8]), ("some", [3, 5, 8])):
        folder = tmp_path / name
        folder.mkdir()
        writer = ShardWriter(folder, np.dtype("<u2"), shard_tokens=6)
        start = 0
        for stop in steps:
            some = slice(lengths[:start].sum(), lengths[:stop].sum())
            writer.add(ids[some], lengths[start:stop], 2 * lengths[start:stop])
            start = stop
        assert [each.tokens for each in writer.finish()] == [4, 9, 4, 6, 1]
    for each in ("many", "some"):
        for path in (tmp_path / "one").iterdir():
            assert (tmp_path / each / path.name).read_bytes() == path.read_bytes()


def test_a_writer_goes_on_from_its_last_commit(tmp_path):
    rows = [np.arange(1, 2 + n % 7) for n in range(40)]
    files = {}
    for cut in (None, 0, 1, 13, 14, 39):
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        writer = ShardWriter(folder, np.dtype("<u2"), shard_tokens=30)
        if cut is not None:
            for row in rows[:cut]:
                add(writer, row)
            state = json.loads(json.dumps(writer.commit()))
            for row in rows[cut : cut + 17]:  # lost: written, never committed
                add(writer, row + 1)
            writer.close()
            writer = ShardWriter(folder, np.dtype("<u2"), shard_tokens=30, state=state)
        for row in rows[cut or 0 :]:
            add(writer, row)
        writer.finish()
        tidy(folder)
        found = {each.name: each.read_bytes() for each in folder.iterdir()}
        assert found == files.setdefault("whole", found)


def lies(about: dict) -> list[dict]:
    """corpus.json with one thing wrong, for every thing."""
    shard = about["shards"][0]

    def with_shard(**changes):
        return {**about, "shards": [{**shard, **changes}, *about["shards"][1:]]}

    return [
        {},
        {**about, "format": "other"},
        {**about, "version": 2},
        {**about, "documents": 10**12},
        {**about, "tokens": -1},
        {**about, "tokens": True},
        {**about, "vocab_size": 0},
        {**about, "vocab_size": 10**12},
        {**about, "dtype": "object"},
        {**about, "dtype": "uint32"},
        {**about, "shards": []},
        {**about, "shards": {}},
        {**about, "shards": about["shards"][::-1]},
        {**about, "settings": None},
        with_shard(name="../../etc/passwd"),
        with_shard(documents=shard["documents"] + 1),
        with_shard(documents=10**15),
        with_shard(tokens=shard["tokens"] * 10**9),
        with_shard(bytes=-5),
        with_shard(sha256="x"),
        with_shard(more=1),
    ]


def test_a_corpus_that_lies_about_itself_is_refused(corpus):
    path = corpus.path / "corpus.json"
    about = json.loads(path.read_text("utf-8"))
    for lie in lies(about):
        path.write_text(json.dumps(lie), "utf-8")
        with pytest.raises(InputError, match=r"corpus\.json|shard-0000"):
            Corpus.open(corpus.path)
    with pytest.raises(InputError, match="no prepared corpus; make one"):
        Corpus.open(corpus.path.parent)


def test_files_that_are_cut_or_missing_are_found_when_it_is_opened(corpus):
    for name in ("shard-00000.bin", "shard-00001.idx"):
        path = corpus.path / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(InputError, match=name):
            Corpus.open(corpus.path)
        path.unlink()
        with pytest.raises(InputError, match=f"{name}: is missing"):
            Corpus.open(corpus.path)
        path.write_bytes(whole)
    Corpus.open(corpus.path).verify()


@pytest.mark.parametrize("offsets", [[0, 6, 5], [1, 5, 6], [0, 0, 6], [0, -3, 6], [0, 5, 7], [0, 2**62, 6]])
def test_offsets_that_do_not_ascend_are_refused(corpus, offsets):
    path = corpus.path / "shard-00000.idx"
    numbers = np.fromfile(path, "<i8")
    assert numbers.tolist() == [0, 5, 6, 15, 3]
    path.write_bytes(np.array([*offsets, 15, 3], "<i8").tobytes())
    with pytest.raises(InputError, match="offsets"):
        Corpus.open(corpus.path)
    path.write_bytes(np.array([0, 5, 6, 21, -3], "<i8").tobytes())
    with pytest.raises(InputError, match="bytes"):
        Corpus.open(corpus.path)


def test_verify_finds_every_changed_byte(corpus):
    seen = []
    corpus.verify(lambda done, total: seen.append((done, total)))
    assert seen[-1] == (corpus.tokens * 2, corpus.tokens * 2)
    files = [each for each in corpus.path.rglob("*") if each.is_file() and each.suffix in (".bin", ".npy", ".json")]
    assert len(files) >= 8
    for path in files:
        if path.name == "corpus.json":
            continue
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(InputError, match=path.name if path.parent == corpus.path else "tokenizer"):
            Corpus.open(corpus.path).verify()
        path.write_bytes(whole)
    Corpus.open(corpus.path).verify()


def test_verify_finds_an_id_outside_of_the_vocabulary(tmp_path, tokenizer):
    folder = tmp_path / "corpus"
    write_corpus(folder, [([1, 2, 3], 3)], tokenizer)
    write_corpus(tmp_path / "other", [([1, 2, 3], 3)], words_of(3 + 1))
    for name in ("tokenizer", "token_bytes.npy", "corpus.json"):
        target = folder / name
        (shutil.rmtree if target.is_dir() else Path.unlink)(target)
        (tmp_path / "other" / name).rename(target)
    about = json.loads((folder / "corpus.json").read_text("utf-8"))
    Corpus.open(folder).verify()  # the same ids and the smaller vocabulary: still whole
    (folder / "shard-00000.bin").write_bytes(np.array([1, 4, 3], "<u2").tobytes())
    about["shards"][0]["sha256"] = hashlib.sha256((folder / "shard-00000.bin").read_bytes()).hexdigest()
    said = ["tsumugu corpus", 1, about["dtype"], about["vocab_size"], about["tokenizer"], about["token_bytes"]]
    said += [about["shards"][0]["sha256"], about["shards"][0]["index_sha256"]]
    about["checksum"] = hashlib.sha256(json.dumps(said).encode()).hexdigest()
    (folder / "corpus.json").write_text(json.dumps(about), "utf-8")
    with pytest.raises(InputError, match="id 4 is outside of the vocabulary of 4"):
        Corpus.open(folder).verify()


def test_a_table_of_bytes_that_does_not_fit_is_refused(corpus):
    path = corpus.path / "token_bytes.npy"
    for table in (np.zeros(299, np.int32), np.zeros(300, np.int64), np.full(300, -1, np.int32)):
        np.save(path, table)
        with pytest.raises(InputError, match=r"token_bytes\.npy"):
            _ = Corpus.open(corpus.path).token_bytes
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"token_bytes\.npy"):
        _ = Corpus.open(corpus.path).token_bytes


def test_tokens_of_byte_pairs_add_up_to_the_bytes_of_the_text():
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    text = "The quick brown fox, 吾輩は猫である。 naïve 😀\n\n\tdef f(x):\r\n  pass"
    backend.train_from_iterator(
        [text] * 3,
        tokenizers.trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = Tokenizer(backend, special_tokens={"eos": "<|endoftext|>"})
    tokenizer.add_tokens(["吾輩"])
    sizes = token_bytes(tokenizer)
    ids = tokenizer.encode(text)
    assert tokenizer.convert_tokens_to_ids("吾輩") in ids
    assert sizes[ids].sum() == len(text.encode())
    assert sizes[tokenizer.eos_token_id] == 0


def test_tokens_of_pieces_count_their_space_and_single_bytes():
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁the", -1.0), ("▁", -2.0), ("猫", -3.0), ("<0xE7>", -9.0)]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = Tokenizer(backend, special_tokens={"unk": "<unk>", "eos": "</s>"})
    assert token_bytes(tokenizer).tolist() == [0, 0, 4, 1, 3, 1]
    backend.decoder = decoders.Metaspace()
    assert token_bytes(tokenizer).tolist() == [0, 0, 4, 1, 3, 6]


def test_tokens_of_word_pieces_have_no_mark():
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2, "##猫": 3}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    assert token_bytes(Tokenizer(backend, special_tokens={"unk": "[UNK]"})).tolist() == [0, 4, 3, 3]
