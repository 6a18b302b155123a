"""Training a tokenizer: texts in, a `Tokenizer` out that needs nothing but its own files.

Texts are read once, normalised, and laid aside in a temporary file; a process of its own trains on it (`trainer`).
What MeCab finds decides in training where no token may reach across; the tokenizer itself never asks MeCab.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from tsumugu.core.errors import InputError, TsumuguError, did_you_mean
from tsumugu.text import japanese
from tsumugu.text.japanese_bert import Japanese
from tsumugu.text.japanese_config import JapaneseConfig
from tsumugu.text.layouts import KINDS, LAYOUTS, Kind, Layout, add_tokens, frame
from tsumugu.text.pieces import SPACE, decode_spaces, escape_spaces
from tsumugu.text.pretokenizers import by_name
from tsumugu.text.tokenizer import Tokenizer
from tsumugu.text.trainer import BOUNDARY

LANGUAGES = ("auto", "en", "ja")
SEGMENTS = ("none", "mecab", "mecab-always")
Progress = Callable[[str, int], None]

_LOOKED_AT = 1 << 20  # characters, to tell the language
_LONGEST = 1 << 14  # characters that are handed to a trainer at once
_JAPANESE_FROM = 0.1  # of the letters
_RESERVED = re.compile("[\0\t\u2585\x1f]+")  # SentencePiece skips a line that has one


def train_tokenizer(
    texts: Iterable[str],
    *,
    family: str,
    vocab_size: int,
    kind: str | None = None,
    language: str = "auto",
    segment: str = "none",
    dictionary: str = "unidic-lite",
    lowercase: bool = False,
    nfkc: bool = False,
    min_frequency: int | None = None,
    character_coverage: float | None = None,
    special_tokens: Sequence[str] = (),
    max_lines: int = 5_000_000,
    progress: Progress | None = None,
) -> Tokenizer:
    """Train a tokenizer. The same texts in the same order give the same tokenizer.

    Args:
        texts: any number of texts; they are read once and kept on the disk, not in memory.
        family: whose special tokens and frame it has: bert, roberta, gpt2, llama or t5.
        vocab_size: tokens in all, special ones included; fewer when the texts hold no more.
        kind: "bpe" (on bytes), "wordpiece" (not for families that write text), "unigram", or "character" (each is a
            token, rare ones are bytes); the family's own when left out.
        language: "ja" puts no space before a text and keeps sound marks when lowercasing; "auto" takes it where one
            letter in ten, of the first million characters, is kana or kanji.
        segment: "mecab": in training, no token reaches across the words that MeCab finds. "mecab-always": the
            tokenizer asks MeCab whenever it runs, too, as those of the Japanese BERT models do (WordPiece for BERT;
            texts are then always in NFKC). "none": MeCab is not asked.
        dictionary: MeCab's: "unidic-lite", "ipadic" or "unidic".
        nfkc: write half-width and full-width forms as one.
        min_frequency: how often a pair of pieces must occur to be merged (2); Unigram has no such number.
        character_coverage: how much of the texts the alphabet covers (0.9995). Rarer characters are written in bytes,
            or by WordPiece as the unknown token. BPE, which begins with bytes, has no such number.
        special_tokens: further ones, after the family's.
        max_lines: Unigram holds its texts in memory: of more lines than this, every n-th is taken.
        progress: is told "reading" with the number of texts so far, then "training" with the number of texts.

    Raises:
        InputError: there are no texts, an argument is out of range, or `vocab_size` is too small.
        MissingExtraError: MeCab, its dictionary or SentencePiece is needed and not installed.
    """
    layout = LAYOUTS.get(family)
    if layout is None:
        raise InputError(f"unknown family {family!r}", where="family", mend=did_you_mean(family, LAYOUTS))
    kind = _kind(kind, family, layout)
    _legal(language, LANGUAGES, "language")
    _legal(segment, SEGMENTS, "segment")
    always = segment == "mecab-always"
    if always and (family, kind) != ("bert", "wordpiece"):
        what = f"{kind} for {family} cannot ask MeCab whenever it runs"
        raise InputError(what, where="segment", mend="choose bert and wordpiece, or mecab")
    if min_frequency is not None and kind == "unigram":
        raise InputError("unigram weighs all pieces, frequent or not", where="min_frequency", mend="leave it out")
    if min_frequency is not None and min_frequency < 1:
        raise InputError(f"{min_frequency} is less than 1", where="min_frequency")
    if character_coverage is not None and (kind == "bpe" or not 0 < character_coverage <= 1):
        what = "bpe begins with bytes, and covers every character" if kind == "bpe" else "it lies above 0, up to 1"
        raise InputError(what, where="character_coverage", mend="leave it out")
    first, last = list(dict.fromkeys([*layout.first(kind), *special_tokens])), layout.last()
    least = len(first) + len(last) + (0 if kind == "wordpiece" else 256) + (3 if kind == "unigram" else 1)
    if vocab_size < least:
        said = f"{vocab_size} tokens are too few for {len(first) + len(last)} special tokens"
        said += "" if kind == "wordpiece" else " and 256 bytes"
        raise InputError(said, where="vocab_size", mend=f"ask for at least {least}, better some thousands")
    segmenter = None if segment == "none" else japanese.MecabWords(dictionary)
    language, texts = _language(language, texts)
    prefix = kind == "unigram" and language != "ja"
    backend = _backend(kind, family, japanese_texts=language == "ja", lowercase=lowercase, nfkc=nfkc or always)
    if always:
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # a word of MeCab's may hold a punctuation mark
    cleaning = backend.normalizer
    if kind == "unigram":
        spaces = escape_spaces(prefix=prefix)
        backend.normalizer = spaces if cleaning is None else normalizers.Sequence([cleaning, spaces])
    with tempfile.TemporaryDirectory(prefix="tsumugu-") as scratch:
        feed = Path(scratch) / "texts.jsonl"
        count, lines = _lay_aside(feed, texts, cleaning, kind, segmenter, progress)
        if progress is not None:
            progress("training", count)
        settings = {
            "kind": kind,
            "vocab_size": vocab_size - len(last),
            "asked": vocab_size,
            "special_tokens": first,
            "min_frequency": 2 if min_frequency is None else min_frequency,
            "character_coverage": 0.9995 if character_coverage is None else character_coverage,
            "pre_tokenizer": json.loads(backend.to_str())["pre_tokenizer"],
            "lines": lines,
            "max_lines": max_lines,
            "prefix": prefix,
            "seeds": segmenter is not None,
        }
        found = _in_a_process(Path(scratch), feed, settings)
    backend.model = _model(kind, family, found, first, last)
    if always:
        vocabulary = tokenizers.Tokenizer(backend.model)
        vocabulary.decoder = decoders.WordPiece(prefix="##", cleanup=False)
        backend = vocabulary
    elif kind == "wordpiece" and language == "ja":
        backend.pre_tokenizer = _apart_from_unknown(backend.pre_tokenizer, found["vocab"])
    add_tokens(backend, layout, kind, list(special_tokens))
    processor = frame(backend, layout, kind)
    if processor is not None:
        backend.post_processor = processor
    return Tokenizer(
        backend,
        special_tokens=layout.named(kind),
        additional_special_tokens=[*special_tokens, *reversed(last)],
        token_type_ids=family == "bert",
        padding_side="left" if family in ("gpt2", "llama") else "right",
        japanese=Japanese(JapaneseConfig(words="mecab", lowercase=lowercase, dictionary=dictionary))
        if always
        else None,
    )


def _kind(kind: str | None, family: str, layout: Layout) -> Kind:
    if kind is None:
        return layout.kinds[0]
    _legal(kind, KINDS, "kind")
    for each in layout.kinds:
        if each == kind:
            return each
    said = f"{kind} does not keep spaces, and {family} writes text"
    raise InputError(said, where="kind", mend=f"choose {' or '.join(layout.kinds)}")


def _legal(word: str, known: Sequence[str], where: str) -> None:
    if word not in known:
        raise InputError(f"unknown {where} {word!r}", where=where, mend=did_you_mean(word, known))


def _language(language: str, texts: Iterable[str]) -> tuple[str, Iterable[str]]:
    """The language, and the texts with those that were looked at."""
    if isinstance(texts, str):
        raise InputError("one text is no collection of texts", where="texts", mend="put it in a list")
    if language != "auto":
        return language, texts
    rest, seen, size = iter(texts), list[str](), 0
    for text in rest:
        seen.append(text)
        size += len(text) if isinstance(text, str) else 0
        if size >= _LOOKED_AT:
            break
    share = japanese.japanese_share(each[:_LOOKED_AT] for each in seen if isinstance(each, str))
    return ("ja" if share >= _JAPANESE_FROM else "en"), itertools.chain(seen, rest)


# --- what is done to a text before its tokens are looked for


def _backend(kind: Kind, family: str, *, japanese_texts: bool, lowercase: bool, nfkc: bool) -> tokenizers.Tokenizer:
    """A backend without a vocabulary: normalizer, pre-tokenizer, decoder."""
    empty: Any = models.WordPiece() if kind == "wordpiece" else models.Unigram() if kind == "unigram" else models.BPE()
    backend = tokenizers.Tokenizer(empty)
    steps: list[Any] = [normalizers.NFKC()] if nfkc else []
    if kind == "wordpiece":
        # Without accents means, in Japanese, without the marks that tell が from か.
        accents = False if japanese_texts else None
        steps.append(
            normalizers.BertNormalizer(
                lowercase=lowercase, strip_accents=accents, handle_chinese_chars=not japanese_texts
            )
        )
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece(prefix="##")
    elif lowercase:
        steps.append(normalizers.Lowercase())
    if kind == "bpe":
        backend.pre_tokenizer = _byte_splitter(family)
        backend.decoder = decoders.ByteLevel()
    if kind == "character":
        backend.pre_tokenizer = pre_tokenizers.Split(Regex("\\n|[^\\n]+"), "isolated")
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    if kind == "unigram":
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(f"\\n|{SPACE}+[^{SPACE}\\n]*|[^{SPACE}\\n]+"), "isolated")
        backend.decoder = decode_spaces(prefix=not japanese_texts)
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    return backend


def _byte_splitter(family: str) -> Any:
    """The stretches in which byte-level BPE merges: those of LLaMA 3, or those of GPT-2."""
    if family == "llama":
        return pre_tokenizers.Sequence(
            [
                *(pre_tokenizers.Split(Regex(each), "isolated") for each in by_name("llama-bpe").patterns),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _apart_from_unknown(words: Any, vocabulary: Iterable[str]) -> Any:
    """Make characters that the vocabulary lacks words of their own.

    WordPiece gives up a word that has one, and a word here is a whole stretch of text without spaces.
    """
    known = "".join(f"\\x{{{ord(each):X}}}" for each in sorted(vocabulary) if len(each) == 1)
    return pre_tokenizers.Sequence([words, pre_tokenizers.Split(Regex(f"[^{known}]"), "isolated")])


def _lay_aside(
    path: Path,
    texts: Iterable[str],
    normalizer: Any,
    kind: Kind,
    segmenter: japanese.MecabWords | None,
    progress: Progress | None,
) -> tuple[int, int]:
    """Write the texts as the trainer takes them, a JSON string a line; give the numbers of texts and of lines."""
    count = lines = 0
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"expected a text, found {type(text).__name__}", where=f"text {count + 1}")
            count += 1
            for part in _parts(text, by_line=kind == "unigram"):
                try:
                    line = _prepared(part, normalizer, kind, segmenter)
                except UnicodeError:
                    raise InputError("the text has half a surrogate pair", where=f"text {count}") from None
                if line and not line.isspace():
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    lines += 1
            if progress is not None:
                progress("reading", count)
    if not lines:
        raise InputError("there is no text to train on", where="texts")
    return count, lines


def _parts(text: str, *, by_line: bool) -> Iterator[str]:
    """A text in parts that a trainer can hold: lines for Unigram; otherwise whole, cut where it is very long."""
    for line in text.split("\n") if by_line else [text]:
        at = 0
        while len(line) - at > _LONGEST:
            end = max(line.rfind(each, at + _LONGEST // 2, at + _LONGEST) for each in "\n 。")
            end = at + _LONGEST if end < 0 else end + 1
            yield line[at:end]
            at = end
        yield line[at:]


def _prepared(text: str, normalizer: Any, kind: Kind, segmenter: japanese.MecabWords | None) -> str:
    """A text, normalised, with boundaries. The trainer of Unigram puts "▁" for spaces by itself."""
    if normalizer is not None:
        text = normalizer.normalize_str(text)
    text = _RESERVED.sub(BOUNDARY, text) if kind == "unigram" else text.replace(BOUNDARY, " ")
    if segmenter is None:
        return text
    words = BOUNDARY.join(word for part in text.split(BOUNDARY) for word in segmenter.words(part))
    return words.replace(f" {BOUNDARY}", " ")  # a space goes with the word after it


# --- the vocabulary


def _in_a_process(scratch: Path, feed: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train in a process that an interruption ends at once."""
    (scratch / "settings.json").write_text(json.dumps(settings), "utf-8")
    result = scratch / "result.json"
    command = [sys.executable, "-c", "from tsumugu.text.trainer import main; main()"]
    command += [str(each) for each in (scratch / "settings.json", feed, result)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # it closes when we are gone, however that happens
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=scratch,
        env=environment,
        start_new_session=True,  # Ctrl-C is ours to hear
    )
    try:
        assert process.stderr is not None
        said = process.stderr.read()
        process.wait()
    finally:
        process.kill()
        process.communicate()
    if process.returncode or not result.is_file():
        why = said.strip().splitlines()[-1] if said.strip() else f"its process ended with code {process.returncode}"
        raise TsumuguError(f"training failed: {why}", mend="with less memory than the texts need, train on fewer")
    found: dict[str, Any] = json.loads(result.read_text("utf-8"))
    if "error" in found:
        what, where, mend = found["error"]
        raise InputError(what, where=where, mend=mend)
    return found


