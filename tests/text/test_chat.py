"""Chat templates: the reference library's text, and no way out for hostile ones."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from tsumugu.core.errors import InputError
from tsumugu.text import sandbox
from tsumugu.text.chat import ChatTemplates
from tsumugu.text.tokenizer import Tokenizer

TEMPLATES = {
    "chatml": """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "chatml, default system": """{% if messages[0].role != 'system' %}<|im_start|>system
Be kind.<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content | trim }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
    "llama-2": """{% if messages[0]['role'] == 'system' %}
    {% set loop_messages = messages[1:] %}
    {% set system_message = messages[0]['content'] %}
{% else %}
    {% set loop_messages = messages %}{% set system_message = false %}
{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if loop.index0 == 0 and system_message != false %}
        {% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {% else %}
        {% set content = message['content'] %}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {{- ' ' + content.strip() + ' ' + eos_token }}
    {% endif %}
{% endfor %}""",
    "llama-3": """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content =
'<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}{% if
loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if
add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}""",
    "mistral": """{%- set ns = namespace(system='', rest=[]) -%}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{%- set ns.system = m.content ~ '\\n\\n' -%}
{%- else -%}{%- set ns.rest = ns.rest + [m] -%}{%- endif -%}
{%- endfor -%}
{{- bos_token -}}
{%- for m in ns.rest -%}
{%- if m.role == 'user' -%}[INST] {{ (ns.system if loop.last else '') + m.content }}[/INST]
{%- else -%}{{ ' ' ~ m.content ~ eos_token }}{%- endif -%}
{%- endfor -%}""",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "gemma": """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role =
'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' +
message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{
'<start_of_turn>model\\n' }}{% endif %}""",
    "alpaca": """{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}

{% elif m.role == 'user' %}### Instruction:
{{ m.content }}

{% else %}### Response:
{{ m.content }}{{ eos_token }}

{% endif %}{% endfor %}{% if add_generation_prompt %}### Response:
{% endif %}""",
    "tools and json": """{%- macro show(tool) -%}{{ tool.function.name }}: {{ tool | tojson(indent=2) }}{%- endmacro -%}
{% if tools %}{% for tool in tools %}{{ show(tool) }}
{% endfor %}{% endif %}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}
{{ loop.index }}/{{ messages | length }} {{ m | tojson }}{% if not loop.last %};{% else %}{% break %}{% endif %}
{% endfor %}{{ documents | default([], true) | map(attribute='title') | join(', ') }}""",
    "words and slices": """{% for m in messages[::-1] if m.content %}{{ loop.cycle('-', '+') }}{{ '%-8s|%02d' % (m.role,
loop.index) }} {{ '{} <{}>'.format(m.content.split()[0] | upper, m.content[:5]) }}{{ '.' * loop.index }}
{% endfor %}{{ {'a': [1, 2, (3, 4)]} }} {{ messages | map(attribute='role') | unique | list }} {{ 7 // 2 ** 2 }}""",
}
SYSTEM = {"role": "system", "content": 'You <answer> "kindly" & 短く。'}
TALK = [
    {"role": "user", "content": " Hello there!  "},
    {"role": "assistant", "content": "Hi.\nWhat is it?"},
    {"role": "user", "content": "{{ 1 + 1 }} {% raw %} 日本語 🎉"},
]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"é": {}}}}}]


@pytest.fixture(scope="module")
def backend() -> str:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {each: i for i, each in enumerate([*alphabet, "<s>", "</s>"])}
    plain = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return plain.to_str()


@pytest.fixture
def ours(backend: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(backend), special_tokens={"bos": "<s>", "eos": "</s>"})


@pytest.fixture
def theirs(backend: str) -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(backend), bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("prompt", [True, False])
def test_the_reference_librarys_text(name: str, system: bool, prompt: bool, ours: Tokenizer, theirs: Any) -> None:
    ours.chat_template = theirs.chat_template = TEMPLATES[name]
    messages = [SYSTEM, *TALK] if system else TALK
    arguments: dict[str, Any] = {
        "add_generation_prompt": prompt,
        "tools": TOOLS,
        "documents": [{"title": "T", "text": ""}],
    }
    wanted = theirs.apply_chat_template(messages, tokenize=False, **arguments)
    assert wanted.strip()
    assert ours.apply_chat_template(messages, tokenize=False, **arguments) == wanted
    ids = theirs.apply_chat_template(messages, return_dict=False, **arguments)
    assert ours.apply_chat_template(messages, **arguments) == ids
    assert ours.apply_chat_template([messages, messages[:1]], tokenize=False)[0] == theirs.apply_chat_template(
        messages, tokenize=False
    )


@pytest.mark.weights
@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("prompt", [True, False])
def test_smollm2s_own_template(system: bool, prompt: bool, smollm2_path: Path, theirs: Any) -> None:
    from tsumugu.checkpoints.gguf import read_gguf

    tokenizer = Tokenizer.from_gguf(read_gguf(smollm2_path)[1])
    theirs.chat_template = tokenizer.chat_template
    messages = [SYSTEM, *TALK] if system else TALK
    wanted = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt) == wanted


