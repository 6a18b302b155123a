"""The names that huggingface_hub gives things in its cache, and the ones tsumugu adds.

Source: huggingface_hub 2.4, ``file_download.py``, ``utils/_cache_manager.py``, ``utils/_shared_blobs.py``,
``_tree_cache.py``. The rules are restated here, and not imported, because a scan must start in milliseconds; the tests
hold them against the library itself.
"""

from __future__ import annotations

import re

REPO_TYPES = {"models": "model", "datasets": "dataset", "spaces": "space", "kernels": "kernel"}
"""The first part of a repo's folder name, and the type it stands for."""

IGNORED = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""Files of operating systems, which huggingface_hub's scan passes over."""

TAG = "CACHEDIR.TAG"
LOCKS = ".locks"
STORE = "blobs"
STORE_MARKER = ".huggingface-shared-blobs"
STORE_MARKER_TEXT = "1\n"
MANIFEST_SUFFIX = ".refs"
LOCK_SUFFIXES = (".lock", ".soft")
INCOMPLETE_SUFFIX = ".incomplete"

OWN = ".tsumugu"
"""Our folder. It lies in ``.locks``, which huggingface_hub's scan passes over, so that nobody sees a warning."""
TRASH = "trash"
JOURNAL = "journal.jsonl"

XET_HASH = re.compile(r"[0-9a-f]{64}")
STORE_LINK = re.compile(r"\.\./\.\./blobs/([0-9a-f]{2})/(\1[0-9a-f]{62})")
COMMIT = re.compile(r"[0-9a-f]{40}")
BLOB_TEMPORARY = re.compile(r"tmp_[0-9a-f-]{36}|\..+\.[0-9a-f]{8}\.(?:shared|new|old)")
REF_TEMPORARY = re.compile(r".+\.[0-9a-f]{8}\.tmp")
ROOT_TEMPORARY = re.compile(r"tmp[a-z0-9_]{8}")
PROBE_FILES = frozenset({"dummy_file_src", "dummy_file_dst"})


def parse_folder(folder: str) -> tuple[str, str] | None:
    """``models--org--name`` as ``("model", "org/name")``; None when it is no repo's folder."""
    prefix, separator, rest = folder.partition("--")
    kind = REPO_TYPES.get(prefix)
    return (kind, rest.replace("--", "/")) if kind is not None and separator else None
