"""The kernels as a shared library: compiled once for this machine's processor, kept in the cache, called by ctypes.

It takes a C compiler (gcc or clang) and an x86-64 processor with AVX2; where one is missing, ONNX Runtime does the
work.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from tsumugu.core.errors import ConfigError
from tsumugu.hub.home import home

SOURCES = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi", "-shared", "-fPIC", "-pthread")
COMPILERS = ("cc", "gcc", "clang")


class Norm(ctypes.Structure):
    """As in network.h; so are those below."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("epsilon", ctypes.c_float),
        ("width", ctypes.c_int32),
    )


class Matrix(ctypes.Structure):
    """Rows in panels, whole or rounded in groups."""

    _fields_ = (
        ("bits", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("shift", ctypes.c_int32),
        ("numbers", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("mins", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class Layer(ctypes.Structure):
    """One layer's weights."""

    _fields_ = (
        ("attention_norm", Norm),
        ("query_norm", Norm),
        ("key_norm", Norm),
        ("attention_output_norm", Norm),
        ("feed_forward_norm", Norm),
        ("feed_forward_output_norm", Norm),
        ("packed", Matrix),
        ("output", Matrix),
        ("up", Matrix),
        ("down", Matrix),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("window", ctypes.c_int32),
    )


class Network(ctypes.Structure):
    """All that a decoder is made of."""

    _fields_ = (
        ("layers", ctypes.c_int32),
        ("hidden", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("inner", ctypes.c_int32),
        ("gated", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("embedding_scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("table", Matrix),
        ("positions", ctypes.c_void_p),
        ("norm", Norm),
        ("head", Matrix),
        ("layer", ctypes.POINTER(Layer)),
    )


class Dense(ctypes.Structure):
    """As in gemm.h: rows in panels, whole or rounded one by one."""

    _fields_ = (
        ("bits", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("numbers", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class EncoderLayer(ctypes.Structure):
    """As in encoder.c; so is the next."""

    _fields_ = (
        ("packed", Dense),
        ("output", Dense),
        ("up", Dense),
        ("down", Dense),
        ("attention_norm", Norm),
        ("feed_forward_norm", Norm),
        ("scale", ctypes.c_float),
        ("unused", ctypes.c_int32),
    )


class Encoder(ctypes.Structure):
    """All that an encoder is made of, its head apart."""

    _fields_ = (
        ("layers", ctypes.c_int32),
        ("hidden", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("embedded", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("tokens", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("segments", ctypes.c_void_p),
        ("norm", Norm),
        ("projection", Dense),
        ("layer", ctypes.POINTER(EncoderLayer)),
    )


class Cache(ctypes.Structure):
    """Keys and values of some texts, as in attention.h."""

    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("key_scales", ctypes.c_void_p),
        ("value_scales", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("capacity", ctypes.c_int64),
        ("bits", ctypes.c_int64),
    )


@cache
def load_library() -> Any:
    """The compiled kernels; compiled now if they were not before, which takes a few seconds.

    Raises:
        ConfigError: there is no compiler, or none that makes them for this processor.
    """
    path = _built()
    library = ctypes.CDLL(str(path))
    pointer, whole, wide = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    library.tsumugu_open.argtypes, library.tsumugu_open.restype = (ctypes.POINTER(Network), whole), pointer
    library.tsumugu_close.argtypes, library.tsumugu_close.restype = (pointer,), None
    library.tsumugu_run.argtypes = (
        *(pointer, ctypes.POINTER(Cache), wide, pointer, pointer, pointer),
        *(wide, pointer, pointer, wide),
    )
    library.tsumugu_run.restype = whole
    library.tsumugu_read.argtypes, library.tsumugu_read.restype = (pointer, pointer, wide), None
    library.tsumugu_open_encoder.argtypes = (ctypes.POINTER(Encoder), whole)
    library.tsumugu_open_encoder.restype = pointer
    library.tsumugu_close_encoder.argtypes, library.tsumugu_close_encoder.restype = (pointer,), None
    library.tsumugu_encode.argtypes = (pointer, wide, *(pointer,) * 6)
    library.tsumugu_encode.restype = whole
    library.tsumugu_head.argtypes = (
        *(pointer, ctypes.POINTER(Dense), ctypes.POINTER(Norm)),
        *(wide, pointer, wide, pointer, wide),
    )
    library.tsumugu_head.restype = None
    return library


def _built() -> Path:
    """Where the library lies."""
    if platform.machine() not in ("x86_64", "AMD64") or os.name != "posix":
        raise _unavailable(f"the kernels are written for x86-64 under Linux and macOS, not {platform.machine()}")
    sources = sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.c")])
    digest = hashlib.sha256(" ".join((*FLAGS, _processor())).encode())
    for source in sources:
        digest.update(source.read_bytes())
    path = home() / "native" / f"{digest.hexdigest()[:32]}.so"
    if path.is_file():
        return path
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", *COMPILERS))), None)
    if compiler is None:
        raise _unavailable("there is no C compiler")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        command = [compiler, *FLAGS, *map(str, sorted(SOURCES.glob("*.c"))), "-o", str(partial), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), "it gave no reason")
            raise _unavailable(f"{Path(compiler).name} does not make the kernels: {first}")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _processor() -> str:
    """What the processor can do, so that a cache that several machines share holds a library for each."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), platform.processor())


def _unavailable(why: str) -> ConfigError:
    return ConfigError(f"the native engine cannot be had: {why}", where="engine", mend="choose engine='onnx'")
