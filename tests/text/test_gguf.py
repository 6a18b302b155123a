"""Tokenizers in GGUF files: llama.cpp's ids, and every lie in the metadata found out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.text.corpus import varied_texts
from tests.text.llama_cpp import Judge, differing, tiny_model
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tsumugu.checkpoints.gguf import read_gguf
from tsumugu.core.errors import CheckpointError
from tsumugu.text.gguf import to_gguf_metadata
from tsumugu.text.pieces import scored_pieces
from tsumugu.text.pretokenizers import PRE_TOKENIZERS, PreTokenizer, by_name, name_of
from tsumugu.text.tokenizer import Tokenizer

COMMON = ("gpt-2", "smollm", "llama-bpe", "qwen2", "default")
SMOLLM2_SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<file_sep>")


@pytest.mark.weights
def test_smollm2_has_llama_cpps_ids_on_5000_texts(smollm2_path: Path) -> None:
    tokenizer = Tokenizer.from_gguf(read_gguf(smollm2_path)[1])
    judge = Judge(smollm2_path)
    texts = varied_texts(5000, seed=2, special=SMOLLM2_SPECIAL)
    assert len(set(texts)) > 4000
    assert differing(tokenizer, judge, texts) == []


@pytest.mark.weights
def test_smollm2_keeps_its_facts(smollm2_path: Path) -> None:
    tokenizer = Tokenizer.from_gguf(read_gguf(smollm2_path)[1])
    assert len(tokenizer) == 49152
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.model_max_length == 8192
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert "system" in text


@pytest.mark.weights
def test_smollm2_survives_its_own_metadata_and_the_hubs_files(smollm2_path: Path, tmp_path: Path) -> None:
    import transformers

    tokenizer = Tokenizer.from_gguf(read_gguf(smollm2_path)[1])
    texts = varied_texts(500, seed=5, special=SMOLLM2_SPECIAL)
    wanted = tokenizer(texts).input_ids
    metadata = to_gguf_metadata(tokenizer)
    original = read_gguf(smollm2_path)[1]
    for name in ("model", "pre", "tokens", "merges", "bos_token_id", "eos_token_id", "add_bos_token"):
        assert metadata[f"tokenizer.ggml.{name}"] == original[f"tokenizer.ggml.{name}"], name
    assert metadata["tokenizer.chat_template"] == original["tokenizer.chat_template"]
    assert Tokenizer.from_gguf(metadata)(texts).input_ids == wanted
    tokenizer.save(tmp_path)
    assert Tokenizer.from_folder(tmp_path)(texts).input_ids == wanted
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(texts)["input_ids"] == wanted


@pytest.mark.parametrize(
    "pre",
    [pytest.param(each, marks=[] if each.names[0] in COMMON else [pytest.mark.slow]) for each in PRE_TOKENIZERS],
    ids=lambda each: each.names[0],
)
def test_every_way_to_split_is_llama_cpps(pre: PreTokenizer, backends: dict[str, str], tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(backends["bpe"])
    backend.pre_tokenizer = pre.build(backend.get_vocab())
    model = backend.model
    model.ignore_merges = pre.ignore_merges
    backend.model = model
    tokenizer = Tokenizer(backend, special_tokens={"bos": "<|endoftext|>", "eos": "<|endoftext|>", "pad": "<pad>"})
    path = tiny_model(tokenizer, tmp_path / "model.gguf")
    metadata = read_gguf(path)[1]
    assert metadata["tokenizer.ggml.pre"] == pre.names[0]
    texts = varied_texts(400, special=("<|endoftext|>", "<pad>"))
    assert differing(Tokenizer.from_gguf(metadata), Judge(path), texts) == []


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_like_vocabularies_have_llama_cpps_ids(prefix: bool, tmp_path: Path) -> None:
    tokenizer = llama_like(prefix=prefix)
    path = tiny_model(tokenizer, tmp_path / "model.gguf")
    texts = varied_texts(1000, special=("<s>", "</s>", "<|user|>"))
    read = Tokenizer.from_gguf(read_gguf(path)[1])
    assert read.convert_tokens_to_ids("<|user|>") == tokenizer.convert_tokens_to_ids("<|user|>")
    assert differing(read, Judge(path), texts) == []
    assert read(texts).input_ids == tokenizer(texts).input_ids


def llama_like(*, prefix: bool = True) -> Tokenizer:
    """A vocabulary as SentencePiece's BPE makes it: bytes, characters, and pieces with ever lower scores."""
    pieces = [
        "▁",
        *"etaoinshrdlucmwfgypbvkxjqz日本語東京",
        "▁t",
        "he",
        "▁the",
        "in",
        "er",
        "▁▁",
        "▁▁▁▁",
        "東京",
        "日本",
        "日本語",
    ]
    pieces += ["▁th", "▁a", "▁an", "on", "▁on", "at", "is", "▁is", "an", "th", "ing"]
    pieces = list(dict.fromkeys(pieces))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
    backend = scored_pieces(tokens, scores, unknown="<unk>", prefix=prefix)
    tokenizer = Tokenizer(backend, special_tokens={"bos": "<s>", "eos": "</s>", "unk": "<unk>"})
    tokenizer.add_tokens(["<|user|>"], special_tokens=True)
    return tokenizer


