"""A compiled encoder gives what torch gives: every tiny encoder of the reference's, with each of its heads.

So does a decoder that classifies, which reads whole texts too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import references

import tsumugu as tg
from tsumugu.core.errors import InputError
from tsumugu.engines.onnx_model import OnnxModel

TOLERANCE = 1e-4
ENCODERS = ("bert", "roberta", "xlm-roberta")
HEADS = ("base", "masked-lm", "sequence-classification", "token-classification", "question-answering")
CASES = [(case, head) for case in references.CASES if case.split()[0] in ENCODERS for head in HEADS]
SIZES = {"one head", "odd width", "three layers", "untied", "relu", "great eps", "silu", "gelu_new"}
"""What belongs to the layers is looked at under one head only."""


DECODERS = ("llama grouped", "mistral window", "gpt2 plain", "gpt2 odd width", "openai-gpt plain", "gemma3_text plain")
READING = [(case, head) for case in DECODERS for head in references.heads(case) if head != "causal-lm"]


def inputs(*, left: bool = False) -> dict[str, torch.Tensor]:
    """Three texts of several lengths, padded on the right, or one of them on the left."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 90, (3, 11), generator=draw)
    real = torch.arange(11)[None] < torch.tensor([11, 7, 4])[:, None]
    if left:
        real[1] = real[1].flip(0)
    return {"input_ids": ids.masked_fill(~real, references.PAD), "attention_mask": real.long()}


def same(model: Any, quick: OnnxModel, given: dict[str, torch.Tensor]) -> None:
    """All real positions of all outputs; of whole texts those that begin with a token and not with padding."""
    with torch.no_grad():
        wanted = model(**given)
    found = quick(**given)
    assert found.keys() == wanted.keys()
    real = given["attention_mask"].bool()
    for name in wanted.keys():  # noqa: SIM118  (an Output's own)
        assert found[name].shape == wanted[name].shape
        gap = (found[name] - wanted[name]).abs()
        gap = gap[real] if wanted[name].shape[:2] == real.shape else gap[real[:, 0]]
        assert float(gap.max()) <= TOLERANCE, name


@pytest.mark.parametrize(
    ("case", "head"), [(case, head) for case, head in CASES if head == "base" or case.split(None, 1)[1] not in SIZES]
)
def test_outputs_are_those_of_torch(case: str, head: str, cache: Path, tmp_path: Path) -> None:
    references.reference(case, head).save_pretrained(tmp_path / "model")
    model = tg.load_model(tmp_path / "model")
    quick = tg.load_model(tmp_path / "model", engine="onnx")
    same(model, quick, inputs())
    same(model, quick, inputs(left=True))


@pytest.mark.parametrize(("case", "head"), READING)
def test_decoders_that_read(case: str, head: str, cache: Path, tmp_path: Path) -> None:
    """Without a mask the last token that is no padding speaks for a text, and sees what stands before it."""
    references.reference(case, head).save_pretrained(tmp_path / "model")
    model, quick = tg.load_model(tmp_path / "model"), tg.load_model(tmp_path / "model", engine="auto")
    assert isinstance(quick, OnnxModel)
    for given in (inputs(), inputs(left=True)):
        same(model, quick, given)
        if head == "sequence-classification":
            with torch.no_grad():
                gap = model(given["input_ids"]).logits - quick(given["input_ids"]).logits
            assert float(gap.abs().max()) <= TOLERANCE


def test_padding_inside_a_text_is_refused_where_it_would_be_lost(cache: Path, tmp_path: Path) -> None:
    references.reference("llama plain", "sequence-classification").save_pretrained(tmp_path / "model")
    quick = tg.load_model(tmp_path / "model", engine="onnx")
    with pytest.raises(InputError, match="padding lies between the tokens of a text"):
        quick([[5, 6, 7]], attention_mask=[[1, 0, 1]])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, OnnxModel]:
    folder = tmp_path_factory.mktemp("bert")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSUMUGU_HOME", str(folder / "home"))
        references.reference("bert plain", "base").save_pretrained(folder / "model")
        return tg.load_model(folder / "model"), tg.load_model(folder / "model", engine="onnx")


def test_segments_are_read(both: tuple[Any, OnnxModel]) -> None:
    given = inputs() | {"token_type_ids": (torch.arange(33).reshape(3, 11) % 2)}
    same(*both, given)
    plain = both[1](**inputs()).last_hidden_state
    assert float((both[1](**given).last_hidden_state - plain).abs().max()) > 0.01


def test_tensors_come_back_as_they_went_in(both: tuple[Any, OnnxModel]) -> None:
    ids = inputs()["input_ids"]
    assert isinstance(both[1](ids).pooler_output, torch.Tensor)
    assert isinstance(both[1](ids.numpy()).pooler_output, np.ndarray)
    assert isinstance(both[1](ids.tolist()).pooler_output, np.ndarray)
    assert both[1](ids[0].tolist()).pooler_output.shape == (1, 32)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"input_ids": [[99]]}, "outside the vocabulary of 99"),
        ({"input_ids": [[1] * 25]}, "25 tokens are more than the 24"),
        ({"input_ids": [[0.5]]}, "expected whole numbers"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "not \\[1, 2\\]"),
    ],
)
def test_wrong_input_is_refused(both: tuple[Any, OnnxModel], given: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        both[1](**given)


def test_an_encoder_writes_no_text(both: tuple[Any, OnnxModel]) -> None:
    with pytest.raises(InputError, match="does not generate text"):
        tg.generate(both[1], [[1, 2]])
