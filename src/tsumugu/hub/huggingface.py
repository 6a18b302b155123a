"""Models on the Hugging Face Hub, in the cache that all libraries of the Hub share.

huggingface_hub does the fetching: retries, credentials (``HF_TOKEN``), mirrors (``HF_ENDPOINT``) and the layout of the
cache are its own; `tsumugu.hub.blobs` adds that large files go on where they stopped. This file says which files
of a repository matter and what its errors mean.
"""

from __future__ import annotations

import errno
import io
import json
import re
from collections.abc import Iterable
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

from tsumugu.core.errors import HubError, nearest
from tsumugu.hub.blobs import LARGE, fetch_large
from tsumugu.hub.home import offline
from tsumugu.hub.names import SHORT_NAMES, ways
from tsumugu.hub.progress import Progress

_SUPPORT = (".json", ".txt", ".model", ".jinja", ".vocab", ".bpe", ".merges")
_PAPERS = re.compile(r"(license|licence|notice|readme|use_policy)\b", re.IGNORECASE)
_MODULE = re.compile(r"\d+_\w+")
_NOT_WEIGHTS = re.compile(r"training_args|optimizer|scheduler|scaler|rng_state|consolidated")
_GGUF_ORDER = ("q4_k_m", "q8_0", "q4_0", "bf16", "f16", "f32")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def snapshot(repository: str, revision: str | None, progress: Progress, *, force: bool = False) -> tuple[Path, str]:
    """The model's folder (or its one GGUF file) in the cache, and its commit; fetched only when it is not whole there.

    Raises:
        HubError: no such repository or revision, no access, no network, or no weights in it.
    """
    folder = None if force else _cached(repository, revision)
    if folder is None:
        if variable := offline():
            near = _near(repository)
            raise HubError(
                f"{repository} is not in the cache, and {variable} forbids the network",
                mend=near or f"run `tsumugu pull {repository}` while online",
            )
        folder = _fetch(repository, revision, progress, force=force)
    return _loadable(folder), folder.name


def wanted(files: Iterable[str]) -> list[str]:
    """Which files of a repository make the model: configuration, tokenizer, papers, and one form of its weights.

    Weights are safetensors when there are any, then PyTorch's ``.bin``, then one GGUF file; in the root and in the
    numbered folders of sentence-transformers. Other folders (exports to other runtimes, training states) are left out.

    Returns:
        sorted paths; empty when there are no weights.
    """
    folders: dict[str, list[str]] = {}
    for name in files:
        path = PurePosixPath(name)
        parent = str(path.parent)
        if parent == "." or (len(path.parts) == 2 and _MODULE.fullmatch(parent)):
            folders.setdefault(parent, []).append(name)
    weights = [name for names in folders.values() for name in _weights(names)]
    if not weights:
        weights = _one_gguf(folders.get(".", []))
    if not weights:
        return []
    rest = [
        name
        for names in folders.values()
        for name in names
        if (name.endswith(_SUPPORT) and not name.endswith(".index.json")) or _PAPERS.match(name)
    ]
    indexes = {re.sub(r"-\d+-of-\d+(\.\w+)$", r"\1.index.json", name) for name in weights}
    return sorted({*weights, *rest, *(indexes & {name for names in folders.values() for name in names})})


def _weights(names: list[str]) -> list[str]:
    """The weights of one folder in one form."""
    for suffix, usual in ((".safetensors", "model"), (".bin", "pytorch_model")):
        found = [name for name in names if name.endswith(suffix) and not _NOT_WEIGHTS.search(PurePosixPath(name).name)]
        whole = [name for name in found if PurePosixPath(name).stem == usual]
        shards = [name for name in found if re.fullmatch(usual + r"-\d+-of-\d+", PurePosixPath(name).stem)]
        adapters = [name for name in found if PurePosixPath(name).stem.startswith("adapter_model")]
        if chosen := whole or shards:
            return chosen + adapters
        if found:
            return found
    return []


def _one_gguf(names: list[str]) -> list[str]:
    found = [name for name in names if name.lower().endswith(".gguf") and not re.search(r"mmproj|imatrix", name)]
    found = [name for name in found if not re.search(r"-\d+-of-\d+\.gguf$", name)]
    if len(found) == 1:
        return found
    for kind in _GGUF_ORDER:
        for name in found:
            if re.search(rf"(^|[-._]){kind}\.gguf$", name.lower()):
                return [name]
    return []


def cached() -> list[tuple[str, Path, bool]]:
    """The models in the hub's cache, sorted: name, newest snapshot, and whether that is whole."""
    from huggingface_hub.constants import HF_HUB_CACHE

    found = []
    for storage in sorted(Path(HF_HUB_CACHE).glob("models--*")):
        name = storage.name.removeprefix("models--").replace("--", "/")
        snapshots = [each for each in storage.glob("snapshots/*") if _COMMIT.fullmatch(each.name)]
        if snapshots:
            newest = max(snapshots, key=lambda each: each.stat().st_mtime)
            found.append((name, newest, _cached(name, newest.name) is not None))
    return found


