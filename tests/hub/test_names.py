"""Whatever is written for a model: it is found, or refused in one line; nothing else can happen."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsumugu.core.errors import HubError
from tsumugu.hub import entries
from tsumugu.hub.names import SHORT_NAMES, split_hub_name
from tsumugu.hub.resolve import Resolved, resolve

PIECES = st.sampled_from(
    ["pypi:", "smollm2", "org", "/", "@", "..", "==", "1.0", "~", ":", "-", "\\", "名", " ", "\0", "\n"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(source=st.one_of(st.text(), st.lists(PIECES).map("".join)))
def test_any_text_is_found_or_refused_in_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setenv("TSUMUGU_OFFLINE", "1")
    found, message = outcome(source)
    assert found is None or (found.kind == "path" and found.path.exists())
    assert (found is None) == bool(message)
    assert "\n" not in message
    assert len(message) < 1000
    assert not cache.exists()


def outcome(source: str) -> tuple[Resolved | None, str]:
    """What is found, or why nothing is."""
    try:
        return resolve(source), ""
    except HubError as error:
        return None, str(error)


def test_an_existing_path_comes_first(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert resolve("smollm2") == Resolved("smollm2", Path("smollm2"), "path")
    assert resolve(tmp_path / "model.gguf").path == tmp_path / "model.gguf"
    assert resolve(".").kind == "path"


def test_a_path_object_is_never_a_name(cache: Path) -> None:
    with pytest.raises(HubError, match="no such file or folder"):
        resolve(Path("minilm"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("gpt2", ("gpt2", None)),
        ("org/name", ("org/name", None)),
        ("Org-1/Na.me_2@v1.0", ("Org-1/Na.me_2", "v1.0")),
        ("org/name@refs/pr/1", ("org/name", "refs/pr/1")),
    ],
)
def test_names_on_the_hub(source: str, expected: tuple[str, str | None]) -> None:
    assert split_hub_name(source) == expected


@pytest.mark.parametrize("source", ["org/name.git", "a--b/c", "org/na..me", "-org/name", "org/name-", "org/", "@v1"])
def test_what_the_hub_does_not_allow(source: str) -> None:
    with pytest.raises(HubError):
        split_hub_name(source)


def test_short_names_are_pinned() -> None:
    for each in SHORT_NAMES.values():
        dist, version = entries.parse(each.source.removeprefix("pypi:"))
        assert version is not None, dist
        assert len(each.sha256) == 64


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tsumugu.hub.home import home

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("TSUMUGU_HOME", "~/mine")
    assert home() == tmp_path / "mine"
    monkeypatch.delenv("TSUMUGU_HOME")
    assert home() == tmp_path / "xdg/tsumugu"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert home().is_relative_to(tmp_path)
    assert home().name == "tsumugu"
