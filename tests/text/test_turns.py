"""Which tokens of a conversation are the assistant's own, under templates of every manner."""

from __future__ import annotations

import pytest
from tests.tuning.samples import words

from tsumugu.core.errors import InputError
from tsumugu.text.tokenizer import Tokenizer
from tsumugu.text.training import train_tokenizer
from tsumugu.text.turns import PLAIN, encode_turns

CHATML = """
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
BLOCKS = """
{%- for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}
{%- generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}
{%- else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
FORGETS = """
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{{- m.content if loop.last or m.role != 'assistant' else m.content.split('=')[-1] }}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
THINKS = """
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>' }}{% endif %}"""
TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "who went to Nara ?"},
    {"role": "assistant", "content": "Ann=went"},
    {"role": "user", "content": "日本語 ?"},
    {"role": "assistant", "content": "はい 🙂"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = train_tokenizer(words(), family="gpt2", vocab_size=600, language="en")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return made


def own(tokenizer: Tokenizer, template: str, messages: list[dict[str, str]], **options: int) -> list[list[str]]:
    """What is learnt, as text, for each conversation that is made."""
    tokenizer.chat_template = template
    found = []
    for turns in encode_turns(tokenizer, messages, where="example 1", **options):
        runs: list[list[int]] = [[]]
        for token, mine in zip(turns.ids, turns.own, strict=True):
            if mine:
                runs[-1].append(token)
            elif runs[-1]:
                runs.append([])
        found.append([tokenizer.decode(run) for run in runs if run])
    return found


@pytest.mark.parametrize("template", [CHATML, BLOCKS])
def test_only_the_assistant(tokenizer: Tokenizer, template: str) -> None:
    assert own(tokenizer, template, TALK) == [["Ann=went<|im_end|>", "はい 🙂<|im_end|>"]]
    (turns,) = encode_turns(tokenizer, TALK, where="example 1")
    assert turns.ids == tokenizer.apply_chat_template(TALK)
    assert own(tokenizer, template, TALK, begin=3) == [["はい 🙂<|im_end|>"]]


def test_the_two_ways_agree(tokenizer: Tokenizer) -> None:
    found = []
    for template in (CHATML, BLOCKS):
        tokenizer.chat_template = template
        found.append(encode_turns(tokenizer, TALK, where="example 1"))
    assert found[0] == found[1]


def test_the_plain_template_ends_every_answer(tokenizer: Tokenizer) -> None:
    end = tokenizer.eos_token
    assert own(tokenizer, PLAIN, TALK) == [[f"Ann=went{end}", f"はい 🙂{end}"]]
    prompt = tokenizer.apply_chat_template(TALK[:2], add_generation_prompt=True, tokenize=False)
    assert prompt.endswith("be brief\n\n### Instruction:\nwho went to Nara ?\n\n### Response:\n")
    assert tokenizer.apply_chat_template(TALK, tokenize=False).startswith(f"{prompt}Ann=went{end}")


def test_a_template_that_forgets_makes_a_row_of_each_answer(tokenizer: Tokenizer) -> None:
    assert own(tokenizer, FORGETS, TALK) == [["Ann=went<|im_end|>"], ["はい 🙂<|im_end|>"]]
    whole = encode_turns(tokenizer, TALK, where="example 1")[-1]
    assert whole.ids == tokenizer.apply_chat_template(TALK)


def test_what_cannot_be_told(tokenizer: Tokenizer) -> None:
    tokenizer.chat_template = THINKS
    with pytest.raises(InputError, match=r"example 7.*generation block"):
        encode_turns(tokenizer, TALK, where="example 7")
    with pytest.raises(InputError, match="no answer"):
        encode_turns(tokenizer, TALK[:2], where="example 7")