def licence(folder: Path) -> str | None:
    """The licence that a snapshot's model card names, if it does.

    Source: Hugging Face Hub documentation, "Model cards" (YAML metadata, key ``license``).
    """
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            head = file.read(1 << 16)
    except OSError:
        return None
    card = re.match(r"---\s*\n(.*?)\n---", head, re.DOTALL)
    found = re.search(r"^license(?:_name)?:[ \t]*([\w.+-]+)[ \t]*$", card[1], re.MULTILINE) if card else None
    return found[1] if found else None


def _cached(repository: str, revision: str | None) -> Path | None:
    """The snapshot in the local cache, when it holds all that is wanted."""
    from huggingface_hub.constants import HF_HUB_CACHE

    storage = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    commit = revision or "main"
    if not _COMMIT.fullmatch(commit):
        try:
            commit = (storage / "refs" / commit).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
    folder = storage / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not folder.is_dir():
        return None
    listed = _listing(repository, commit)
    if listed is not None:
        needed = wanted(listed)
        return folder if needed and all((folder / name).is_file() for name in needed) else None
    # Fetched by an older huggingface_hub, or file by file: what is there must make a whole by itself.
    present = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    whole = "config.json" in present or any(name.endswith(".gguf") for name in present)
    return folder if whole and wanted(present) and _shards_whole(folder) else None


def _listing(repository: str, commit: str) -> list[str] | None:
    """The repository's files at `commit` as far as the cache knows them."""
    try:
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError
    except ImportError:
        return None
    try:
        return [str(each.path) for each in get_cached_repo_tree(repository, revision=commit)]
    except (CachedRepoTreeNotFoundError, OSError, ValueError, KeyError):
        return None


def _shards_whole(folder: Path) -> bool:
    for index in folder.glob("*.index.json"):
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            return False
        if any(not (folder / name).is_file() for name in names):
            return False
    return True


def _loadable(folder: Path) -> Path:
    files = list(folder.glob("*.gguf"))
    return files[0] if len(files) == 1 and not (folder / "config.json").exists() else folder


def _near(repository: str) -> str | None:
    """A hint for a bare name that may be a misspelt short name."""
    near = nearest(repository, SHORT_NAMES) if "/" not in repository else None
    return f"did you mean {near!r}?" if near else None


def _fetch(repository: str, revision: str | None, progress: Progress, *, force: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The HTTP client's own base class, which changes with the version of huggingface_hub, and OSError.
    failures: tuple[type[Exception], ...] = HfHubHTTPError.__bases__
    progress.stage(f"asking for {repository}", None)
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        sizes = {each.rfilename: each.size or 0 for each in info.siblings or []}
        files = wanted(sizes)
        if not files:
            raise _no_weights(repository, sizes)
        total = sum(sizes[name] for name in files)
        progress.stage(f"downloading {repository}", total or None)
        if not force and info.sha:
            fetch_large(repository, info.sha, [name for name in files if sizes[name] >= LARGE], progress)
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=[escape(name) for name in files],
            max_workers=4,
            force_download=force,
            tqdm_class=_bar(progress),
        )
    except GatedRepoError:
        page = f"{ENDPOINT}/{repository}"
        raise HubError(f"{repository} is gated", mend=f"ask for access at {page}, then set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise HubError(f"{repository} has no revision {revision!r}", mend="name a branch, a tag or a commit") from None
    except RepositoryNotFoundError:
        reason = "the hub has none of that name, or it is private (set HF_TOKEN)"
        raise HubError(f"no model {repository!r}: {reason}", mend=ways(repository)) from None
    except HFValidationError as error:
        raise HubError(f"no model {repository!r}: {error}", mend=ways(repository)) from None
    except HubError:
        raise
    except failures as error:
        raise _explain(repository, ENDPOINT, error) from None
    return Path(folder)


def _no_weights(repository: str, files: Iterable[str]) -> HubError:
    ggufs = sorted(name for name in files if name.lower().endswith(".gguf"))
    if ggufs:
        shown = ", ".join(ggufs[:4]) + (", …" if len(ggufs) > 4 else "")
        return HubError(f"{repository} holds several GGUF files ({shown})", mend="download one and give its path")
    return HubError(f"{repository} holds no weights in safetensors, PyTorch or GGUF files")


def _explain(repository: str, endpoint: str, error: BaseException) -> HubError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return HubError("the disk is full", mend="free some space, or set HF_HOME to a roomier disk")
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return HubError(
            "the hub's cache cannot be written", where=error.filename, mend="set HF_HOME to a folder of yours"
        )
    if status in {401, 403}:
        return HubError(f"{repository}: access denied ({status})", mend="set HF_TOKEN to a token that may read it")
    if status is not None:
        return HubError(f"{repository}: {endpoint} answered with {status}", mend="try again later")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return HubError(
        f"{repository} could not be fetched from {endpoint} ({reason[:200]})",
        mend=_near(repository) or "check the network and repeat; what is already there is kept",
    )


def _bar(progress: Progress) -> type[Any]:
    """A progress bar for huggingface_hub that draws nothing and passes on how many bytes are done."""
    from tqdm.std import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": False, "file": io.StringIO(), "leave": False})

        def display(self, *_: Any, **__: Any) -> bool:
            if self.unit == "B" and self.n:
                progress.done(int(self.n))
            return True

    return Bar
