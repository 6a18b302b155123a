"""Answers of a given shape have it, whatever the model would rather write, and wherever it runs out of tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engines.conftest import build, tokenizer  # noqa: F401

import tsumugu as tg
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.generation.constrained import Guide, grammar_of
from tsumugu.models.base import Model
from tsumugu.text.tokenizer import Tokenizer

Write = Callable[..., list[str]]


@pytest.fixture(scope="module")
def model(build: Callable[..., Model]) -> Model:  # noqa: F811
    return build("llama", num_kv_heads=2, eos_token_id=259, max_positions=512)


@pytest.fixture(scope="module")
def write(model: Model, tokenizer: Tokenizer) -> Write:  # noqa: F811
    def written(count: int = 1, **options: Any) -> list[str]:
        prompts = [tokenizer.encode(text) for text in ("the hand", "an ant and then", "x")[:count]]
        found = tg.generate(model, prompts, tokenizer=tokenizer, **{"max_new_tokens": 40, **options})
        copies = len(found) // count
        new = [text[len(prompts[row // copies]) :] for row, text in enumerate(found)]
        assert all(259 not in text[:-1] for text in new)
        return [tokenizer.decode(text, skip_special_tokens=True) for text in new]

    return written


WORDS = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=6, unique=True)


@settings(max_examples=30, deadline=None)
@given(
    choices=WORDS.filter(lambda words: all(word.encode("utf-8", "ignore") for word in words)), seed=st.integers(0, 99)
)
def test_choices(choices: list[str], seed: int, write: Write) -> None:
    choices = [each.encode("utf-8", "ignore").decode() for each in choices]
    for new in (write(2, choices=choices), write(2, choices=choices, temperature=2.0, seed=seed)):
        assert set(new) <= set(choices)


PATTERNS = [
    r"[0-9]{3}-[0-9]{4}",
    r"(yes|no)(, (yes|no)){2}",
    r"[あ-ん]{2,5}[。！]",
    r"[a-zé]+@[a-zé]+\.(com|org)",
    r"a*b+c?",
    r"(<b>[^<>]*</b>\n?)+",
    r"-?(0|[1-9][0-9]*)(\.[0-9]+)?",
    r"x{60}y",
    r"(Japan|the Bank) (and|then) the hand",
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("length", [1, 7, 40])
def test_regular_expressions(pattern: str, length: int, write: Write) -> None:
    """Also where the tokens run out in the middle of a character, or long before the end."""
    several = {"num_return_sequences": 3, "temperature": 1.5, "seed": length}
    for new in (
        write(3, regex=pattern, max_new_tokens=length),
        write(2, regex=pattern, max_new_tokens=length, **several),
    ):
        assert all(re.fullmatch(pattern, text) for text in new)


NAMES = st.sampled_from(["name", "age", "人", "a b", 'q"', "tags"])
SCHEMAS = st.recursive(
    st.one_of(
        st.sampled_from([{"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {"type": "null"}]),
        st.builds(lambda low: {"type": "integer", "minimum": low, "maximum": low + 20}, st.integers(-50, 50)),
        st.builds(lambda low: {"type": "string", "minLength": low, "maxLength": low + 3}, st.integers(0, 9)),
        st.builds(
            lambda words: {"enum": words},
            st.lists(st.one_of(st.text(max_size=5), st.integers(-(2**53), 2**53)), min_size=1),
        ),
        st.just({"type": "number"}),
    ),
    lambda inner: st.one_of(
        st.builds(lambda each, most: {"type": "array", "items": each, "maxItems": most}, inner, st.integers(0, 4)),
        st.builds(
            lambda each: {
                "type": "object",
                "properties": each,
                "required": list(each),
                "additionalProperties": False,
            },
            st.dictionaries(NAMES, inner, max_size=3),
        ),
    ),
    max_leaves=5,
)


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """What the schemas above say, said once more."""
    if "enum" in schema:
        return any(type(value) is type(each) and value == each for each in schema["enum"])
    match schema["type"]:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            low, high = schema.get("minimum", value), schema.get("maximum", value)
            return type(value) is int and low <= value <= high
        case "number":
            return type(value) in (int, float)
        case "string":
            return isinstance(value, str) and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 1e9)
        case "array":
            return len(value) <= schema["maxItems"] and all(fits(each, schema["items"]) for each in value)
        case _:
            each = schema["properties"]
            return value.keys() == each.keys() and all(fits(value[name], each[name]) for name in each)


@settings(max_examples=40, deadline=None)
@given(
    schema=SCHEMAS.filter(lambda schema: "\\u" not in json.dumps(schema, ensure_ascii=False)),
    length=st.integers(1, 40),
    seed=st.none() | st.integers(0, 99),
)
def test_json_schemas(schema: dict[str, Any], length: int, seed: int | None, write: Write) -> None:
    options = {} if seed is None else {"temperature": 1.5, "seed": seed}
    for text in write(2, json_schema=schema, max_new_tokens=length, **options):
        assert fits(json.loads(text), schema)


def test_numbers_are_closed_however_deep_they_lie(write: Write) -> None:
    """As those of one field look like those of the next, a search could go round in circles."""
    fields = {name: {"type": "number"} for name in ("age", "人", 'q"')}
    each = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    for length in range(1, 16):
        for text in write(2, json_schema={"type": "array", "items": each, "maxItems": 2}, max_new_tokens=length):
            assert all(row.keys() == fields.keys() for row in json.loads(text))


def test_any_json(write: Write) -> None:
    for text in write(3, json_schema={}, max_new_tokens=30, temperature=1.0, seed=1):
        json.loads(text)
    assert write(json_schema='{"const": [1, "a"]}') == ['[1, "a"]']


def test_the_likeliest_of_what_is_allowed_is_written(model: Model, tokenizer: Tokenizer, write: Write) -> None:  # noqa: F811
    """Greedy: the first token is the argmax over those that the choices begin with."""
    with torch.inference_mode():
        logits = model([tokenizer.encode("the hand")]).logits[0, -1]
    letters = [chr(each) for each in range(97, 123)]
    wanted = max(letters, key=lambda each: float(logits[tokenizer.encode(each)[0]]))
    assert write(choices=letters) == [wanted]


def test_penalties_never_leave_nothing(write: Write) -> None:
    assert write(2, regex="[ab]{30}", repetition_penalty=5.0, frequency_penalty=9.0)[0].strip("ab") == ""
    assert write(2, choices=["aaaa"], top_k=3, top_p=0.2, min_p=0.9, seed=3) == ["aaaa", "aaaa"]


def test_streams_and_pipelines(model: Model, tokenizer: Tokenizer) -> None:  # noqa: F811
    prompt = tokenizer.encode("the hand")
    tokens = list(tg.generate(model, [prompt], tokenizer=tokenizer, regex="b{9}", max_new_tokens=3, stream=True))
    assert tokenizer.decode(tokens) == "b" * 9
    pipe = tg.pipeline("text-generation", model, tokenizer)
    found = pipe(["the hand", "x"], choices=("yes", "no"), return_full_text=False)
    assert all(answers[0]["generated_text"] in ("yes", "no") for answers in found)
    assert "".join(pipe.stream("x", json_schema={"type": "boolean"})) in ("true", "false")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choices": ("a",), "regex": "b"}, "choices and regex are two shapes"),
        ({"choices": ()}, "at least one character"),
        ({"choices": ("a", "")}, "at least one character"),
        ({"regex": "(a"}, "not a shape that can be followed"),
        ({"json_schema": "{"}, "not a JSON schema"),
        ({"json_schema": {"type": "strange"}}, "not a shape that can be followed"),
        ({"regex": "a", "num_beams": 2}, "beams do not follow a shape"),
        ({"regex": "a", "min_new_tokens": 2}, "says by itself where a text may end"),
        ({"regex": "a", "stop_strings": "x"}, "says by itself where a text may end"),
        ({"regex": "[ab]{600}c", "max_new_tokens": 4}, "allow more tokens"),
    ],
    ids=str,
)
def test_what_is_no_shape(options: dict[str, Any], message: str, write: Write) -> None:
    with pytest.raises((InputError, ConfigError), match=message):
        write(**options)


def test_a_shape_needs_a_tokenizer(model: Model, tokenizer: Tokenizer) -> None:  # noqa: F811
    with pytest.raises(InputError, match="a shape needs a tokenizer"):
        tg.generate(model, [[1]], regex="a")
    grammar = grammar_of(regex="ab?")
    assert grammar is not None
    guide = Guide(tokenizer, [grammar], vocab=260, ends=[259])
    assert guide.closing(0) == [tokenizer.encode("a")[0]]
