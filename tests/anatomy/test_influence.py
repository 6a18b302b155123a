"""Which examples pull an answer: against single gradients, captum on the reference model, training without them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.influence import TracInCP
from tests.models.references import spread
from torch.nn.functional import cross_entropy, normalize
from transformers import BertForSequenceClassification

import tsumugu as tg
from tsumugu.anatomy.influence import neighbours
from tsumugu.cli import main
from tsumugu.core.errors import InputError
from tsumugu.core.registry import FAMILIES
from tsumugu.data.labelled.examples import Examples, PairExample, TextExample
from tsumugu.models.base import Model

LABELS = ("bad", "good", "neither")
TEXT = "the value of an expression is an object"
ROWS = (
    ("the value of an object", "good"),
    ("an expression is a list", "bad"),
    ("a class of a module with a name and a longer line", "neither"),
    ("value", "good"),
    ("the expression has no value", "bad"),
)


def classifier(family: str, tokenizer: Any, **more: Any) -> Model:
    kind = FAMILIES[family]
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64, "max_positions": 64}
    config = kind.config_class(vocab_size=len(tokenizer), labels=LABELS, **{**sizes, **more})
    model: Model = kind.build(config, "sequence-classification").eval()
    spread(model, 5)
    return model


def labelled(rows: Sequence[tuple[str, str]]) -> Examples:
    return Examples(
        "text-classification",
        tuple(TextExample(id=str(at), text=text, label=label) for at, (text, label) in enumerate(rows, 1)),
    )


def scores(found: Any) -> dict[str, float]:
    return {each.id: each.score for each in found.pulling}


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_influences_are_products_of_gradients(family: str, layers: int, encoder_folder: Path) -> None:
    tokenizer = tg.load_tokenizer(encoder_folder)
    more: dict[str, Any] = {"num_kv_heads": 2, "pad_token_id": 0} if family == "llama" else {}
    model = classifier(family, tokenizer, **more)
    examples = labelled(ROWS)
    found = neighbours(model, tokenizer, [TEXT], examples, layers=layers, target="good", top=len(ROWS))
    starts = ["head"]
    if layers:
        stack = "decoder" if family == "llama" else "encoder"
        starts += ["pooler", f"{stack}.norm", *(f"{stack}.layers.{at}." for at in range(2 - layers, 2))]
    chosen = [
        each
        for name, each in model.named_parameters()
        if name.startswith(tuple(starts)) and (layers or ".classifier." in name)
    ]
    assert found.parameters == sum(each.numel() for each in chosen)

    def gradient(text: str, label: str) -> torch.Tensor:
        logits = model(torch.tensor([tokenizer.encode(text)])).logits
        loss = cross_entropy(logits, torch.tensor([LABELS.index(label)]))
        return torch.cat([each.flatten() for each in torch.autograd.grad(loss, chosen)]).double()

    asked = gradient(TEXT, "good")
    wanted = {str(at): float(gradient(*row) @ asked) for at, row in enumerate(ROWS, 1)}
    assert scores(found) == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert [each.id for each in found.pulling] == sorted(wanted, key=lambda each: -wanted[each])
    assert all(each.score < 0 for each in found.against)


def test_equal_to_captum_on_the_reference_model(encoder_folder: Path, tmp_path: Path) -> None:
    tokenizer = tg.load_tokenizer(encoder_folder)
    model = classifier("bert", tokenizer)
    tg.save_model(model, tmp_path, tokenizer=tokenizer)
    theirs = BertForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = [torch.tensor(tokenizer.encode(text)) for text, _ in ROWS]
    data = [(each, torch.tensor(LABELS.index(label))) for each, (_, label) in zip(ids, ROWS, strict=True)]

    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theirs = theirs

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.theirs(ids).logits
            return logits

    judge = TracInCP(
        Scores(),
        data,
        ["as it is"],
        checkpoints_load_func=lambda module, checkpoint: 1.0,
        layers=["theirs.classifier"],
        loss_fn=torch.nn.CrossEntropyLoss(reduction="sum"),
        batch_size=1,
        sample_wise_grads_per_batch=True,
    )
    asked = (torch.tensor([tokenizer.encode(TEXT)]), torch.tensor([0]))
    wanted = judge.influence(asked)[0].tolist()
    found = scores(neighbours(model, tokenizer, [TEXT], labelled(ROWS), target="bad", top=len(ROWS)))
    assert [found[str(at)] for at in range(1, len(ROWS) + 1)] == pytest.approx(wanted, abs=1e-4)
    with torch.no_grad():
        vectors = normalize(torch.cat([theirs.bert(each[None]).pooler_output for each in (asked[0][0], *ids)]), dim=-1)
    near = neighbours(model, tokenizer, [TEXT], labelled(ROWS), by="embedding", top=len(ROWS))
    cosines = (vectors[1:] @ vectors[0]).tolist()
    assert [scores(near)[str(at)] for at in range(1, len(ROWS) + 1)] == pytest.approx(cosines, abs=1e-5)
    assert near.against == []
    assert near.label == LABELS[int(theirs(asked[0]).logits.argmax())]


def test_without_the_rows_that_pull_the_answer_is_less_sure(encoder_folder: Path) -> None:
    """Trained again without them, the loss of the answer grows by more than without any of six random sets."""
    tokenizer = tg.load_tokenizer(encoder_folder)
    words = ["value", "class", "list", "name", "object", "module", "line", "function", "type", "string"]
    chance = np.random.default_rng(0)
    rows = []
    for at in range(40):
        picked = " ".join(chance.choice(words, 4))
        rows.append((picked, LABELS[("value" in picked) ^ (at % 8 == 0)]))
    text, moments = "value name list line", []

    def trained(examples: Sequence[tuple[str, str]], keep: list[Model] | None = None) -> float:
        model = classifier("bert", tokenizer)
        given = tokenizer([each for each, _ in examples], padding=True, return_tensors="pt")
        labels = torch.tensor([LABELS.index(label) for _, label in examples])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.005)
        for step in range(30):
            if keep is not None and step % 8 == 3:
                other = classifier("bert", tokenizer)
                other.load_state_dict(model.state_dict())
                keep.append(other)
            optimizer.zero_grad()
            cross_entropy(model(**given).logits, labels, reduction="sum").div(len(rows)).backward()
            optimizer.step()
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer.encode(text)])).logits
        return float(cross_entropy(logits, torch.tensor([LABELS.index("good")])))

    whole = trained(rows, moments)
    found = neighbours(moments[0], tokenizer, [text], labelled(rows), target="good", checkpoints=moments, layers=2)
    assert found.checkpoints == len(moments) == 4

    def without(some: set[int]) -> float:
        return trained([row for at, row in enumerate(rows, 1) if at not in some])

    top = without({int(each.id) for each in found.pulling})
    bottom = without({int(each.id) for each in found.against})
    others = [without({int(at) + 1 for at in chance.choice(len(rows), 5, replace=False)}) for _ in range(6)]
    assert top > max(others)
    assert top > whole > bottom
    assert bottom < min(others)


def test_pairs_and_what_is_refused(encoder_folder: Path) -> None:
    tokenizer = tg.load_tokenizer(encoder_folder)
    model = classifier("bert", tokenizer)
    pairs = Examples(
        "pair-classification",
        tuple(
            PairExample(id=str(at), text1=text, text2="a class", label=label) for at, (text, label) in enumerate(ROWS)
        ),
    )
    found = neighbours(model, tokenizer, [TEXT, "a class"], pairs, target="bad", top=2)
    assert json.loads(json.dumps(found.to_dict()))["pulling"][0]["texts"][1] == "a class"
    for wrong in ({"by": "nearness"}, {"target": "worse"}, {"layers": 3}):
        with pytest.raises(InputError):
            neighbours(model, tokenizer, [TEXT], labelled(ROWS), **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="predicts tokens"):
        neighbours(tg.load_model(encoder_folder, task="fill-mask", strict=False), tokenizer, [TEXT], labelled(ROWS))
    with pytest.raises(InputError, match="do not fit"):
        neighbours(model, tokenizer, [TEXT], Examples("question-answering", ()))


def test_the_command_line(
    encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], visit: Callable[[Path], Any]
) -> None:
    tokenizer = tg.load_tokenizer(encoder_folder)
    folder, data = tmp_path / "model", tmp_path / "train.jsonl"
    tg.save_model(classifier("bert", tokenizer), folder, tokenizer=tokenizer)
    rows = [*ROWS, ("<script>値</script> は物", "good")]
    data.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows), "utf-8")
    tg.save_model(classifier("bert", tokenizer), tmp_path / "run/checkpoints/step-00000001", tokenizer=tokenizer)
    tg.save_model(classifier("bert", tokenizer), tmp_path / "run/checkpoints/step-00000002", tokenizer=tokenizer)

    def ran(*options: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as left:
            main(["explain", "text-classification", TEXT, "-m", str(folder), *options])
        printed = capsys.readouterr()
        assert left.value.code == code, printed.err
        return printed.err if code else printed.out

    one = json.loads(ran("--nearest", str(data), "--json"))["nearest"]
    several = json.loads(ran("--nearest", str(data), "--json", "--checkpoints", str(tmp_path / "run")))["nearest"]
    assert (one["checkpoints"], several["checkpoints"]) == (1, 2)
    assert several["pulling"][0]["score"] == pytest.approx(2 * one["pulling"][0]["score"], rel=1e-5)
    shown = ran("--nearest", str(data), "--by", "embedding", "--top", "6")
    assert "6 examples" in shown
    assert "値" in shown
    page = tmp_path / "page.html"
    ran("--nearest", str(data), "--html", str(page), "--top", "6")
    seen = visit(page)
    assert seen.requests == seen.complaints == []
    assert '<section id="nearest">' in seen.dom
    assert "<script" not in seen.dom
    data.write_text('{"text": "a value", "label": "unheard"}\n', "utf-8")
    for wrong in (
        ["--nearest", str(data)],
        ["--nearest", str(tmp_path / "nothing.jsonl")],
        ["--by", "embedding"],
        ["--nearest", str(data), "--checkpoints", str(tmp_path)],
    ):
        assert ran(*wrong, code=2).count("\n") == 1
