"""Text generation and chat: the usual pipeline's results, streams, conversations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import transformers

import tsumugu as tg
from tsumugu.core.errors import InputError
from tsumugu.tasks.chat import Chat
from tsumugu.tasks.text_generation import TextGeneration

PROMPTS = ["The import statement", "A class", "Lists are", "日本語の文"]


@pytest.fixture(scope="module")
def pipe(decoder_folder: Path) -> TextGeneration:
    made = tg.pipeline("text-generation", model=str(decoder_folder))
    assert isinstance(made, TextGeneration)
    return made


@pytest.fixture(scope="module")
def reference(decoder_folder: Path) -> Any:
    return transformers.pipeline("text-generation", model=str(decoder_folder))


@pytest.mark.parametrize("full", [True, False])
def test_results_are_those_of_the_usual_pipeline(pipe: TextGeneration, reference: Any, full: bool) -> None:
    ours = pipe(PROMPTS, max_new_tokens=12, return_full_text=full)
    theirs = [reference(text, max_new_tokens=12, do_sample=False, return_full_text=full) for text in PROMPTS]
    assert ours == theirs


def test_beams_are_those_of_the_usual_pipeline(pipe: TextGeneration, reference: Any) -> None:
    options = {"max_new_tokens": 8, "num_beams": 3, "num_return_sequences": 2}
    assert pipe(PROMPTS[0], **options) == reference(PROMPTS[0], do_sample=False, **options)


def test_one_text_gives_one_result_and_a_list_gives_a_list(pipe: TextGeneration) -> None:
    one = pipe(PROMPTS[0], max_new_tokens=5)
    assert list(one[0]) == ["generated_text"]
    assert pipe([PROMPTS[0]], max_new_tokens=5) == [one]
    lazily = pipe(iter(PROMPTS), max_new_tokens=5)
    assert next(lazily) == one


def test_a_batch_computes_what_its_rows_compute_alone(pipe: TextGeneration) -> None:
    together = pipe(PROMPTS, max_new_tokens=16)
    assert together == [pipe(text, max_new_tokens=16) for text in PROMPTS]
    drawn = {"max_new_tokens": 16, "do_sample": True, "seed": 7, "temperature": 1.3, "top_p": 0.9}
    assert pipe(PROMPTS, **drawn) == [pipe(text, **drawn) for text in PROMPTS]


def test_a_conversation_gets_an_answer_added(pipe: TextGeneration, reference: Any) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    ours = pipe(talk, max_new_tokens=6)
    theirs = reference(talk, max_new_tokens=6, do_sample=False)
    assert ours == theirs
    assert ours[0]["generated_text"][-1]["role"] == "assistant"


def test_the_stream_is_the_text_in_pieces(pipe: TextGeneration) -> None:
    for prompt in PROMPTS:
        whole = pipe(prompt, max_new_tokens=24, return_full_text=False)[0]["generated_text"]
        assert "".join(pipe.stream(prompt, max_new_tokens=24)) == whole


def test_a_stop_string_ends_the_text_and_is_never_shown(pipe: TextGeneration) -> None:
    free = pipe(PROMPTS[0], max_new_tokens=30, return_full_text=False)[0]["generated_text"]
    stop = free[len(free) // 2 : len(free) // 2 + 3]
    expected = free[: free.index(stop)]
    for name in ("stop_strings", "stop_sequence"):
        stopped = pipe(PROMPTS[0], max_new_tokens=30, return_full_text=False, **{name: stop})
        assert stopped[0]["generated_text"] == expected
    assert "".join(pipe.stream(PROMPTS[0], max_new_tokens=30, stop_strings=stop)) == expected


def test_max_length_counts_the_prompt(pipe: TextGeneration) -> None:
    ids = pipe.tokenizer.encode(PROMPTS[0])
    whole = pipe(PROMPTS[0], max_length=len(ids) + 4, return_tensors=True)[0]["generated_token_ids"]
    assert whole[: len(ids)] == ids
    assert len(whole) == len(ids) + 4
    with pytest.raises(InputError, match="already"):
        pipe(PROMPTS[0], max_length=len(ids))


def test_a_long_prompt_is_refused_or_cut(pipe: TextGeneration) -> None:
    with pytest.raises(InputError, match="reads 96 at most"):
        pipe("word " * 200)
    cut = pipe("word " * 200, truncation=True, return_tensors=True)[0]["generated_token_ids"]
    assert len(cut) == 96


def test_bad_input_is_one_clear_line(pipe: TextGeneration, encoder_folder: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'temperature'"):
        pipe("x", temprature=1.0)
    with pytest.raises(InputError, match="empty"):
        pipe("")
    with pytest.raises(InputError, match="int"):
        pipe(3)
    with pytest.raises(tg.TsumuguError, match="no head 'text-generation'"):
        tg.pipeline("text-generation", model=str(encoder_folder))
    with pytest.raises(tg.TsumuguError, match="did you mean 'text-generation'"):
        tg.pipeline("text-generaton")


def test_chat_remembers_and_forgets(decoder_folder: Path) -> None:
    chat = tg.pipeline("chat", model=str(decoder_folder))
    assert isinstance(chat, Chat)
    first = "".join(chat.say("Hello", max_new_tokens=6))
    assert chat.messages == [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": first}]
    second = "".join(chat.say("And then?", max_new_tokens=6))
    assert len(chat.messages) == 4
    chat.reset()
    assert chat.messages == []
    assert "".join(chat.say("Hello", max_new_tokens=6)) == first
    assert chat("Hello", max_new_tokens=6) == first
    assert chat(["Hello", "Hello"], max_new_tokens=6) == [first, first]
    assert isinstance(second, str)


def test_a_system_instruction_is_read_and_not_remembered_as_a_turn(decoder_folder: Path) -> None:
    chat = tg.pipeline("chat", model=str(decoder_folder), system="Be brief.")
    assert isinstance(chat, Chat)
    answer = "".join(chat.say("Hello", max_new_tokens=6))
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert chat(talk, max_new_tokens=6) == answer
    assert [each["role"] for each in chat.messages] == ["user", "assistant"]


def test_a_talk_that_outgrows_the_context_goes_on(decoder_folder: Path) -> None:
    chat = tg.pipeline("chat", model=str(decoder_folder))
    assert isinstance(chat, Chat)
    for _ in range(6):
        assert isinstance("".join(chat.say("Tell me more about this", max_new_tokens=8)), str)
    assert len(chat.messages) == 12


@pytest.mark.weights
def test_real_weights_answer(smollm2_path: Path) -> None:
    chat = tg.pipeline("chat", model=str(smollm2_path))
    assert re.search(r"tokyo", chat("What is the capital of Japan?", max_new_tokens=24), re.IGNORECASE)
