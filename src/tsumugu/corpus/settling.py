"""What the workers found, settled in the order of reading: duplicates dropped, shards written, all of it counted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from tsumugu.core.errors import InputError
from tsumugu.corpus.blocks import Block, Position
from tsumugu.corpus.cleaning import EXACT, LANGUAGE, NEAR, Cleaning
from tsumugu.corpus.duplicates import DIGEST_BYTES, ExactIndex, NearIndex
from tsumugu.corpus.inputs import TextSource
from tsumugu.corpus.report import Report
from tsumugu.corpus.shard_writer import ShardWriter, ids_type
from tsumugu.corpus.shards import VALIDATION, save_tokenizer, seal
from tsumugu.corpus.token_bytes import vocabulary_size
from tsumugu.corpus.worker import Arrays
from tsumugu.corpus.workspace import DIGESTS, SIGNATURES, Workspace
from tsumugu.text.tokenizer import Tokenizer

_TRAINING = "training"
_LOADED = 1 << 16  # digests read at once
_RULES = 3  # the place of the first rule among the reasons; after the last come the two kinds of duplicates


class Settler:
    """The part of a preparation that remembers, to be used in a ``with`` block.

    Attributes:
        position: up to where documents are settled.
        report: what was counted so far.
        dtype: of the ids.
        tokenizer_folder: where the workers find the tokenizer.
    """

    def __init__(
        self,
        workspace: Workspace,
        sources: Sequence[TextSource],
        tokenizer: Tokenizer,
        cleaning: Cleaning,
        settings: Mapping[str, Any],
    ) -> None:
        self._workspace, self._sources, self._settings = workspace, sources, settings
        self._tokenizer, self._cleaning, self._reasons = tokenizer, cleaning, cleaning.reasons
        self._whole = True
        self.dtype = ids_type(vocabulary_size(tokenizer))
        self.tokenizer_folder = workspace.path / "tokenizer"
        save_tokenizer(tokenizer, self.tokenizer_folder)
        state = workspace.state or {}
        self.position = Position(**state.get("position", {}))
        named = [*settings["validation"], *settings["inputs"]]
        self.report = Report.from_dict(state["report"]) if state else Report.begin(cleaning.asked, named)
        for number, each in enumerate(self.report.inputs):
            each["files"] = sum(source.argument == number for source in sources)
        with ExitStack() as stack:
            self._writers = {
                False: self._writer(_TRAINING, workspace.path, state, stack),
                True: self._writer(VALIDATION, workspace.path / VALIDATION, state, stack),
            }
            self._digests = _opened(workspace.path / DIGESTS, stack)
            self._exact = ExactIndex()
            self._load_digests(state.get("digests", 0))
            self._near: NearIndex | None = None
            if cleaning.near_duplicates is not None:
                self._signatures = _opened(workspace.path / SIGNATURES, stack)
                self._near = NearIndex(self._signatures, cleaning.near_duplicates, state.get("signatures", 0))
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def settle(self, block: Block, found: Arrays) -> None:
        """Drop duplicates, write what is kept, count everything."""
        self._whole = False
        self._drop_duplicates(found)
        kept = found["reasons"] == 0
        held = self._held_back(block, found)
        for validation, writer in self._writers.items():
            chosen = kept & (held == validation)
            ids = found["ids"][np.repeat(chosen, found["lengths"])]
            writer.add(ids, found["lengths"][chosen], found["bytes"][chosen])
        origin = [self._sources[each].argument for each in block.sources]
        self.report.count(found, held, origin)
        for at in np.flatnonzero(~kept):
            self._count_dropped(block, found, int(at))
        self.position = block.end
        self._whole = True

    def commit(self) -> None:
        """Bring everything to the disk, so that the next run goes on from here; nothing amid a block."""
        if not self._whole:  # Ctrl-C came while it was settled
            return
        state: dict[str, Any] = {
            "position": self.position.to_dict(),
            "report": self.report.to_dict(),
            "digests": len(self._exact),
            "signatures": 0 if self._near is None else len(self._near),
            _TRAINING: self._writers[False].commit(),
            VALIDATION: self._writers[True].commit(),
        }
        for file in (self._digests, *([] if self._near is None else [self._signatures])):
            file.flush()
            os.fsync(file.fileno())
        self._workspace.commit(state)

    def finish(self) -> None:
        """Close the shards, and write all that makes the folder a corpus; the list of what is in it comes last.

        Raises:
            InputError: no document is left for training.
        """
        shards, held = self._writers[False].finish(), self._writers[True].finish()
        report, path = self.report, self._workspace.path
        if not shards:
            self._workspace.discard()
            why = ", ".join(f"{reason} {each.documents}" for reason, each in report.dropped.items() if each.documents)
            what = f"none of {report.read.documents} documents is left to train on ({why or 'all are held back'})"
            raise InputError(what, where=str(self._workspace.target), mend="drop or hold back less")
        if held:
            seal(
                path / VALIDATION,
                held,
                self._tokenizer,
                settings={**self._settings, "held_back": True},
                sources=report.inputs,
                characters=report.held_back.characters,
            )
        else:
            shutil.rmtree(path / VALIDATION)
        seal(
            path,
            shards,
            self._tokenizer,
            settings=self._settings,
            sources=report.inputs,
            characters=report.kept.characters,
            report=report.to_dict(),
        )

    def _writer(self, name: str, folder: Path, state: Mapping[str, Any], stack: ExitStack) -> ShardWriter:
        folder.mkdir(exist_ok=True)
        tokens = self._settings["shard_tokens"]
        writer = ShardWriter(folder, self.dtype, shard_tokens=tokens, state=state.get(name))
        stack.callback(writer.close)
        return writer

    def _load_digests(self, count: int) -> None:
        self._digests.truncate(count * DIGEST_BYTES)
        self._digests.seek(0)
        while piece := self._digests.read(_LOADED * DIGEST_BYTES):
            self._exact.new(piece)

    def _drop_duplicates(self, found: Arrays) -> None:
        reasons = found["reasons"]
        if self._cleaning.exact_duplicates:
            asked = np.flatnonzero(reasons == 0)
            digests = found["digests"][asked]
            new = self._exact.new(digests.tobytes())
            self._digests.write(digests[new].tobytes())
            reasons[asked[~new]] = self._reasons.index(EXACT)
        if self._near is not None:
            candidates = reasons == 0
            reasons[candidates & ~self._near.new(found["signatures"], candidates)] = self._reasons.index(NEAR)

    def _held_back(self, block: Block, found: Arrays) -> npt.NDArray[np.bool_]:
        """Which documents are for validation: those of its own inputs, and a share chosen by what is in them."""
        own = np.array([self._sources[each].held_back for each in block.sources], bool)
        numbers = np.ascontiguousarray(found["digests"][:, :8]).view("<u8")[:, 0]
        return own | (numbers < np.uint64(int(self._settings["validation_share"] * 2**64)))

    def _count_dropped(self, block: Block, found: Arrays, at: int) -> None:
        reason = self._reasons[found["reasons"][at]]
        value: float | str | None = None
        if reason == LANGUAGE:
            value = str(found["languages"][at])
        elif _RULES <= found["reasons"][at] < len(self._reasons) - 2:
            value = round(float(found["values"][at]), 4)
        text = block.texts[at][:1000].decode(errors="ignore")
        self.report.drop(reason, int(found["characters"][at]), block.places[at], value, text)


def _opened(path: Path, stack: ExitStack) -> BinaryIO:
    """A file for reading and appending that is let go of quietly: what a full disk did not take was not committed."""
    file = path.open("r+b" if path.exists() else "w+b")
    stack.callback(_close, file)
    return file


def _close(file: BinaryIO) -> None:
    try:
        file.close()
    except OSError:
        return
