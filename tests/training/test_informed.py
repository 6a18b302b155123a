"""The informed start: what the counts say, where the heads look, and that it is the same each time a run begins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests.training.recipes import recipe, steps, weights

from tsumugu.core.errors import CheckpointError, ConfigError
from tsumugu.core.registry import FAMILIES
from tsumugu.corpus.shards import Corpus, write_corpus
from tsumugu.engines.torch import load_model
from tsumugu.text.training import train_tokenizer
from tsumugu.training.checkpointing import find_checkpoint
from tsumugu.training.informed import WINDOW, start_informed, token_statistics, write_statistics
from tsumugu.training.initialization import initialize
from tsumugu.training.pretrain import train
from tsumugu.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A few documents of random tokens."""
    tokenizer = train_tokenizer(["some words to begin with"] * 3, family="gpt2", vocab_size=280, language="en")
    chance = np.random.default_rng(0)
    documents = [chance.zipf(1.4, length) % 40 + 2 for length in chance.integers(1, 60, 30)]
    return write_corpus(tmp_path_factory.mktemp("small") / "corpus", [(each, 1) for each in documents], tokenizer)


def plainly(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """The positive pointwise mutual information, and the counts of tokens, by plain loops."""
    together, counts = np.zeros((corpus.vocab_size,) * 2), np.zeros(corpus.vocab_size)
    for number in range(len(corpus)):
        document = corpus.document(number)
        for i, one in enumerate(document):
            counts[one] += 1
            for j, other in enumerate(document):
                if 0 < abs(i - j) <= WINDOW:
                    together[one, other] += 1 / abs(i - j)
    own = together.sum(1)
    context = own**0.75 / (own**0.75).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(together / (own[:, None] * context))
    return np.where(together > 0, np.maximum(information, 0), 0), counts


def test_vectors_are_those_of_plain_loops_and_a_dense_decomposition(small):
    vectors, counts = token_statistics(small, 12, seed=0)
    information, wanted = plainly(small)
    np.testing.assert_array_equal(counts, wanted)
    left, values, _ = np.linalg.svd(information)
    expected = left[:, :12] * np.sqrt(values[:12])
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    expected = np.where(lengths > 1e-3, expected / np.maximum(lengths, 1e-3), 0)
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=2e-3)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_first_heads_look_at_the_neighbours(family, tmp_path, small):
    size = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 64, "max_positions": 90}
    config = {"vocab_size": small.vocab_size, "pad_token_id": 1, **size}
    model = FAMILIES[family].build(FAMILIES[family].config_class.from_dict(config), "masked-lm")
    initialize(model, seed=0)
    write_statistics(small, 64, tmp_path / "start.safetensors", seed=0)
    start_informed(model, tmp_path / "start.safetensors", seed=0)
    attention, seen = model.encoder.layers[0].attention, {}
    attention.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    ids = torch.from_numpy(np.concatenate([small.document(number) for number in range(6)])[:80].astype(np.int64))
    model.eval()(input_ids=ids[None])
    found = attention.weights(seen["x"])[0]
    for head, offset in enumerate((-1, 1)):
        assert found[head].diagonal(offset).mean() > 0.6
    assert math.isclose(model.embeddings.token.weight.std().item(), 0.08, rel_tol=0.1)


def test_a_run_that_begins_again_has_the_same_bits(tmp_path):
    values = recipe(tmp_path, "masked", optimizer={"name": "muon", "frozen": ["embeddings.token.*"]})
    values["model"] = {**values["model"], "start": "informed"}
    train(values, tmp_path / "informed", quiet=True)
    kept = tmp_path / "again" / "start.safetensors"
    kept.parent.mkdir()
    kept.write_bytes((tmp_path / "informed" / "start.safetensors").read_bytes())
    train(values, tmp_path / "again", quiet=True)
    one, other = weights(tmp_path / "informed"), weights(tmp_path / "again")
    assert [name for name in one if (one[name] != other[name]).any()] == []
    assert steps(tmp_path / "informed")[1]["loss"] == steps(tmp_path / "again")[1]["loss"]
    told = load_model(find_checkpoint(tmp_path / "informed", "last"), task="masked-lm").state_dict()
    vectors = load_file(kept)["vectors"]
    seen = np.linalg.norm(vectors, axis=1) > 0
    scaled = vectors[seen] * 0.08 * vectors.shape[1] ** 0.5
    np.testing.assert_allclose(told["embeddings.token.weight"][seen], scaled, atol=1e-6)  # frozen


def test_what_does_not_fit_is_one_line(tmp_path, small):
    with pytest.raises(ConfigError, match="there is no informed start for gpt2; known: bert, roberta"):
        Recipe.from_values({"model": {"family": "gpt2", "start": "informed"}})
    with pytest.raises(ConfigError, match="weights that are there need no start"):
        Recipe.from_values({"model": {"init": "minilm", "start": "informed"}})
    values = recipe(tmp_path, "masked")
    values["model"] = {**values["model"], "start": "informed"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "start.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"start\.safetensors: cannot be used"):
        train(values, tmp_path / "run", quiet=True)
