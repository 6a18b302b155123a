"""Small labelled data of every kind, and tiny models with tokenizers that know their words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tsumugu as tg
from tsumugu.core.registry import FAMILIES
from tsumugu.text.training import train_tokenizer
from tsumugu.training.initialization import initialize

GOOD = ("fine", "lovely", "great", "warm", "bright")
BAD = ("dull", "awful", "poor", "cold", "grey")
THINGS = ("film", "book", "song", "meal", "play", "town", "walk", "talk")
PEOPLE = ("Ann", "Bob", "Kai", "Mio", "Ren", "Yui")
TOWNS = ("Kobe", "Nara", "Rome", "Oslo", "Lima", "Bern")


def sentiment() -> list[dict[str, Any]]:
    return [
        {"text": f"the {thing} was {word}" + " indeed" * (at % 4), "label": label}
        for at, thing in enumerate(THINGS)
        for label, words in (("good", GOOD), ("bad", BAD))
        for word in words
    ]


def inference() -> list[dict[str, Any]]:
    return [
        {
            "premise": f"the {thing} was {word}",
            "hypothesis": f"it was {'lovely' if word in GOOD else 'awful'}",
            "label": "entailment",
        }
        if at % 2
        else {
            "premise": f"the {thing} was {word}",
            "hypothesis": f"it was {'awful' if word in GOOD else 'lovely'}",
            "label": "contradiction",
        }
        for at, thing in enumerate(THINGS)
        for word in GOOD + BAD
    ]


def likeness() -> list[dict[str, Any]]:
    return [
        {
            "sentence1": f"the {thing} was {word}",
            "sentence2": f"it was {other}",
            "score": 2.0 * (word in GOOD) + 3.0 * (other == "lovely"),
        }
        for thing in THINGS[:4]
        for word in GOOD + BAD
        for other in ("lovely", "awful")
    ]


def entities() -> list[dict[str, Any]]:
    rows = []
    for person in PEOPLE:
        for town in TOWNS:
            text = f"yesterday {person} went to {town} again"
            spans = [(text.index(person), person, "person"), (text.index(town), town, "town")]
            rows.append({"text": text, "entities": [[at, at + len(word), label] for at, word, label in spans]})
    return rows


def questions() -> list[dict[str, Any]]:
    rows = []
    for person in PEOPLE:
        for town in TOWNS:
            context = f"yesterday {person} went to {town} again"
            for question, answer in (("who went ?", person), ("went where ?", town), ("what was dull ?", None)):
                answers = {"text": [answer], "answer_start": [context.index(answer)]} if answer else {}
                answers = answers or {"text": [], "answer_start": []}
                rows.append({"question": question, "context": context, "answers": answers})
    return rows


def choices() -> list[dict[str, Any]]:
    return [
        {"question": f"who went to {town} with {person} ?", "choices": [town, person, thing], "label": 1}
        for person, town, thing in zip(PEOPLE * 4, (*TOWNS[2:], *TOWNS) * 3, THINGS * 3, strict=False)
    ]


def titles() -> list[dict[str, Any]]:
    return [
        {"source": f"yesterday {person} went to {town}", "target": f"{person} in {town}"}
        for person in PEOPLE
        for town in TOWNS
    ]


DATA = {
    "text-classification": sentiment,
    "natural-language-inference": inference,
    "text-similarity": likeness,
    "token-classification": entities,
    "question-answering": questions,
    "multiple-choice": choices,
    "text2text-generation": titles,
}
"""The rows of each task."""


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


@cache
def words() -> tuple[str, ...]:
    found = [json.dumps(row) for rows in DATA.values() for row in rows()]
    return (*found, " ".join(TOWNS + PEOPLE + GOOD + BAD + THINGS))


def base(folder: Path, family: str = "bert") -> Path:
    """A tiny pre-trained model, as far as chance can train one."""
    small: dict[str, Any] = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48}
    if family == "t5":
        small = {**small, "head_dim": 16, "dropout": 0.0}
    else:
        small |= {"max_positions": 256 if family == "llama" else 64}
    tokenizer = train_tokenizer(
        words(), family="bert" if family == "electra" else family, vocab_size=600, language="en"
    )
    record = FAMILIES[family]
    known = record.config_class.__dataclass_fields__
    roles = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    roles["decoder_start_token_id"] = tokenizer.pad_token_id
    values = {key: each for key, each in {**small, **roles}.items() if each is not None and key in known}
    config = record.config_class(vocab_size=len(tokenizer.get_vocab()), **values)
    model = record.build(config, {"t5": "seq2seq-lm", "llama": "causal-lm"}.get(family, "base"))
    initialize(model, seed=1)
    if family == "t5":
        model.usage = {"max_length": 16}  # one that has learnt nothing writes as long as it may
    tg.save_model(model, folder, tokenizer=tokenizer)
    return folder
