"""Replaced-token detection: the batch, the tokens that the generator puts in, both losses, and what is saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.rows import LENGTH, epoch, random_texts
from torch.nn import functional

import tsumugu as tg
from tsumugu.core.errors import ConfigError
from tsumugu.core.registry import FAMILIES, OBJECTIVES
from tsumugu.models import electra
from tsumugu.objectives.base import IGNORE
from tsumugu.objectives.masked import MaskedConfig
from tsumugu.objectives.replaced_token import ReplacedTokenConfig
from tsumugu.training.initialization import initialize

MASK = 3
corpora = st.builds(random_texts, st.integers(0, 10**6), count=st.integers(1, 14), longest=st.integers(1, 60))


def pair(*, seed=0, **options):
    """A tiny discriminator with its generator, weights far from their first values, without dropout."""
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24}
    config = electra.ElectraConfig(
        **sizes | {"embedding_size": 12, "max_positions": LENGTH, "generator_size": 0.5} | options,
        dropout=0.0,
        attention_dropout=0.0,
    )
    model = electra.build(config, "replaced-token-pair")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in model.parameters():
            each.copy_(torch.randn(each.shape, generator=generator) * 0.3)
    return model


def batch_of(vocabulary, *, seed=0, kind="stream", **options):
    objective = ReplacedTokenConfig(**options).build(vocabulary, LENGTH)
    batch = objective.batch(*epoch(objective, random_texts(seed), kind))
    return objective, batch, {key: torch.from_numpy(each) for key, each in batch.inputs.items()}


@settings(deadline=None, max_examples=40)
@given(corpus=corpora, kind=st.sampled_from(["stream", "best-fit", "single"]), masked=st.booleans())
def test_a_batch_is_that_of_hidden_tokens_and_noise(vocabulary, corpus, kind, masked):
    objective = ReplacedTokenConfig(document_mask=masked).build(vocabulary, LENGTH)
    plain = MaskedConfig(mask_share=0.85, random_share=0.0, document_mask=masked).build(vocabulary, LENGTH)
    batch, other = (each.batch(*epoch(each, corpus, kind)) for each in (objective, plain))
    noise = batch.inputs.pop("noise")
    assert batch.inputs.keys() == other.inputs.keys()
    assert all(np.array_equal(batch.inputs[key], other.inputs[key]) for key in batch.inputs)
    assert (noise.shape, noise.dtype) == (batch.inputs["input_ids"].shape, np.float32)
    assert 0 <= noise.min() <= noise.max() < 1
    assert batch.counts == {**other.counts, "replaced": batch.tokens}
    assert (batch.tokens, batch.padding, batch.bytes) == (other.tokens, other.padding, other.bytes)
    rows, chance = epoch(objective, corpus, kind)
    alone = objective.batch(rows[-1:], chance[-1:])
    assert np.array_equal(alone.inputs["noise"][0], noise[-1])


def judged(model, inputs):
    """Both losses and the text that the discriminator reads, by plain loops over NumPy arrays."""
    given = {key: inputs[key] for key in ("attention_mask", "document_ids") if key in inputs}
    with torch.no_grad():
        logits = model.generator(inputs["input_ids"], **given).logits.double()
    shares = logits.softmax(-1).numpy()
    text, labels = inputs["input_ids"].clone(), torch.zeros(logits.shape[:2])
    token = 0.0
    for row, at in zip(*np.nonzero(inputs["targets"].numpy() != IGNORE), strict=True):
        wanted = int(inputs["targets"][row, at])
        token -= float(np.log(shares[row, at, wanted]))
        left, put = float(inputs["noise"][row, at]), -1
        while left >= 0:
            put += 1
            left -= float(shares[row, at, put])
        text[row, at], labels[row, at] = put, float(put != wanted)
    with torch.no_grad():
        scores = model(text, **given).logits
    real = given["attention_mask"] > 0 if "attention_mask" in given else given["document_ids"] >= 0
    replaced = functional.binary_cross_entropy_with_logits(scores[real], labels[real], reduction="sum")
    return text, token, float(replaced)


@pytest.mark.parametrize(("kind", "masked"), [("stream", False), ("single", False), ("best-fit", True)])
@pytest.mark.parametrize("drawn", [1 << 22, 100])
def test_both_losses_are_what_plain_loops_give(vocabulary, kind, masked, drawn, monkeypatch):
    """Also where the generator's tokens are drawn one by one, because few logits may be held."""
    monkeypatch.setattr(electra, "DRAWN", drawn)
    model = pair()
    objective, batch, inputs = batch_of(vocabulary, kind=kind, document_mask=masked)
    losses = objective.losses(model, inputs)
    text, token, replaced = judged(model, inputs)
    assert losses.keys() == batch.counts.keys() == objective.weights.keys()
    assert float(losses["token"]) == pytest.approx(token, rel=1e-5)
    assert float(losses["replaced"]) == pytest.approx(replaced, rel=1e-5)
    asked = inputs["targets"] != IGNORE
    assert MASK in inputs["input_ids"][asked]
    assert len(set(text[asked].tolist())) > 3
    assert torch.equal(text[~asked], inputs["input_ids"][~asked])


