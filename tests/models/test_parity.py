"""Every family, shape and head gives what the reference library gives: hidden states of all layers, logits, losses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import references
from tests.models.conftest import Shelf

import tsumugu as tg
from tsumugu.core.registry import FAMILIES

TOLERANCE = 1e-5
TRUNKS = [
    ("bert four segments", "pretraining"),
    ("gpt2 plain", "causal-lm"),
    ("llama llama3", "causal-lm"),
    ("gemma3_text plain", "causal-lm"),
]


@torch.no_grad()
def worst(ours: Any, theirs: Any, given: dict[str, torch.Tensor], **more: torch.Tensor) -> float:
    """The greatest difference of any output or hidden state at real positions."""
    found = ours(**given, **more, output_hidden_states=True)
    wanted = theirs(**given, **more, output_hidden_states=True)
    return references.compare(found, wanted, given.get("attention_mask"))


@pytest.mark.parametrize(("case", "head"), references.everything(), ids=lambda each: each)
def test_parity(case: str, head: str, shelf: Shelf) -> None:
    theirs, folder = shelf(case, head)
    ours = tg.load_model(folder)
    assert ours.head_name == head
    found = 0.0
    for padding in ("none", "right", "left"):
        given = references.inputs(theirs.config, padding=padding)
        found = max(found, worst(ours, theirs, given, **references.answers(theirs.config, head, given)))
    assert found <= TOLERANCE


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("case", ["bert plain", "bert four segments", "bert one segment"])
def test_token_types(case: str, padding: str, shelf: Shelf) -> None:
    theirs, folder = shelf(case, "pretraining")
    given = references.inputs(theirs.config, padding=padding)
    types = torch.arange(references.TIME).expand(references.BATCH, -1) % theirs.config.type_vocab_size
    assert worst(tg.load_model(folder), theirs, given, token_type_ids=types) <= TOLERANCE


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize(("case", "head"), TRUNKS)
def test_position_ids(case: str, head: str, padding: str, shelf: Shelf) -> None:
    theirs, folder = shelf(case, head)
    ours = tg.load_model(folder)
    given = references.inputs(theirs.config, padding=padding)
    time = references.TIME
    for positions in (torch.arange(5, 5 + time)[None], torch.arange(time).flip(0).expand(references.BATCH, -1)):
        assert worst(ours, theirs, given, position_ids=positions) <= TOLERANCE
    if padding == "left":
        real = given["attention_mask"]
        assert worst(ours, theirs, given, position_ids=(real.cumsum(-1) - 1).clamp(min=0)) <= TOLERANCE


@pytest.mark.parametrize(("case", "head"), [*TRUNKS, ("mistral window", "causal-lm")])
def test_lengths(case: str, head: str, shelf: Shelf) -> None:
    """From one token to the full context."""
    theirs, folder = shelf(case, head)
    ours = tg.load_model(folder)
    for time in (1, 2, 23, 24):
        ids = torch.randint(4, theirs.config.vocab_size, (2, time), generator=torch.Generator().manual_seed(time))
        assert worst(ours, theirs, {"input_ids": ids}) <= TOLERANCE


@pytest.mark.parametrize("case", ["bert plain", "gpt2 plain", "llama grouped"])
@pytest.mark.parametrize("kind", ["a number", "several at once"])
def test_losses_of_other_labels(case: str, kind: str) -> None:
    """One label is a number to predict; labels for every class are judged each on its own."""
    labels = ("score",) if kind == "a number" else references.LABELS
    theirs = references.reference(case, "sequence-classification", labels=labels)
    family = FAMILIES[case.split()[0]]
    ours = family.build(family.from_hub(json.loads(theirs.config.to_json_string())), "sequence-classification").eval()
    ours.load_state_dict(ours.keymap.to_ours(theirs.state_dict()))
    targets = torch.rand(references.BATCH, *(() if kind == "a number" else (3,)))
    assert worst(ours, theirs, references.inputs(theirs.config), labels=targets) <= TOLERANCE


@pytest.mark.parametrize(
    ("case", "older"),
    [
        ("llama linear", {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}),
        ("llama linear", {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        ("llama linear", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
        ("llama llama3", {"rope_theta": 10000.0, "rope_scaling": {**references.LLAMA3, "rope_theta": None}}),
        ("llama theta", {"rope_theta": 500000.0, "rope_scaling": None}),
        ("llama theta", {"rope_theta": 500000.0}),
        ("llama plain", {}),
        ("gemma3_text plain", {}),
        ("gemma3_text plain", {"rope_theta": 1e6, "rope_local_base_freq": 10000.0}),
        ("gemma3_text each sixth far", {"sliding_window_pattern": 6, "layer_types": None}),
        (
            "gemma3_text other bases",
            {
                "rope_theta": 5000.0,
                "rope_local_base_freq": 70.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
    ],
    ids=str,
)
def test_older_spelling_of_rotary_settings(case: str, older: dict[str, Any], shelf: Shelf, tmp_path: Path) -> None:
    theirs, folder = shelf(case, "causal-lm")
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    for value in older.values():
        if isinstance(value, dict):
            value.pop("rope_theta", None)
    shutil.copy(folder / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | older))
    assert worst(tg.load_model(tmp_path), theirs, references.inputs(theirs.config)) <= TOLERANCE


FLOATS = {"float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("case", "head"),
    [
        *TRUNKS,
        ("llama wide heads", "causal-lm"),
        ("mistral window", "causal-lm"),
        ("t5 plain", "encoder"),
        ("t5 v1.1 untied", "seq2seq-lm"),
    ],
)
def test_other_types(case: str, head: str, dtype: str, shelf: Shelf) -> None:
    """Against the reference in float64 on weights rounded to the type: no further off than rounding explains.

    The limit is half an eps of the greatest value for each of the eight operations of a layer that
    round their result. LLaMA's norms and rotary angles are computed in
    float32 there, whatever the type.
    """
    _, folder = shelf(case, head)
    exact = references.reference(case, head).to(FLOATS[dtype]).to(torch.float64)
    ours = tg.load_model(folder, dtype=dtype)
    assert ours.dtype == FLOATS[dtype]
    given = references.inputs(exact.config, padding="right")
    if head == "seq2seq-lm":
        given |= {"decoder_input_ids": references.answers(exact.config, "base", {})["decoder_input_ids"]}
    with torch.no_grad():
        wanted = exact(**given, output_hidden_states=True)
        found = ours(**given, output_hidden_states=True)
    assert found.hidden_states is not None
    assert all(each.dtype == FLOATS[dtype] for each in found.hidden_states)
    states = wanted.decoder_hidden_states if head == "seq2seq-lm" else wanted.hidden_states
    scale = max(float(each.abs().max()) for each in states)
    eps = torch.finfo(FLOATS[dtype]).eps
    if dtype == "float64" and not case.startswith(("bert", "gpt2")):
        eps = torch.finfo(torch.float32).eps
    difference = references.compare(found, wanted, given["attention_mask"])
    assert difference <= 8 * exact.config.num_hidden_layers * scale * 0.5 * eps
