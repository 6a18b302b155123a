"""A tokenizer's folder that appears whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tsumugu.core.errors import InputError

if TYPE_CHECKING:
    from tsumugu.text.tokenizer import Tokenizer

_FILES = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"}
_FILES |= {"vocab.json", "merges.txt", "chat_template.jinja"}


def check_target(folder: Path, *, force: bool) -> None:
    """Refuse, before any work is done, a folder that cannot be written or must not be replaced.

    Raises:
        InputError: it is there and `force` is not given, it holds more than a tokenizer, or it has no parent.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError("this is no folder", where=str(folder), mend="choose another name")
    if folder.is_dir() and (held := {each.name for each in folder.iterdir()}):
        if not force:
            raise InputError("the folder is there already", where=str(folder), mend="choose another, or pass --force")
        if held - _FILES:
            other = sorted(held - _FILES)[0]
            raise InputError(f"{other!r} in it is no tokenizer's file", where=str(folder), mend="choose another name")
    if not folder.absolute().parent.is_dir():
        mend = f"make it first: mkdir -p {folder.parent}"
        raise InputError(f"there is no folder {folder.parent}", where=str(folder), mend=mend)


def save_whole(tokenizer: Tokenizer, folder: Path, *, force: bool = False) -> None:
    """Write the tokenizer's files under a temporary name beside `folder`, then give them its name.

    Raises:
        InputError: as `check_target`.
    """
    check_target(folder, force=force)
    folder = folder.absolute()
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name[:40]}.", suffix=".partial", dir=folder.parent))
    try:
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        tokenizer.save(new)
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