def test_word_pieces_through_gguf(backends: dict[str, str]) -> None:
    roles = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
    tokenizer = Tokenizer(
        tokenizers.Tokenizer.from_str(backends["wordpiece"]), special_tokens=roles, token_type_ids=True
    )
    metadata = to_gguf_metadata(tokenizer)
    assert metadata["tokenizer.ggml.model"] == "bert"
    read = Tokenizer.from_gguf(metadata)
    texts = varied_texts(600)
    assert read(texts, texts[::-1]) == tokenizer(texts, texts[::-1])
    assert read.special_tokens_map == tokenizer.special_tokens_map


def test_llama_cpps_ids_of_english_word_pieces(backends: dict[str, str], tmp_path: Path) -> None:
    roles = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(backends["wordpiece"]), special_tokens=roles)
    path = tiny_model(tokenizer, tmp_path / "model.gguf")
    texts = [each for each in varied_texts(3000, special=("[MASK]", "[SEP]")) if each.isascii()]
    texts += ["naïve façade", "東京都に行きました。"]
    assert len(texts) > 200
    assert differing(Tokenizer.from_gguf(read_gguf(path)[1]), Judge(path), texts) == []


def test_more_rows_than_tokens_become_unused_ones() -> None:
    tokenizer = llama_like()
    metadata = to_gguf_metadata(tokenizer, vocab_size=len(tokenizer) + 3)
    assert len(metadata["tokenizer.ggml.tokens"]) == len(tokenizer) + 3
    assert metadata["tokenizer.ggml.token_type"][-3:] == [5, 5, 5]
    with pytest.raises(CheckpointError, match="do not fit"):
        to_gguf_metadata(tokenizer, vocab_size=10)


def test_what_llama_cpp_cannot_do_is_refused(backends: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match="Unigram"):
        to_gguf_metadata(Tokenizer(tokenizers.Tokenizer.from_str(backends["unigram"])))
    backend = tokenizers.Tokenizer.from_str(backends["bpe"])
    backend.normalizer = normalizers.Lowercase()
    with pytest.raises(CheckpointError, match="Lowercase"):
        to_gguf_metadata(Tokenizer(backend))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel()])
    with pytest.raises(CheckpointError, match="splits text"):
        to_gguf_metadata(Tokenizer(backend))


def test_the_hubs_spellings_of_a_split_are_known() -> None:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert name_of(level, ignore_merges=False) == "gpt-2"
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    assert name_of(digits, ignore_merges=False) == "smollm"
    assert name_of(pre_tokenizers.ByteLevel(add_prefix_space=True), ignore_merges=False) is None
    assert name_of(None, ignore_merges=False) is None
    assert len({name for each in PRE_TOKENIZERS for name in each.names}) == sum(len(e.names) for e in PRE_TOKENIZERS)


