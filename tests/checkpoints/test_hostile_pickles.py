"""Pickles that try to run something, to exhaust the machine, or to reach outside their storages: none gets anywhere.

Each goes into both kinds of PyTorch file. That the dangerous ones are dangerous is shown with Python's own unpickler.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import resource
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tsumugu.checkpoints import unpickle
from tsumugu.checkpoints.pytorch import MAGIC_NUMBER, PROTOCOL, read_pytorch
from tsumugu.core.errors import CheckpointError

CANARY = "TSUMUGU_CANARY"
COMMAND = f'echo sung > "${CANARY}"'
SCRIPT = f"import os; open(os.environ['{CANARY}'], 'w').write('sung')"


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(path: str) -> bytes:
    module, _, attribute = path.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def call(path: str, *arguments: bytes) -> bytes:
    return name(path) + b"(" + b"".join(arguments) + b"tR"


def whole(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def in_dict(value: bytes) -> bytes:
    return whole(b"}" + text("weight") + value + b"s")


def number(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def sizes(values: Any) -> bytes:
    return b"(" + b"".join(number(value) for value in values) + b"t"


def storage(key: str = "0", count: int = 12, kind: bytes = name("torch.FloatStorage"), word: str = "storage") -> bytes:
    return b"(" + text(word) + kind + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(
    shape: Any = (3, 4),
    strides: Any = (4, 1),
    offset: int = 0,
    stored: bytes = storage(),
    function: str = "torch._utils._rebuild_tensor_v2",
    rest: bytes = b"",
) -> bytes:
    hooks = name("collections.OrderedDict") + b")R"
    return call(function, stored, number(offset), sizes(shape), sizes(strides), b"\x89", hooks, rest)


def nested(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(48))
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def legacy(data: bytes, keys: Any = ("0",), stores: bytes = struct.pack("<q", 12) + bytes(48)) -> bytes:
    parts = [MAGIC_NUMBER, PROTOCOL, {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {}}]
    data = data.replace(text("cpu") + number(12) + b"t", text("cpu") + number(12) + b"Nt")
    return b"".join(pickle.dumps(part, 2) for part in parts) + data + pickle.dumps(list(keys), 2) + stores


SYSTEM = whole(call("os.system", text(COMMAND)))


class Reduces:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.told = function, arguments

    def __reduce__(self) -> Any:
        return self.told


EXECUTING = {
    "os.system": SYSTEM,
    "posix.system": whole(call("posix.system", text(COMMAND))),
    "builtins.exec": whole(call("builtins.exec", text(SCRIPT))),
    "builtins.eval": whole(call("builtins.eval", text(f"exec({SCRIPT!r})"))),
    "python 2 names": whole(call("__builtin__.eval", text(f"exec({SCRIPT!r})"))),
    "inside a state dict": in_dict(call("os.system", text(COMMAND))),
    "behind a good tensor": whole(b"}(" + text("w") + tensor() + text("x") + call("os.system", text(COMMAND)) + b"u"),
    "getattr chain": whole(
        call("builtins.getattr", call("importlib.import_module", text("os")), text("system"))
        + b"("
        + text(COMMAND)
        + b"tR"
    ),
    "__import__ and getattr": whole(
        call("builtins.getattr", call("builtins.__import__", text("os")), text("system")) + b"(" + text(COMMAND) + b"tR"
    ),
    "functools.partial": whole(call("functools.partial", name("os.system"), text(COMMAND)) + b")R"),
    "operator.methodcaller": whole(
        call("operator.methodcaller", text("system"), text(COMMAND))
        + b"("
        + call("importlib.import_module", text("os"))
        + b"tR"
    ),
    "runpy": whole(call("runpy._run_code", call("builtins.compile", text(SCRIPT), text("x"), text("exec")), b"}")),
    "subprocess.check_output": whole(
        call("subprocess.check_output", b"](" + text("/bin/sh") + text("-c") + text(COMMAND) + b"e")
    ),
    "subprocess.getoutput": whole(call("subprocess.getoutput", text(COMMAND))),
    "timeit": whole(call("timeit.timeit", text(SCRIPT), text("pass"), name("timeit.default_timer"), b"K\x01")),
    "nested pickle": whole(call("_pickle.loads", nested(SYSTEM))),
    "map and list": whole(
        call("builtins.list", call("builtins.map", name("builtins.exec"), b"]" + text(SCRIPT) + b"a"))
    ),
    "INST": b"(S'" + COMMAND.encode() + b"'\nios\nsystem\n.",
    "OBJ": whole(b"(" + name("os.system") + text(COMMAND) + b"o"),
    "STACK_GLOBAL": b"\x80\x04" + text("os") + text("system") + b"\x93(" + text(COMMAND) + b"tR.",
    "STACK_GLOBAL with dots": b"\x80\x04"
    + text("torch")
    + text("serialization.os.system")
    + b"\x93("
    + text(COMMAND)
    + b"tR.",
    "NEWOBJ": whole(name("subprocess.Popen") + b")\x81}" + text("x") + b"K\x01sb" + call("os.system", text(COMMAND))),
    "NEWOBJ_EX": b"\x80\x04" + name("builtins.dict") + b")}\x92" + call("os.system", text(COMMAND)) + b"0.",
    "before a broken end": b"\x80\x02" + call("os.system", text(COMMAND)) + b"\xff\xff",
    "tensor subclass hook": in_dict(
        call(
            "torch._tensor._rebuild_from_type_v2",
            name("os.system"),
            name("torch.Tensor"),
            b"(" + text(COMMAND) + b"t",
            b"}",
        )
    ),
    "torch.storage._load_from_bytes": whole(call("torch.storage._load_from_bytes", nested(zipped(SYSTEM)))),
    "__reduce__, protocol 0": pickle.dumps({"w": Reduces(os.system, COMMAND)}, 0),
    "__reduce__, protocol 2": pickle.dumps({"w": Reduces(os.system, COMMAND)}, 2),
    "__reduce__, protocol 5": pickle.dumps({"w": Reduces(os.system, COMMAND)}, 5),
    "__reduce__ of a __reduce__": pickle.dumps([Reduces(eval, f"exec({SCRIPT!r})"), Reduces(Reduces, os.system)], 4),
}
"""Run by Python's unpickler, every one of these runs its command."""

