"""The training loop: a step depends on nothing but the weights, the optimiser and its number."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.training.recipes import KINDS, recipe, steps, weights

import tsumugu as tg
from tsumugu.core.errors import CheckpointError, ConfigError, InputError, TsumuguError
from tsumugu.training import checkpointing
from tsumugu.training import pretrain as pretraining
from tsumugu.training.checkpointing import find_checkpoint, steps_in
from tsumugu.training.events import LOG, read_events
from tsumugu.training.loop import Trainer
from tsumugu.training.pretrain import resume, train
from tsumugu.training.runs import read_run

pytestmark = pytest.mark.usefixtures("one_thread")


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def prepared(folder, kind, undisturbed, **sections):
    """A recipe over the corpus of the undisturbed run, so that nothing is tokenised twice."""
    values = recipe(folder, kind, **sections)
    data = {key: each for key, each in values["data"].items() if key == "context"}
    values["data"] = {**data, "corpus": [str(undisturbed(kind) / "corpus")], **sections.get("data", {})}
    values.pop("tokenizer")
    return values


def vocabulary(folder):
    return tg.load_tokenizer(folder).get_vocab()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_a_model_that_loads_and_a_log(kind, undisturbed):
    folder = undisturbed(kind)
    run = read_run(folder)
    assert (run.state, run.steps, run.total_steps) == ("done", 8, 8)
    assert sorted(steps_in(folder / "checkpoints"))[-1] == 8
    best = find_checkpoint(folder)
    model = tg.load_model(best)
    assert model.load_report is None or not model.load_report.missing
    losses = [each["loss"] for each in steps(folder).values()]
    assert len(losses) == 8
    assert all(map(math.isfinite, losses))
    assert run.best_bits_per_byte is not None
    environment = json.loads((folder / "environment.json").read_text("utf-8"))
    assert environment["packages"]["torch"] == torch.__version__
    assert (folder / "loss.svg").is_file()


def test_the_objective_is_learnt(tmp_path, undisturbed):
    values = prepared(tmp_path, "causal", undisturbed, train={"steps": 60, "lr": 0.02}, evaluation={"every": 0})
    found = train(values, tmp_path / "run", quiet=True)
    told = steps(tmp_path / "run")
    assert told[60]["loss"] < told[1]["loss"] - 1
    assert found.evaluation["loss"] < told[1]["loss"] - 0.5  # of text that it never read
    assert abs(told[1]["loss"] - math.log(480)) < 0.2  # the first guess is even


@pytest.mark.parametrize("kind", ["causal", "masked", "span-corruption", "replaced-token"])
def test_resumed_is_never_stopped(kind, tmp_path, undisturbed, monkeypatch):
    """Broken off by an error between two steps, twice; then bit by bit the same, of the log's figures too."""
    values = prepared(tmp_path, kind, undisturbed)
    advance = Trainer._advance

    def broken(self, ahead, wish):
        if self.state.step in limits:
            limits.remove(self.state.step)
            raise MemoryError("broken off")
        return advance(self, ahead, wish)

    limits = [2, 7]
    monkeypatch.setattr(Trainer, "_advance", broken)
    with pytest.raises(MemoryError):
        train(values, tmp_path / "run", quiet=True)
    with pytest.raises(MemoryError):
        resume(tmp_path / "run", quiet=True)
    for place in (tmp_path / "run", *(tmp_path / "run" / "checkpoints").glob("step-*")):
        (place / ".anatomy.json.0a1b2c3d.partial").write_text("by a process that was killed", "utf-8")
    resume(tmp_path / "run", quiet=True)
    assert not list((tmp_path / "run").rglob(".anatomy.json.*"))
    assert not limits
    assert same(weights(tmp_path / "run"), weights(undisturbed(kind)))
    mine, theirs = steps(tmp_path / "run"), steps(undisturbed(kind))
    assert {step: each["loss"] for step, each in mine.items()} == {step: each["loss"] for step, each in theirs.items()}
    assert mine[8]["tokens"] == theirs[8]["tokens"]


