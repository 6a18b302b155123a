"""A checkpoint folder's tokenizer files: which are read, what they say together, and how they are written back.

The first of these that is there is read: tokenizer.json; a SentencePiece model; vocab.json + merges.txt;
vocab.txt. What surrounds it (tokenizer_config.json, special_tokens_map.json, added_tokens.json, chat templates,
sentence_bert_config.json) is optional everywhere.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken, models

from tsumugu.core.errors import CheckpointError
from tsumugu.text import vocabulary
from tsumugu.text.files import read_json, read_text, write_bytes, write_json, write_text
from tsumugu.text.japanese_bert import read_japanese
from tsumugu.text.japanese_config import is_japanese
from tsumugu.text.special import ROLES
from tsumugu.text.template import bos_eos

if TYPE_CHECKING:
    from tsumugu.text.tokenizer import Tokenizer

_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model", "sentencepiece.model")
_WITH_TYPE_IDS = [
    "albert",
    "bert",
    "bertjapanese",
    "big_bird",
    "convbert",
    "deberta",
    "electra",
    "ernie",
    "fnet",
    "funnel",
    "layoutlm",
    "lxmert",
    "megatron",
    "mobilebert",
    "nezha",
    "rembert",
    "roformer",
    "squeezebert",
    "tapas",
    "xlnet",
]
_LEFT_PADDED = ("llama", "codellama", "gemma", "xlnet", "cohere")
_CONFIG_KEYS_OF_OURS = {
    "chat_template",
    "added_tokens_decoder",
    "model_max_length",
    "padding_side",
    "truncation_side",
    "clean_up_tokenization_spaces",
    "model_input_names",
    "additional_special_tokens",
    "extra_special_tokens",
    "tokenizer_file",
    "name_or_path",
    "special_tokens_map_file",
    "spm_file",
    "vocab_file",
    *(f"{role}_token" for role in ROLES),
}


def read_folder(path: Path) -> dict[str, Any]:
    """The arguments of `Tokenizer` for a folder, or for one tokenizer file in a folder.

    Raises:
        CheckpointError: nothing to read, or a file is broken.
    """
    folder, chosen = (path, None) if path.is_dir() else (path.parent, path)
    if chosen is not None and not chosen.is_file():
        raise CheckpointError("no such file or folder", where=str(path))
    config = read_json(folder / "tokenizer_config.json")
    model_config = read_json(folder / "config.json")
    kind = _kind(config, model_config)
    tokens = _special_tokens(folder, config)
    japanese = None
    if is_japanese(config, model_config):
        backend, found, japanese = read_japanese(folder, tokens, config)
    else:
        backend, found = _read_backend(folder, chosen, kind, tokens, config)
    _add_tokens(backend, folder, config)
    tokens = {**found, **tokens} or _by_id(backend, model_config) or _by_name(backend)
    sentence = read_json(folder / "sentence_bert_config.json")
    length = sentence.get("max_seq_length") or config.get("model_max_length")
    return {
        "backend": backend,
        "special_tokens": tokens,
        "additional_special_tokens": _additional(folder, config),
        "model_max_length": int(length) if isinstance(length, int | float) and 0 < length < 1 << 31 else None,
        "padding_side": config.get("padding_side") or ("left" if kind.startswith(_LEFT_PADDED) else "right"),
        "truncation_side": config.get("truncation_side") or "right",
        "chat_template": _chat_template(folder, config),
        "token_type_ids": _uses_type_ids(backend, config, kind),
        "clean_up_tokenization_spaces": bool(config.get("clean_up_tokenization_spaces", False)),
        "config": {key: value for key, value in config.items() if key not in _CONFIG_KEYS_OF_OURS},
        "japanese": japanese,
    }


def _kind(config: Mapping[str, Any], model_config: Mapping[str, Any]) -> str:
    """What the files call the tokenizer: "bert", "roberta", "llama"… from its class or the model's type."""
    name = str(config.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer").lower()
    return name if name and name != "pretrained" else str(model_config.get("model_type") or "").lower()


def _read_backend(
    folder: Path, chosen: Path | None, kind: str, tokens: Mapping[str, str], config: Mapping[str, Any]
) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The backend, and the special tokens that the format itself names."""

    def there(*names: str) -> Path | None:
        if (
            chosen is not None
            and chosen.name != names[0]
            and not (chosen.suffix == ".model" and names is _SENTENCEPIECE)
        ):
            return None
        candidates = [chosen] if chosen is not None else [folder / name for name in names]
        return next((each for each in candidates if each is not None and each.is_file()), None)

    if path := there("tokenizer.json"):
        return _read_tokenizer_json(path), {}
    if path := there(*_SENTENCEPIECE) or (chosen if chosen is not None and chosen.suffix == ".model" else None):
        from tsumugu.text.sentencepiece import read_sentencepiece

        return read_sentencepiece(path, kind, tokens, config)
    if path := there("vocab.json"):
        style = (
            "roberta" if kind in ("roberta", "longformer", "led", "bart") else "qwen2" if kind == "qwen2" else "gpt2"
        )
        defaults = {
            "roberta": vocabulary.ROBERTA_TOKENS,
            "gpt2": vocabulary.GPT2_TOKENS,
            "qwen2": vocabulary.QWEN2_TOKENS,
        }[style]
        merges = path.with_name("merges.txt")
        if not merges.is_file():
            raise CheckpointError("merges.txt is missing beside vocab.json", where=str(folder))
        named = {**defaults, **tokens}
        backend = vocabulary.read_byte_pairs(path, merges, style, named, config)
        used = [role for role in ("bos", "eos") if config.get(f"add_{role}_token") is True and role in named]
        if used and style != "roberta":
            backend.post_processor = bos_eos(backend, named, used)
        return backend, named
    if path := there("vocab.txt"):
        named = {**vocabulary.BERT_TOKENS, **tokens}
        return vocabulary.read_word_pieces(path, named, config), named
    raise CheckpointError(
        "no tokenizer here",
        where=str(chosen or folder),
        mend="expected tokenizer.json, a SentencePiece .model, vocab.json with merges.txt, or vocab.txt",
    )


def _read_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    text = read_text(path)
    try:
        return tokenizers.Tokenizer.from_str(text)
    except BaseException as error:  # the library raises plain Exception, and panics on some broken files
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise CheckpointError(f"not a tokenizer ({error})", where=str(path), mend="fetch the file again") from None


def _content(value: Any) -> str | None:
    value = value.get("content") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) else None


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    listed = read_json(folder / "special_tokens_map.json")
    found = {}
    for role in ROLES:
        token = _content(config.get(f"{role}_token", listed.get(f"{role}_token")))
        if token is not None:
            found[role] = token
    return found


def _additional(folder: Path, config: Mapping[str, Any]) -> list[str]:
    listed = read_json(folder / "special_tokens_map.json")
    values: list[Any] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(key, listed.get(key))
        values += value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else []
    return [each for each in map(_content, values) if each is not None]


def _by_id(backend: tokenizers.Tokenizer, model_config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens from the ids in the model's config."""
    found = {}
    for role in ("bos", "eos", "pad", "unk"):
        value = model_config.get(f"{role}_token_id")
        value = value[0] if isinstance(value, list) and value else value
        token = backend.id_to_token(value) if isinstance(value, int) and 0 <= value < 1 << 31 else None
        if token is not None:
            found[role] = token
    return {**found, **_by_name(backend)} if found else {}


def _by_name(backend: tokenizers.Tokenizer) -> dict[str, str]:
    """BERT's special tokens, where a WordPiece vocabulary has them."""
    if not isinstance(backend.model, models.WordPiece):
        return {}
    return {role: each for role, each in vocabulary.BERT_TOKENS.items() if backend.token_to_id(each) is not None}


def _add_tokens(backend: tokenizers.Tokenizer, folder: Path, config: Mapping[str, Any]) -> None:
    """Tokens that were added after training, at the ids that the files give them."""
    wanted: dict[int, AddedToken] = {}
    for token, index in read_json(folder / "added_tokens.json").items():
        if isinstance(index, int):
            wanted[index] = AddedToken(token)
    listed = config.get("added_tokens_decoder")
    for index, entry in listed.items() if isinstance(listed, Mapping) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("content"), str) and str(index).isdecimal():
            names = ("lstrip", "rstrip", "single_word", "normalized", "special")
            flags = {name: bool(entry[name]) for name in names if name in entry}
            wanted[int(index)] = AddedToken(entry["content"], **flags)
    known = {each.content for each in backend.get_added_tokens_decoder().values()}
    for number, added in sorted(wanted.items()):
        if added.content in known:
            continue
        backend.add_special_tokens([added]) if added.special else backend.add_tokens([added])
        index = backend.token_to_id(added.content)
        if index != number:
            raise CheckpointError(
                f"the added token {added.content!r} should have id {number}, but the next free id is {index}",
                where=str(folder),
                mend="vocabulary and tokenizer_config.json do not belong together",
            )


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | dict[str, str] | None:
    named: dict[str, str] = {}
    value = config.get("chat_template")
    if value is None:
        value = read_json(folder / "chat_template.json").get("chat_template")
    if (path := folder / "chat_template.jinja").is_file():
        value = read_text(path)
    if isinstance(value, list):
        for each in value:
            if (
                isinstance(each, Mapping)
                and isinstance(each.get("name"), str)
                and isinstance(each.get("template"), str)
            ):
                named[each["name"]] = each["template"]
    elif isinstance(value, Mapping):
        named = {str(name): each for name, each in value.items() if isinstance(each, str)}
    elif isinstance(value, str):
        named["default"] = value
    more = folder / "additional_chat_templates"
    for path in sorted(more.glob("*.jinja")) if more.is_dir() else ():
        named[path.stem] = read_text(path)
    return named["default"] if list(named) == ["default"] else named or None


