"""Anatomies: what files beside a checkpoint tell, data against plain counts, pages in a browser, cards, differences."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

import tsumugu as tg
from tsumugu.anatomy.card import About, Result, write_card
from tsumugu.anatomy.describe import describe
from tsumugu.anatomy.diff import compare
from tsumugu.anatomy.page import render
from tsumugu.anatomy.unsupported import unsupported
from tsumugu.checkpoints.load import load_tokenizer
from tsumugu.cli import main
from tsumugu.core.errors import InputError, UnknownNameError
from tsumugu.corpus.prepare import prepare
from tsumugu.engines.torch import find_family

ENGLISH = [
    "The model reads a text and predicts the next word of the text.",
    "A loss is what training makes small, step after step after step.",
    "The model reads a text and predicts the next word of the text.",
    "Nobody expects a loss to become nothing at all, and nothing comes of nothing.",
]
JAPANESE = [
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "メロスは激怒した。必ず、かの邪智暴虐の王を除かなければならぬと決意した。",
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    rows = [{"text": text, "label": "en"} for text in ENGLISH] + [{"text": text, "label": "ja"} for text in JAPANESE]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def run(tmp_path: Path, decoder_folder: Path) -> Path:
    """A run's folder; gives that of its last checkpoint."""
    folder = tmp_path / "run" / "checkpoints" / "step-20"
    shutil.copytree(decoder_folder, folder)
    recipe = {"objective": {"name": "causal"}, "optimizer": {"lr": 0.001, "betas": [0.9, 0.95]}, "steps": 20}
    (tmp_path / "run" / "recipe.yaml").write_text(json.dumps(recipe))
    (tmp_path / "run" / "environment.json").write_text('{"torch": "2", "threads": 1}')
    events: list[dict[str, Any]] = [
        {"kind": "start", "step": 0, "time": 0.0, "values": {"family": "llama", "objective": "causal"}},
        {"kind": "evaluation", "step": 10, "time": 1.0, "values": {"loss": 4.0}},
        {"kind": "evaluation", "step": 20, "time": 2.0, "values": {"loss": 3.5}},
        {"kind": "end", "step": 20, "time": 2.0, "values": {"reason": "done"}},
    ]
    lines = [json.dumps(each, separators=(",", ":")) for each in events]
    (tmp_path / "run" / "events.jsonl").write_text("\n".join([*lines, '{"kind":"evaluation","st']))
    return folder


def test_data_is_counted(data: Path, decoder_folder: Path) -> None:
    found = describe(decoder_folder, data=[data], spectra=False)
    tokenizer = load_tokenizer(decoder_folder)
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in [*ENGLISH, *JAPANESE]]
    lengths = [len(each) for each in ids]
    counts = Counter(i for row in ids for i in row)
    about = found["distribution"]
    assert (about["documents"], about["tokens"]) == (6, sum(lengths))
    assert about["lengths"]["mean"] == pytest.approx(np.mean(lengths))
    assert about["lengths"]["quantiles"]["50"] == np.median(lengths)
    edges, bars = about["lengths"]["histogram"]["edges"], about["lengths"]["histogram"]["counts"]
    for low, high, count in zip(edges[:-1], edges[1:], bars, strict=True):
        assert count == sum(low <= each < high or (high == edges[-1] and each == high) for each in lengths)
    assert about["vocabulary"]["used"] == len(counts)
    assert about["vocabulary"]["once"] == sum(count == 1 for count in counts.values())
    shares = np.array([*counts.values()]) / sum(lengths)
    assert about["vocabulary"]["entropy_bits"] == pytest.approx(-(shares * np.log2(shares)).sum())
    assert about["zipf"]["counts"][0] == max(counts.values())
    assert [each["count"] for each in about["top_tokens"]] == sorted(counts.values(), reverse=True)[:20]
    assert about["labels"] == {"en": 4, "ja": 2}
    assert about["languages"]["ja"] == 2
    assert about["duplicates"]["exact"] == 1
    pairs = Counter(pair for text in ENGLISH for pair in zip(text.split(), text.split()[1:], strict=False))
    told = {each["text"]: each["count"] for each in about["top_ngrams"]["2"]}
    assert told
    assert all(told[text] == pairs[tuple(text.split(" "))] for text in told if " " in text)
    assert told["The model"] == 2
    (source,) = found["dataset"]["sources"]
    assert source["documents"] == 6
    assert source["bytes"] == data.stat().st_size


