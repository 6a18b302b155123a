"""From a few examples: the head reads the mean of all tokens, a regression is the head, others load it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from tests.tuning.samples import inference, sentiment
from tests.tuning.test_finetune import recipe

import tsumugu as tg
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.engines.torch import load_model
from tsumugu.tuning.mean_pooling import one_layer_more, read_the_mean
from tsumugu.tuning.recipe import ModelSection, Tuning
from tsumugu.tuning.setfit import apart, classified
from tsumugu.tuning.splits import read_splits

TEXTS = ["the film was dull", "the song was lovely indeed indeed", "it was awful", "the town was bright"]


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_head_reads_the_mean_of_all_tokens(family, tiny):
    changes, layer = one_layer_more(ModelSection(source=str(tiny(family))))
    model = load_model(tiny(family), task="sequence-classification", labels=("a", "b"), config=changes, strict=False)
    assert any(name.startswith(layer) for name in model.load_report.missing)
    read_the_mean(model, model.config.hidden_size**-0.5)
    tokenizer = tg.load_tokenizer(tiny(family))
    with torch.no_grad(), classified(model) as seen:
        model(**tokenizer(TEXTS, padding=True, return_tensors="pt"))
    means = tg.pipeline("sentence-embedding", tiny(family), engine="torch").encode(TEXTS)
    means -= means.mean(-1, keepdims=True)
    wanted = means / np.linalg.norm(means, axis=-1, keepdims=True)
    width = wanted.shape[-1]
    assert np.abs(np.arctanh(seen[0].numpy()) - wanted).max() < 5 / 1024
    assert np.abs(seen[0].numpy() - wanted).max() < 5 / 1024 + 1 / 3 * float(np.abs(wanted).max()) ** 3
    assert width == 32


def test_few_examples_are_learnt_and_the_reference_library_loads_the_result(tmp_path, tiny):
    values = recipe(tmp_path, tiny(), model={"method": "setfit"}, train={"epochs": 25, "lr": 2e-3, "batch": 16})
    values["data"] |= {"validation": None, "validation_share": 0.0, "per_label": 24}
    found = tg.finetune(values, tmp_path / "run", quiet=True)
    assert found.test.scores["accuracy"] > 0.9
    assert found.result.best_step == found.result.steps
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(found.model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(found.model)
    ours = tg.pipeline("text-classification", tmp_path / "run", engine="torch")
    seen = []
    theirs.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for text in TEXTS:
        with torch.no_grad():
            scores = theirs(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist()
        table = {each["label"]: each["score"] for each in ours(text, top_k=None)}
        assert table == pytest.approx(dict(zip(("bad", "good"), scores, strict=True)), abs=1e-5)
    # The head is the regression on what it reads.
    train = read_splits(Tuning.from_values(values), "text-classification").train
    assert len(train) == 48
    seen.clear()
    with torch.no_grad():
        for row in train:
            theirs(**tokenizer(row.text, return_tensors="pt"))
    vectors = torch.cat(seen).numpy()
    fit = LogisticRegression(C=10.0, max_iter=1000).fit(vectors, train.answers)
    with torch.no_grad():
        shares = theirs.classifier(torch.from_numpy(vectors)).softmax(-1).numpy()
    assert np.abs(fit.predict_proba(vectors) - shares).max() < 1e-3


def test_pairs_within_a_label_and_between_labels_count_alike():
    cosines = torch.tensor([[1.0, 0.5, 0.2], [0.5, 1.0, -0.4], [0.2, -0.4, 1.0]])
    labels = torch.tensor([0, 0, 1])
    assert float(apart(cosines, labels)) == pytest.approx((0.5**2 + (0.2**2 + 0.4**2) / 2) / 2)
    assert float(apart(cosines, torch.tensor([0, 1, 2]))) == pytest.approx((0.5**2 + 0.2**2 + 0.4**2) / 3 / 2)


@pytest.mark.parametrize(
    ("changes", "task", "error", "said"),
    [
        ({}, "natural-language-inference", ConfigError, "setfit does not learn"),
        ({"loss": {"label_smoothing": 0.1}}, "text-classification", ConfigError, "label_smoothing"),
        (
            {"data": {"per_label": 2, "validation": None}, "task": "ner"},
            "token-classification",
            InputError,
            "no labels of",
        ),
    ],
)
def test_what_does_not_fit(changes, task, error, said, tmp_path, tiny):
    rows = {"natural-language-inference": inference(), "text-classification": sentiment()}.get(task)
    values = recipe(tmp_path, tiny(), task, rows, model={"method": "full" if "task" in changes else "setfit"})
    for key, each in changes.items():
        values[key] = {**values.get(key, {}), **each} if isinstance(each, dict) else each
    with pytest.raises(error, match=said):
        tg.finetune(values, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_other_families_say_what_to_use(tmp_path, tiny):
    with pytest.raises(ConfigError, match="bert or roberta"):
        tg.finetune(recipe(tmp_path, tiny("electra"), model={"method": "setfit"}), tmp_path / "run", quiet=True)
