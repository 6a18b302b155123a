"""Neurons: against the reference model read text by text; texts may be any number, and are read once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import tsumugu as tg
from tsumugu.anatomy.neurons import activations, neurons
from tsumugu.cli import main
from tsumugu.core.errors import InputError
from tsumugu.engines.torch import load_model

WORDS = ["value", "class", "list", "name", "object", "module", "line", "function", "猫", "string"]


def texts(count: int) -> list[str]:
    chance = np.random.default_rng(0)
    return [" ".join(chance.choice(WORDS, int(chance.integers(2, 9)))) for _ in range(count)]


def test_equal_to_the_reference_read_text_by_text(decoder_folder: Path) -> None:
    model, tokenizer = load_model(decoder_folder).double(), tg.load_tokenizer(decoder_folder)
    rows = list(dict.fromkeys(texts(150)))  # more than are read between two choices
    theirs: Any = LlamaForCausalLM.from_pretrained(decoder_folder).double().eval()
    seen: list[torch.Tensor] = []
    theirs.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda module, given: seen.append(given[0][0, :, 6]))
    with torch.no_grad():
        for row in rows:
            theirs(torch.tensor([tokenizer.encode(row)]))
    found = neurons(model, tokenizer, ((row, None) for row in rows), which=(2, 7), top=4)[0]
    best = torch.stack([each.max() for each in seen])
    wanted = best.topk(4)
    assert [each.value for each in found.places] == pytest.approx(wanted.values.tolist(), abs=1e-5)
    assert len({each.row for each in found.places}) == 4
    assert [float(best[each.row - 1]) for each in found.places] == pytest.approx(wanted.values.tolist(), abs=1e-5)
    for place in found.places:
        assert place.text == rows[place.row - 1]
        offsets = tokenizer([place.text], return_offsets_mapping=True).encodings[0].offsets
        assert (place.start, place.end) == offsets[int(seen[place.row - 1].argmax())]
    for place, tokens in zip(found.places, activations(model, tokenizer, [found])[0], strict=True):
        assert [each.value for each in tokens] == pytest.approx(seen[place.row - 1].tolist(), abs=1e-5)
        assert max(tokens, key=lambda each: each.value)[:2] == (place.start, place.end)
    everything = torch.cat(seen).double()
    assert found.mean == pytest.approx(float(everything.mean()), abs=1e-6)
    assert found.deviation == pytest.approx(float(everything.std(correction=0)), rel=1e-4)
    assert found.selectivity == pytest.approx((float(wanted.values.mean()) - found.mean) / found.deviation, rel=1e-4)
    ranked = neurons(model, tokenizer, ((row, None) for row in rows), top=4, shown=128)
    assert [each.selectivity for each in ranked] == sorted((each.selectivity for each in ranked), reverse=True)
    assert next(each for each in ranked if (each.layer, each.number) == (2, 7)) == found


def test_labels_choose_neurons_that_tell_them_apart(encoder_folder: Path) -> None:
    model, tokenizer = load_model(encoder_folder), tg.load_tokenizer(encoder_folder)
    rows = [(row, "there" if "module" in row else "not there") for row in texts(120)]
    best = neurons(model, tokenizer, rows, shown=1)[0]
    seen: dict[str, list[float]] = {"there": [], "not there": []}
    handle = model.encoder.layers[best.layer - 1].feed_forward.down.register_forward_pre_hook(
        lambda module, given: seen["now"].append(float(given[0][0, 1:-1, best.number - 1].mean()))
    )
    for row, label in rows:
        seen["now"] = seen[label]
        with torch.no_grad():
            model(torch.tensor([tokenizer.encode(row)]))
    handle.remove()
    apart = np.mean(seen["there"]) - np.mean(seen["not there"])
    assert best.label in ("there", "not there")
    assert best.selectivity == pytest.approx(abs(apart) / best.deviation, rel=1e-3)


def test_the_command_line(
    encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], visit: Callable[[Path], Any]
) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"text": row, "label": "value" if at % 3 == 0 else row.split()[0]} for at, row in enumerate(texts(20))]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    def ran(*options: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as left:
            main(["neurons", "-m", str(encoder_folder), *options])
        printed = capsys.readouterr()
        assert left.value.code == code, printed.err
        return printed.err if code else printed.out

    assert ran("-i", str(data), "--shown", "3").count("layer ") == 3
    assert "⟦" in ran(*texts(30), "--neuron", "2:64", "--top", "2")
    told = ran("-i", str(data), "--label-column", "label", "--json", "--top", "3").splitlines()
    assert [json.loads(line)["label"] for line in told] == ["value"] * 10  # others have fewer than five texts
    page = tmp_path / "page.html"
    ran(*texts(30), "<script>猫</script> " * 20, "--shown", "3", "--top", "9", "--html", str(page))
    seen = visit(page)
    assert seen.requests == seen.complaints == []
    assert seen.dom.count("<h3") == 3
    assert seen.dom.count('class="best"') == 27
    assert 'lang="ja"' in seen.dom
    assert "<script" not in seen.dom
    for wrong in (["a text", "--neuron", "2"], ["a text", "--neuron", "3:1"], ["a text", "--html", "x.pdf"]):
        assert ran(*wrong, code=2).count("\n") == 1


def test_what_says_nothing_is_refused(encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_model(encoder_folder), tg.load_tokenizer(encoder_folder)
    rows = [(text, None) for text in texts(30)]
    for some, said in (
        ([], "there is no text"),
        (rows[:3], "tokens are too few"),
        ([(" ".join(text for text, _ in rows), None)] * 5, "all are among the best 5"),
        ([(text, "one") for text, _ in rows], "all texts have the label 'one'"),
        ([(text, str(at)) for at, (text, _) in enumerate(rows)], "no label has 5 texts"),
    ):
        with pytest.raises(InputError, match=said):
            neurons(model, tokenizer, some)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in rows), "utf-8")
    for wrong in (
        [str(data)],
        [str(tmp_path / "nothing.CSV.gz")],
        ["texts/"],
        ["-i", str(data), "--label-column", "x"],
    ):
        with pytest.raises(SystemExit) as left:
            main(["neurons", "-m", str(encoder_folder), *wrong])
        assert left.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
