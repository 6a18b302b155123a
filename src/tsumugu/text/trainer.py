"""The trainers themselves, run in a process of their own: they cannot be interrupted from within, and hold much memory.

The process reads texts (a JSON string a line), and writes one JSON file: ``vocab`` and ``merges``, ``vocab``, or
``pieces`` with their scores. Nothing here depends on chance or on the number of cores: the same texts give the same
file.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from tsumugu.core.errors import InputError, MissingExtraError

BOUNDARY = "\x1f"
"""Stands where no token may reach across, in training only."""
_LONGEST_PIECE = 16  # characters, as SentencePiece has it
_MOST_SEEDS = 1_000_000
_THREADS = 4  # sums of real numbers depend on how they are divided: never the number of cores


def train(texts: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train on a file of texts.

    Args:
        settings: ``kind``, ``vocab_size`` (without the special tokens that come last), ``special_tokens`` (those that
            come first), ``asked`` (the size that the user asked for), ``min_frequency``, ``pre_tokenizer`` (of the
            backend, as it describes itself), ``character_coverage``, ``lines`` and ``max_lines``, ``prefix``.
    """
    known = {"bpe": _byte_pairs, "wordpiece": _word_pieces, "unigram": _unigram, "character": _characters}
    return known[settings["kind"]](texts, settings)


def _read(texts: Path) -> Iterator[str]:
    with texts.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _byte_pairs(texts: Path, settings: dict[str, Any]) -> dict[str, Any]:
    trainer = trainers.BpeTrainer(
        vocab_size=settings["vocab_size"],
        min_frequency=settings["min_frequency"],
        special_tokens=settings["special_tokens"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model = _trained(models.BPE(), trainer, texts, settings)
    return {"vocab": model["vocab"], "merges": model["merges"]}


def _word_pieces(texts: Path, settings: dict[str, Any]) -> dict[str, Any]:
    # The trainer numbers the characters inside of words as it meets them, in an order that changes from run to run,
    # and settles ties by number. Handed in as special tokens, they have their numbers before it begins.
    alphabet, inner = _alphabets(texts, settings)
    special = [*settings["special_tokens"], *alphabet, *(f"##{each}" for each in inner)]
    if len(special) > settings["vocab_size"]:
        raise _too_few(settings, len(special) - settings["vocab_size"])
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings["vocab_size"],
        min_frequency=settings["min_frequency"],
        special_tokens=special,
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    return {"vocab": _trained(models.WordPiece(unk_token="[UNK]"), trainer, texts, settings)["vocab"]}


def _alphabets(texts: Path, settings: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The characters that begin words or stand alone, and those inside, rare ones left out."""
    split = _pre_tokenizer(settings)
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for text in _read(texts):
        for word, _ in split.pre_tokenize_str(text):
            counts.update(word)
            inside.update(word[1:])
    kept = set(_covering(counts, settings["character_coverage"]))
    return sorted(kept), sorted(kept & inside)


def _characters(texts: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The most frequent characters, in the order of Unicode."""
    counts = Counter(character for text in _read(texts) for character in text.replace(BOUNDARY, ""))
    room = settings["vocab_size"] - len(settings["special_tokens"]) - 256
    kept = _covering(counts, settings["character_coverage"])[:room]
    return {"characters": sorted(each for each in kept if counts[each] >= settings["min_frequency"])}


def _covering(counts: Counter[str], coverage: float) -> list[str]:
    """The most frequent characters that make up so much of the text."""
    wanted, kept = coverage * counts.total(), []
    for character, count in sorted(counts.items(), key=lambda each: (-each[1], each[0])):
        if wanted <= 0:
            break
        kept.append(character)
        wanted -= count
    return kept


def _pre_tokenizer(settings: dict[str, Any]) -> Any:
    backend = tokenizers.Tokenizer(models.BPE())
    state = {**json.loads(backend.to_str()), "pre_tokenizer": settings["pre_tokenizer"]}
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(BOUNDARY, "removed"),
            tokenizers.Tokenizer.from_str(json.dumps(state)).pre_tokenizer,
        ]
    )


def _trained(model: Any, trainer: Any, texts: Path, settings: dict[str, Any]) -> dict[str, Any]:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = _pre_tokenizer(settings)
    backend.train_from_iterator(_read(texts), trainer)
    found: dict[str, Any] = json.loads(backend.to_str())["model"]
    return found


def _unigram(texts: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """SentencePiece's trainer: the one in `tokenizers` gives other pieces each time, and takes far longer.

    Source: Kudo 2018, "Subword Regularization", section 3.2.
    """
    try:
        import sentencepiece
    except ImportError:
        raise MissingExtraError("sentencepiece", extra="ja", purpose="training a Unigram vocabulary") from None
    lines, limit = settings["lines"], settings["max_lines"]

    def chosen() -> Iterator[str]:
        for number, text in enumerate(_read(texts)):
            if lines <= limit or number * limit // lines != (number - 1) * limit // lines:
                yield text

    seeds: dict[str, Any] = (
        {"seed_sentencepieces_file": str(_seeds(texts.parent / "seeds.tsv", chosen()))} if settings["seeds"] else {}
    )
    size = settings["vocab_size"] - len(settings["special_tokens"]) + 1 - 2  # <unk> is there in both; line end and tab
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=chosen(),
            model_writer=written,
            model_type="unigram",
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=settings["character_coverage"],
            byte_fallback=True,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=settings["prefix"],
            allow_whitespace_only_pieces=True,
            pretokenization_delimiter=BOUNDARY,
            max_sentence_length=1 << 24,
            num_threads=_THREADS,
            minloglevel=3,
            **seeds,
        )
    except RuntimeError as error:
        raise _said(error, settings) from None
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(written.getvalue())
    return {"pieces": [(each.piece, each.score) for each in proto.pieces if each.type == 1]}


def _seeds(path: Path, texts: Iterator[str]) -> Path:
    """Candidates by how often they occur. SentencePiece would count each word once, and miss most words so."""
    words = Counter(word.replace(" ", "▁") for text in texts for word in text.split(BOUNDARY) if word)
    found: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 2, min(start + _LONGEST_PIECE, len(word)) + 1):
                if "▁" not in word[start + 1 : end]:
                    found[word[start:end]] += count
    ranked = sorted(found.items(), key=lambda each: (-each[1] * len(each[0]), each[0]))
    kept = [f"{piece}\t{count * len(piece)}\n" for piece, count in ranked[:_MOST_SEEDS] if count > 1]
    path.write_text("".join(kept), "utf-8")
    return path


