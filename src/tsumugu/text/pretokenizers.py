"""How byte-level BPE vocabularies in GGUF files split text before merging: the names in ``tokenizer.ggml.pre``.

A text is split by the first pattern, the pieces by the second, and so on; what a pattern matches and what lies
between matches become pieces.

Source: ggml-org/llama.cpp, src/llama-vocab.cpp (names, patterns, defaults of each name).
"""

from __future__ import annotations

import json
import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, pre_tokenizers

from tsumugu.core.errors import CheckpointError, did_you_mean
from tsumugu.text.stream import byte_alphabet

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_SHORT_FORMS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_SHORT_FORMS}|{_WORD}|\p{{N}}{{1,3}}|{_MARKS}"
_QWEN2 = rf"{_SHORT_FORMS}|{_WORD}|\p{{N}}|{_MARKS}"
_QWEN35 = (
    rf"{_SHORT_FORMS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER = r"(?:(?=\p{L})[^a-z])"
_LOWER = r"(?:(?=\p{L})[^A-Z])"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{{}}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{{}}".replace(
    "{}", "@"
)
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PreTokenizer:
    """One way to split.

    Args:
        names: what ``tokenizer.ggml.pre`` may say; the first is written.
        patterns: applied one after the other.
        ignore_merges: a piece that is a token stays whole, whatever the merges say.
        add_bos: whether bos is put in front unless the file says otherwise.
    """

    names: tuple[str, ...]
    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False

    def build(self, vocab: Container[str]) -> Any:
        """The backend's pre-tokenizer.

        Bytes that `vocab` lacks (SmolLM2's lacks 21) are left out, and what stands on their two sides is not
        merged.
        """
        steps: list[Any] = [pre_tokenizers.Split(Regex(each), "isolated") for each in self.patterns]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        missing = "".join(re.escape(each) for each in byte_alphabet().values() if each not in vocab)
        if missing:
            steps.append(pre_tokenizers.Split(Regex(f"[{missing}]"), "removed"))
        return pre_tokenizers.Sequence(steps)


PRE_TOKENIZERS = (
    PreTokenizer(
        (
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "exaone4",
            "granite-docling",
        ),
        (_GPT2,),
    ),
    PreTokenizer(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
        (r"\p{N}", _GPT2),
    ),
    PreTokenizer(
        (
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ),
        (_LLAMA3,),
        ignore_merges=True,
        add_bos=True,
    ),
    PreTokenizer(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), (_LLAMA3,)),
    PreTokenizer(
        (
            "qwen2",
            "stablelm2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "hunyuan",
            "solar-open",
            "grok-2",
        ),
        (_QWEN2,),
    ),
    PreTokenizer(("qwen35",), (_QWEN35,)),
    PreTokenizer(("falcon",), (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    PreTokenizer(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
        (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK3),
    ),
    PreTokenizer(
        ("deepseek-coder",), ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"(?:(?!\s)[一-龥ࠀ-一가-\ud7ff])+", r"\p{N}")
    ),
    PreTokenizer(
        ("tekken",),
        (rf"{_CASED.replace('@', '')}|\p{{N}}|{_SLASHED}",),
        ignore_merges=True,
        add_bos=True,
    ),
    PreTokenizer(
        ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
        (rf"{_CASED.replace('@', _SHORT_FORMS + '?')}|\p{{N}}{{1,3}}|{_SLASHED}",),
    ),
    PreTokenizer(("default",), (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
)

# The same splits as tokenizer.json files of the Hub write them.
_CASE_BLIND = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ELSEWHERE = {
    (f"{_GPT2}|\\s+",): "gpt-2",
    (r"\p{N}", f"{_GPT2}|\\s+"): "smollm",
    (_LLAMA3.replace(_SHORT_FORMS, _CASE_BLIND),): "llama-bpe",
    (_QWEN2.replace(_SHORT_FORMS, _CASE_BLIND),): "qwen2",
}


def by_name(name: str) -> PreTokenizer:
    """The splitting that GGUF files call `name`.

    Raises:
        CheckpointError: the name is unknown; guessing would give wrong ids silently.
    """
    for each in PRE_TOKENIZERS:
        if name in each.names:
            return each
    known = [name for each in PRE_TOKENIZERS for name in each.names]
    raise CheckpointError(f"unknown pre-tokenizer {name!r}", where="tokenizer.ggml.pre", mend=did_you_mean(name, known))


def name_of(pre_tokenizer: Any, *, ignore_merges: bool) -> str | None:
    """The GGUF name of a backend's pre-tokenizer, or None when there is none."""
    if pre_tokenizer is None:
        return None
    patterns = _patterns(json.loads(pre_tokenizer.__getstate__()))
    if patterns is None:
        return None
    for each in PRE_TOKENIZERS:
        if each.patterns == patterns and each.ignore_merges == ignore_merges:
            return each.names[0]
    name = _ELSEWHERE.get(patterns)
    if name == "llama-bpe" and not ignore_merges:
        return "dbrx"
    return name if name is None or by_name(name).ignore_merges == ignore_merges else None


def _patterns(state: dict[str, Any]) -> tuple[str, ...] | None:
    """The chain of patterns that a byte-level pre-tokenizer splits by; None if it does something else as well."""
    parts = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    if parts[-1]["type"] == "Split" and parts[-1]["behavior"] == "Removed":
        parts = parts[:-1]
    found: list[str] = []
    for i, part in enumerate(parts):
        if part["type"] == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
            found.append(part["pattern"].get("Regex", ""))
        elif part["type"] == "Digits" and part["individual_digits"]:
            found.append(r"\p{N}")
        elif part["type"] == "ByteLevel" and not part["add_prefix_space"] and i == len(parts) - 1:
            return (*found, f"{_GPT2}|\\s+") if part["use_regex"] else tuple(found)
        else:
            return None
    return None
