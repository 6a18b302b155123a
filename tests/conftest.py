"""What tests of several rooms share: real weights, pulled once into the user's cache, and wheels built on the spot."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tsumugu.core.errors import HubError
from tsumugu.hub.resolve import pull

WheelMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    return _pulled("smollm2")


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    return _pulled("minilm")


def _pulled(name: str) -> Path:
    try:
        return pull(name).path
    except HubError as error:
        pytest.skip(f"{name} cannot be had: {error}")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of tsumugu's own, and an empty one of the hub, for this test."""
    monkeypatch.setenv("TSUMUGU_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TSUMUGU_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only source of packages in this test."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name in [each for each in os.environ if each.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture(scope="session")
def make_wheel() -> WheelMaker:
    return build_wheel


def build_wheel(
    folder: Path,
    dist: str,
    files: Mapping[str | zipfile.ZipInfo, bytes],
    *,
    version: str = "1.0",
    metadata: str = "",
    record: Callable[[str], str] = str,
) -> Path:
    """A wheel in `folder`, with a RECORD that is true unless `record` changes its text.

    Entries given as `zipfile.ZipInfo` are written as they are, so that a test can lie.
    """
    stem = f"{dist.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    entries: dict[str | zipfile.ZipInfo, bytes] = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n{metadata}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
            shown = name if isinstance(name, str) else name.filename
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{shown},sha256={digest},{len(data)}")
        archive.writestr(f"{info}/RECORD", record("\n".join([*rows, f"{info}/RECORD,,", ""])))
    return path
