"""Decoders that learn to answer, and to prefer one answer: losses against the papers' formulas, runs that learn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.tuning.samples import PEOPLE, TOWNS, write

import tsumugu as tg
from tsumugu.adapters.adapt import without_adapters
from tsumugu.core.errors import InputError
from tsumugu.objectives.base import IGNORE
from tsumugu.training.events import LOG, read_events
from tsumugu.training.step import tensors_of
from tsumugu.tuning.instruction import InstructionTuning
from tsumugu.tuning.preference import Preference
from tsumugu.tuning.recipe import DataSection, LossSection

Tiny = Callable[..., Path]
CPU = torch.device("cpu")


def talks() -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": "yesterday " * (at % 2) + f"who went to {town} ?"},
                {"role": "assistant", "content": person},
            ]
        }
        for at, (person, town) in enumerate(zip(PEOPLE, TOWNS, strict=True))
    ]


def choices() -> list[dict[str, Any]]:
    return [
        {"prompt": f"who went to {town} ?", "chosen": person, "rejected": f"the {other} again"}
        for person, other, town in zip(PEOPLE, (*PEOPLE[1:], PEOPLE[0]), TOWNS, strict=True)
    ]


def prepared(kind: Any, folder: Path, rows: list[dict[str, Any]], path: Path, **loss: float) -> tuple[Any, Any, Any]:
    """A model, its objective, and the rows of some examples."""
    examples = tg.load_examples(write(path / "rows.jsonl", rows), kind.kind)
    model, tokenizer = tg.load_model(folder, task="causal-lm", strict=False), tg.load_tokenizer(folder)
    objective = kind(model, tokenizer, DataSection(source="rows.jsonl"), LossSection(**loss))
    objective.begin(model, examples)
    return model, objective, objective.rows(examples)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_only_answers_are_learnt(family: str, tiny: Tiny, tmp_path: Path) -> None:
    """The loss is that of the reference library with labels that leave out all but the answers."""
    model, objective, rows = prepared(InstructionTuning, tiny(family), talks(), tmp_path)
    tg.save_model(model, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    batch = objective.batch(rows)
    labels = torch.full_like(torch.from_numpy(batch.inputs["input_ids"]), IGNORE)
    labels[:, 1:] = torch.from_numpy(batch.inputs["targets"])[:, :-1]
    for row, talk, answer in zip(rows, talks(), labels, strict=True):
        text = objective.tokenizer.decode(answer[answer != IGNORE])
        assert text == talk["messages"][1]["content"] + objective.tokenizer.eos_token
        assert row.ids == objective.tokenizer.apply_chat_template(talk["messages"])
    given = {name: torch.from_numpy(batch.inputs[name]) for name in ("input_ids", "attention_mask")}
    wanted = theirs(**given, labels=labels).loss
    found = objective.losses(model, tensors_of(batch, CPU))["token"] / batch.counts["token"]
    assert float((found - wanted).abs()) <= 1e-5


def test_a_model_learns_to_answer(tiny: Tiny, tmp_path: Path) -> None:
    path = write(tmp_path / "talks.jsonl", talks())
    values = {
        "task": "sft",
        "model": {"source": str(tiny("llama"))},
        "data": {"source": str(path), "validation": str(path)},
        "optimizer": {"name": "muon"},
        "train": {"batch": 6, "epochs": 100, "lr": 2e-2},
        "evaluation": {"every": 0.5},
    }
    run = tg.finetune(values, tmp_path / "run", quiet=True)
    assert run.model is not None
    assert run.result.best_loss < 0.1
    chat = tg.pipeline("chat", model=run.model)
    assert [chat(talk["messages"][:1], max_new_tokens=8).strip() for talk in talks()] == list(PEOPLE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.model)
    ours = tg.load_tokenizer(run.model)
    messages = talks()[0]["messages"]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == ours.apply_chat_template(messages, tokenize=False)


def plain(model: Any, ids: list[int], targets: list[int]) -> torch.Tensor:
    """The sum of the logarithms of the targets' probabilities, written out."""
    logits = model(torch.tensor([ids])).logits[0].double()
    probabilities = logits.exp() / logits.exp().sum(-1, keepdim=True)
    places = [at for at, target in enumerate(targets) if target != IGNORE]
    return sum((probabilities[at, targets[at]].log() for at in places), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("lora", [False, True])
def test_the_loss_is_the_papers(lora: bool, smoothing: float, tiny: Tiny, tmp_path: Path) -> None:
    """Equation 7 of DPO, and its gradient, one answer after the other, padded by nothing."""
    beta = 0.3
    model, objective, rows = prepared(
        Preference, tiny("llama"), choices(), tmp_path, beta=beta, label_smoothing=smoothing
    )
    objective.rounds = lora
    start = {name: each.detach().clone() for name, each in model.named_parameters()}
    if lora:
        tg.add_adapter(model, tg.LoraConfig(rank=2, targets="attention"))
    trained = [each for each in model.parameters() if each.requires_grad]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in trained:
            each.add_(0.05 * torch.randn(each.shape, generator=generator))
    wanted, right, total = torch.zeros((), dtype=torch.float64), 0, 0.0
    for row in rows:
        new = [plain(model, ids, targets) for ids, targets, _ in row.answer]
        old = [before for _, _, before in row.answer]
        margin = beta * ((new[0] - old[0]) - (new[1] - old[1]))
        kept = 1 / (1 + math.e ** (-margin))
        wanted = wanted - (1 - smoothing) * kept.log() - smoothing * (1 - kept).log()
        right += int(margin > 0)
        total += float(margin)
    found = objective.losses(model, tensors_of(objective.batch(rows), CPU))
    assert float((found["preference"] - wanted).abs()) <= 1e-5
    assert float(found["right"]) == right
    assert abs(float(found["margin"]) - total) <= 1e-5
    gradients = torch.autograd.grad(wanted, trained, retain_graph=True)
    for one, other in zip(torch.autograd.grad(found["preference"], trained), gradients, strict=True):
        assert float((one - other).abs().max()) <= 1e-4
    if lora:
        with without_adapters(model):
            assert all(torch.equal(model.get_parameter(name), each) for name, each in start.items())
    else:
        with torch.no_grad():
            for name, each in start.items():
                model.get_parameter(name).copy_(each)
    with torch.no_grad(), without_adapters(model):
        for row in rows:
            for ids, targets, before in row.answer:
                assert float(plain(model, ids, targets)) == pytest.approx(before, abs=1e-4)


def test_a_model_learns_to_prefer(tiny: Tiny, tmp_path: Path) -> None:
    path = write(tmp_path / "choices.jsonl", choices())
    values = {
        "task": "dpo",
        "model": {"source": str(tiny("gpt2"))},
        "data": {"source": str(path), "validation": str(path)},
        "train": {"batch": 6, "epochs": 30, "lr": 1e-3},
        "evaluation": {"every": 0.5},
        "loss": {"beta": 0.5},
    }
    run = tg.finetune(values, tmp_path / "run", quiet=True)
    steps = [each.values["losses"] for each in read_events(tmp_path / "run" / LOG) if each.kind == "step"]
    assert steps[0]["preference"] == pytest.approx(math.log(2), abs=1e-5)
    assert steps[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert steps[-1]["preference"] < 0.1
    assert steps[-1]["margin"] > 1
    assert steps[-1]["right"] == 1
    assert run.result.best_loss < 0.1


def test_what_is_cut(tiny: Tiny, tmp_path: Path) -> None:
    """An answer behind what the model reads is an error, or passed over; one that is cut ends where it is cut."""
    path, folder = tmp_path / "rows.jsonl", tiny("gpt2")
    long = {"prompt": "who went ? " * 40, "chosen": "Ann", "rejected": "Bob"}
    talk = {"messages": [{"role": "user", "content": long["prompt"]}, {"role": "assistant", "content": "Ann"}]}
    for kind, rows in ((InstructionTuning, [*talks(), talk]), (Preference, [*choices(), long])):
        with pytest.raises(InputError, match=r"example 7: no answer begins within 64 tokens"):
            prepared(kind, folder, rows, tmp_path)
        examples = tg.load_examples(path, kind.kind)
        model, tokenizer = tg.load_model(folder, task="causal-lm", strict=False), tg.load_tokenizer(folder)
        objective = kind(model, tokenizer, DataSection(source=str(path), skip=True), LossSection())
        objective.begin(model, examples)
        assert len(objective.rows(examples)) == len(rows) - 1
    many = [{"instruction": "say it", "output": "the town again " * 60}]
    _, objective, rows = prepared(InstructionTuning, folder, many, tmp_path)
    assert len(rows[0].ids) == 64
    assert rows[0].answer[-1] == IGNORE
    assert np.sum(np.array(rows[0].answer) != IGNORE) > 30
    assert json.loads(path.read_text())["instruction"] == "say it"


@pytest.mark.parametrize("method", ["lora", "prompt", "prefix"])
def test_an_adapter_learns_to_prefer(method: str, tiny: Tiny, tmp_path: Path) -> None:
    """The model that the run leaves is the one that was trained, merged or with what stands before its texts."""
    path = write(tmp_path / "choices.jsonl", choices())
    values = {
        "task": "dpo",
        "model": {"source": str(tiny("llama")), "method": method},
        "data": {"source": str(path), "validation": str(path)},
        "train": {"batch": 6, "epochs": 15, "lr": 0.1},
        "evaluation": {"every": 0},
        "loss": {"beta": 0.5},
    }
    run = tg.finetune(values, tmp_path / "run", quiet=True)
    assert run.model is not None
    steps = [each.values["losses"] for each in read_events(tmp_path / "run" / LOG) if each.kind == "step"]
    assert steps[-1]["margin"] > max(0.0, steps[0]["margin"])  # how far: as far as a tiny model attends
    assert steps[-1]["right"] == 1
    assert (run.model / "adapter_config.json").exists() == (method != "lora")
    objective = prepared(Preference, tiny("llama"), choices(), tmp_path, beta=0.5)[1:]
    batch = objective[0].batch(objective[1])
    for folder in (run.model, run.model.parent / "adapter"):
        losses = objective[0].losses(tg.load_model(folder), tensors_of(batch, CPU))
        assert float(losses["preference"]) / len(choices()) == pytest.approx(run.result.best_loss, abs=1e-5)