@pytest.mark.parametrize("kind", ["causal", "masked", "span-corruption"])
def test_how_a_step_is_cut_changes_nothing(kind, tmp_path, undisturbed):
    """Micro-batches of 2 and of 8 rows: the same losses. (Dropout is drawn for each micro-batch, so it is off.)"""
    still = {"residual_dropout": 0.0, "attention_dropout": 0.0, "embedding_dropout": 0.0}
    config = KINDS[kind]["model"]["config"] | (still if kind == "causal" else {"dropout": 0.0})
    config |= {"attention_dropout": 0.0} if kind == "masked" else {}
    curves = []
    for micro_batch in (2, 8):
        model = {"config": config}
        values = prepared(tmp_path, kind, undisturbed, model=model, train={"micro_batch": micro_batch})
        values["evaluation"] = {"every": 0}
        train(values, tmp_path / f"run-{micro_batch}", quiet=True)
        curves.append([each["loss"] for each in steps(tmp_path / f"run-{micro_batch}").values()])
    assert curves[0] == pytest.approx(curves[1], abs=1e-6)


def test_recomputing_changes_nothing_and_the_callers_chance_is_left_alone(tmp_path, undisturbed):
    values = prepared(tmp_path, "causal", undisturbed, train={"recompute": True, "deterministic": True})
    before = torch.get_rng_state()
    train(values, tmp_path / "run", quiet=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    assert same(weights(tmp_path / "run"), weights(undisturbed("causal")))


def test_bfloat16_learns_what_float32_does_and_keeps_weights_whole(tmp_path, undisturbed):
    values = prepared(tmp_path, "causal", undisturbed, train={"precision": "bf16"})
    train(values, tmp_path / "run", quiet=True)
    mine, theirs = steps(tmp_path / "run"), steps(undisturbed("causal"))
    curves = [[each["loss"] for each in side.values()] for side in (mine, theirs)]
    assert curves[0] == pytest.approx(curves[1], rel=2**-8)  # what bfloat16 can tell apart
    assert curves[0] != curves[1]
    assert {each.dtype for each in weights(tmp_path / "run").values()} == {np.dtype(np.float32)}


def test_no_compiler_is_one_line(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("no compiler")))
    values = prepared(tmp_path, "causal", undisturbed, train={"compile": True, "steps": 2}, evaluation={"every": 0})
    train(values, tmp_path / "run", quiet=True)
    warned = [each.values["what"] for each in read_events(tmp_path / "run" / LOG) if each.kind == "warning"]
    assert warned == ["torch.compile does not work here (RuntimeError); training goes on without it"]


