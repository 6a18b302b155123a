"""Sentence vectors: the losses are those of sentence-transformers, which loads what comes out to the same vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from tests.tuning.samples import BAD, GOOD, THINGS, inference, likeness, sentiment, titles
from tests.tuning.test_finetune import recipe
from tests.tuning.test_losses import write

import tsumugu as tg
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.data.labelled.examples import Examples, PairExample
from tsumugu.engines.torch import load_model
from tsumugu.training.step import tensors_of
from tsumugu.tuning.embedding import SentenceSimilarity, cosent, ranking
from tsumugu.tuning.objectives import find_objective
from tsumugu.tuning.recipe import DataSection, LossSection

TASK = "sentence-similarity"


@pytest.fixture
def judge(tmp_path, tiny):
    """A model of the judge, whose losses need one, and unit vectors of pairs."""
    random = torch.Generator().manual_seed(3)
    vectors = [torch.nn.functional.normalize(torch.randn(9, 8, generator=random), dim=-1) for _ in range(3)]
    return SentenceTransformer(modules=[torch.nn.Identity()]), vectors


def test_the_order_of_scores_is_learnt_as_by_the_judge(judge):
    model, (first, second, _) = judge
    scores = torch.tensor([0.0, 1.0, 1.0, 2.5, 5.0, 0.0, 3.0, 4.0, 2.5])
    wanted = losses.CoSENTLoss(model).compute_loss_from_embeddings([first, second], scores)
    assert float(cosent((first * second).sum(-1), scores)) == pytest.approx(float(wanted), rel=1e-5)


def test_pairs_are_ranked_as_by_the_judge(judge):
    model, (first, second, third) = judge
    numbers = torch.arange(27)
    ours = ranking(first, torch.cat([second, third]), numbers[:9], numbers[9:])
    wanted = losses.MultipleNegativesRankingLoss(model).compute_loss_from_embeddings([first, second, third], None)
    assert float(ours) / 9 == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize(
    ("task", "rows", "method"),
    [(TASK, likeness, "full"), (TASK, inference, "full"), ("text-classification", sentiment, "setfit")],
)
def test_how_a_step_is_cut_changes_nothing(task, rows, method, tmp_path, tiny):
    still = {"config": {"dropout": 0.0, "attention_dropout": 0.0}, "method": method}
    found = []
    for at_once in (None, 3):
        sections = {"model": still, "train": {"micro_batch": at_once, "epochs": 1}}
        values = recipe(tmp_path, tiny(), task, rows()[:20], **sections)
        run = tg.finetune(values, tmp_path / f"run-{at_once}", quiet=True)
        found.append((run.result.best_loss, load_model(run.model).state_dict()))
    (whole, weights), (cut, others) = found
    assert cut == pytest.approx(whole, rel=1e-5)
    for name, each in weights.items():
        assert torch.allclose(each, others[name], atol=1e-5), name


def test_equal_texts_are_no_negatives(judge):
    _, (first, second, _) = judge
    first[1], second[4] = first[0], second[0]
    mine, theirs = torch.arange(9), torch.arange(9) + 9
    mine[1], theirs[4] = mine[0], theirs[0]  # rows 0 and 1 share a first text, rows 0 and 4 a second
    cosines = 20 * first @ second.T
    wanted = 0.0
    for row in range(9):
        left_out = {0: {1, 4}, 1: {0, 4}, 4: {0}}.get(row, set())
        others = [at for at in range(9) if at not in left_out]
        wanted -= float(cosines[row, others].log_softmax(0)[others.index(row)])
    assert float(ranking(first, second, mine, theirs)) == pytest.approx(wanted, rel=1e-5)


def test_cosines_are_scores(tmp_path, tiny, judge):
    examples = tg.load_examples(write(tmp_path / "rows.jsonl", likeness()), "similarity")
    model = load_model(tiny(), task="base")
    objective = SentenceSimilarity(
        model, tg.load_tokenizer(tiny()), DataSection(source="x"), LossSection(similarity="cosine")
    )
    objective.begin(model, examples)
    batch = objective.batch(objective.rows(examples[:8]))
    ours = objective.losses(model, tensors_of(batch, torch.device("cpu")))["pair"]
    encode = tg.pipeline("sentence-embedding", tiny()).encode
    vectors = [torch.from_numpy(encode([getattr(row, side) for row in examples[:8]])) for side in ("text1", "text2")]
    scores = torch.tensor([row.score / 5 for row in examples[:8]])
    wanted = losses.CosineSimilarityLoss(judge[0]).compute_loss_from_embeddings(vectors, scores)
    assert float(ours.detach()) / 8 == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("similarity", ["cosent", "cosine"])
def test_scores_are_learnt_and_the_judge_loads_the_vectors(similarity, tmp_path, tiny):
    values = recipe(tmp_path, tiny(), TASK, likeness(), loss={"similarity": similarity}, data={"max_length": 20})
    found = tg.finetune(values, tmp_path / "run", quiet=True)
    assert found.test.scores["spearman"] > 0.9
    texts = [f"the {thing} was {word}" for thing in THINGS for word in GOOD + BAD] + ["the town was " + "dull " * 30]
    theirs = SentenceTransformer(str(found.model), device="cpu")
    ours = tg.pipeline("sentence-embedding", tmp_path / "run").encode(texts)
    assert np.abs(ours - theirs.encode(texts)).max() < 1e-5
    assert theirs.max_seq_length == 20
    rows = likeness()
    pairs = tg.pipeline(TASK, tmp_path / "run")([(row["sentence1"], row["sentence2"]) for row in rows])
    wanted = spearmanr([each["score"] for each in pairs], [row["score"] for row in rows]).statistic
    assert found.test.scores["spearman"] == pytest.approx(wanted)


def test_what_follows_is_told_from_what_does_not(tmp_path, tiny):
    values = recipe(tmp_path, tiny(), TASK, inference(), train={"epochs": 30})
    found = tg.finetune(values, tmp_path / "run", quiet=True)
    assert found.test.scores["spearman"] > 0.8
    assert found.test.results.kind == "similarity"


def test_pairs_without_scores_are_sought_among_others(tmp_path, tiny):
    values = recipe(tmp_path, tiny(), TASK, titles())
    found = tg.finetune(values, tmp_path / "run", quiet=True)
    assert found.test.results.kind == "multiple-choice"
    assert found.test.scores["accuracy"] > 0.9


def test_contradictions_are_hard_negatives():
    rows = [("a", "b", "entailment"), ("a", "c", "contradiction"), ("a", "d", "neutral"), ("e", "f", "Entailment")]
    pairs = tuple(PairExample(text1=first, text2=second, label=label) for first, second, label in rows)
    examples = Examples("pair-classification", pairs)
    assert [each.score for each in SentenceSimilarity.judged(examples)] == [1.0, 0.0, 0.5, 1.0]
    from tsumugu.tuning.embedding import _triples

    assert _triples(examples) == [("a", "b", "c"), ("e", "f")]
    with pytest.raises(InputError, match="belong together"):
        _triples(examples[1:3])


def test_what_does_not_fit(tmp_path, tiny):
    rows = [{"text": "a film", "label": "good"}] * 20
    with pytest.raises(InputError, match="nothing about pairs"):
        tg.finetune(recipe(tmp_path, tiny(), TASK, rows), tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match="no layers of its own"):
        tg.finetune(recipe(tmp_path, tiny(), TASK, likeness(), model={"method": "head"}), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    assert {find_objective(name) for name in ("sentence-embedding", "semantic-search")} == {SentenceSimilarity}


def test_texts_of_like_length_are_computed_together(tmp_path, tiny):
    model = load_model(tiny())
    objective = SentenceSimilarity(model, tg.load_tokenizer(tiny()), DataSection(source="none"), LossSection())
    texts = ["the film was fine " * (14 * (at % 2) + 1) for at in range(40)]
    pairs = [PairExample(text1=text, text2="it was fine", label="entailment") for text in texts]
    examples = Examples("pair-classification", tuple(pairs))
    objective.begin(model, examples)
    batch = objective.batch(objective.rows(examples))
    assert batch.padding / (batch.tokens + batch.padding) < 0.1
    read = []
    model.register_forward_pre_hook(lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True)
    objective.losses(model, tensors_of(batch, torch.device("cpu")))
    assert sum(read) == batch.tokens + batch.padding
    assert len(read) > 1
