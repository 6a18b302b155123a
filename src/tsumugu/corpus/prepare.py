"""From raw text to a prepared corpus: read, cleaned, without duplicates, tokenised once.

Documents are read in one process, in order, and handed in blocks to workers that clean and tokenise them; what comes
back is settled in the order of reading: duplicates are found, shards are written. So the result depends on the text
and the settings alone, not on how many workers there are. Every few seconds all that is settled is committed; after
a kill, the same call goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsumugu.core.errors import InputError, TsumuguError
from tsumugu.corpus.blocks import Block, read_blocks
from tsumugu.corpus.cleaning import Cleaner, Cleaning
from tsumugu.corpus.documents import DIVISIONS, Division, Reading
from tsumugu.corpus.duplicates import MinHasher
from tsumugu.corpus.inputs import TextSource, find_sources
from tsumugu.corpus.pool import Pool
from tsumugu.corpus.settling import Settler
from tsumugu.corpus.shard_writer import SHARD_TOKENS
from tsumugu.corpus.shards import Corpus
from tsumugu.corpus.worker import Arrays
from tsumugu.corpus.workspace import Workspace
from tsumugu.data.sources import EncodingErrors

if TYPE_CHECKING:
    from tsumugu.text.tokenizer import Tokenizer

_SECONDS = 2.0  # between commits
_LITTLE = 1 << 21  # bytes of files
_WAITING = 1 << 28  # bytes of text that may be under way


@dataclass(frozen=True)
class Progress:
    """How far the work is.

    Attributes:
        documents, kept, tokens: read; for training and validation; in these.
        source: what is being read.
        done, total: bytes of the files that are read to their end, and of all.
    """

    documents: int
    kept: int
    tokens: int
    source: str
    done: int
    total: int


def prepare(
    inputs: Sequence[str | Path],
    target: str | Path,
    *,
    tokenizer: str | Path | Tokenizer,
    cleaning: Cleaning | None = None,
    validation: Sequence[str | Path] = (),
    validation_share: float = 0.0,
    workers: int | None = None,
    text_column: str | None = None,
    format: str | None = None,
    encoding_errors: EncodingErrors = "strict",
    document: Division = "auto",
    shard_tokens: int = SHARD_TOKENS,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Corpus:
    """Prepare raw text for training; see `Corpus` for what comes out.

    Called again after an interruption, of any kind, it goes on where it was. The folder has its name only when it is
    whole; until then the work lies in a hidden folder beside it.

    Args:
        inputs: files (.txt, .jsonl, .json, .csv, .tsv, .parquet, also packed), folders, patterns, ``-`` for standard
            input, ``hf:NAME[:SPLIT]`` for datasets.
        target: the folder to make.
        tokenizer: a tokenizer, or where `load_tokenizer` finds one.
        cleaning: what is dropped and how text is normalised; left out, empty documents and exact duplicates go.
        validation: inputs whose documents are held back in a corpus of their own; what training has of them is
            dropped as a duplicate.
        validation_share: hold back this share of the other documents, chosen by their content.
        workers: processes; left out, as many as there are cores, or none beside this one where there is little text.
        text_column, format, encoding_errors: as `tsumugu.data.readers.read_rows` takes them.
        document: what a document is in plain text: "file" (also "auto"), "paragraph", "line".
        shard_tokens: the most tokens of a shard.
        force: replace the folder, and forget what was begun with other settings.
        progress: told now and then how far the work is.

    Raises:
        InputError: an input cannot be read, settings contradict what was begun, or no document is left.
        MissingExtraError: the cleaning or an input needs a library that is not installed.
    """
    cleaning = cleaning or Cleaning()
    _check(validation_share, workers, document, shard_tokens)
    Cleaner(cleaning)  # says what is missing before anything is begun
    if cleaning.near_duplicates is not None:
        MinHasher()
    sources = find_sources(inputs, validation)
    loaded = _loaded(tokenizer)
    reading = Reading(document, text_column, format, encoding_errors)
    settings: dict[str, Any] = {
        "inputs": [str(each) for each in inputs],
        "validation": [str(each) for each in validation],
        "validation_share": float(validation_share),
        "document": document,
        "text_column": text_column,
        "format": format,
        "encoding_errors": encoding_errors,
        "shard_tokens": shard_tokens,
        "tokenizer": _fingerprint(loaded),
        **cleaning.to_dict(),
    }
    workspace = Workspace(Path(target).absolute())
    with workspace.locked(force=force):
        spool: Path | None = None
        if any(each.name == "-" for each in sources):
            spool, settings["standard_input"] = workspace.spool()
        if not workspace.begin(settings, sources, force=force):
            with Settler(workspace, sources, loaded, cleaning, settings) as settler:
                blocks = read_blocks(sources, reading, settler.position, spool=spool)
                try:
                    with Pool(
                        workers or _workers_for(sources), settler.tokenizer_folder, cleaning, settler.dtype
                    ) as pool:
                        _run(settler, blocks, pool, _teller(settler, sources, progress))
                except (TsumuguError, KeyboardInterrupt) as error:
                    raise _kept(error, settler, workspace) from None
                settler.finish()
        workspace.finish()
    return Corpus.open(target)


def _check(share: float, workers: int | None, document: str, shard_tokens: int) -> None:
    if not 0 <= share < 1:
        raise InputError(f"a share of {share} cannot be held back", where="validation_share", mend="0 to less than 1")
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers cannot work", where="workers", mend="at least 1")
    if document not in DIVISIONS:
        raise InputError(f"{document!r} is no document", where="document", mend=f"known: {', '.join(DIVISIONS)}")
    if shard_tokens < 1:
        raise InputError(f"a shard of {shard_tokens} tokens holds nothing", where="shard_tokens")


def _workers_for(sources: Sequence[TextSource]) -> int:
    """A worker for each core; one where there is so little text that starting more takes longer than the work."""
    known = [each.state() for each in sources]
    if None not in known and sum(each[1] for each in known if each is not None) < _LITTLE:
        return 1
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1


def _loaded(tokenizer: str | Path | Tokenizer) -> Tokenizer:
    if not isinstance(tokenizer, str | Path):
        return tokenizer
    from tsumugu.checkpoints.load import load_tokenizer

    return load_tokenizer(tokenizer)


def _fingerprint(tokenizer: Tokenizer) -> str:
    said = tokenizer.backend.to_str() + json.dumps(tokenizer.special_tokens_map, sort_keys=True)
    if tokenizer.japanese is not None:
        said += json.dumps(tokenizer.japanese.config.to_dict(), sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def _run(settler: Settler, blocks: Iterator[Block], pool: Pool, told: Callable[[], None]) -> None:
    """Read, have the blocks worked on, settle them in order, commit now and then and at the end.

    When a source cannot be read further, all blocks before that place are settled before its error is raised.
    """
    waiting: deque[tuple[Block, Future[Arrays]]] = deque()
    problem: TsumuguError | None = None
    committed = time.monotonic()
    reading = True
    while reading or waiting:
        if reading:
            try:
                block = next(blocks, None)
            except TsumuguError as error:
                block, problem = None, error
            reading = block is not None
            if block is not None:
                waiting.append((block, pool.submit(block.texts)))
        under_way = sum(each.size for each, _ in waiting)
        while waiting and (not reading or len(waiting) > 2 * pool.workers or under_way > _WAITING):
            first, found = waiting.popleft()
            settler.settle(first, found.result())
            under_way -= first.size
            told()
            if time.monotonic() - committed > _SECONDS:
                settler.commit()
                committed = time.monotonic()
    settler.commit()
    if problem is not None:
        raise problem


def _kept(error: BaseException, settler: Settler, workspace: Workspace) -> BaseException:
    """Keep what is settled, and the error, which says so then; where nothing is settled, leave nothing behind."""
    if not settler.report.read.documents:
        workspace.discard()
        return error
    settler.commit()
    if not isinstance(error, TsumuguError):
        return error
    mend = "; then ".join(each for each in (error.mend, "run it again: it goes on from here") if each)
    return type(error)(error.what, where=error.where, mend=mend)


def _teller(
    settler: Settler, sources: Sequence[TextSource], progress: Callable[[Progress], None] | None
) -> Callable[[], None]:
    if progress is None:
        return lambda: None
    sizes = [0 if (state := each.state()) is None else state[1] for each in sources]
    ends = [0, *accumulate(sizes)]

    def tell() -> None:
        at, report = settler.position.source, settler.report
        name = sources[min(at, len(sources) - 1)].name
        kept, tokens = report.kept.documents + report.held_back.documents, report.kept.tokens + report.held_back.tokens
        progress(Progress(report.read.documents, kept, tokens, name, ends[at], ends[-1]))

    return tell
