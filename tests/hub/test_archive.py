"""Hostile zip archives: each is refused with a reason, and nothing of it reaches the disk."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsumugu.core.errors import HubError
from tsumugu.hub.archive import Archive, ensure_room, write_synced


def zipped(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def special(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (mode | 0o644) << 16
    return info


def unzip(path: Path, target: Path) -> list[Path]:
    """Unpack everything the way a pull does."""
    with Archive(path, label=path.name) as archive:
        for name in archive.members:
            write_synced(target / name, lambda file, name=name: archive.copy(name, file))
    return [each for each in target.rglob("*") if each.is_file()]


def test_a_good_archive_comes_out_whole(tmp_path: Path) -> None:
    files = {"model/weights.bin": bytes(range(256)) * 5000, "model/1_Pooling/config.json": b"{}", "a": b""}
    path = zipped(tmp_path / "good.zip", ("model/", b""), *files.items())
    unzip(path, tmp_path / "out")
    for name, data in files.items():
        assert (tmp_path / "out" / name).read_bytes() == data


@pytest.mark.parametrize(
    "name",
    [
        "../evil.bin",
        "a/../../evil.bin",
        "/etc/evil.bin",
        "C:/evil.bin",
        "c:evil.bin",
        "a\\..\\evil.bin",
        "\\\\host\\share\\evil",
        "a//b",
        "./a",
        "a/./b",
        "a\nb",
        "a\x7fb",
        "x" * 300,
        "d/" * 600 + "x",
    ],
)
def test_names_that_would_leave_their_folder(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "evil.zip", ("good.bin", b"good"), (name, b"evil"))
    with pytest.raises(HubError, match=r"would leave its folder|name beyond reason"):
        unzip(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_name_cut_by_a_nul(tmp_path: Path) -> None:
    path = zipped(tmp_path / "nul.zip", ("harmless.binX.py", b"x"))
    path.write_bytes(path.read_bytes().replace(b"binX.py", b"bin\0.py"))
    with pytest.raises(HubError, match="would leave its folder"):
        Archive(path, label="nul.zip")


@pytest.mark.parametrize(
    ("mode", "what"),
    [(stat.S_IFLNK, "a symbolic link"), (stat.S_IFIFO, "a special file"), (stat.S_IFCHR, "a special file")],
)
def test_links_and_devices(tmp_path: Path, mode: int, what: str) -> None:
    path = zipped(tmp_path / "link.zip", (special("model.bin", mode), b"/etc/passwd"))
    with pytest.raises(HubError, match=what):
        Archive(path, label="link.zip")


@pytest.mark.parametrize("other", ["model.bin", "MODEL.bin"])
def test_two_entries_for_one_file(tmp_path: Path, other: str) -> None:
    with pytest.warns(UserWarning, match="Duplicate") if other == "model.bin" else nullcontext():
        path = zipped(tmp_path / "twice.zip", ("model.bin", b"one"), (other, b"two"))
    with pytest.raises(HubError, match="twice"):
        Archive(path, label="twice.zip")


def test_a_file_where_a_folder_belongs(tmp_path: Path) -> None:
    path = zipped(tmp_path / "clash.zip", ("a", b"file"), ("A/b", b"inside"))
    with pytest.raises(HubError, match="both a file and a folder"):
        Archive(path, label="clash.zip")


def test_a_bomb_is_refused_by_its_ratio(tmp_path: Path) -> None:
    path = zipped(tmp_path / "bomb.zip", ("model.bin", bytes(40 << 20)))
    with pytest.raises(HubError, match=r"would grow [\d,]+-fold"):
        Archive(path, label="bomb.zip")


def test_entries_that_share_their_bytes(tmp_path: Path) -> None:
    path = zipped(tmp_path / "overlap.zip", ("a.bin", b"a" * 100), ("b.bin", b"a" * 100))
    data = bytearray(path.read_bytes())
    second = data.rindex(b"PK\1\2")
    data[second + 42 : second + 46] = struct.pack("<I", 0)
    path.write_bytes(data)
    with pytest.raises(HubError, match="overlaps"):
        Archive(path, label="overlap.zip")


@pytest.mark.parametrize("lie", [10, 90, 110, 5000])
def test_declared_sizes_that_lie(tmp_path: Path, lie: int) -> None:
    path = zipped(tmp_path / "lie.zip", ("model.bin", bytes(range(100))))
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        at = data.index(signature) + offset
        data[at : at + 4] = struct.pack("<I", lie)
    path.write_bytes(data)
    with pytest.raises(HubError, match=r"damaged|declares|lies about its size"):
        unzip(path, tmp_path / "out")


def test_encrypted_entries(tmp_path: Path) -> None:
    path = zipped(tmp_path / "secret.zip", ("model.bin", b"x"))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(HubError, match="encrypted"):
        Archive(path, label="secret.zip")


def test_unusual_compression(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("model.bin", b"x" * 100)
    with pytest.raises(HubError, match="unusual"):
        Archive(tmp_path / "lzma.zip", label="lzma.zip")


def test_an_entry_larger_than_the_disk(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="MB are needed"):
        ensure_room(tmp_path, 1 << 60)


GOOD = io.BytesIO()
with zipfile.ZipFile(GOOD, "w", zipfile.ZIP_DEFLATED) as _archive:
    _archive.writestr("model/config.json", b'{"hidden_size": 4}' * 20)
    _archive.writestr("model/model.bin", bytes(range(200)))


@given(cut=st.integers(0, len(GOOD.getvalue()) - 1))
def test_a_truncated_archive(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("cut")
    (folder / "cut.zip").write_bytes(GOOD.getvalue()[:cut])
    with pytest.raises(HubError):
        unzip(folder / "cut.zip", folder / "out")


@given(at=st.integers(0, len(GOOD.getvalue()) - 1), value=st.integers(0, 255))
def test_any_changed_byte_is_refused_or_does_no_harm(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int
) -> None:
    folder = tmp_path_factory.mktemp("bent")
    data = bytearray(GOOD.getvalue())
    data[at] = value
    (folder / "bent.zip").write_bytes(data)
    try:
        written = unzip(folder / "bent.zip", folder / "out")
    except HubError:
        return
    assert all(each.resolve().is_relative_to(folder / "out") for each in written)