def small_metadata() -> dict[str, Any]:
    """Byte-level BPE of the 256 bytes, two merges and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*alphabet, "ab", "abc", "<|end|>"],
        "tokenizer.ggml.token_type": [1] * 258 + [3],
        "tokenizer.ggml.merges": ["a b", "ab c"],
        "tokenizer.ggml.eos_token_id": 258,
    }


def test_small_metadata_work() -> None:
    tokenizer = Tokenizer.from_gguf(small_metadata())
    assert tokenizer.tokenize("abcab<|end|>") == ["abc", "ab", "<|end|>"]
    assert len(tokenizer("<|end|>", split_special_tokens=True).input_ids) == 7
    assert tokenizer.encode("x") == tokenizer.encode("x", add_special_tokens=False)
    assert tokenizer.chat_template is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", None, "missing"),
        ("model", 3, "expected str"),
        ("model", "rwkv", "unknown kind"),
        ("pre", "gpt-3", "unknown pre-tokenizer"),
        ("pre", ["gpt-2"], "expected str"),
        ("tokens", None, "missing"),
        ("tokens", "abc", "expected a list"),
        ("tokens", [], "empty"),
        ("tokens", [1, 2], r"tokens\[0\]"),
        ("tokens", ["a", "b", "a"], "twice"),
        ("token_type", [1], "1 entries for 259 tokens"),
        ("token_type", ["x"] * 259, r"token_type\[0\]"),
        ("merges", None, "missing"),
        ("merges", ["a b", "ab"], r"merges\[1\]"),
        ("merges", ["a b", "b a"], "is no token"),
        ("merges", [1], r"merges\[0\]"),
        ("eos_token_id", "258", "whole number"),
        ("add_bos_token", 1, "expected bool"),
        ("add_bos_token", True, "no token is named"),
    ],
)
def test_lies_are_found_out(key: str, value: Any, message: str) -> None:
    metadata = small_metadata()
    metadata[f"tokenizer.ggml.{key}"] = value
    if value is None:
        del metadata[f"tokenizer.ggml.{key}"]
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer.from_gguf(metadata)
    assert "tokenizer.ggml." in str(caught.value)


def test_an_id_out_of_range_is_ignored_as_llama_cpp_does() -> None:
    metadata = small_metadata() | {"tokenizer.ggml.eos_token_id": 1 << 40}
    assert Tokenizer.from_gguf(metadata).eos_token is None


def test_a_chat_template_must_be_text() -> None:
    with pytest.raises(CheckpointError, match="chat_template"):
        Tokenizer.from_gguf(small_metadata() | {"tokenizer.chat_template": 5})
    named = small_metadata() | {"tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "b"}
    assert Tokenizer.from_gguf(named).chat_template == {"default": "a", "tool_use": "b"}
    assert to_gguf_metadata(Tokenizer.from_gguf(named)).items() >= {"tokenizer.chat_template.tool_use": "b"}.items()


def test_scores_are_checked() -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "▁a"],
        "tokenizer.ggml.scores": [0.0, 0.0],
    }
    with pytest.raises(CheckpointError, match="2 entries for 5 tokens"):
        Tokenizer.from_gguf(metadata)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(small_metadata())),
    json_values,
    st.sampled_from(["gpt2", "llama", "bert"]),
)
def test_any_value_is_read_or_refused(key: str, value: Any, model: str) -> None:
    metadata = small_metadata() | {"tokenizer.ggml.model": model, "tokenizer.ggml.scores": [0.0] * 259, key: value}
    try:
        tokenizer = Tokenizer.from_gguf(metadata)
    except CheckpointError:
        return
    assert tokenizer.decode(tokenizer.encode("abc")) is not None


def test_bytes_without_a_token_keep_their_neighbours_apart() -> None:
    metadata = small_metadata()
    gone = chr(ord("a") + 2)
    tokens = [each for each in metadata["tokenizer.ggml.tokens"] if each not in (gone, "abc")]
    metadata |= {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 1) + [3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.tokenize("acb ab") == ["a", "b", "Ġ", "ab"]
    assert to_gguf_metadata(tokenizer)["tokenizer.ggml.pre"] == "gpt-2"


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(CheckpointError, match="qwen2"):
        by_name("qwen-2")


def test_a_model_that_is_read_back_as_json_keeps_its_splits(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_gguf(small_metadata())
    tokenizer.save(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    assert state["truncation"] is None
    assert isinstance(Tokenizer.from_folder(tmp_path).backend.decoder, decoders.ByteLevel)
    assert isinstance(Tokenizer.from_folder(tmp_path).backend.model, models.BPE)
