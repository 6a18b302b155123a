"""Edits that turn an answer: they do, none smaller does, the bound holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.references import spread

import tsumugu as tg
from tsumugu.anatomy.candidates import Edit, edited, marked, negated_endings
from tsumugu.anatomy.edits import counterfactuals
from tsumugu.anatomy.targets import ask
from tsumugu.cli import main
from tsumugu.core.errors import InputError
from tsumugu.core.registry import FAMILIES
from tsumugu.models.base import Model

LABELS = ("bad", "good", "neither")
TEXT = "the value of an expression is an object with a name"


@pytest.fixture(scope="module")
def tokenizer(encoder_folder: Path) -> Any:
    return tg.load_tokenizer(encoder_folder)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Model:
    """One that counts: its answer leans on a few words, so that some texts need one edit and some more."""
    kind = FAMILIES["bert"]
    sizes = {"hidden_size": 32, "num_layers": 1, "num_heads": 4, "intermediate_size": 64, "max_positions": 64}
    made: Model = kind.build(
        kind.config_class(vocab_size=len(tokenizer), labels=LABELS, **sizes), "sequence-classification"
    )
    spread(made, 5)
    return made.eval()


def answer(model: Model, tokenizer: Any, texts: Sequence[str]) -> int:
    with torch.no_grad():
        return int(model(**tokenizer([texts[0]], return_tensors="pt")).logits[0].argmax())


def test_what_is_found_turns_the_answer_and_nothing_smaller_does(model: Model, tokenizer: Any) -> None:
    depths = set()
    for text in (TEXT, "a class is a type of an object", "value", "the name of the module is a string"):
        question = ask("text-classification", model, tokenizer, text)
        before = answer(model, tokenizer, [text])
        found = counterfactuals(model, tokenizer, question, passes=4000)
        assert found.label == LABELS[before]
        assert found.passes <= 4000
        assert found.found or found.closest is not None
        for each in found.found:
            assert edited([text], each.edits) == each.texts
            after = answer(model, tokenizer, each.texts)
            assert (after, LABELS[after]) == (LABELS.index(each.label), each.label)
            assert after != before
            depths.add(len(each.edits))
            for count in range(1, len(each.edits)):
                for fewer in combinations(each.edits, count):
                    assert answer(model, tokenizer, edited([text], fewer)) == before
    assert depths


def test_the_bound_and_the_label_that_is_wanted(model: Model, tokenizer: Any) -> None:
    question = ask("text-classification", model, tokenizer, TEXT)
    few = counterfactuals(model, tokenizer, question, passes=5)
    assert few.passes <= 5
    assert not few.whole
    before = answer(model, tokenizer, [TEXT])
    for label in LABELS:
        if label == LABELS[before]:
            with pytest.raises(InputError, match="already"):
                counterfactuals(model, tokenizer, question, towards=label)
        else:
            found = counterfactuals(model, tokenizer, question, towards=label, passes=2000)
            assert all(each.label == label for each in found.found)
    with pytest.raises(InputError, match="no label"):
        counterfactuals(model, tokenizer, question, towards="worse")
    with pytest.raises(InputError, match="hidden"):
        counterfactuals(model, tokenizer, question, editor=(model, tokenizer))


def test_a_masked_model_suggests_words(model: Model, tokenizer: Any, encoder_folder: Path) -> None:
    question = ask("text-classification", model, tokenizer, TEXT)
    editor = (tg.load_model(encoder_folder), tokenizer)
    found = counterfactuals(model, tokenizer, question, editor=editor, passes=3000)
    before = answer(model, tokenizer, [TEXT])
    assert all(answer(model, tokenizer, each.texts) != before for each in found.found)
    alone = counterfactuals(model, tokenizer, question, editor=editor, passes=12)
    assert alone.passes <= 12


def test_pairs_and_endings(model: Model, tokenizer: Any) -> None:
    question = ask("nli", model, tokenizer, TEXT, "a class")
    found = counterfactuals(model, tokenizer, question, passes=500)
    assert all(len(each.texts) == 2 for each in found.found)
    changed = {
        edited(["駅は近いです。店はあります。"], [each])[0]
        for each in negated_endings(["駅は近いです。店はあります。"])
    }
    assert changed == {"駅は近くないです。店はあります。", "駅は近いです。店はありません。"}
    assert edited(["静かではない。"], list(negated_endings(["静かではない。"]))) == ("静かだ。",)


def test_deleting_leaves_no_double_space_and_marks_tell_all() -> None:
    for words in product(["a", "bb", "c,", "駅"], repeat=3):
        text = " ".join(words)
        for at, word in enumerate(words):
            start = len(" ".join(words[:at])) + (at > 0)
            edit = Edit(0, start, start + len(word), word, "", "delete")
            assert edited([text], [edit])[0] == " ".join(words[:at] + words[at + 1 :])
            assert "".join(part for mark, part in marked([text], [edit]) if mark != "+") == text


def test_the_command_line(
    model: Model,
    tokenizer: Any,
    encoder_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    visit: Callable[[Path], Any],
) -> None:
    folder = tmp_path / "model"
    tg.save_model(model, folder, tokenizer=tokenizer)

    def ran(*options: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as left:
            main(["explain", "text-classification", TEXT, "-m", str(folder), "--method", "occlusion", *options])
        printed = capsys.readouterr()
        assert left.value.code == code, printed.err
        return printed.err if code else printed.out

    found = json.loads(ran("--edits", "--json"))["edits"]
    assert found["passes"] <= 1000
    assert "texts read" in ran("--edits", "--editor", str(encoder_folder), "--passes", "200")
    page = tmp_path / "page.html"
    ran("--edits", "--html", str(page))
    seen = visit(page)
    assert seen.requests == seen.complaints == []
    assert '<section id="edits">' in seen.dom
    for wrong in (
        ["--editor", str(encoder_folder)],
        ["--edits", "--editor", str(folder)],
        ["--edits", "--passes", "0"],
    ):
        assert ran(*wrong, code=2).count("\n") == 1