def _uses_type_ids(backend: tokenizers.Tokenizer, config: Mapping[str, Any], kind: str) -> bool:
    names = config.get("model_input_names")
    if isinstance(names, list):
        return "token_type_ids" in names
    if kind:
        return kind in _WITH_TYPE_IDS
    return isinstance(backend.model, models.WordPiece)


def write_folder(tokenizer: Tokenizer, folder: Path) -> list[Path]:
    """Write a tokenizer's files; see `Tokenizer.save`. Each file is written whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = tokenizer.backend
    japanese = tokenizer.japanese
    # No tokenizer.json says how MeCab is asked: whoever read one would get other ids.
    written = [] if japanese is not None else [write_text(folder / "tokenizer.json", backend.to_str(pretty=True))]
    added = backend.get_added_tokens_decoder()
    base = backend.get_vocab(with_added_tokens=False)
    special = dict(tokenizer.special_tokens_map)
    config: dict[str, Any] = {
        **tokenizer.config,
        "added_tokens_decoder": {
            str(i): {
                "content": each.content,
                "lstrip": each.lstrip,
                "normalized": each.normalized,
                "rstrip": each.rstrip,
                "single_word": each.single_word,
                "special": each.special,
            }
            for i, each in sorted(added.items())
        },
        "clean_up_tokenization_spaces": tokenizer.clean_up_tokenization_spaces,
        "model_input_names": ["input_ids", *(["token_type_ids"] if tokenizer.token_type_ids else []), "attention_mask"],
        "model_max_length": tokenizer.model_max_length or int(1e30),
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        **special,
        **({} if japanese is None else japanese.config.to_dict()),
    }
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    if tokenizer.additional_special_tokens:
        config["additional_special_tokens"] = tokenizer.additional_special_tokens
    written.append(write_json(folder / "tokenizer_config.json", dict(sorted(config.items()))))
    if tokenizer.additional_special_tokens:
        special["additional_special_tokens"] = tokenizer.additional_special_tokens  # type: ignore[assignment]
    written.append(write_json(folder / "special_tokens_map.json", special))
    outside = {each.content: i for i, each in sorted(added.items()) if each.content not in base}
    if outside:
        written.append(write_json(folder / "added_tokens.json", outside))
    if japanese is not None and japanese.sentencepiece is not None:
        written.append(write_bytes(folder / "spiece.model", japanese.sentencepiece))
    return written + _write_chat_templates(tokenizer, folder) + _write_classic(backend, folder)


def _write_chat_templates(tokenizer: Tokenizer, folder: Path) -> list[Path]:
    template = tokenizer.chat_template
    named = {"default": template} if isinstance(template, str) else template or {}
    written = []
    for name, text in named.items():
        if name == "default":
            written.append(write_text(folder / "chat_template.jinja", text))
        elif name.replace("_", "").replace("-", "").isalnum():
            (folder / "additional_chat_templates").mkdir(exist_ok=True)
            written.append(write_text(folder / "additional_chat_templates" / f"{name}.jinja", text))
        else:
            raise CheckpointError(f"{name!r} is no name for a chat template", where="chat_template")
    return written


def _write_classic(backend: tokenizers.Tokenizer, folder: Path) -> list[Path]:
    """vocab.txt, or vocab.json and merges.txt, where these say all there is to say."""
    byte_level = isinstance(backend.model, models.BPE) and '"ByteLevel"' in json.dumps(
        json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else None
    )
    if not byte_level and not isinstance(backend.model, models.WordPiece):
        return []
    with tempfile.TemporaryDirectory() as scratch:
        names = [Path(each).name for each in backend.model.save(scratch)]
        return [write_text(folder / name, (Path(scratch) / name).read_bytes().decode()) for name in names]