NAMING = {
    "torch.hub.load": whole(call("torch.hub.load", text("evil/repository"), text("model"))),
    "torch.load": whole(call("torch.load", text("other.pt"))),
    "torch.jit.load": whole(call("torch.jit.load", text("other.pt"))),
    "torch.ops.load_library": whole(call("torch.ops.load_library", text("evil.so"))),
    "numpy.load": whole(call("numpy.load", text("other.npy"), b"N\x88")),
    "numpy object array": pickle.dumps({"w": __import__("numpy").array([1, "a"], dtype=object)}, 2),
    "numpy scalar": pickle.dumps({"w": __import__("numpy").float64(1.0)}, 2),
    "ctypes": whole(call("ctypes.CDLL", text("evil.so"))),
    "marshal and FunctionType": whole(call("types.FunctionType", call("marshal.loads", b"U\x01c"), b"}") + b")R"),
    "webbrowser": whole(call("webbrowser.open", text("file:///"))),
    "shutil.rmtree": whole(call("shutil.rmtree", text("/nowhere"))),
    "builtins.open": whole(call("builtins.open", text("/dev/null"), text("w"))),
    "setattr on torch": whole(call("builtins.setattr", name("torch.nn"), text("Linear"), b"N")),
    "sys.modules": whole(name("sys.modules") + text("torch") + b"Ns"),
    "socket": whole(call("socket.create_connection", b"(" + text("127.0.0.1") + b"K\x09t")),
    "a whole module": whole(name("torch.nn.modules.linear.Linear") + b")\x81}b"),
    "argparse.Namespace": whole(name("argparse.Namespace") + b")\x81}" + text("lr") + b"K\x01sb"),
    "EXT1": whole(b"\x82\x01"),
    "PERSID": b"Pstorage\n.",
    "BUILD on an allowed function": whole(
        name("torch._utils._rebuild_tensor_v2") + b"N}" + text("__defaults__") + b")s\x86b" + tensor()
    ),
    "BUILD on a tensor": in_dict(tensor() + b"N}" + text("offset") + number(1 << 40) + b"s\x86b"),
    "SETITEM on a tensor": in_dict(tensor() + text("offset") + b"K\x01s"),
    "APPEND to an allowed function": whole(name("torch.Size") + b"K\x01a"),
    "calling a tensor": in_dict(tensor() + b")R"),
    "calling text": whole(text("os.system") + b"(" + text(COMMAND) + b"tR"),
    "calling a storage type": in_dict(name("torch.FloatStorage") + b"(K\x09tR"),
    "OrderedDict of strange pairs": whole(call("collections.OrderedDict", b"](K\x01K\x02K\x03te")),
    "rebuild of a class": in_dict(
        call("torch._tensor._rebuild_from_type_v2", name("torch.Tensor"), name("torch.Tensor"), b")", b"}")
    ),
    "wrapper subclass": in_dict(call("torch._utils._rebuild_wrapper_subclass", name("torch.Tensor"))),
}

