"""Checkpoints travel both ways: their files load here, ours load there, and every name and bit comes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.models import references
from tests.models.conftest import Shelf
from transformers import PreTrainedModel

import tsumugu as tg
from tsumugu.core.registry import FAMILIES
from tsumugu.models.base import Family, Model

TOLERANCE = 1e-5
SOME = [("bert plain", "masked-lm"), ("gpt2 untied", "causal-lm"), ("llama tied", "causal-lm"), ("llama plain", "base")]


def family_of(case: str) -> Family:
    family: Family = FAMILIES[case.split()[0]]
    return family


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder of safetensors files."""
    return {name: each for file in sorted(folder.glob("*.safetensors")) for name, each in load_file(file).items()}


def reloaded(case: str, head: str, folder: Path) -> PreTrainedModel:
    """The reference library's model from a folder, which must fit to the last name."""
    model, report = references.heads(case)[head].from_pretrained(folder, output_loading_info=True)
    assert {key: found for key, found in report.items() if found} == {}
    return model.eval()


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    """The same names, and every bit of every tensor."""
    return found.keys() == wanted.keys() and all(
        each.dtype == wanted[name].dtype and torch.equal(each, wanted[name]) for name, each in found.items()
    )


@pytest.mark.parametrize(("case", "head"), references.everything(), ids=lambda each: each)
def test_their_files_here_and_back(case: str, head: str, shelf: Shelf, tmp_path: Path) -> None:
    """Their save, our load, our save: the same names with the same bits, a config that means the same, their load."""
    theirs, folder = shelf(case, head)
    ours = tg.load_model(folder)
    assert ours.load_report is not None
    assert ours.load_report.fits
    assert not ours.load_report.other_heads
    tg.save_model(ours, tmp_path / "copy")
    # Never used there where weights are not tied; a copy of the decoder's here.
    dead = {"cls.predictions.bias", "lm_head.bias"} if case.endswith("untied") else set()
    copied, original = (
        {name: each for name, each in saved(where).items() if name not in dead} for where in (tmp_path / "copy", folder)
    )
    assert same(copied, original)
    again = reloaded(case, head, tmp_path / "copy")
    assert type(again.config) is type(theirs.config) or case == "mistral no window"
    with torch.no_grad():
        given = references.inputs(theirs.config, padding="right")
        given |= references.answers(theirs.config, head, given)
        assert references.compare(ours(**given), again(**given), given["attention_mask"]) <= TOLERANCE
    if hasattr(ours.config, "labels"):
        assert again.config.id2label == theirs.config.id2label
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "tie_word_embeddings"):
        if hasattr(theirs.config, key) and (key[:3] not in ("bos", "eos") or not case.startswith("bert")):
            assert getattr(again.config, key) == getattr(theirs.config, key), key
    config = family_of(case).from_hub(json.loads((tmp_path / "copy" / "config.json").read_text()))
    assert config == ours.config


def built(case: str, head: str) -> Model:
    """A model of ours with random weights, never seen by the reference library."""
    family = family_of(case)
    labels = references.LABELS[:2] if head == "question-answering" else references.LABELS
    options = json.loads(references.CASES[case].to_json_string()) | {"id2label": dict(enumerate(labels))}
    config = family.from_hub(options)
    if case.endswith("untied"):
        config = config.replace(tie_embeddings=False)
    model = family.build(config, head).eval()
    references.spread(model, seed=5)
    return model