def test_noise_chooses_by_the_shares_of_the_generator():
    model = pair()
    states = torch.randn(1, model.config.generator.hidden_size, generator=torch.Generator().manual_seed(1))
    shares = model.generator.head(states).softmax(-1)[0].double()
    count = 20_000
    noise = (torch.arange(count) + 0.5) / count
    drawn = model._draw(states.expand(count, -1), noise)
    found = torch.bincount(drawn, minlength=64) / count
    assert (found - shares).abs().max() <= 1.5 / count
    edges = model._draw(states.expand(2, -1), torch.tensor([0.0, 1.0 - 2**-24]))
    assert edges.tolist() == [0, 63]


def test_the_discriminator_teaches_the_generator_nothing_but_its_embeddings(vocabulary):
    model = pair()
    objective, _, inputs = batch_of(vocabulary)

    def reached(loss):
        model.zero_grad()
        objective.losses(model, inputs)[loss].backward()
        return {name for name, each in model.named_parameters() if each.grad is not None and each.grad.any()}

    names = {name for name, _ in model.named_parameters()}
    shared = {name for name in names if name.startswith("embeddings.") and "projection" not in name}
    shared.remove("embeddings.segment.weight")
    unused = {name for name in names if name.endswith("attention.key.bias")}  # it moves all scores alike
    reached_by = {loss: reached(loss) - unused for loss in ("token", "replaced")}
    generator = {name for name in names if name.startswith("generator.")} - unused
    shared.add("embeddings.segment.weight")
    assert reached_by["token"] == generator | shared
    assert reached_by["replaced"] == names - generator - unused


def test_embeddings_are_one(vocabulary):
    model = pair()
    ours = dict(model.named_parameters())
    assert [name for name in ours if name.startswith("generator.embeddings.")] == [
        "generator.embeddings.projection.weight",
        "generator.embeddings.projection.bias",
    ]
    assert model.generator.head.decoder.weight is ours["embeddings.token.weight"]
    assert "generator.head.decoder.weight" not in ours
    narrow = pair(embedding_size=16, generator_size=1.0)
    assert not [name for name, _ in narrow.named_parameters() if "embeddings.projection" in name]


def test_what_is_saved_is_the_discriminator_and_the_pair_comes_back(vocabulary, tmp_path: Path):
    model = pair().eval()
    tg.save_model(model, tmp_path)
    _, _, inputs = batch_of(vocabulary)
    ids, real = inputs["input_ids"], inputs["attention_mask"]
    wanted = model(ids, attention_mask=real).logits
    alone = tg.load_model(tmp_path)
    assert (alone.head_name, type(alone)) == ("replaced-token", electra.Electra)
    assert torch.equal(alone(ids, attention_mask=real).logits, wanted)
    assert {each.split(".")[0] for each in alone.load_report.other_heads} == {"generator"}
    again = tg.load_model(tmp_path, task="replaced-token-pair")
    assert again.config == model.config
    assert not again.load_report.other_heads
    found = dict(again.named_parameters())
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(each, found[name]) for name, each in model.named_parameters())
    assert again.generator.head.decoder.weight is found["embeddings.token.weight"]
    made = OBJECTIVES["replaced-token"]().build(vocabulary, LENGTH).losses
    ours, theirs = made(model, inputs), made(again, inputs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    tagger = tg.load_model(tmp_path, task="token-classification", strict=False)
    assert set(tagger.load_report.missing) == {"head.classifier.weight", "head.classifier.bias"}


def test_the_reference_library_reads_the_discriminator(vocabulary, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    model = pair().eval()
    tg.save_model(model, tmp_path)
    theirs, report = transformers.ElectraForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert all(each.startswith("generator.") for each in report["unexpected_keys"])
    _, _, inputs = batch_of(vocabulary)
    given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    real = given["attention_mask"] > 0
    with torch.no_grad():
        difference = (model(**given).logits - theirs.eval()(**given).logits)[real].abs().max()
    assert difference <= 1e-5


def test_both_learn(vocabulary):
    """On one batch: the generator to guess what was hidden, the discriminator to do better than by their numbers."""
    model = pair()
    initialize(model, seed=0)
    objective, batch, inputs = batch_of(vocabulary, probability=0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for step in range(60):
        optimizer.zero_grad()
        inputs["noise"] = torch.rand(inputs["noise"].shape, generator=torch.Generator().manual_seed(step))
        means = {key: loss / batch.counts[key] for key, loss in objective.losses(model, inputs).items()}
        sum(objective.weights[key] * mean for key, mean in means.items()).backward()
        optimizer.step()
        history.append({key: float(mean) for key, mean in means.items()})
    assert history[-1]["token"] < 0.6 * history[0]["token"]
    assert history[-1]["replaced"] < 0.6 * history[0]["replaced"]


def test_only_electra_has_a_generator():
    with pytest.raises(ConfigError, match="the bert family has no head 'replaced-token-pair'"):
        FAMILIES["bert"].head("replaced-token-pair")