EXHAUSTING = {
    "LONG4 of two gigabytes": whole(b"\x8b" + struct.pack("<i", 2**31 - 1)),
    "LONG4 of negative size": whole(b"\x8b" + struct.pack("<i", -5)),
    "BINBYTES8 of four exabytes": whole(b"\x8e" + struct.pack("<Q", 1 << 62)),
    "BINBYTES8 of 32 gigabytes": whole(b"\x8e" + struct.pack("<Q", 1 << 35)),
    "BINUNICODE8 beyond 63 bits": whole(b"\x8d" + struct.pack("<Q", (1 << 64) - 1)),
    "BINSTRING of negative size": whole(b"T" + struct.pack("<i", -1)),
    "BYTEARRAY8": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "FRAME that lies": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "memo slot four billion": whole(b"Nr\xff\xff\xff\xff"),
    "memo slot beyond 64 bits": b"Np" + b"9" * 30 + b"\n.",
    "memo slot of many digits": b"Np" + b"9" * 100_000 + b"\n.",
    "integer of many digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "memo that is not there": whole(b"h\x07"),
    "doubling lists": whole(
        b"]q\x00" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(200))
    ),
    "deep lists": whole(b"]" * 100_000 + b"a" * 99_999),
    "deep tuples": whole(b")" + b"\x85" * 300_000),
    "deep tuple as a key": whole(b"})" + b"\x85" * 300_000 + b"Ns"),
    "deep dicts": whole((b"}" + text("model")) * 50_000 + b"}" + b"s" * 50_000),
    "dict that holds itself": whole(b"}q\x00" + text("model") + b"h\x00s"),
    "tuple that holds itself": whole(b"](h\x00tq\x00a"),
    "list as a key": whole(b"}]Ns"),
    "float as a key": whole(b"}G" + struct.pack(">d", 0.5) + b"Ns"),
    "colliding keys": whole(b"}" + number((1 << 61) - 1) + b"Ns"),
    "pops too much": whole(b"000"),
    "no mark": whole(b"Nt"),
    "odd pairs": whole(b"}(Nu"),
    "marks for values": whole(b"}(((u"),
    "two values left": whole(b"NN"),
    "nothing left": whole(b""),
    "no end": b"\x80\x02N",
    "no bytes at all": b"",
    "not a pickle": b"\x00" * 64,
    "not UTF-8": whole(b"X\x02\x00\x00\x00\xff\xfe"),
    "GLOBAL without a line end": b"c" + b"a" * 10_000,
    "unknown protocol": b"\x80\xffN.",
}