def test_a_message_left_open(ours: Tokenizer, theirs: Any) -> None:
    ours.chat_template = theirs.chat_template = TEMPLATES["llama-3"]
    messages = [*TALK, {"role": "assistant", "content": "Two, and "}]
    arguments: dict[str, Any] = {"tokenize": False, "continue_final_message": True}
    found = ours.apply_chat_template(messages, **arguments)
    assert found == theirs.apply_chat_template(messages, **arguments)
    assert found.endswith("Two, and")
    with pytest.raises(InputError, match="add_generation_prompt"):
        ours.apply_chat_template(messages, add_generation_prompt=True, continue_final_message=True)


def test_what_the_assistant_says_is_masked(ours: Tokenizer, theirs: Any) -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
    )
    ours.chat_template = theirs.chat_template = template
    messages = [*TALK, {"role": "assistant", "content": "日本 🎉 <s>"}]
    arguments: dict[str, Any] = {"return_dict": True, "return_assistant_tokens_mask": True}
    found, wanted = ours.apply_chat_template(messages, **arguments), theirs.apply_chat_template(messages, **arguments)
    assert found.input_ids == wanted["input_ids"]
    assert found.assistant_masks == wanted["assistant_masks"]
    said = [i for i, mask in zip(found.input_ids, found.assistant_masks, strict=True) if mask]
    assert said == ours.encode("Hi.\nWhat is it?</s>") + ours.encode("日本 🎉 <s></s>")
    batch = ours.apply_chat_template([messages, messages[:2]], padding=False, **arguments)
    assert batch.assistant_masks[0] == found.assistant_masks


def test_parts_of_text_are_joined(ours: Tokenizer) -> None:
    ours.chat_template = TEMPLATES["chatml"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    whole = [{"role": "user", "content": "Hello"}]
    assert ours.apply_chat_template(parts) == ours.apply_chat_template(whole)


def test_templates_by_name(ours: Tokenizer, tmp_path: Path) -> None:
    ours.chat_template = {"default": "d{{ x }}", "tool_use": "t", "short": "s"}
    messages = TALK[:1]
    assert ours.apply_chat_template(messages, tokenize=False, x="!") == "d!"
    assert ours.apply_chat_template(messages, tokenize=False, tools=TOOLS) == "t"
    assert ours.apply_chat_template(messages, tokenize=False, chat_template="short") == "s"
    assert ours.apply_chat_template(messages, tokenize=False, chat_template="{{ messages[0].role }}") == "user"
    with pytest.raises(InputError, match="'short'"):
        ours.apply_chat_template(messages, chat_template="shirt")
    ours.save(tmp_path)
    assert Tokenizer.from_folder(tmp_path).chat_template == ours.chat_template
    read = transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template
    assert read == ours.chat_template


def test_no_template(ours: Tokenizer) -> None:
    with pytest.raises(InputError, match="no chat template"):
        ours.apply_chat_template(TALK)
    ours.chat_template = {"a": "x", "b": "y"}
    with pytest.raises(InputError, match="choose: a, b"):
        ours.apply_chat_template(TALK)
    with pytest.raises(InputError, match="chat_template"):
        ours.chat_template = 3  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hello", "messages: expected a list of messages, found str"),
        ([], "messages: there is no message"),
        (["Hello"], r"messages\[0\]: expected a dict, found str"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], r"messages\[1\]: the message has no role"),
        ([{"role": 3, "content": "b"}], "the role is not text"),
        ([{"role": "user", "text": "b"}], "has no content; it has 'text'"),
        ([{"role": "user", "content": 5}], r"messages\[0\].content: expected text or a list of text parts"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"messages\[0\].content\[0\]: expected a part.*'image'"),
        ([[{"role": "user", "content": "a"}], [{"role": "user"}]], r"messages\[1\]\[0\]: the message has no content"),
    ],
)
def test_malformed_messages(messages: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ChatTemplates("{{ messages }}").render(messages, special_tokens={})
    assert "\n" not in str(caught.value)


def test_tool_calls_need_no_content(ours: Tokenizer) -> None:
    ours.chat_template = "{{ messages[0].tool_calls[0].name }}"
    messages = [{"role": "assistant", "tool_calls": [{"name": "add"}]}]
    assert ours.apply_chat_template(messages, tokenize=False) == "add"
    with pytest.raises(InputError, match=r"tools\[0\]: expected a dict"):
        ours.apply_chat_template(messages, tools=[print])


def run(template: str, messages: Any = None) -> str:
    rendered = ChatTemplates(template).render(messages or TALK, special_tokens={"bos_token": "<s>"})
    return rendered.chats[0].text


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ messages[0].__init__.__globals__ }}",
        "{{ (messages | attr('__class__')).__name__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ messages | map(attribute='__class__') | first }}{{ ''['__class__'].x }}",
        "{{ '{0.__class__.x}'.format(1)[0] }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ self._TemplateReference__context.eval_ctx.environment }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
        "{% extends '/etc/passwd' %}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ lipsum.__globals__.os }}",
        "{{ messages[99].role }}",
        "{{ missing.attribute }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ messages | sort(attribute='nothing') | first + 1 }}",
        "{% if %}",
        "{% for x in y %}",
        "{{ 'unclosed }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ strftime_now(3) }}",
        "{{ raise_exception('not\nwith me') }}",
    ],
)
def test_failures_are_one_clear_line(template: str) -> None:
    messages = [dict(each) for each in TALK]
    with pytest.raises(InputError) as caught:
        run(template, messages)
    assert "\n" not in str(caught.value)
    assert messages == TALK


