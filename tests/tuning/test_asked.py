"""A decoder learns to write what it is asked for, and is asked for it later as it was in training."""

from __future__ import annotations

import json

import pytest
from tests.tuning.samples import titles, write

import tsumugu as tg
from tsumugu.core.errors import ConfigError, InputError


def recipe(folder, source, task, rows, **sections):
    path = str(write(folder / "data" / "train.jsonl", rows))
    values = {
        "task": task,
        "model": {"source": str(source), **sections.pop("model", {})},
        "data": {"source": path, "validation": path, "test": path, **sections.pop("data", {})},
        "train": {"epochs": 70, "batch": 4, "lr": 5e-3, **sections.pop("train", {})},
        "evaluation": {"every": 0},
    }
    return {**values, **sections}


def test_it_learns_to_answer_and_to_end(tmp_path, tiny):
    rows = titles()[::3]
    found = tg.finetune(recipe(tmp_path, tiny("llama"), "summarization", rows), tmp_path / "run", quiet=True)
    assert found.test.scores["exact_match"] >= 0.9, found.test.scores
    written = tg.pipeline("summarization", tmp_path / "run")([row["source"] for row in rows])
    assert sum(each["summary_text"] == row["target"] for each, row in zip(written, rows, strict=True)) >= 11


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_language_and_the_languages_go_with_the_model(method, tmp_path, tiny):
    rows = [{"translation": {"ja": f"{at} を見た。", "en": f"saw\n{at}"}} for at in range(3)]
    values = recipe(tmp_path, tiny("llama"), "translation_ja_to_en", rows, model={"method": method})
    values["train"]["epochs"] = 1
    found = tg.finetune(values, tmp_path / "run", quiet=True)
    kept = json.loads((found.model / "config.json").read_text("utf-8"))["task_specific_params"]
    assert kept == {"translation": {"src_lang": "ja", "tgt_lang": "en", "language": "ja"}}
    task = tg.pipeline("translation", found.model)
    assert task.defaults == kept["translation"]
    ids, start = task.taught("1 を見た。", "saw\n1", limit=256)
    decode = task.tokenizer.decode
    assert decode(ids[:start]).endswith("英語：")
    assert decode(ids[start:], skip_special_tokens=True).strip() == "saw 1"
    assert ids[-1] == task.tokenizer.eos_token_id
    assert tg.pipeline("translation", found.model, language="en").defaults["language"] == "en"


def test_the_text_is_cut_and_never_the_question(tiny):
    task = tg.pipeline("summarization", tiny("llama"))
    text = " ".join(f"town{at}" for at in range(40))
    whole, _ = task.taught(text, "Kobe", limit=1000)
    ids, start = task.taught(text, "Kobe", limit=60)
    assert len(ids) <= 60 < len(whole)
    short = task.tokenizer.decode(ids[:start])
    assert short.startswith("<s>Text: town0 town1 ")
    assert short.endswith("Summary in one sentence:")
    with pytest.raises(InputError, match=r"raise data\.max_length"):
        task.taught(text, "Kobe", limit=20)


def test_what_a_decoder_is_not_asked_for(tmp_path, tiny):
    for task in ("text2text-generation", "translation"):
        values = recipe(tmp_path, tiny("llama"), task, titles())
        with pytest.raises(ConfigError, match="name summarization, translation_en_to_ja and the like"):
            tg.finetune(values, tmp_path / task, quiet=True)
    values = recipe(tmp_path, tiny("llama"), "summarization", titles(), data={"max_length": 12})
    with pytest.raises(InputError, match=r"example .*: the prompt and the answer fill 12 tokens"):
        tg.finetune(values, tmp_path / "short", quiet=True)
    values["data"]["skip"] = True
    with pytest.raises(InputError, match="no answer fits into 12 tokens"):
        tg.finetune(values, tmp_path / "none", quiet=True)