def _model(kind: Kind, family: str, found: dict[str, Any], first: list[str], last: list[str]) -> Any:
    """The backend's model, with the special tokens that come last."""
    if kind == "unigram":
        pieces = [tuple(each) for each in found["pieces"]]
        rarest = min(score for _, score in pieces)
        taken = {*first, *last, "\n", "\t"}
        special = [(each, 0.0) for each in first]
        single = [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
        vocab = [*special, *single, ("\n", rarest), ("\t", rarest), *(each for each in pieces if each[0] not in taken)]
        vocab += [(each, 0.0) for each in last]
        return models.Unigram(vocab, unk_id=first.index(LAYOUTS[family].named(kind)["unk"]), byte_fallback=True)
    if kind == "character":
        tokens = dict.fromkeys([*first, *(f"<0x{byte:02X}>" for byte in range(256)), *found["characters"], *last])
        return models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[], byte_fallback=True)
    vocabulary: dict[str, int] = dict(found["vocab"])
    for token in last:
        vocabulary.setdefault(token, len(vocabulary))
    if kind == "wordpiece":
        return models.WordPiece(vocabulary, unk_token=LAYOUTS[family].roles["unk"])
    merges = [tuple(each) for each in found["merges"]]
    return models.BPE(vocab=vocabulary, merges=merges, ignore_merges=family == "llama")
