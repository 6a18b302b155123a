"""A classifier that reads the mean of all tokens has its family's form, and the layer that takes it never learns."""

from __future__ import annotations

import pytest
import torch
import transformers
from tests.tuning.samples import inference
from tests.tuning.test_finetune import recipe

import tsumugu as tg
from tsumugu.core.errors import ConfigError
from tsumugu.engines.torch import load_model


def test_the_head_reads_the_mean_and_the_reference_library_loads_the_result(tmp_path, tiny):
    changes = {"model": {"pooling": "mean"}, "train": {"epochs": 2}}
    values = recipe(tmp_path, tiny(), "natural-language-inference", inference(), **changes)
    found = tg.finetune(values, tmp_path / "run", quiet=True)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(found.model).eval()
    ours = tg.load_model(tmp_path / "run", engine="torch")
    assert ours.config.num_layers == load_model(tiny()).config.num_layers + 1
    given = tg.load_tokenizer(found.model)("a dog runs", "an animal runs in the rain", return_tensors="pt")
    states, read = [], []
    theirs.bert.encoder.layer[-2].register_forward_hook(lambda _, inputs, output: states.append(output))
    theirs.classifier.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        assert torch.allclose(ours(**given).logits, theirs(**given).logits, atol=1e-5)
    # What the head is given is the mean of what the layer below has of each token, brought to unit variance.
    hidden = states[0] if torch.is_tensor(states[0]) else states[0][0]

    def pooled(vector):
        return torch.tanh(theirs.bert.pooler.dense(torch.nn.functional.layer_norm(vector, vector.shape[-1:])))

    with torch.no_grad():
        mean, first = ((pooled(each) - read[0]).abs().max() for each in (hidden.mean(1), hidden[:, 0]))
    assert mean < 5 / 1024
    assert first > 0.1
    # Tuning has changed the other layers, and left that one as it was set.
    last, below = theirs.bert.encoder.layer[-1].attention.self, theirs.bert.encoder.layer[-2].attention.self
    assert not last.query.weight.any()
    assert torch.equal(last.value.weight, 1024 * torch.eye(hidden.shape[-1]))
    assert not torch.equal(below.query.weight, load_model(tiny()).encoder.layers[-1].attention.query.weight)


@pytest.mark.parametrize(
    ("family", "task", "model", "said"),
    [
        ("bert", "text-classification", {"method": "lora"}, "keeps the network's layers"),
        ("bert", "token-classification", {}, "reads every token"),
        ("electra", "text-classification", {}, "bert or roberta"),
    ],
)
def test_where_there_is_no_mean_to_read(family, task, model, said, tmp_path, tiny):
    values = recipe(tmp_path, tiny(family), task, model={"pooling": "mean", **model})
    with pytest.raises(ConfigError, match=said):
        tg.finetune(values, tmp_path / "run", quiet=True)
