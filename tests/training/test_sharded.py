"""Checkpoints of several ranks: what one process saves and reads back, and files that are broken or lie."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.training.models import give_gradients, tiny
from tests.training.ranks import ALONE
from torch.nn import Module

from tsumugu.core.errors import CheckpointError, TsumuguError
from tsumugu.training.ema import Ema
from tsumugu.training.optimizers import OptimizerConfig, build_optimizer
from tsumugu.training.shard_storage import Chunk, ShardedIndex, _overlap
from tsumugu.training.sharded import ShardedSaver, load_sharded, training_tensors

FILE = "rank-00000.safetensors"
Index = dict[str, Any]


def fresh(family: str = "llama", head: str = "causal-lm") -> tuple[Module, Any, Ema]:
    model = tiny(family, head)
    return model, build_optimizer(model, OptimizerConfig(name="muon")), Ema(model)


def trained(family: str = "llama", head: str = "causal-lm") -> tuple[Module, Any, Ema]:
    model, optimizer, ema = fresh(family, head)
    for step in range(2):
        give_gradients(model, step)
        optimizer.step()
        ema.update(step)
    return model, optimizer, ema


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "good"
    saver = ShardedSaver(ALONE)
    saver.save(folder, training_tensors(*trained()))
    saver.wait()
    return folder


@pytest.fixture
def broken(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "broken")
    return tmp_path / "broken"


def rewrite(folder: Path, change: Callable[[Index], None]) -> None:
    index = json.loads((folder / "index.json").read_text("utf-8"))
    change(index)
    (folder / "index.json").write_text(json.dumps(index), "utf-8")


@pytest.mark.parametrize(("family", "head"), [("llama", "causal-lm"), ("bert", "pretraining"), ("t5", "seq2seq-lm")])
def test_what_is_saved_is_read_back_bit_by_bit(tmp_path: Path, family: str, head: str) -> None:
    before, after = trained(family, head), fresh(family, head)
    saver = ShardedSaver(ALONE)
    saver.save(tmp_path / "new", training_tensors(*before), inside="training/sharded")
    saver.wait()
    assert [each.name for each in tmp_path.iterdir()] == ["new"]
    load_sharded(tmp_path / "new" / "training" / "sharded", ALONE, *after)
    one, other = training_tensors(*before), training_tensors(*after)
    assert one.keys() == other.keys()
    assert {name.partition(".")[0] for name in one} == {"model", "optimizer", "ema"}
    for name, each in one.items():
        assert torch.equal(each, other[name]), name


def test_the_copy_is_taken_when_save_returns(tmp_path: Path) -> None:
    model, optimizer, ema = trained()
    was = {name: each.clone() for name, each in training_tensors(model, optimizer, ema).items()}
    saver = ShardedSaver(ALONE)
    saver.save(tmp_path / "new", training_tensors(model, optimizer, ema))
    with torch.no_grad():
        for each in training_tensors(model, optimizer, ema).values():
            each.zero_()
    saver.wait()
    again = fresh()
    load_sharded(tmp_path / "new", ALONE, *again)
    for name, each in training_tensors(*again).items():
        assert torch.equal(each, was[name]), name


def test_a_part_is_read_where_it_is_all_that_is_asked_for(good: Path) -> None:
    model, _, _ = fresh()
    load_sharded(good, ALONE, model)
    expected, _, _ = trained()
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_replaces_no_other(good: Path) -> None:
    was = {each.name: each.read_bytes() for each in good.iterdir()}
    saver = ShardedSaver(ALONE)
    saver.save(good, training_tensors(*fresh()))
    with pytest.raises(CheckpointError, match=r"good: cannot be written: .*not empty"):
        saver.wait()
    assert {each.name: each.read_bytes() for each in good.iterdir()} == was
    assert [each.name for each in good.parent.iterdir()] == ["good"]
    saver.wait()  # told once


def test_an_error_of_finish_is_raised_by_the_next_save(tmp_path: Path) -> None:
    def finish(partial: Path) -> None:
        assert (partial / "index.json").is_file()
        raise TsumuguError("no tokenizer")

    saver, tensors = ShardedSaver(ALONE), training_tensors(*trained())
    saver.save(tmp_path / "one", tensors, finish=finish)
    with pytest.raises(TsumuguError, match="no tokenizer"):
        saver.save(tmp_path / "two", tensors)
    assert list(tmp_path.iterdir()) == []


LIES: dict[str, tuple[Callable[[Index], Any], str]] = {
    "another format": (lambda x: x.update(format="tsumugu-sharded-9"), "no index of format"),
    "no tensors": (lambda x: x.pop("tensors"), "does not describe"),
    "tensors as a list": (lambda x: x.update(tensors=[1]), "does not describe"),
    "a file's size": (lambda x: x["files"].update({FILE: 7}), "is not the file that was written"),
    "a file that is absent": (lambda x: x["files"].update({"rank-00001.safetensors": 7}), "cannot be read"),
    "a way out": (lambda x: x["files"].update({"../other.safetensors": 3}), "is not the file that was written"),
    "an absolute way out": (lambda x: x["files"].update({"/etc/hostname": 3}), "is not the file that was written"),
    "a chunk elsewhere": (lambda x: chunk(x).update(file="../other.safetensors"), "does not belong"),
    "a type": (lambda x: tensor(x).update(dtype="F99"), "does not describe"),
    "a type of its own kind": (lambda x: tensor(x).update(dtype=[]), "does not describe"),
    "a negative size": (lambda x: tensor(x).update(shape=[-24, -8]), "expected sizes"),
    "a size in words": (lambda x: tensor(x).update(shape="24"), "expected sizes"),
    "a truth as a size": (lambda x: tensor(x).update(shape=[True, 8]), "expected sizes"),
    "a size without end": (lambda x: enlarge(x, 10**15), "more is said to be in"),
    "a larger tensor": (lambda x: tensor(x).update(shape=[25, 8]), "do not make up"),
    "a chunk outside": (lambda x: chunk(x).update(offset=[1, 0]), "leaves its tensor"),
    "a chunk of other dimensions": (lambda x: chunk(x).update(offset=[0]), "does not belong"),
    "a chunk twice": (lambda x: tensor(x).update(chunks=tensor(x)["chunks"] * 2), "do not make up"),
    "chunks that overlap": (lambda x: halves(x, 0, 1), "do not make up"),
    "a chunk that the file has not": (lambda x: halves(x, 0, 12), "@0,0 is not as the index says|@12,0 is not in"),
    "no chunks": (lambda x: tensor(x).update(chunks=[]), "do not make up"),
    "another shape": (lambda x: [tensor(x).update(shape=[8, 24]), chunk(x).update(shape=[8, 24])], "has shape"),
    "another type": (lambda x: tensor(x).update(dtype="I32"), "is not as the index says"),
    "fewer tensors": (lambda x: x["tensors"].pop("model.embeddings.token.weight"), "lacks 1 tensors: model.embeddings"),
    "more tensors": (lambda x: x["tensors"].update({"ema.more": tensor(x)}), "has, unasked, 1 tensors: ema.more"),
    "a stranger's state": (lambda x: x["tensors"].update({"optimizer.no.step": tensor(x)}), "has no parameter no"),
}


def tensor(index: Index) -> Index:
    found: Index = index["tensors"]["model.embeddings.token.weight"]
    return found


def chunk(index: Index) -> Index:
    found: Index = tensor(index)["chunks"][0]
    return found


def halves(index: Index, *rows: int) -> None:
    tensor(index)["chunks"] = [{"file": FILE, "offset": [row, 0], "shape": [12, 8]} for row in rows]


def enlarge(index: Index, size: int) -> None:
    about = {"shape": [size], "dtype": "F32", "chunks": [{"file": FILE, "offset": [0], "shape": [size]}]}
    index["tensors"]["optimizer.embeddings.token.weight.step"] = about


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies_is_refused(broken: Path, lie: str) -> None:
    change, reason = LIES[lie]
    (broken.parent / "other.safetensors").write_bytes(b"abc")
    rewrite(broken, change)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_sharded(broken, ALONE, *fresh())
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_file_that_is_cut_short(broken: Path, size: int) -> None:
    data = (broken / FILE).read_bytes()
    (broken / FILE).write_bytes(data[:size])
    with pytest.raises(CheckpointError, match="is not the file that was written"):
        load_sharded(broken, ALONE, *fresh())
    rewrite(broken, lambda x: x["files"].update({FILE: len(data[:size])}))
    with pytest.raises(CheckpointError, match=r"is not a safetensors file|header does not hold|more is said"):
        load_sharded(broken, ALONE, *fresh())


def test_a_file_that_is_none(broken: Path) -> None:
    (broken / FILE).unlink()
    with pytest.raises(CheckpointError, match="a part cannot be read"):
        load_sharded(broken, ALONE, *fresh())
    (broken / FILE).mkdir()
    rewrite(broken, lambda x: x["files"].update({FILE: (broken / FILE).stat().st_size, "index.json": 1}))
    with pytest.raises(CheckpointError):
        load_sharded(broken, ALONE, *fresh())


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{", b'{"format": 1, "format": 2}', b"\xff\xfe", b"[" * 100_000, b'{"format": "tsumugu-sharded-1"}'],
    ids=["empty", "a list", "cut", "a key twice", "no text", "deep", "format alone"],
)
def test_an_index_that_is_none(broken: Path, text: bytes) -> None:
    (broken / "index.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        load_sharded(broken, ALONE, *fresh())
    (broken / "index.json").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json: cannot be read"):
        load_sharded(broken, ALONE, *fresh())


def test_any_damage_to_the_index_is_refused_or_does_no_harm(good: Path, tmp_path: Path) -> None:
    """Whatever number or word changes: what is read then is what was written, or an error says so."""
    chance = random.Random(0)
    text = (good / "index.json").read_text("utf-8")
    expected = training_tensors(*trained())
    shutil.copytree(good, tmp_path / "broken")
    refused = 0
    for _ in range(150):
        at = chance.randrange(len(text))
        changed = text[:at] + chance.choice('0123456789,.[]{}":aZ') + text[at + chance.randrange(3) :]
        (tmp_path / "broken" / "index.json").write_text(changed, "utf-8")
        found = fresh()
        try:
            load_sharded(tmp_path / "broken", ALONE, *found)
        except CheckpointError:
            refused += 1
            continue
        for name, each in training_tensors(*found).items():
            assert torch.equal(each, expected[name]), (at, name)
    assert refused > 100


def test_another_model_is_refused_by_name(good: Path) -> None:
    model = tiny("gpt2", "causal-lm")
    with pytest.raises(CheckpointError, match=r"lacks \d+ tensors: model\.decoder"):
        load_sharded(good, ALONE, model)


def test_a_parameter_that_a_wrapper_renamed_is_found(good: Path) -> None:
    model, _, _ = fresh()
    wrapped = torch.nn.Module()
    wrapped.module = model
    load_sharded(good, ALONE, wrapped)
    assert torch.equal(next(model.parameters()), next(trained()[0].parameters()))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_chunks_that_overlap_are_found(data: st.DataObject) -> None:
    dims = data.draw(st.integers(0, 3))
    spans = st.tuples(st.integers(0, 4), st.integers(1, 3))
    boxes = data.draw(st.lists(st.lists(spans, min_size=dims, max_size=dims), min_size=1, max_size=5))
    chunks = [Chunk("a", tuple(start for start, _ in box), tuple(size for _, size in box)) for box in boxes]
    counts = torch.zeros([8] * dims, dtype=torch.int64)
    for box in boxes:
        counts[tuple(slice(start, start + size) for start, size in box)] += 1
    assert _overlap(chunks) == bool((counts > 1).any())


def test_an_index_of_many_ranks_is_read_quickly(good: Path, tmp_path: Path) -> None:
    """A thousand chunks of each of twenty tensors: comparing every pair of them would take a minute."""
    shutil.copytree(good, tmp_path / "many")
    with (tmp_path / "many" / FILE).open("ab") as file:
        file.truncate(20_000)
    chunks = [{"file": FILE, "offset": [row], "shape": [1]} for row in range(1000)]
    tensors = {f"model.{number}": {"shape": [1000], "dtype": "U8", "chunks": chunks} for number in range(20)}
    rewrite(tmp_path / "many", lambda x: x.update(files={FILE: 20_000}, tensors=tensors))
    assert len(ShardedIndex.read(tmp_path / "many").tensors) == 20
