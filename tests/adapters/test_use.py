"""Adapters where models are used: pipelines and the command line, with the model named or found by the adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.adapters.test_lora import unsettle
from tests.tasks.conftest import ModelMaker
from tests.tasks.test_classifiers import FEELINGS
from tests.tasks.test_command_line import Typed

import tsumugu as tg

TEXTS = ["この映画はとても面白かった。", "It costs $3.50 at Smith & Sons' shop."]


@pytest.fixture
def classifier(make: ModelMaker, tmp_path: Path) -> Path:
    """An adapter of a classifier, beside a copy of the model under the name `base`."""
    folder = make("bert", "sequence-classification", FEELINGS)
    (tmp_path / "base").symlink_to(folder)
    model = tg.load_model(tmp_path / "base")
    tg.add_adapter(model, tg.LoraConfig(targets="attention"))
    unsettle(model)
    return tg.save_adapter(model, tmp_path / "adapter", base="../base")


def test_a_classifier(classifier: Path, typed: Typed, tmp_path: Path) -> None:
    base = tmp_path / "base"
    model = tg.load_model(classifier)
    wanted = tg.pipeline("text-classification", model=model)(TEXTS)
    plain = tg.pipeline("text-classification", model=base)
    assert max(abs(one["score"] - other["score"]) for one, other in zip(wanted, plain(TEXTS), strict=True)) > 1e-3
    for options in ({"model": classifier}, {"model": base, "adapter": classifier}):
        for task in (None, "sentiment-analysis"):
            pipe = tg.pipeline(task, **options)
            assert pipe.name == "text-classification"
            assert not any("branches" in name for name, _ in pipe.model.named_parameters())
            for one, other in zip(pipe(TEXTS), wanted, strict=True):
                assert one["label"] == other["label"]
                assert abs(one["score"] - other["score"]) <= 1e-6
    for options in (("-m", classifier), ("-m", base, "--adapter", classifier)):
        out = typed("run", "sentiment-analysis", *TEXTS, *options, "--json")
        assert [json.loads(line)["label"] for line in out.splitlines()] == [each["label"] for each in wanted]


def test_evaluated(classifier: Path, typed: Typed, tmp_path: Path) -> None:
    labels = [each["label"] for each in tg.pipeline("text-classification", model=classifier)(TEXTS)]
    (tmp_path / "data.jsonl").write_text(
        "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in zip(TEXTS, labels, strict=True))
    )
    for options in (("-m", classifier), ("-m", tmp_path / "base", "--adapter", classifier)):
        found = json.loads(typed("evaluate", tmp_path / "data.jsonl", *options, "--json", "--resamples", 20))
        assert found["scores"]["accuracy"]["value"] == 1.0


def test_a_decoder(make: ModelMaker, typed: Typed, tmp_path: Path) -> None:
    folder = make("gpt2", "causal-lm")
    model = tg.load_model(folder)
    tg.add_adapter(model, tg.LoraConfig())
    unsettle(model)
    tg.save_adapter(model, tmp_path / "adapter")
    ids = tg.load_tokenizer(tmp_path / "adapter")(TEXTS[0], return_tensors="pt")["input_ids"]
    wanted = tg.generate(model, ids, max_new_tokens=8)
    assert not torch.equal(wanted, tg.generate(tg.load_model(folder), ids, max_new_tokens=8))
    assert torch.equal(wanted, tg.generate(tg.load_model(tmp_path / "adapter"), ids, max_new_tokens=8))
    text = tg.load_tokenizer(folder).decode(wanted[0, ids.shape[1] :])
    out = typed("run", "text-generation", TEXTS[0], "-m", tmp_path / "adapter", "--max-new-tokens", 8)
    assert out.strip() == text.strip()