GROW = "{{% set ns = namespace(x='aaaa', y=[1]) %}}{{% for i in range(200) %}}{}{{% endfor %}}{{{{ ns.x }}}}"


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) recursive %}{{ loop(range(99999)) if loop.depth0 < 3 }}{% endfor %}",
        "{% macro f(n) %}{% for i in range(9) %}{{ f(n - 1) if n }}{% endfor %}{% endmacro %}{{ f(20) }}",
        "{% for a in range(99999) %}" + "text " * 400 + "{% endfor %}",
        GROW.format("{% set ns.x = ns.x ~ ns.x %}"),
        GROW.format("{% set ns.x = ns.x + ns.x %}"),
        GROW.format("{% set ns.x = ns.x * 2 %}"),
        GROW.format("{% set ns.x = '%s%s' % (ns.x, ns.x) %}"),
        GROW.format("{% set ns.x = '{0}{0}'.format(ns.x) %}"),
        GROW.format("{% set ns.x = '%s%s' | format(ns.x, ns.x) %}"),
        GROW.format("{% set ns.x = ns.x | replace('a', ns.x) %}"),
        GROW.format("{% set ns.x = ns.x.replace('a', ns.x) %}"),
        GROW.format("{% set ns.x = [ns.x, ns.x, ns.x] | join %}"),
        GROW.format("{% set ns.x = ns.x.join(['a', 'b', ns.x]) %}"),
        GROW.format("{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
        GROW.format("{% set ns.y = [ns.y, ns.y] %}") + "{{ ns.y }}",
        GROW.format("{% set ns.y = dict(a=ns.y, b=ns.y) %}") + "{{ ns.y | tojson }}",
        GROW.format("{% set ns.y = ns.y * 2 %}"),
        "{{ 'a' * 10 ** 12 }}",
        "{{ 'a' | center(10 ** 9) }}{{ 'a'.ljust(10 ** 9) }}",
        "{{ 'a'.zfill(10 ** 9) }}",
        "{{ ('\\t' * 9999).expandtabs(9999999) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ '{:>{w}}'.format(1, w=999999999) }}",
        "{{ (9 ** 9999) ** 9999 }}",
        "{% set s = 'x' * 9999999 %}{{ [s] * 99999 }}",
        "{% set s = 'x' * 999999 %}{{ range(99999) | map('replace', '1', s) | join | length }}",
        "{{ 'x' * (1 << 27) if false else 'x' * 134217728 }}",
    ],
)
def test_endless_work_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 1.0)
    began = time.monotonic()
    with pytest.raises(InputError):
        run(template)
    assert time.monotonic() - began < 8


def test_a_template_of_absurd_length() -> None:
    with pytest.raises(InputError, match="too many for a template"):
        run("x" * (sandbox.MAX_SOURCE + 1))


def test_long_conversations_are_no_endless_work(ours: Tokenizer) -> None:
    messages = [{"role": role, "content": "word " * 200} for _ in range(1000) for role in ("user", "assistant")]
    for name in ("chatml", "llama-2", "llama-3", "mistral"):
        ours.chat_template = TEMPLATES[name]
        assert len(ours.apply_chat_template(messages, tokenize=False)) > 1_900_000


def test_marks_of_one_run_mean_nothing_in_another() -> None:
    first, second = sandbox.Budget(), sandbox.Budget()
    assert set(first.marks).isdisjoint(second.marks)


def test_a_template_cannot_name_our_helpers() -> None:
    assert run("{{ _turn }}{{ _literal }}{% set _turn = 1 %}{% for m in messages %}{{ _turn }}{% endfor %}") == "111"


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="{%}- \n'\"()[]|.~+*=mesagrolifndxtvc01", max_size=50))
def test_any_template_gives_text_or_one_line(source: str) -> None:
    try:
        text = run("{% for m in messages %}" + source + "{% endfor %}")
    except InputError as error:
        text = str(error).replace("\n", "a broken line")
    assert "a broken line" not in text


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text()}), min_size=1)
)
def test_any_content_is_only_content(messages: list[dict[str, str]]) -> None:
    text = run("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}", messages)
    assert text == "".join(f"<{each['role']}>{each['content']}" for each in messages)
