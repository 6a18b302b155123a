"""Probes: against scikit-learn by hand on the reference model's states, and what is known where it must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import BertModel

import tsumugu as tg
from tsumugu.anatomy.probing import probe
from tsumugu.cli import main
from tsumugu.core.errors import InputError
from tsumugu.data.labelled.examples import Examples, SimilarityExample, Span, SpanExample, TextExample
from tsumugu.engines.torch import load_model

WORDS = ["value", "class", "list", "name", "object", "module", "line", "function", "type", "string"]


def texts(count: int, seed: int) -> Examples:
    """Of which the label says whether "value" stands in them."""
    chance = np.random.default_rng(seed)
    rows = [" ".join(chance.choice(WORDS[1:], 4)) for _ in range(count)]
    rows = [f"{row} value" if at % 3 == 0 else row for at, row in enumerate(rows)]
    return Examples(
        "text-classification",
        tuple(TextExample(text=row, label="there" if "value" in row else "not there") for row in rows),
    )


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_equal_to_scikit_learn_on_the_reference_states(pooling: Any, encoder_folder: Path) -> None:
    model, tokenizer = load_model(encoder_folder), tg.load_tokenizer(encoder_folder)
    train, test = texts(60, 0), texts(30, 1)
    found = probe(model, tokenizer, train, test, pooling=pooling)
    theirs = BertModel.from_pretrained(encoder_folder).eval()

    def states(examples: Examples) -> Any:
        rows = []
        for each in examples:
            with torch.no_grad():
                hidden = theirs(torch.tensor([tokenizer.encode(each.text)]), output_hidden_states=True).hidden_states
            rows.append(np.stack([layer[0].mean(0) if pooling == "mean" else layer[0, 0] for layer in hidden]))
        return np.stack(rows)

    known, asked = states(train), states(test)
    answers = [each.label for each in train], [each.label for each in test]
    for layer in range(3):
        line = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(known[:, layer], answers[0])
        assert found.layers[layer].accuracy == pytest.approx(line.score(asked[:, layer], answers[1]), abs=0.04)
    if pooling == "mean":
        assert found.layers[0].accuracy == 1.0  # a mean of embeddings tells which words stand there
        assert found.layers[0].selectivity > 0.2
    else:
        assert found.layers[0].accuracy == pytest.approx(found.majority)  # [CLS] and its place: the same in all texts
    assert found.majority == pytest.approx(max(answers[1].count(each) for each in answers[1]) / 30)


def test_tokens_with_a_control_for_each_type(encoder_folder: Path) -> None:
    """The embeddings name the token, so that its chance label can be learnt too: accuracy without selectivity."""
    model, tokenizer = load_model(encoder_folder), tg.load_tokenizer(encoder_folder)
    rows = []
    for each in texts(60, 2):
        at = each.text.find("value")
        rows.append(SpanExample(text=each.text, spans=() if at < 0 else (Span(at, at + 5, "THING"),)))
    found = probe(model, tokenizer, Examples("token-classification", tuple(rows)))
    assert found.unit == "token"
    assert found.labels == ["O", "THING"]
    assert found.layers[0].accuracy == 1.0
    assert found.layers[0].control > 0.95
    assert found.train + found.test == sum(len(tokenizer.encode(row.text, add_special_tokens=False)) for row in rows)


def test_decoders_and_what_is_refused(decoder_folder: Path) -> None:
    model, tokenizer = load_model(decoder_folder), tg.load_tokenizer(decoder_folder)
    found = probe(model, tokenizer, texts(30, 0), pooling="last")
    assert [each.layer for each in found.layers] == [0, 1, 2]
    assert (found.train, found.test) == (24, 6)
    same = tuple(TextExample(text=word, label="one") for word in 3 * WORDS)
    with pytest.raises(InputError, match="one label"):
        probe(model, tokenizer, Examples("text-classification", same))
    with pytest.raises(InputError, match="2 to test are too few"):
        probe(model, tokenizer, Examples("text-classification", same[:10]))
    alike = tuple(SimilarityExample(text1=word, text2=word, score=1.0) for word in WORDS)
    with pytest.raises(InputError, match="not probed"):
        probe(model, tokenizer, Examples("similarity", alike))


def test_the_command_line(
    encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], visit: Callable[[Path], Any]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": each.text, "label": each.label}) + "\n" for each in texts(40, 0)))

    def ran(*options: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as left:
            main(["probe", str(data), "-m", str(encoder_folder), *options])
        printed = capsys.readouterr()
        assert left.value.code == code, printed.err
        return printed.err if code else printed.out

    picture = tmp_path / "layers.svg"
    assert "the most is known after layer" in ran("--plot", str(picture))
    assert picture.read_text("utf-8").lstrip().startswith("<?xml")
    assert len(json.loads(ran("--json", "--test", str(data), "--limit", "20"))["layers"]) == 3
    page = tmp_path / "page.html"
    ran("--html", str(page))
    seen = visit(page)
    assert seen.requests == seen.complaints == []
    assert "chance labels</text>" in seen.dom
    assert seen.dom.count("<tr>") == 1 + 3
    for wrong in (
        ["--html", "layers.pdf"],
        ["--plot", "layers.pdf"],
        ["--limit", "1"],
        ["--kind", "token-classification"],
    ):
        assert ran(*wrong, code=2).count("\n") == 1
