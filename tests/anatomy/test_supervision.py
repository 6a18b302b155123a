"""Examples that pull tags, answers and vectors: against single gradients and vectors by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.references import spread
from torch.nn.functional import cross_entropy, normalize

import tsumugu as tg
from tsumugu.anatomy.influence import Neighbours, neighbours
from tsumugu.anatomy.targets import ask
from tsumugu.core.errors import InputError
from tsumugu.core.registry import FAMILIES
from tsumugu.data.labelled.examples import Answer, Examples, QuestionExample, SimilarityExample, Span, SpanExample
from tsumugu.models.base import Model

TEXT = "the value of an expression is an object"
TAGS = ("O", "B-THING", "I-THING")


def scores(found: Neighbours) -> dict[str, float]:
    return {each.id: each.score for each in found.pulling}


def other(head: str, tokenizer: Any, labels: tuple[str, ...] = TAGS) -> Model:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64, "max_positions": 64}
    kind = FAMILIES["bert"]
    model: Model = kind.build(kind.config_class(vocab_size=len(tokenizer), labels=labels, **sizes), head).eval()
    spread(model, 5)
    return model


def by_hand(model: Model, loss: Callable[[Any], torch.Tensor], ids: list[int], kinds: list[int]) -> torch.Tensor:
    """The gradient of a loss of one text by the last matrix."""
    chosen = [each for name, each in model.named_parameters() if name.startswith("head.")]
    given = {"token_type_ids": torch.tensor([kinds])}
    found = torch.autograd.grad(loss(model(torch.tensor([ids]), **given)), chosen)
    return torch.cat([each.flatten() for each in found]).double()


def test_influences_on_tags(encoder_folder: Path) -> None:
    """An example's loss is the sum over its tokens; the answer's that of one token."""
    tokenizer = tg.load_tokenizer(encoder_folder)
    model = other("token-classification", tokenizer)
    rows = [SpanExample(id="a", text="value of a class", spans=(Span(0, 5, "THING"),))]
    rows.append(SpanExample(id="b", text="the name is an object in a module", spans=(Span(4, 8, "THING"),)))
    rows.append(SpanExample(id="c", text="a line", spans=()))
    found = neighbours(model, tokenizer, [TEXT], Examples("token-classification", tuple(rows)), target="B-THING@value")

    def gradient(text: str, begin: int, end: int, elsewhere: int) -> torch.Tensor:
        """The characters of a span begin a thing, then are inside it."""
        ids, aims = tokenizer.encode(text), [-100]
        for a, b in tokenizer([text], return_offsets_mapping=True).encodings[0].offsets[1:-1]:
            aims.append((1 if a == begin else 2) if begin <= a and b <= end else elsewhere)
        targets = torch.tensor([*aims, -100])
        return by_hand(
            model, lambda output: cross_entropy(output.logits[0], targets, reduction="sum"), ids, [0] * len(ids)
        )

    here = gradient(TEXT, 4, 5 + 4, -100)
    assert len(tokenizer.encode("value", add_special_tokens=False)) == 1
    spans = {each.id: each.spans[0][:2] if each.spans else (0, 0) for each in rows}
    wanted = {each.id: float(gradient(each.text, *spans[each.id], 0) @ here) for each in rows}
    assert scores(found) == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert found.label == "B-THING"
    assert {each.id: each.agrees for each in found.pulling} == {"a": True, "b": True, "c": False}
    near = neighbours(model, tokenizer, ["a line"], Examples("token-classification", tuple(rows)), by="embedding")
    assert (near.pulling[0].id, near.pulling[0].score) == ("c", pytest.approx(1.0))
    strange = SpanExample(id="d", text="a line", spans=(Span(0, 1, "PLACE"),))
    with pytest.raises(InputError, match="B-PLACE"):
        neighbours(model, tokenizer, [TEXT], Examples("token-classification", (strange,)))


def test_influences_on_answers(encoder_folder: Path) -> None:
    tokenizer = tg.load_tokenizer(encoder_folder)
    model = other("question-answering", tokenizer)
    rows = [QuestionExample(id="a", question="which class", context="a list is a class", answers=(Answer("list", 2),))]
    rows.append(QuestionExample(id="b", question="which name", context="the value", answers=()))
    far = QuestionExample(id="c", question="which", context="a " * 80 + "list", answers=(Answer("list", 160),))
    examples = Examples("question-answering", (*rows, far))
    found = neighbours(model, tokenizer, ["which module", TEXT], examples)

    def gradient(question: str, context: str, ends: tuple[int, int]) -> torch.Tensor:
        code = tokenizer([(question, context)]).encodings[0]

        def loss(output: Any) -> torch.Tensor:
            start = cross_entropy(output.start_logits, torch.tensor(ends[:1]))
            return (start + cross_entropy(output.end_logits, torch.tensor(ends[1:]))) / 2

        return by_hand(model, loss, code.ids, code.type_ids)

    question = ask("question-answering", model, tokenizer, "which module", TEXT)
    here = gradient("which module", TEXT, (question.places[0], question.places[1]))
    at = 2 + len(tokenizer.encode("which class", add_special_tokens=False)) + 1
    ends = {"a": (at, at), "b": (0, 0)}
    wanted = {each.id: float(gradient(*each.texts, ends[each.id]) @ here) for each in rows}
    assert scores(found) == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert (found.examples, found.left_out, found.agreeing) == (2, 1, None)
    assert neighbours(model, tokenizer, ["which module", TEXT], examples, by="embedding").pulling[0].score <= 1.0


def test_pairs_that_are_near(encoder_folder: Path) -> None:
    tokenizer = tg.load_tokenizer(encoder_folder)
    model = other("base", tokenizer)
    texts = [("a class", TEXT), ("the value of a list", "a module"), (TEXT, "a class of lists")]
    rows = tuple(SimilarityExample(id=str(at), text1=a, text2=b, score=0.5) for at, (a, b) in enumerate(texts))
    found = neighbours(model, tokenizer, [TEXT, "a class"], Examples("similarity", rows), by="embedding")

    def vector(text: str) -> torch.Tensor:
        with torch.no_grad():
            states = model(torch.tensor([tokenizer.encode(text)])).last_hidden_state
        return normalize(states.mean(1), dim=-1)[0]

    wanted = {
        str(at): float(vector(a) @ vector(TEXT) + vector(b) @ vector("a class")) / 2 for at, (a, b) in enumerate(texts)
    }
    assert scores(found) == pytest.approx(wanted, abs=1e-5)
    assert found.pulling[0].id == max(wanted, key=lambda each: wanted[each])
    with pytest.raises(InputError, match="by embedding"):
        neighbours(model, tokenizer, [TEXT, "a class"], Examples("similarity", rows))
