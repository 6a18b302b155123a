"""Which files of a folder are read, what they say together, and how broken ones are named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.text.corpus import varied_texts

from tsumugu.core.errors import CheckpointError
from tsumugu.text.tokenizer import Tokenizer


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")


@pytest.fixture
def folder(tmp_path: Path, backends: dict[str, str]) -> Path:
    write(tmp_path, "tokenizer.json", backends["wordpiece"])
    return tmp_path


@pytest.mark.weights
def test_minilm(minilm_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(minilm_path)
    assert tokenizer.model_max_length == 256
    assert tokenizer.token_type_ids
    theirs = transformers.AutoTokenizer.from_pretrained(minilm_path)
    theirs.backend_tokenizer.no_padding()
    theirs.backend_tokenizer.no_truncation()
    texts = varied_texts(1000)
    assert tokenizer(texts).input_ids == theirs(texts)["input_ids"]
    found = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    wanted = theirs(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    assert all((found[key] == wanted[key]).all() for key in wanted)


def test_a_bare_tokenizer_json(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.cls_token == "[CLS]"
    assert tokenizer.token_type_ids
    assert tokenizer.model_max_length is None
    assert Tokenizer.from_folder(folder / "tokenizer.json").get_vocab() == tokenizer.get_vocab()


def test_what_the_files_say_together(folder: Path) -> None:
    config = {
        "pad_token": {"content": "[PAD]", "lstrip": False},
        "model_max_length": 512,
        "padding_side": "left",
        "truncation_side": "left",
        "tokenizer_class": "BertTokenizer",
        "chat_template": "old",
        "added_tokens_decoder": {"800": {"content": "<more>", "special": False, "normalized": False}},
        "something": [1],
    }
    size = len(Tokenizer.from_folder(folder))
    config["added_tokens_decoder"] = {str(size): config["added_tokens_decoder"]["800"]}  # type: ignore[index]
    write(folder, "tokenizer_config.json", config)
    write(folder, "special_tokens_map.json", {"mask_token": "[MASK]", "additional_special_tokens": ["<x>"]})
    write(folder, "chat_template.jinja", "new")
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.pad_token, tokenizer.mask_token) == ("[PAD]", "[MASK]")
    assert (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length) == ("left", "left", 512)
    assert tokenizer.chat_template == "new"
    assert tokenizer.convert_tokens_to_ids(["<more>", "<x>"]) == [size, size + 1]
    assert tokenizer.config["something"] == [1]
    write(folder, "sentence_bert_config.json", {"max_seq_length": 99})
    assert Tokenizer.from_folder(folder).model_max_length == 99
    write(folder, "tokenizer_config.json", config | {"model_max_length": int(1e30)})
    (folder / "sentence_bert_config.json").unlink()
    assert Tokenizer.from_folder(folder).model_max_length is None


def test_roles_from_the_models_config(tmp_path: Path, backends: dict[str, str]) -> None:
    write(tmp_path, "tokenizer.json", backends["bpe"])
    ids = {"eos_token_id": [0, 1], "bos_token_id": 0, "pad_token_id": 1}
    write(tmp_path, "config.json", {"model_type": "llama", **ids})
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token) == (0, 0, "<pad>")
    assert not tokenizer.token_type_ids
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("classic", [True, False])
def test_bos_and_eos_as_the_config_states(
    bos: bool, eos: bool, classic: bool, tmp_path: Path, backends: dict[str, str]
) -> None:
    """A tokenizer.json says itself what is put around a text; classic files leave it to the flags."""
    tokenizers.Tokenizer.from_str(backends["bpe"]).model.save(str(tmp_path))
    if not classic:
        write(tmp_path, "tokenizer.json", backends["bpe"])
    config = {"bos_token": "<|endoftext|>", "eos_token": "<pad>", "tokenizer_class": "GPT2Tokenizer"}
    write(tmp_path, "tokenizer_config.json", {**config, "add_bos_token": bos, "add_eos_token": eos})
    tokenizer = Tokenizer.from_folder(tmp_path)
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    for arguments in (("a b",), ("a b", "c")):
        assert tokenizer(*arguments).input_ids == theirs(*arguments)["input_ids"]
    assert (tokenizer.encode("a")[0] == 0, tokenizer.encode("a")[-1] == 1) == (bos and classic, eos and classic)


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("strip", [True, False, None])
@pytest.mark.parametrize("chinese", [True, False])
def test_vocab_txt(lower: bool, strip: bool | None, chinese: bool, tmp_path: Path) -> None:
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyzé東京都A",
        "##e",
        "##京",
        "##é",
        "東京",
    ]
    write(tmp_path, "vocab.txt", "\n".join(pieces) + "\n")
    config = {"do_lower_case": lower, "strip_accents": strip, "tokenize_chinese_chars": chinese}
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **config})
    tokenizer = Tokenizer.from_folder(tmp_path)
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    texts = [*varied_texts(300), "ée É Ae 東京都 [MASK] e"]
    assert tokenizer(texts, texts[::-1]) == dict(theirs(texts, texts[::-1]))


@pytest.mark.parametrize(
    ("family", "prefix"), [("roberta", False), ("roberta", True), ("gpt2", False), ("qwen2", False)]
)
def test_vocab_json_and_merges(family: str, prefix: bool, tmp_path: Path, backends: dict[str, str]) -> None:
    tokenizers.Tokenizer.from_str(backends["bpe"]).model.save(str(tmp_path))
    special = ["<s>", "</s>", "<unk>", "<mask>"]
    vocab = json.loads((tmp_path / "vocab.json").read_text("utf-8"))
    vocab |= {each: len(vocab) + i for i, each in enumerate(special)}
    write(tmp_path, "vocab.json", vocab)
    write(tmp_path, "config.json", {"model_type": family})
    write(tmp_path, "tokenizer_config.json", {"add_prefix_space": prefix})
    classes = {
        "roberta": transformers.RobertaTokenizer,
        "gpt2": transformers.GPT2Tokenizer,
        "qwen2": transformers.Qwen2Tokenizer,
    }
    # The mask takes the space before it along, as in RoBERTa's own vocabulary; the reference must be told.
    mask = {"mask_token": tokenizers.AddedToken("<mask>", lstrip=True, special=True)} if family == "roberta" else {}
    theirs = classes[family].from_pretrained(tmp_path, **mask)
    tokenizer = Tokenizer.from_folder(tmp_path)
    texts = [*varied_texts(500), "a <mask> b", "don't I'LL"]
    assert tokenizer(texts).input_ids == theirs(texts)["input_ids"]
    assert tokenizer(texts, texts[::-1]).input_ids == theirs(texts, texts[::-1])["input_ids"]
    assert "token_type_ids" not in tokenizer("a")
    if family == "roberta":
        assert tokenizer.special_tokens_map == dict(theirs.special_tokens_map)


def test_several_chat_templates(folder: Path) -> None:
    listed = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    write(folder, "tokenizer_config.json", {"chat_template": listed})
    assert Tokenizer.from_folder(folder).chat_template == {"default": "a", "tool_use": "b"}
    (folder / "tokenizer_config.json").unlink()
    write(folder, "chat_template.json", {"chat_template": "c"})
    assert Tokenizer.from_folder(folder).chat_template == "c"
    (folder / "additional_chat_templates").mkdir()
    write(folder / "additional_chat_templates", "rag.jinja", "d")
    assert Tokenizer.from_folder(folder).chat_template == {"default": "c", "rag": "d"}


def test_a_name_that_leaves_the_folder_is_not_written(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    tokenizer.chat_template = {"../../evil": "x"}
    with pytest.raises(CheckpointError, match="no name for a chat template"):
        tokenizer.save(folder / "saved")


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer here; expected tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        Tokenizer.from_folder(tmp_path / "nowhere")
    write(tmp_path, "vocab.json", {"a": 0})
    with pytest.raises(CheckpointError, match=r"merges\.txt is missing"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": "{"}, r"tokenizer\.json: not a tokenizer"),
        ({"tokenizer.json": "[]"}, r"tokenizer\.json: not a tokenizer"),
        ({"tokenizer.json": '{"model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}'}, "not a tokenizer"),
        ({"vocab.txt": "a\nb\n"}, r"vocab\.txt.*no '\[UNK\]'"),
        ({"vocab.txt": "[UNK]\n", "tokenizer_config.json": "[1]"}, r"tokenizer_config\.json: expected a JSON object"),
        ({"vocab.txt": "[UNK]\n", "tokenizer_config.json": "{"}, r"tokenizer_config\.json: not valid JSON"),
        ({"vocab.txt": "[UNK]\n", "tokenizer_config.json": "[" * 99999}, "not valid JSON"),
        ({"vocab.json": '{"a": -1}', "merges.txt": ""}, "-1 is no id"),
        (
            {"vocab.json": '{"a": 0}', "merges.txt": "#version: 0.2\na a a\n"},
            r"merges\.txt, line 2: expected two tokens",
        ),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a b\n"}, "do not fit"),
        ({"vocab.json": '{"a": "0"}', "merges.txt": ""}, "'0' is no id"),
    ],
)
def test_broken_files_are_named(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        write(tmp_path, name, text)
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"[UNK]\ncaf\xe9\n")
    with pytest.raises(CheckpointError, match=r"not UTF-8 \(byte 9\)"):
        Tokenizer.from_folder(tmp_path)


def test_an_added_token_at_a_wrong_id(folder: Path) -> None:
    write(folder, "added_tokens.json", {"<late>": 5000})
    with pytest.raises(CheckpointError, match="'<late>' should have id 5000"):
        Tokenizer.from_folder(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    at=st.floats(0, 1),
    width=st.integers(0, 40),
    damage=st.sampled_from(["", '"', "{", "]", "null", "-1", "é", "99999999999"]),
)
def test_any_damage_is_found_or_harmless(
    at: float, width: int, damage: str, folder: Path, backends: dict[str, str]
) -> None:
    text = backends["wordpiece"]
    start = int(at * len(text))
    write(folder, "tokenizer.json", text[:start] + damage + text[start + width :])
    where: str | None = str(folder / "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_folder(folder)
        tokenizer.decode(tokenizer.encode("some words"))
    except CheckpointError as error:
        where = error.where
    assert where == str(folder / "tokenizer.json")


def test_a_disk_that_takes_no_more_leaves_no_half_file(folder: Path) -> None:
    code = (
        "import resource, sys\n"
        "from tsumugu.text.tokenizer import Tokenizer\n"
        "tokenizer = Tokenizer.from_folder(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "try:\n"
        "    tokenizer.save(sys.argv[2])\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
    )
    (folder / "saved").mkdir()
    write(folder / "saved", "tokenizer.json", "what was there")
    command = [sys.executable, "-c", code, str(folder), str(folder / "saved")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "File too large\n"
    assert [each.name for each in (folder / "saved").iterdir()] == ["tokenizer.json"]
    assert (folder / "saved" / "tokenizer.json").read_text() == "what was there"


def test_saving_twice_gives_the_same_bytes(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    first = {each.name: each.read_bytes() for each in tokenizer.save(folder / "one")}
    again = Tokenizer.from_folder(folder / "one").save(folder / "one")
    assert {each.name: each.read_bytes() for each in again} == first
    assert sorted(each.name for each in (folder / "one").iterdir()) == sorted(first)