def test_a_signal_saves_and_stops(tmp_path, undisturbed):
    values = prepared(tmp_path, "causal", undisturbed, train={"steps": 100000}, evaluation={"every": 0})
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Thread(target=lambda: (time.sleep(1.0), os.kill(os.getpid(), signal.SIGTERM)))
    timer.start()
    found = train(values, tmp_path / "run", quiet=True)
    timer.join()
    assert (found.reason, found.signal) == ("stopped", signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert find_checkpoint(tmp_path / "run", "last").name == f"step-{found.steps:08}"
    assert read_run(tmp_path / "run").state == "stopped"


def test_budgets(tmp_path, undisturbed):
    values = prepared(tmp_path, "causal", undisturbed, train={"steps": 100000, "minutes": 0.01})
    found = train(values, tmp_path / "run", quiet=True)
    assert found.reason == "budget"
    assert 0 < found.steps < 100000
    again = resume(tmp_path / "run", {"train.minutes": "null", "train.steps": str(found.steps + 2)}, quiet=True)
    assert (again.reason, again.steps) == ("done", found.steps + 2)


def test_what_no_longer_improves_stops(tmp_path, undisturbed):
    values = prepared(tmp_path, "causal", undisturbed, train={"steps": 100, "lr": 0.0})
    values["evaluation"] = {"every": 2, "patience": 3, "rows": 4, "min_delta": 1e-3}
    found = train(values, tmp_path / "run", quiet=True)
    assert (found.reason, found.steps, found.best_step) == ("early", 8, 2)


@pytest.mark.parametrize("disk", ["quick", "slow"])
def test_a_loss_that_is_no_number_is_taken_back(tmp_path, undisturbed, monkeypatch, disk):
    if disk == "slow":  # the checkpoint to go back to is still being written
        write = checkpointing.save_model
        monkeypatch.setattr(checkpointing, "save_model", lambda *a, **k: (time.sleep(0.5), write(*a, **k)))
    values = prepared(tmp_path, "causal", undisturbed)
    gradients = Trainer._gradients
    poisoned = [5]

    def poison(self, batches, totals):
        sums, norm = gradients(self, batches, totals)
        if self.state.step in poisoned:
            poisoned.clear()
            return sums, math.nan
        return sums, norm

    monkeypatch.setattr(Trainer, "_gradients", poison)
    found = train(values, tmp_path / "run", quiet=True)
    assert (found.reason, found.steps) == ("done", 8)
    events = read_events(tmp_path / "run" / LOG)
    back = [each for each in events if each.kind == "rollback"]
    assert [(each.step, each.values["to"]) for each in back] == [(6, "step-00000004")]
    told = steps(tmp_path / "run")
    # The data of the two steps that were taken back, 5 and 6, are left out: step 5 reads those of step 7.
    assert told[5]["epoch"] == pytest.approx(steps(undisturbed("causal"))[7]["epoch"])
    assert all(np.isfinite(each).all() for each in weights(tmp_path / "run").values())


def test_a_loss_that_stays_no_number_fails_clearly(tmp_path, undisturbed):
    values = prepared(tmp_path, "causal", undisturbed, train={"lr": 1e30, "clip": None}, optimizer={"name": "sgd"})
    with pytest.raises(TsumuguError, match=r"is not a number at step .* no checkpoint to go back to; lower train\.lr"):
        train(values, tmp_path / "run", quiet=True)
    assert read_run(tmp_path / "run").state == "failed"


def test_samples_are_written_and_change_nothing(tmp_path, undisturbed):
    values = prepared(tmp_path, "causal", undisturbed, evaluation={"prompts": ["", "The"], "new_tokens": 5})
    train(values, tmp_path / "run", quiet=True)
    samples = [each for each in read_events(tmp_path / "run" / LOG) if each.kind == "sample"]
    assert [each.values["prompt"] for each in samples] == ["", "The"] * 2
    assert same(weights(tmp_path / "run"), weights(undisturbed("causal")))


def test_what_stays(tmp_path, undisturbed):
    values = prepared(tmp_path, "causal", undisturbed, train={"steps": 20, "lr": 1e-9})
    values["checkpoints"] = {"every": 2, "keep": 2, "milestones": 6, "best": True}
    values["evaluation"] = {"every": 4, "rows": 4}
    found = train(values, tmp_path / "run", quiet=True)
    assert found.best_step is not None
    assert sorted(steps_in(tmp_path / "run" / "checkpoints")) == sorted({found.best_step, 6, 12, 18, 20})
    assert not [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.startswith(".")]


def test_weights_that_are_there_are_trained_on(tmp_path, undisturbed):
    begin = find_checkpoint(undisturbed("causal"))
    values = prepared(tmp_path, "causal", undisturbed, train={"lr": 0.0, "ema": None})
    values["model"] = {"init": str(begin)}
    train(values, tmp_path / "run", quiet=True)
    before, after = (tg.load_tensors(each) for each in (begin, find_checkpoint(tmp_path / "run", "last")))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_another_objective_asks_of_the_head_begins_fresh(tmp_path, undisturbed):
    begin = find_checkpoint(undisturbed("masked"))
    values = prepared(tmp_path, "masked", undisturbed, train={"steps": 1, "lr": 0.0, "ema": None})
    values |= {"model": {"init": str(begin)}, "objective": {"name": "next-sentence"}}
    values["data"]["packing"] = "single"
    train(values, tmp_path / "run", quiet=True)
    before, after = (tg.load_tensors(each) for each in (begin, find_checkpoint(tmp_path / "run", "last")))
    assert all(torch.equal(before[name], after[name]) for name in before)
    fresh = {name.split(".")[0] for name in set(after) - set(before)}
    assert fresh <= {"bert", "cls"}
    assert {"bert.pooler.dense.weight", "cls.seq_relationship.weight"} <= set(after) - set(before)
    hollow = tmp_path / "hollow"
    shutil.copytree(begin, hollow)
    save_file({name: each for name, each in before.items() if ".0.attention" not in name}, hollow / "model.safetensors")
    values["model"] = {"init": str(hollow)}
    with pytest.raises(CheckpointError, match=r"missing: encoder\.layers\.0\.attention"):
        train(values, tmp_path / "other", quiet=True)


def test_raw_text_is_cut_by_the_tokenizer_of_the_weights(tmp_path, undisturbed):
    begin = find_checkpoint(undisturbed("causal"))
    values = recipe(tmp_path, "causal", train={"steps": 1, "ema": None})
    values |= {"model": {"init": str(begin)}, "tokenizer": {}}
    train(values, tmp_path / "run", quiet=True)
    assert vocabulary(find_checkpoint(tmp_path / "run", "last")) == vocabulary(begin)


def test_a_second_run_and_another_text_are_refused(tmp_path, undisturbed):
    values = prepared(tmp_path, "causal", undisturbed, train={"steps": 2})
    train(values, tmp_path / "run", quiet=True)
    with pytest.raises(InputError, match="there is a run in this folder; tsumugu resume it"):
        train(values, tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match=r"data.context: this cannot change in a run that has begun"):
        resume(tmp_path / "run", {"data.context": "8"}, quiet=True)
    shutil.copytree(undisturbed("causal") / "corpus", tmp_path / "other")
    environment = tmp_path / "run" / "environment.json"
    environment.write_text(environment.read_text("utf-8").replace('"data": [', '"data": ["x",', 1), "utf-8")
    with pytest.raises(InputError, match="not those that the run began with"):
        resume(tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"steps": 1, "epochs": 1}}, "steps and epochs say the same"),
        ({"train": {"batch": 8, "micro_batch": 3, "speed": 1}}, "unknown key 'speed'"),
        ({"objective": {"name": "masket"}}, "unknown objective 'masket'; did you mean 'masked'"),
        ({"objective": {"name": "masked", "unit": "wort"}}, "'wort' is not a legal value"),
        ({"model": {"family": "gpt5"}}, "unknown model family 'gpt5'; did you mean 'gpt"),
        (
            {"model": {"family": "gpt2", "config": {"num_layer": 2}}},
            "unknown key 'num_layer'; did you mean 'num_layers'",
        ),
        ({"objective": {"name": "span-corruption"}}, "sentinel"),
        ({"data": {"context": 1}}, "1 is too small; at least 2"),
        ({"optimizer": {"name": "muon", "lr": 1e-3}}, "the learning rate is said in train.lr"),
        ({"name": "../evil"}, "is no name for a folder"),
    ],
)
def test_what_does_not_fit_is_one_line(change, message, tmp_path, undisturbed):
    values = prepared(tmp_path, "causal", undisturbed)
    for section, more in change.items():
        replaced = section in ("model", "objective", "name")
        values[section] = more if replaced else {**values.get(section, {}), **more}
    with pytest.raises(TsumuguError, match=message) as caught:
        train(values, tmp_path / "run", quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()  # what never began leaves nothing behind


def test_all_public_names_are_there():
    assert tg.train is pretraining.train
    assert tg.resume is resume
    assert tg.Recipe.from_values({"model": {"family": "gpt2"}}).objective == {"name": "causal"}
