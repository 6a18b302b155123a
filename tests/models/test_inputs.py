"""What models take and refuse: tensors of four kinds and lists, 32-bit labels, packed texts, ids that do not exist."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models import references
from tests.models.conftest import Shelf

import tsumugu as tg
from tsumugu.core.errors import InputError
from tsumugu.core.registry import FAMILIES

SOME = [("bert plain", "pretraining"), ("gpt2 plain", "causal-lm"), ("llama grouped", "causal-lm")]


@pytest.mark.parametrize("kind", ["pt", "np", "jax", "tf", "lists"])
@pytest.mark.parametrize(("case", "head"), SOME)
@torch.no_grad()
def test_tensors_of_any_kind(case: str, head: str, kind: str, shelf: Shelf) -> None:
    """Also integers of 32 bits, which JAX and TensorFlow prefer."""
    model = tg.load_model(shelf(case, head)[1])
    given = references.inputs(model.config, padding="right")
    given |= references.answers(model.config, head, given)
    wanted = model(**given)
    found = model(
        **{
            name: each.tolist() if kind == "lists" else tg.convert_tensor(each.to(torch.int32), kind)
            for name, each in given.items()
        }
    )
    assert torch.equal(found.logits, wanted.logits)
    assert torch.equal(found.loss, wanted.loss)


@pytest.mark.parametrize(("case", "head"), [*SOME, ("mistral window", "causal-lm")])
@torch.no_grad()
def test_packed_is_padded(case: str, head: str, shelf: Shelf) -> None:
    """Texts side by side in one row, kept apart by their numbers, are what they are alone."""
    model = tg.load_model(shelf(case, head)[1])
    given = references.inputs(model.config, padding="right")
    real = given["attention_mask"].bool()
    padded = model(**given).logits[real]
    rows, where = real.nonzero(as_tuple=True)
    packed = model(given["input_ids"][real][None], position_ids=where[None], document_ids=rows[None]).logits[0]
    assert float((packed - padded).abs().max()) <= 1e-5


@pytest.mark.parametrize(("case", "head"), SOME)
@torch.no_grad()
def test_padding_changes_nothing(case: str, head: str, shelf: Shelf) -> None:
    """Whatever stands in the padding, and however much there is."""
    model = tg.load_model(shelf(case, head)[1])
    given = references.inputs(model.config, padding="right")
    real = given["attention_mask"].bool()
    wanted = model(**given).logits[real]
    other = given | {"input_ids": given["input_ids"].masked_fill(~real, 50)}
    assert torch.equal(model(**other).logits[real], wanted)
    longer = {name: torch.nn.functional.pad(each, (0, 9)) for name, each in given.items()}
    assert float((model(**longer).logits[:, : references.TIME][real] - wanted).abs().max()) <= 1e-5


@pytest.mark.parametrize(("case", "head"), SOME)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[1, 99]], "token id 99 is outside the vocabulary of 99"),
        ([[1, -2]], "token id -2 is outside"),
        ([[0.5]], "must be integers"),
        ([[]], r"shape \[batch, time\]"),
        ([[[1]]], r"shape \[batch, time\]"),
        ([[1, 2], [3]], "ragged"),
        ([[1] * 25], "25 tokens are more than the 24"),
    ],
    ids=str,
)
def test_ids_that_are_refused(case: str, head: str, given: Any, message: str, shelf: Shelf) -> None:
    with pytest.raises(InputError, match=message):
        tg.load_model(shelf(case, head)[1])(given)


@pytest.mark.parametrize(("case", "head"), SOME)
def test_a_mask_of_another_shape_is_refused(case: str, head: str, shelf: Shelf) -> None:
    model = tg.load_model(shelf(case, head)[1])
    for mask in ([[1, 1, 0]], [[1, 0], [1, 1]]):
        with pytest.raises(InputError, match="attention_mask"):
            model([[5, 6]], attention_mask=mask)


@torch.no_grad()
def test_outputs_read_as_mappings_and_tuples(shelf: Shelf) -> None:
    output = tg.load_model(shelf("bert plain", "base")[1])([[5, 6]])
    assert list(output) == output.keys() == ["last_hidden_state", "pooler_output"]
    assert output["pooler_output"] is output[1] is output.pooler_output
    assert "logits" not in output
    with pytest.raises(KeyError):
        output["logits"]


@pytest.mark.parametrize("name", ["position_ids", "token_type_ids"])
def test_indices_outside_their_table_are_one_clear_line(name: str) -> None:
    family = FAMILIES["bert"]
    config = family.config_class(
        vocab_size=9, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=8, max_positions=6
    )
    model = family.build(config, "base").eval()
    limit = config.max_positions if name == "position_ids" else config.num_segments
    for wrong in (limit, -1):
        with pytest.raises(InputError, match=f"{name}: {wrong} is outside 0 to {limit - 1}"):
            model([[1, 2]], **{name: [[0, wrong]]})