@pytest.mark.parametrize(("case", "head"), references.everything(), ids=lambda each: each)
def test_our_names_there_and_back(case: str, head: str) -> None:
    """`to_theirs` gives the reference's very names, and `to_ours` undoes it bit by bit."""
    model = built(case, head)
    ours = {name: each.detach() for name, each in model.named_parameters()}
    theirs = model.keymap.to_theirs(ours)
    assert same(model.keymap.to_ours(theirs), ours)
    assert same(model.keymap.to_theirs(model.keymap.to_ours(theirs)), theirs)
    reference = references.reference(case, head)
    bare = model.keymap.to_theirs(ours, with_prefix=head != "base")
    names: dict[tuple[int, torch.Size], set[str]] = {}
    for name, each in reference.state_dict().items():
        names.setdefault((each.data_ptr(), each.shape), set()).add(name)
    # Of names that stand for one tensor there, one is written here.
    assert all(len(group & bare.keys()) == 1 for group in names.values())
    assert bare.keys() <= reference.state_dict().keys()
    assert {name: each.shape for name, each in bare.items()} == {
        name: each.shape for name, each in reference.state_dict().items() if name in bare
    }


@pytest.mark.parametrize(("case", "head"), [*SOME, ("llama several ends", "causal-lm"), ("mistral window", "base")])
def test_our_files_there(case: str, head: str, tmp_path: Path) -> None:
    model = built(case, head)
    tg.save_model(model, tmp_path / "new")
    theirs = reloaded(case, head, tmp_path / "new")
    with torch.no_grad():
        given = references.inputs(theirs.config)
        assert references.compare(model(**given), theirs(**given)) <= TOLERANCE
    assert same(
        saved(tmp_path / "new"), model.keymap.to_theirs(dict(model.named_parameters()), with_prefix=head != "base")
    )


@pytest.mark.parametrize(("case", "head"), SOME)
def test_bin_files(case: str, head: str, shelf: Shelf, tmp_path: Path) -> None:
    """What torch.save wrote, tied tensors under both names and all."""
    theirs, folder = shelf(case, head)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    ours = tg.load_model(tmp_path)
    with torch.no_grad():
        given = references.inputs(theirs.config)
        assert references.compare(ours(**given), theirs(**given)) <= TOLERANCE
    assert same(dict(ours.named_parameters()), dict(tg.load_model(folder).named_parameters()))


@pytest.mark.parametrize(("case", "head"), SOME)
def test_shards(case: str, head: str, shelf: Shelf, tmp_path: Path) -> None:
    theirs, folder = shelf(case, head)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    ours = tg.load_model(tmp_path / "theirs")
    assert same(dict(ours.named_parameters()), dict(tg.load_model(folder).named_parameters()))
    tg.save_model(ours, tmp_path / "ours", max_shard_bytes=20_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    assert same(saved(tmp_path / "ours"), saved(folder))
    again = reloaded(case, head, tmp_path / "ours")
    assert same(dict(again.state_dict()), dict(theirs.state_dict()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "auto"])
def test_types_are_kept_or_changed_as_asked(dtype: str, tmp_path: Path) -> None:
    reference = references.reference("gpt2 plain", "causal-lm").to(torch.bfloat16)
    reference.save_pretrained(tmp_path / "half")
    ours = tg.load_model(tmp_path / "half", dtype=dtype)
    wanted = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    assert {each.dtype for each in ours.parameters()} == {wanted}
    tg.save_model(ours, tmp_path / "copy")
    assert {each.dtype for each in saved(tmp_path / "copy").values()} == {wanted}
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["dtype"] == str(wanted).removeprefix("torch.")
    if dtype in ("auto", "bfloat16", "float32"):
        assert all(
            torch.equal(each.bfloat16(), saved(tmp_path / "half")[name])
            for name, each in saved(tmp_path / "copy").items()
        )


def test_ends_of_text_survive(shelf: Shelf, tmp_path: Path) -> None:
    """generation_config.json may name more ends than config.json, and a copy must still stop there."""
    theirs, folder = shelf("llama plain", "causal-lm")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    ours = tg.load_model(tmp_path)
    assert ours.end_tokens == (7, 8)
    tg.save_model(ours, tmp_path / "copy")
    assert tg.load_model(tmp_path / "copy").end_tokens == (7, 8)
    again = references.heads("llama plain")["causal-lm"].from_pretrained(tmp_path / "copy")
    assert again.generation_config.eos_token_id == [7, 8]
    assert again.config.eos_token_id == theirs.config.eos_token_id
