"""LoRA against the PEFT library: the same outputs from the same files, in both directions, and what must not change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as TheirConfig
from peft import PeftModel, get_peft_model
from tests.models import references
from tests.models.conftest import Shelf

import tsumugu as tg
from tsumugu.adapters.adapt import trained_parameters, without_adapters
from tsumugu.core.errors import TsumuguError

TOLERANCE = 1e-5
CASES = [
    ("bert plain", "sequence-classification", ["query", "value"]),
    ("bert plain", "token-classification", ["key", "dense"]),
    ("bert plain", "question-answering", ["dense"]),
    ("bert plain", "masked-lm", "all-linear"),
    ("bert plain", "base", ["query", "key"]),
    ("roberta plain", "sequence-classification", ["query", "value"]),
    ("electra plain", "sequence-classification", ["query", "value"]),
    ("gpt2 plain", "causal-lm", ["c_attn"]),
    ("gpt2 plain", "causal-lm", "all-linear"),
    ("gpt2 plain", "sequence-classification", ["c_attn", "c_fc"]),
    ("gpt2 plain", "base", ["c_attn"]),
    ("openai-gpt plain", "causal-lm", ["c_attn"]),
    ("llama grouped", "causal-lm", ["q_proj", "v_proj"]),
    ("llama grouped", "causal-lm", "all-linear"),
    ("llama grouped", "sequence-classification", "all-linear"),
    ("mistral window", "causal-lm", ["q_proj", "down_proj"]),
    ("gemma3_text plain", "causal-lm", "all-linear"),
    ("t5 plain", "seq2seq-lm", ["q", "v"]),
    ("t5 v1.1 untied", "seq2seq-lm", "all-linear"),
]
TASK_TYPES = {
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
    "causal-lm": "CAUSAL_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "base": "FEATURE_EXTRACTION",
}


def unsettle(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights of adapters and heads that are far from their first ones, so that no part can be left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in trained_parameters(model).values():
            each.add_(0.2 * torch.randn(each.shape, generator=generator))


@torch.no_grad()
def worst(ours: Any, theirs: Any, config: Any, head: str) -> float:
    """The greatest difference of any output, padded or not."""
    found = 0.0
    for padding in ("none", "right"):
        given = references.inputs(config, padding=padding)
        more = references.answers(config, head, given)
        one, other = (
            ours(**given, **more, output_hidden_states=True),
            theirs(**given, **more, output_hidden_states=True),
        )
        found = max(found, references.compare(one, other, given.get("attention_mask")))
    return found


def their_adapter(case: str, head: str, folder: Path, path: Path, **options: Any) -> PeftModel:
    """An adapter of the PEFT library, not a fresh one, saved to `path`."""
    base = references.heads(case)[head].from_pretrained(folder).eval()
    model = get_peft_model(base, TheirConfig(task_type=TASK_TYPES.get(head), **options)).eval()
    unsettle(model)
    model.save_pretrained(path)
    return model


@pytest.mark.parametrize(("case", "head", "targets"), CASES)
def test_theirs_computes_the_same_here(case: str, head: str, targets: Any, shelf: Shelf, tmp_path: Path) -> None:
    _, folder = shelf(case, head)
    theirs = their_adapter(case, head, folder, tmp_path, target_modules=targets, r=3, lora_alpha=5)
    ours = tg.load_model(folder, adapter=tmp_path)
    assert worst(ours, theirs, theirs.config, head) <= TOLERANCE
    with without_adapters(ours), theirs.disable_adapter():
        assert worst(ours, theirs, theirs.config, head) <= TOLERANCE


@pytest.mark.parametrize(("case", "head", "targets"), CASES)
def test_ours_computes_the_same_there(case: str, head: str, targets: Any, shelf: Shelf, tmp_path: Path) -> None:
    theirs, folder = shelf(case, head)
    ours = tg.load_model(folder)
    tg.add_adapter(ours, tg.LoraConfig(rank=4, alpha=6, targets=targets))
    assert worst(ours, theirs, theirs.config, head) == worst(tg.load_model(folder), theirs, theirs.config, head)
    unsettle(ours)
    tg.save_adapter(ours, tmp_path)
    base = references.heads(case)[head].from_pretrained(folder).eval()
    there = PeftModel.from_pretrained(base, tmp_path).eval()
    assert worst(ours, there, base.config, head) <= TOLERANCE
    assert worst(ours, theirs, theirs.config, head) > 100 * TOLERANCE
    again = tg.load_model(tmp_path)
    assert again.head_name == head
    given = references.inputs(base.config)
    more = references.answers(base.config, head, given)
    for name, each in vars(again(**given, **more)).items():
        if isinstance(each, torch.Tensor):
            assert torch.equal(each, getattr(ours(**given, **more), name))


def answers_of(model: Any, config: Any, head: str) -> dict[str, torch.Tensor]:
    given = references.inputs(config, padding="right")
    with torch.no_grad():
        found = vars(model(**given, **references.answers(config, head, given)))
    return {name: each for name, each in found.items() if isinstance(each, torch.Tensor)}


def far(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((each - other[name]).abs().max()) for name, each in one.items())


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"rslora": True}], ids=str)
@pytest.mark.parametrize(
    ("case", "head"),
    [
        ("bert plain", "sequence-classification"),
        ("gpt2 plain", "causal-lm"),
        ("llama grouped", "causal-lm"),
        ("t5 plain", "seq2seq-lm"),
    ],
)
def test_merged_is_a_plain_model(case: str, head: str, options: Any, shelf: Shelf, tmp_path: Path) -> None:
    theirs, folder = shelf(case, head)
    model = tg.load_model(folder, dtype="float64")
    before = {name: each.clone() for name, each in model.named_parameters()}
    tg.add_adapter(model, tg.LoraConfig(rank=3, **options))
    unsettle(model)
    wanted = answers_of(model, theirs.config, head)
    with pytest.raises(TsumuguError, match="not merged"):
        tg.save_model(model, tmp_path / "lost")
    tg.merge_adapter(model)
    assert far(answers_of(model, theirs.config, head), wanted) <= 1e-10
    tg.save_model(model, tmp_path / "merged")
    assert far(answers_of(tg.load_model(tmp_path / "merged", dtype="auto"), theirs.config, head), wanted) <= 1e-10
    there = references.heads(case)[head].from_pretrained(tmp_path / "merged", dtype="float64").eval()
    written = model.keymap.to_theirs(dict(model.named_parameters()), with_prefix=True)
    assert all(torch.equal(each, written[name]) for name, each in there.state_dict().items() if name in written)
    tg.unmerge_adapter(model)
    assert far(answers_of(model, theirs.config, head), wanted) == 0.0
    tg.set_adapter(model, None)
    assert all(torch.equal(each, before[name]) for name, each in model.named_parameters() if name in before)
    tg.set_adapter(model, "default")
    tg.merge_adapter(model, unload=True)
    assert far(answers_of(model, theirs.config, head), wanted) <= 1e-10
    assert {name for name, _ in model.named_parameters()} == before.keys()
    assert model.adapters is None


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("bert plain", {"use_dora": True}),
        ("gpt2 plain", {"use_dora": True, "target_modules": ["c_attn", "c_fc"]}),
        (
            "llama grouped",
            {"use_rslora": True, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"0.self_attn.v_proj": 7}},
        ),
        ("bert plain", {"bias": "all"}),
        ("bert plain", {"bias": "lora_only"}),
        ("llama grouped", {"modules_to_save": ["lm_head", "embed_tokens", "input_layernorm"]}),
    ],
    ids=str,
)
def test_variants_of_theirs(case: str, options: dict[str, Any], shelf: Shelf, tmp_path: Path) -> None:
    head = "sequence-classification" if case == "bert plain" else "causal-lm"
    _, folder = shelf(case, head)
    options = {"r": 3, "lora_alpha": 7} | options
    theirs = their_adapter(case, head, folder, tmp_path / "theirs", **options)
    ours = tg.load_model(folder, adapter=tmp_path / "theirs")
    assert worst(ours, theirs, theirs.config, head) <= TOLERANCE
    if "bias" not in options:
        tg.save_adapter(ours, tmp_path / "ours")
        again = PeftModel.from_pretrained(
            references.heads(case)[head].from_pretrained(folder), tmp_path / "ours"
        ).eval()
        assert worst(ours, again, theirs.config, head) <= TOLERANCE


def test_several_at_once(shelf: Shelf, tmp_path: Path) -> None:
    theirs, folder = shelf("llama grouped", "causal-lm")
    one = their_adapter("llama grouped", "causal-lm", folder, tmp_path / "one", target_modules=["q_proj", "up_proj"])
    other = their_adapter("llama grouped", "causal-lm", folder, tmp_path / "other", target_modules=["q_proj"], r=2)
    model = tg.load_model(folder)
    tg.load_adapter(model, tmp_path / "one", name="one")
    tg.load_adapter(model, tmp_path / "other", name="other")
    assert list(model.adapters) == ["one", "other"]
    assert worst(model, other, theirs.config, "causal-lm") <= TOLERANCE
    tg.set_adapter(model, "one")
    assert worst(model, one, theirs.config, "causal-lm") <= TOLERANCE
    one.load_adapter(tmp_path / "other", "other")
    one.add_weighted_adapter(["default", "other"], [0.7, 0.3], "both", combination_type="cat")
    one.set_adapter("both")
    tg.set_adapter(model, {"one": 0.7, "other": 0.3})
    assert worst(model, one, theirs.config, "causal-lm") <= TOLERANCE
    tg.set_adapter(model, None)
    assert worst(model, theirs, theirs.config, "causal-lm") <= TOLERANCE


def test_only_the_adapter_and_the_head_are_trained(shelf: Shelf) -> None:
    theirs, folder = shelf("roberta plain", "sequence-classification")
    model = tg.load_model(folder)
    tg.add_adapter(model, tg.LoraConfig(targets="attention", dropout=0.2))
    names = set(trained_parameters(model))
    assert names == {name for name, _ in model.named_parameters() if ".branches." in name or name.startswith("head.")}
    assert len(names) == 2 * 4 * 2 + 4
    frozen = {name: each.clone() for name, each in model.named_parameters() if name not in names}
    given = references.inputs(theirs.config)
    optimizer = torch.optim.SGD(trained_parameters(model).values(), lr=0.1)
    model.train()
    losses = []
    for _ in range(8):
        loss = model(**given, labels=torch.tensor([0, 1, 2])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    assert all(torch.equal(each, frozen[name]) for name, each in model.named_parameters() if name in frozen)


def test_a_trunk_gets_the_labels_of_its_adapter(shelf: Shelf, tmp_path: Path) -> None:
    """The head and the pooler that the checkpoint lacks lie in the adapter's folder, with the labels' names."""
    theirs, folder = shelf("bert plain", "masked-lm")
    model = tg.load_model(folder, task="sequence-classification", strict=False)
    tg.add_adapter(model, tg.LoraConfig(targets="attention"))
    unsettle(model)
    tg.save_adapter(model, tmp_path / "ours")
    kept = json.loads((tmp_path / "ours/adapter_config.json").read_text())
    assert kept["modules_to_save"] == ["bert.pooler", "classifier"]
    again = tg.load_model(tmp_path / "ours")
    assert again.config.labels == model.config.labels
    assert (
        far(
            answers_of(again, theirs.config, "sequence-classification"),
            answers_of(model, theirs.config, "sequence-classification"),
        )
        == 0
    )
    base = references.heads("bert plain")["sequence-classification"].from_pretrained(folder, num_labels=5)
    there = get_peft_model(base, TheirConfig(task_type="SEQ_CLS", modules_to_save=["pooler"])).eval()
    unsettle(there)
    there.save_pretrained(tmp_path / "theirs")
    found = tg.load_model(folder, adapter=tmp_path / "theirs")
    assert found.config.labels == tuple(f"LABEL_{index}" for index in range(5))
    assert worst(found, there, base.config, "sequence-classification") <= TOLERANCE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "type 'IA3'"),
        ({"use_qalora": True}, "use_qalora"),
        ({"init_lora_weights": "pissa"}, "changed"),
        ({"r": 0}, "rank"),
        ({"base_model_name_or_path": None}, "which model"),
        ({"use_dora": True}, "lora_magnitude_vector"),
    ],
    ids=str,
)
def test_what_is_refused(change: dict[str, Any], said: str, shelf: Shelf, tmp_path: Path) -> None:
    _, folder = shelf("llama grouped", "causal-lm")
    their_adapter("llama grouped", "causal-lm", folder, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TsumuguError, match=said):
        tg.load_model(tmp_path)


def test_what_does_not_fit(shelf: Shelf, tmp_path: Path) -> None:
    _, folder = shelf("llama grouped", "causal-lm")
    _, wider = shelf("llama other width", "causal-lm")
    their_adapter("llama grouped", "causal-lm", folder, tmp_path)
    with pytest.raises(TsumuguError, match="does not fit"):
        tg.load_model(wider, adapter=tmp_path)
    with pytest.raises(TsumuguError, match="no matrix"):
        tg.load_model(shelf("gpt2 plain", "causal-lm")[1], adapter=tmp_path)
    model = tg.load_model(folder)
    with pytest.raises(TsumuguError, match="q_proj"):
        tg.add_adapter(model, tg.LoraConfig(targets="q_prj"))
    with pytest.raises(TsumuguError, match="no adapter"):
        tg.save_adapter(model, tmp_path)
    tg.add_adapter(model, tg.LoraConfig())
    with pytest.raises(TsumuguError, match="already"):
        tg.add_adapter(model, tg.LoraConfig())
    with pytest.raises(TsumuguError, match="there is no adapter"):
        tg.set_adapter(model, "other")