def test_a_prepared_corpus_is_counted(data: Path, decoder_folder: Path, tmp_path: Path) -> None:
    prepare([data], tmp_path / "corpus", tokenizer=decoder_folder, workers=1)
    found = describe(decoder_folder, data=[tmp_path / "corpus"], spectra=False)
    assert found["distribution"]["documents"] == 5  # preparing drops the text that stands twice
    assert found["distribution"]["duplicates"]["exact"] == 0
    assert found["dataset"]["sources"][0]["checksum"]


def test_nearly_equal_texts_are_counted(decoder_folder: Path, tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(60)]
    texts = [" ".join(words), " ".join([*words[:-1], "other"]), " ".join(reversed(words))]
    (tmp_path / "near.txt").write_text("\n".join(texts))
    found = describe(decoder_folder, data=[tmp_path / "near.txt"], spectra=False)
    assert found["distribution"]["duplicates"] == {
        "exact": 0,
        "of": 3,
        "near": 1,
        "near_of": 3,
        "near_threshold": 0.8,
    }


def test_bad_data_is_said_clearly(decoder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "numbers.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(InputError, match="no column holds texts"):
        describe(decoder_folder, data=[tmp_path / "numbers.jsonl"], spectra=False)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(InputError, match="no text"):
        describe(decoder_folder, data=[tmp_path / "empty.txt"], spectra=False)


def test_the_files_of_a_run_are_told(run: Path) -> None:
    found = describe(run, spectra=False)
    assert found["hyperparameters"]["training"]["optimizer"]["lr"] == 0.001
    assert found["hyperparameters"]["environment"] == {"torch": "2", "threads": 1}
    assert found["algorithm"]["objective"] == "causal"
    assert found["evaluation"]["validation"]["best"] == {"step": 20, "loss": 3.5}
    assert found["evaluation"]["validation"]["count"] == 2


def test_a_card_is_what_the_hub_reads(run: Path, data: Path) -> None:
    about = About(
        name="Tiny writer",
        licence="Apache-2.0",
        languages=("en", "ja"),
        base_model="org/base",
        datasets=("some-texts",),
        tags=("tiny",),
        results=(
            Result(task="text-classification", dataset="Some Texts", metric="accuracy", value=0.75, split="test"),
            Result(task="text-classification", dataset="Some Texts", metric="f1", value=0.5, split="test"),
        ),
        notes="Reads `<script>` and\n| pipes |.",
    )
    known = describe(run, data=[data], spectra=False)
    path = write_card(run, about, dataset=known["dataset"], distribution=known["distribution"])
    assert path == run / "README.md"
    metadata = metadata_load(path)
    assert metadata is not None
    assert metadata["pipeline_tag"] == "text-generation"
    assert (metadata["license"], metadata["library_name"]) == ("apache-2.0", "tsumugu")
    assert metadata["language"] == ["en", "ja"]
    assert metadata["tags"] == ["llama", "tiny"]
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "Tiny writer"
    assert {(each.metric_type, each.metric_value, each.dataset_type) for each in results} == {
        ("accuracy", 0.75, "some-texts"),
        ("f1", 0.5, "some-texts"),
    }
    card = ModelCard.load(path)
    assert card.data.to_dict() == metadata
    assert ModelCard(str(card)).data.eval_results == results
    assert "# Tiny writer" in card.text
    assert "causal" in card.text
    assert "```bibtex" in card.text
    kept = json.loads((run / "anatomy.json").read_text("utf-8"))
    assert kept["evaluation"]["results"][0]["value"] == 0.75
    again = describe(run, spectra=False)  # read back with the checkpoint
    assert again["distribution"] == kept["distribution"]
    assert again["model"]["licence"] == "apache-2.0"


def test_a_card_without_anything_known(encoder_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder_folder, tmp_path / "plain")
    metadata = metadata_load(write_card(tmp_path / "plain"))
    assert metadata == {"library_name": "tsumugu", "pipeline_tag": "fill-mask", "tags": ["bert"]}
    with pytest.raises(InputError, match="folder"):
        write_card(tmp_path / "absent")


def test_the_page_asks_for_nothing(run: Path, data: Path, visit: Callable[[Path], Any], tmp_path: Path) -> None:
    hostile = run / "hostile"
    shutil.copytree(run, hostile)
    config = json.loads((hostile / "config.json").read_text())
    labels = {"0": "<script>fetch('https://example.com')</script>", "1": "日本語"}
    config |= {"id2label": labels, "label2id": {value: int(key) for key, value in labels.items()}}
    (hostile / "config.json").write_text(json.dumps(config))
    page = tmp_path / "page.html"
    html = render(describe(hostile, data=[data]))
    page.write_text(html, "utf-8")
    seen = visit(page)
    assert seen.requests == []
    assert seen.complaints == []
    assert seen.dom.count("<svg") == html.count("<svg") >= 9
    assert "<script" not in seen.dom
    assert 'lang="ja"' in seen.dom
    for section in ("algorithm", "parameters", "hyperparameters", "data", "evaluation"):
        assert f'<section id="{section}">' in seen.dom


def test_a_page_that_asks_is_caught(visit: Callable[[Path], Any], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("no"); missing()</script>')
    seen = visit(page)
    assert "http://127.0.0.1:9/x.png" in seen.requests
    assert len(seen.complaints) >= 2


def test_differences_are_told(decoder_folder: Path, tmp_path: Path) -> None:
    same = compare(decoder_folder, decoder_folder)
    assert same["same"]
    assert same["tensors"]["equal"] == 2 * 9 + 2
    model, tokenizer = tg.load_model(decoder_folder), tg.load_tokenizer(decoder_folder)
    weight = model.get_parameter("decoder.layers.1.attention.key.weight")
    before = weight.detach().double().numpy().copy()
    torch.manual_seed(0)
    with torch.no_grad():
        weight[:3] += 0.01 * torch.randn_like(weight[:3])
    tokenizer.chat_template = None
    model.config = model.config.replace(rope_theta=500.0)
    tg.save_model(model, tmp_path / "changed", tokenizer=tokenizer)
    found = compare(decoder_folder, tmp_path / "changed")
    (changed,) = found["tensors"]["changed"]
    after = weight.detach().double().numpy()
    assert changed["name"] == "decoder.layers.1.attention.key.weight"
    assert changed["relative"] == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-9)
    assert changed["largest"] == pytest.approx(np.abs(after - before).max(), rel=1e-9)
    assert changed["share"] == 3 / len(weight)
    assert changed["cosine"] == pytest.approx((after * before).sum() / np.linalg.norm(after) / np.linalg.norm(before))
    assert found["config"] == {"rope_theta": [10000.0, 500.0]}
    assert found["tokenizer"]["chat_template"][1] is None
    other = compare(decoder_folder, _gguf(decoder_folder, tmp_path))
    assert not other["tensors"]["changed"]
    assert not other["tensors"]["removed"]


def _gguf(folder: Path, target: Path) -> Path:
    path = target / "same.gguf"
    tg.save_model(tg.load_model(folder), path, tokenizer=tg.load_tokenizer(folder))
    return path


def test_models_of_two_families_are_laid_side_by_side(decoder_folder: Path, encoder_folder: Path) -> None:
    found = compare(decoder_folder, encoder_folder)
    assert found["config"]["family"] == ["llama", "bert"]
    assert len(found["tensors"]["removed"]) == 20
    assert not found["tensors"]["changed"]


def test_what_is_not_loaded_is_refused() -> None:
    rows = unsupported()
    words = [word for row in rows for word in row.model_types]
    assert len(set(words)) == len(words)
    for row in rows:
        assert row.instead
    for word in words:
        with pytest.raises(UnknownNameError):
            find_family({"model_type": word})


@pytest.fixture
def tsumugu(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A verb in this process; gives what it printed, or for another code than 0 what it complained about."""

    def ran(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        printed = capsys.readouterr()
        assert left.value.code == code, printed.err
        return printed.err if code else printed.out

    return ran


def test_the_command_line(tsumugu: Callable[..., str], run: Path, data: Path, tmp_path: Path) -> None:
    shown = tsumugu("inspect", str(run), "--data", str(data))
    for word in ("ALGORITHM", "PARAMETERS", "HYPERPARAMETERS", "TRAINING", "DATA", "EVALUATION", "2 × decoder layer"):
        assert word in shown
    found = json.loads(tsumugu("inspect", str(run), "--json", "--quick"))
    assert found["format"] == "tsumugu anatomy"
    tsumugu("inspect", str(run), "--card", "--quick")
    assert (run / "README.md").is_file()
    assert "--force" in tsumugu("inspect", str(run), "--card", code=2)
    assert tsumugu("inspect", str(run), "--html", str(tmp_path / "x.pdf"), code=2).count("\n") == 1
    assert tsumugu("inspect", str(tmp_path / "absent"), code=2).count("\n") == 1
    assert "nothing differs" in tsumugu("diff", str(run), str(run))
    assert json.loads(tsumugu("models", "--unsupported", "--json"))["unsupported"]


def test_diff_leaves_with_1(tsumugu: Callable[..., str], decoder_folder: Path, encoder_folder: Path) -> None:
    assert tsumugu("diff", str(decoder_folder), str(encoder_folder), code=1) == ""
    assert tsumugu("diff", str(decoder_folder), "no-such-model-anywhere", code=2).count("\n") == 1
