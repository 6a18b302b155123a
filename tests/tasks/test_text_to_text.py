"""Summarising, translating and text to text: what the reference library's `generate` writes, with T5's prefixes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.tasks.conftest import ENGLISH_SENTENCES, JAPANESE_SENTENCES, ModelMaker

import tsumugu as tg
from tsumugu.core.errors import InputError
from tsumugu.core.registry import TASKS
from tsumugu.engines.onnx_model import OnnxModel

SUMMARY = {
    "early_stopping": True,
    "length_penalty": 2.0,
    "max_length": 24,
    "min_length": 6,
    "no_repeat_ngram_size": 3,
    "num_beams": 4,
    "prefix": "summarize: ",
}
GERMAN = {"early_stopping": True, "max_length": 20, "num_beams": 4, "prefix": "translate English to German: "}
FRENCH = GERMAN | {"prefix": "translate English to French: "}
PARAMS = {"summarization": SUMMARY, "translation_en_to_de": GERMAN, "translation_en_to_fr": FRENCH}
TEXTS = [*ENGLISH_SENTENCES, " ".join(ENGLISH_SENTENCES), *JAPANESE_SENTENCES]


class Reference:
    """The reference library's model and tokenizer, asked one text at a time."""

    def __init__(self, folder: Any) -> None:
        self.model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def __call__(self, text: str, prefix: str = "", **options: Any) -> list[str]:
        given = self.tokenizer(prefix + text, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            written = self.model.generate(input_ids=given["input_ids"], do_sample=False, **options)
        return self.tokenizer.batch_decode(written, skip_special_tokens=True)


@pytest.fixture(scope="module")
def folder(make: ModelMaker) -> str:
    path = make("t5", "seq2seq-lm")
    pipe = tg.pipeline("text2text-generation", model=str(path))
    pipe.model.usage = {"task_specific_params": PARAMS}
    tg.save_model(pipe.model, path, tokenizer=pipe.tokenizer)
    return str(path)


@pytest.fixture(scope="module")
def reference(folder: str) -> Reference:
    return Reference(folder)


@pytest.mark.parametrize(
    ("task", "key", "params"),
    [
        ("summarization", "summary_text", SUMMARY),
        ("translation_en_to_de", "translation_text", GERMAN),
        ("translation_en_to_fr", "translation_text", FRENCH),
        ("text2text-generation", "generated_text", {"max_new_tokens": 20, "num_beams": 4}),
    ],
)
def test_texts_are_those_that_the_checkpoint_asks_for(
    task: str, key: str, params: dict[str, Any], folder: str, reference: Reference
) -> None:
    given = {} if task != "text2text-generation" else {"max_new_tokens": 20}
    pipe = tg.pipeline(task, model=folder, **given)
    found = pipe(TEXTS)
    assert found == [{key: reference(text, **params)[0]} for text in TEXTS]
    assert pipe(TEXTS[0]) == [found[0]]
    assert len({each[key] for each in found}) > 3


def test_the_quick_engine_writes_the_same_and_needs_no_torch(folder: str, cache: Path) -> None:
    quick = tg.pipeline("summarization", model=folder, engine="auto", quantize="auto")
    assert isinstance(quick.model, OnnxModel)
    texts = TEXTS[4:9]
    wanted = tg.pipeline("summarization", model=folder)(texts)
    assert quick(texts) == wanted
    words = ["run", "summarization", texts[0], "--model", folder, "--json"]
    code = f"import sys\nfrom tsumugu.cli import main\ntry: main({words!r})\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert json.loads(done.stdout.splitlines()[0])["summary_text"] == wanted[0]["summary_text"]


def test_what_a_call_asks_for_goes_first(folder: str, reference: Reference) -> None:
    pipe = tg.pipeline("summarization", model=folder)
    text = TEXTS[6]
    assert (
        pipe(text, max_length=12, min_length=3)[0]["summary_text"]
        == (reference(text, **(SUMMARY | {"max_length": 12, "min_length": 3}))[0])
    )
    two = pipe([text, TEXTS[0]], num_return_sequences=2, max_length=12, min_length=2)
    wanted = reference(text, **(SUMMARY | {"num_return_sequences": 2, "max_length": 12, "min_length": 2}))
    assert [each["summary_text"] for each in two[0]] == wanted
    greedy = pipe(text, num_beams=1, prefix="", max_new_tokens=10, min_new_tokens=0)[0]["summary_text"]
    assert greedy == reference(text, num_beams=1, max_new_tokens=10, no_repeat_ngram_size=3)[0]
    ids = pipe(text, return_tensors=True, max_length=8, min_length=2)[0]["summary_token_ids"]
    assert (
        pipe.tokenizer.decode(ids, skip_special_tokens=True)
        == pipe(text, max_length=8, min_length=2)[0]["summary_text"]
    )
    drawn = pipe(text, temperature=1.5, seed=3, max_new_tokens=8)
    assert drawn == pipe(text, temperature=1.5, seed=3, max_new_tokens=8)


def test_neighbours_do_not_matter(folder: str) -> None:
    pipe = tg.pipeline("translation_en_to_de", model=folder, batch_size=3)
    assert pipe(TEXTS[4:11]) == [pipe(text)[0] for text in TEXTS[4:11]]


def test_languages(folder: str, make: ModelMaker) -> None:
    named = tg.pipeline("translation_en_to_fr", model=folder)(TEXTS[0])
    assert tg.pipeline("translation", model=folder, src_lang="en", tgt_lang="fr")(TEXTS[0]) == named
    assert tg.pipeline("translation", model=folder)(TEXTS[0], src_lang="en", tgt_lang="fr") == named
    with pytest.raises(InputError, match="choose translation_en_to_de, translation_en_to_fr"):
        tg.pipeline("translation", model=folder)(TEXTS[0])
    with pytest.raises(InputError, match="translation_en_to_ja is not known"):
        tg.pipeline("translation_en_to_ja", model=folder)(TEXTS[0])
    alone = tg.load_model(folder)
    alone.usage = {}
    pipe = tg.pipeline("translation_en_to_ja", model=alone, max_new_tokens=6)
    assert list(pipe(TEXTS[0])[0]) == ["translation_text"]


def test_names_of_tasks() -> None:
    assert TASKS.canonical("translation_en_to_ja") == "translation"
    assert TASKS.canonical("translation-zh-cn-to-pt-br") == "translation"
    with pytest.raises(tg.TsumuguError, match="did you mean 'translation'"):
        TASKS.canonical("translatoin")


def test_runs_of_tokens_are_not_repeated(decoder_folder: Any) -> None:
    """Decoders too, prompts of different lengths, greedy, drawn and by beams."""
    pipe = tg.pipeline("text-generation", model=str(decoder_folder))
    theirs = transformers.pipeline("text-generation", model=str(decoder_folder))
    prompts = ["The import statement", "A class", "a a a a a a a"]
    for size, beams in ((1, 3), (2, 1), (3, 3)):
        options = {"max_new_tokens": 20, "no_repeat_ngram_size": size, "num_beams": beams}
        wanted = [theirs(prompt, do_sample=False, **options) for prompt in prompts]
        assert pipe(prompts, **options) == wanted
    ids = pipe(prompts[0], max_new_tokens=30, no_repeat_ngram_size=2, temperature=0.5, seed=1, return_tensors=True)
    tokens = ids[0]["generated_token_ids"]
    runs = list(itertools.pairwise(tokens))
    assert len(set(runs)) == len(runs)