LYING = {
    "offset outside": in_dict(tensor(offset=1)),
    "huge offset": in_dict(tensor(offset=1 << 61)),
    "negative offset": in_dict(tensor(offset=-1)),
    "strides outside": in_dict(tensor(strides=(5, 1))),
    "huge stride": in_dict(tensor((2,), (1 << 61,))),
    "negative stride": in_dict(tensor(strides=(-4, 1))),
    "negative dimension": in_dict(tensor((-3, 4))),
    "two negative dimensions": in_dict(tensor((-3, -4))),
    "product that overflows to zero": in_dict(tensor((1 << 32, 1 << 32), (1, 1))),
    "product that overflows to one": in_dict(tensor((3, 0xAAAAAAAAAAAAAAAB), (1, 1))),
    "numbers of many bytes": in_dict(
        tensor().replace(sizes((3, 4)), b"(" + (b"\x8b" + struct.pack("<i", 50_000) + b"\x7f" * 50_000) * 60 + b"t")
    ),
    "repeated without end": in_dict(tensor((1 << 40,), (0,))),
    "shape without strides": in_dict(tensor((3, 4), ())),
    "a hundred dimensions": in_dict(tensor((1,) * 100, (1,) * 100)),
    "shape of text": in_dict(tensor().replace(sizes((3, 4)), b"(" + text("3") + text("4") + b"t")),
    "shape of truth values": in_dict(tensor().replace(sizes((3, 4)), b"(\x88\x88t")),
    "shape that is a list": in_dict(tensor().replace(sizes((3, 4)), b"](K\x03K\x04e")),
    "storage that is text": in_dict(tensor(stored=text("storage"))),
    "tensor for a storage": in_dict(tensor(stored=tensor())),
    "untyped storage in a typed tensor": in_dict(
        tensor(stored=storage(kind=name("torch.storage.UntypedStorage"), count=48))
    ),
    "another class of storage": in_dict(tensor(stored=storage(kind=name("os.system")))),
    "a number for a class": in_dict(tensor(stored=storage(kind=b"K\x07"))),
    "storage of another size": in_dict(tensor((4,), (1,), stored=storage(count=4))),
    "storage of wider numbers": in_dict(tensor(stored=storage(kind=name("torch.DoubleStorage")))),
    "huge storage": in_dict(tensor((1 << 40,), (1,), stored=storage(count=1 << 40))),
    "negative storage": in_dict(tensor((0,), (1,), stored=storage(count=-1))),
    "absent storage": in_dict(tensor(stored=storage("7"))),
    "storage outside the archive": in_dict(tensor(stored=storage("../../../etc/passwd"))),
    "storage by absolute path": in_dict(tensor(stored=storage("/etc/passwd"))),
    "two descriptions of a storage": whole(
        b"}(" + text("a") + tensor() + text("b") + tensor(stored=storage(kind=name("torch.IntStorage"))) + b"u"
    ),
    "persistent module": in_dict(b"(" + text("module") + name("torch.nn.Linear") + text("x") + text("y") + b"tQ"),
    "persistent text": in_dict(text("storage") + b"Q"),
    "persistent tuple of nothing": in_dict(b")Q"),
    "another word for storage": in_dict(tensor(stored=storage(word="stowage"))),
    "conjugated": in_dict(tensor(rest=b"}" + text("conj") + b"\x88s")),
    "type that is no type": in_dict(tensor(function="torch._utils._rebuild_tensor_v3", rest=text("float32"))),
    "parameter of nothing": in_dict(call("torch._utils._rebuild_parameter", b"N\x88N")),
    "a number for a name": whole(b"}K\x07" + tensor() + b"s"),
    "a tensor alone": whole(tensor()),
    "no tensor at all": whole(b"}" + text("epoch") + b"K\x07s"),
}

CORPUS = {**EXECUTING, **NAMING, **EXHAUSTING, **LYING}


class Watch:
    """An audit hook: Python tells of every import of code, start of a program and look-up of a pickle."""

    EVENTS = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "exec", "compile")

    def __init__(self) -> None:
        self.on, self.seen = False, []
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: Any) -> None:
        if self.on and event in self.EVENTS:
            self.seen.append(event)


WATCH = Watch()


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "canary"
    monkeypatch.setenv(CANARY, str(path))
    return path


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Two gigabytes on top of what is mapped already: a bomb that goes off is a MemoryError, which is not expected."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Good files of both kinds read first, so that no import of ours is taken for the file's doing."""
    assert b"text".decode("raw-unicode-escape") == "text"  # a codec that Python imports when it is first used
    folder = tmp_path_factory.mktemp("warm")
    for kind, wrap in (("zip", zipped), ("legacy", legacy)):
        (folder / kind).write_bytes(wrap(in_dict(tensor())))
        entries, _ = read_pytorch(folder / kind)
        assert torch.equal(entries["weight"].read(), torch.zeros(3, 4))


def read_watched(path: Path) -> None:
    WATCH.seen.clear()
    WATCH.on = True
    try:
        entries, _ = read_pytorch(path)
        for entry in entries.values():
            entry.read()
    finally:
        WATCH.on = False


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) >= 120


@pytest.mark.parametrize("wrap", [zipped, legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("data", CORPUS.values(), ids=CORPUS.keys())
def test_hostile_pickle_executes_nothing(data: bytes, wrap: Any, tmp_path: Path, canary: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(wrap(data))
    with pytest.raises(CheckpointError) as caught:
        read_watched(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert not WATCH.seen
    assert not canary.exists()


@pytest.mark.parametrize("data", EXECUTING.values(), ids=EXECUTING.keys())
def test_pythons_own_unpickler_would_run_it(data: bytes, tmp_path: Path, canary: Path) -> None:
    unpickler = pickle.Unpickler(io.BytesIO(data))
    unpickler.persistent_load = lambda _: None  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._utils, "_rebuild_tensor_v2", lambda *_: None)
        with contextlib.suppress(Exception):  # what happens afterwards is its own affair
            unpickler.load()
    assert canary.read_text().strip() == "sung"


def test_endless_pickle_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "OPERATIONS", 10_000)
    (tmp_path / "model.bin").write_bytes(zipped(whole(b"](" + b"N" * 10_000 + b"e")))
    with pytest.raises(CheckpointError, match="more than 10000 instructions"):
        read_pytorch(tmp_path / "model.bin")