def _said(error: RuntimeError, settings: dict[str, Any]) -> InputError:
    needed = re.search(r"required_chars\D*(\d+) vs (\d+)", str(error)) or re.search(r"(\d+) vs (\d+)", str(error))
    if needed is not None:
        return _too_few(settings, int(needed[2]) - int(needed[1]) + 1)
    reason = str(error).rsplit("] ", 1)[-1]
    return InputError(f"SentencePiece could not train: {reason}", where="texts")


def _too_few(settings: dict[str, Any], missing: int) -> InputError:
    return InputError(
        f"{settings['asked']} tokens are too few for the special tokens and the characters of the texts",
        where="vocab_size",
        mend=f"ask for at least {settings['asked'] + missing}, or for a smaller character coverage",
    )


def _watch(scratch: Path) -> None:
    """Clean up and go when whoever asked for the training is gone, killed or not."""
    os.read(0, 1)  # the stream above it would hold a lock that the end of the program wants
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)


def main() -> None:
    """Read settings and texts, write the result, or the error as its parts."""
    settings_path, texts, result = map(Path, sys.argv[1:])
    threading.Thread(target=_watch, args=(texts.parent,), daemon=True).start()
    try:
        found = train(texts, json.loads(settings_path.read_text("utf-8")))
    except (InputError, MissingExtraError) as error:
        found = {"error": [error.what, error.where, error.mend]}
    result.write_text(json.dumps(found, ensure_ascii=False), "utf-8")
