"""Each task's loss is the reference library's, on the same weights; targets are where the answers are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tests.tuning.samples import DATA, write

import tsumugu as tg
from tsumugu.core.errors import ConfigError
from tsumugu.data.labelled.examples import Answer, QuestionExample, Span, SpanExample
from tsumugu.engines.torch import load_model
from tsumugu.tasks.alignment import span_of, tags_of
from tsumugu.training.step import tensors_of
from tsumugu.tuning.base import Row, in_pieces, places_of, rounded
from tsumugu.tuning.classification import label_weights
from tsumugu.tuning.objectives import find_objective
from tsumugu.tuning.recipe import DataSection, LossSection
from tsumugu.tuning.splits import drawn

THEIRS = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "natural-language-inference": transformers.AutoModelForSequenceClassification,
    "text-similarity": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "question-answering": transformers.AutoModelForQuestionAnswering,
    "text2text-generation": transformers.AutoModelForSeq2SeqLM,
}


def made(task, folder, source, count=7, **loss):
    """The objective of a task, its model with a head of random weights, and the examples."""
    kind = find_objective(task)
    examples = tg.load_examples(write(folder / "rows.jsonl", DATA[task]()), kind.kind)
    torch.manual_seed(5)
    model = load_model(source, task=kind.head, labels=kind.outputs(examples), strict=False)
    model.usage = kind.usage()
    tokenizer = tg.load_tokenizer(source)
    objective = kind(model, tokenizer, DataSection(source="x"), LossSection(**loss))
    objective.begin(model, examples)
    return objective, model, tokenizer, examples[::3][:count]


@pytest.mark.parametrize("task", THEIRS)
def test_losses_are_those_of_the_reference_library(task, tmp_path, tiny):
    source = tiny("t5" if task == "text2text-generation" else "bert")
    objective, model, tokenizer, examples = made(task, tmp_path, source)
    batch = objective.batch(objective.rows(examples))
    inputs = tensors_of(batch, torch.device("cpu"))
    (ours,) = objective.losses(model, inputs).values()
    (count,) = batch.counts.values()
    tg.save_model(model, tmp_path / "model", tokenizer=tokenizer)
    theirs = THEIRS[task].from_pretrained(tmp_path / "model").eval()
    names = ("input_ids", "attention_mask", "token_type_ids")
    asked = {key: inputs[key] for key in names if key in inputs}
    answers = {
        "text-classification": lambda: {"labels": inputs["labels"]},
        "natural-language-inference": lambda: {"labels": inputs["labels"]},
        "text-similarity": lambda: {"labels": inputs["scores"]},
        "token-classification": lambda: {"labels": inputs["tags"]},
        "question-answering": lambda: {"start_positions": inputs["span"][:, 0], "end_positions": inputs["span"][:, 1]},
        "text2text-generation": lambda: {"labels": inputs["targets"]},
    }[task]()
    with torch.no_grad():
        wanted = float(theirs(**asked, **answers).loss)
    assert float(ours) / count == pytest.approx(wanted, rel=1e-5)


def test_padding_counts_for_nothing(tmp_path, tiny):
    for task in DATA:
        source = tiny("t5" if task == "text2text-generation" else "bert")
        objective, model, _, examples = made(task, tmp_path, source)
        rows = objective.rows(examples)
        alone = [objective.losses(model, tensors_of(objective.batch([row]), torch.device("cpu"))) for row in rows]
        for objective.rounds in (False, True):
            together = objective.losses(model, tensors_of(objective.batch(rows), torch.device("cpu")))
            for name, loss in together.items():
                assert float(loss) == pytest.approx(sum(float(each[name]) for each in alone), rel=1e-5), task


def test_sizes_are_rounded_to_few(tmp_path, tiny):
    sizes = [rounded(size) for size in range(1, 513)]
    assert sizes[:15] == list(range(1, 16))
    assert all(size <= up <= 1.125 * size for size, up in enumerate(sizes, 1))
    assert len(set(sizes)) == 56
    objective, _, _, _ = made("text-classification", tmp_path, tiny("bert"))
    objective.rounds, objective.max_length = True, 50
    widths = {objective.batch([Row([7] * length, (0, None))]).inputs["input_ids"].shape[1] for length in range(33, 51)}
    assert widths == {36, 40, 44, 48, 50}
    asked = {
        "input_ids": torch.arange(40).expand(37, 40),
        "attention_mask": torch.ones(37, 40, dtype=torch.long).tril(2),
    }
    seen = []

    def encode(mine):
        seen.append(tuple(mine["input_ids"].shape))
        return (mine["input_ids"] * mine["attention_mask"]).sum(1)

    for rounds in (False, True):
        assert torch.equal(in_pieces(encode, asked, rounds=rounds), encode(asked))
    lengths = asked["attention_mask"].sum(1).tolist()
    pieces = seen[len(seen) // 2 : -1]
    assert sum(texts * width for texts, width in pieces) == places_of(lengths, rounds=True)
    assert all(size == rounded(size) for shape in pieces for size in shape)


def test_choices_are_one_distribution(tmp_path, tiny):
    objective, model, tokenizer, examples = made("multiple-choice", tmp_path, tiny())
    batch = objective.batch(objective.rows(examples))
    (ours,) = objective.losses(model, tensors_of(batch, torch.device("cpu"))).values()
    tg.save_model(model, tmp_path / "model", tokenizer=tokenizer)
    rank = tg.pipeline("text-ranking", tmp_path / "model")
    wanted = 0.0
    for row in examples:
        scores = torch.tensor(rank.scores([(row.question, each) for each in row.choices], "none"))
        wanted -= float(scores.log_softmax(0)[row.label])
    assert float(ours) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("task", "family"), [("text2text-generation", "t5"), ("instruction-tuning", "llama")])
def test_smoothing_of_words_is_torchs(task, family, tmp_path, tiny):
    rows = [{"prompt": row["source"], "completion": row["target"]} for row in DATA["text2text-generation"]()]
    kind, source = find_objective(task), tiny(family)
    rows = rows if kind.kind == "conversation" else DATA["text2text-generation"]()
    examples = tg.load_examples(write(tmp_path / "rows.jsonl", rows), kind.kind)[:6]
    model, tokenizer = load_model(source, task=kind.head), tg.load_tokenizer(source)
    losses = {}
    for smoothing in (0.0, 1e-9, 0.3):
        loss = LossSection(label_smoothing=smoothing)
        objective = kind(model, tokenizer, DataSection(source="x"), loss)
        inputs = tensors_of(objective.batch(objective.rows(examples)), torch.device("cpu"))
        losses[smoothing] = float(objective.losses(model, inputs)["token"])
    assert losses[1e-9] == pytest.approx(losses[0.0], rel=1e-5)
    written = {"labels": inputs["targets"]} if family == "t5" else {}
    asked = {key: inputs[key] for key in ("input_ids", "attention_mask") if key in inputs}
    spread = model(**asked, **written).logits.log_softmax(-1).mean(-1)[inputs["targets"] != -100]
    assert losses[0.3] == pytest.approx(0.7 * losses[0.0] - 0.3 * float(spread.sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("task", "loss"),
    [
        ("token-classification", {"teacher": "minilm"}),
        ("question-answering", {"label_smoothing": 0.1}),
        ("multiple-choice", {"class_weights": "balanced"}),
        ("text-similarity", {"class_weights": "balanced"}),
        ("text-classification", {"similarity": "cosine"}),
        ("natural-language-inference", {"consistency": 1.0}),
    ],
)
def test_what_a_task_has_no_use_for_is_refused(task, loss, tmp_path, tiny):
    with pytest.raises(ConfigError, match=f"{task} has no use for this"):
        made(task, tmp_path, tiny(), **loss)


def test_what_chooses_is_drawn(tmp_path):
    rows = sorted(DATA["text-classification"](), key=lambda row: row["label"])
    examples = tg.load_examples(write(tmp_path / "rows.jsonl", rows))
    some = drawn(examples, 20, 0)
    assert len(some) == 20
    assert 4 <= some.answers.count("good") <= 16
    assert [row.id for row in some] == [row.id for row in drawn(examples, 20, 0)]
    assert drawn(examples, None, 0) is drawn(examples, 80, 0) is examples


def test_smoothing_and_weights_are_torchs(tmp_path, tiny):
    objective, model, _, examples = made(
        "text-classification", tmp_path, tiny(), label_smoothing=0.2, class_weights={"good": 3.0}
    )
    batch = objective.batch(objective.rows(examples))
    inputs = tensors_of(batch, torch.device("cpu"))
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs.get("attention_mask")).logits
    each = torch.nn.functional.cross_entropy(logits, inputs["labels"], reduction="none", label_smoothing=0.2)
    wanted = sum(float(loss) * (0.5, 1.5)[label] for loss, label in zip(each, inputs["labels"], strict=True))
    assert float(objective.losses(model, inputs)["label"]) == pytest.approx(wanted, rel=1e-6)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60))
def test_balanced_weights(answers):
    weights = label_weights("balanced", "abc", answers)
    given = np.array([answers.count(each) for each in "abc"])
    assert (weights * given).sum() / len(answers) == pytest.approx(1, rel=1e-5)
    shares = (weights * given)[given > 0]
    assert np.allclose(shares, shares[0], rtol=1e-5)


def test_a_teacher_s_probabilities_are_learnt(tmp_path, tiny):
    from tests.tuning.test_finetune import recipe

    teacher = tg.finetune(recipe(tmp_path, tiny()), tmp_path / "teacher", quiet=True)
    objective, model, _, examples = made(
        "text-classification", tmp_path, tiny(), teacher=str(teacher.model), teacher_share=1.0, temperature=3.0
    )
    inputs = tensors_of(objective.batch(objective.rows(examples)), torch.device("cpu"))
    taught = load_model(teacher.model)
    asked = {key: inputs[key] for key in ("input_ids", "attention_mask") if key in inputs}
    with torch.no_grad():
        assert torch.allclose(inputs["taught"], taught(**asked).logits, atol=1e-5)
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        found = float(objective.losses(model, inputs)["label"])
        wanted = torch.nn.functional.kl_div(
            (model(**asked).logits / 3).log_softmax(-1), (inputs["taught"] / 3).softmax(-1), reduction="sum"
        )
    assert found == pytest.approx(9 * float(wanted), rel=1e-4)


@given(st.data())
def test_tags_stand_where_the_spans_are(data):
    lengths = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=12))
    ends = np.cumsum(lengths).tolist()
    offsets = list(zip([0, *ends[:-1]], ends, strict=True))
    marks = data.draw(st.lists(st.sampled_from("OOAB"), min_size=len(offsets), max_size=len(offsets)))
    spans, wanted = [], []
    for (start, end), mark in zip(offsets, marks, strict=True):
        joins = bool(
            mark != "O"
            and bool(spans)
            and spans[-1].end == start
            and spans[-1].label == mark
            and data.draw(st.booleans())
        )
        if joins:
            spans[-1] = Span(spans[-1].start, end, mark)
        elif mark != "O":
            spans.append(Span(start, end, mark))
        wanted.append("O" if mark == "O" else f"{'I' if joins else 'B'}-{mark}")
    index = {tag: at for at, tag in enumerate(("O", "B-A", "I-A", "B-B", "I-B"))}
    example = SpanExample(text="x" * ends[-1], spans=tuple(spans))
    tags = tags_of(example, [(0, 0), *offsets, (0, 0)], [None, *[0] * len(offsets), None], index)
    assert tags == [-100, *(index[each] for each in wanted), -100]


@given(st.integers(0, 20), st.integers(1, 8), st.integers(0, 20), st.integers(1, 20))
def test_an_answer_is_right_only_where_it_is_whole(start, length, first, count):
    context = "abcdefghijklmnopqrstuvwxyz0123456789"
    example = QuestionExample(question="q", context=context, answers=(Answer(context[start : start + length], start),))
    offsets = [(0, 0), (0, 1), (0, 0), *((at, at + 1) for at in range(first, first + count)), (0, 0)]
    sides = [None, 0, None, *[1] * count, None]
    begin, end = span_of(example, offsets, sides)
    if first <= start and start + length <= first + count:
        assert context[offsets[begin][0] : offsets[end][1]] == context[start : start + length]
    else:
        assert (begin, end) == (0, 0)


def test_a_question_without_an_answer_points_to_the_first_token():
    example = QuestionExample(question="q", context="abc", answers=())
    assert span_of(example, [(0, 0), (0, 3)], [None, 1]) == (0, 0)
