"""Tensors at the edges: PyTorch, TensorFlow, JAX, NumPy or nested lists in, any of the four out.

A tensor keeps its dtype (float16/32/64, bfloat16, int8 to int64, uint8 to uint64, bool, complex64/128), and its bytes
are shared where the two frameworks can share them. In the CPU's memory, row-major and 64-byte aligned:

    from \\ to    pt               tf               jax              np
    pt           itself           DLPack           buffer           buffer (strided too)
    tf           DLPack           itself           buffer           buffer, read-only
    jax          DLPack           DLPack           itself           buffer, read-only
    np           buffer (strided) DLPack           buffer           itself

Shared means shared: a write to one side is seen by the other, so clone what you go on to change. A copy is made

- from NumPy to PyTorch when the array is read-only (PyTorch would write to it), has negative strides or foreign byte
  order, which PyTorch lacks;
- to TensorFlow and JAX when the source is not row-major or not 64-byte aligned (JAX copies by itself; TensorFlow would
  abort the process in its vectorised kernels). PyTorch aligns what it allocates, NumPy only by chance;
- from NumPy to TensorFlow when the array is read-only or bfloat16, which NumPy's DLPack cannot export;
- from an accelerator, and from a JAX array spread over several devices: first to the CPU.

Gradients do not cross: a PyTorch tensor leaves detached. 64-bit dtypes are kept in JAX too, whose own default is 32;
what JAX's arithmetic makes of such arrays follows its ``jax_enable_x64`` setting.

Nested lists have no dtype. Integers become int64 (int32 in JAX and TensorFlow, as there usual, while they fit), real
numbers float32, complex ones complex64; an empty list counts as integers. Tensors within lists are stacked and keep
theirs.

A framework is imported only when it is asked for; the kind of an input is told without importing any.

Source: DLPack 1.0, "C API" (alignment, strides); Python's buffer protocol, PEP 3118.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from tsumugu.core.errors import InputError, UnknownNameError, did_you_mean
from tsumugu.core.frameworks import load

if TYPE_CHECKING:
    import numpy as np
    import torch

_REAL = {"float16", "float32", "float64", "bfloat16"}
_INTEGER = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
DTYPES = frozenset(_REAL | _INTEGER | {"bool", "complex64", "complex128"})
"""The names of the dtypes that every one of the four frameworks has."""

_ALIGNMENT = 64  # bytes; what TensorFlow and JAX ask of a buffer that they take over


class TensorFormat(StrEnum):
    """A framework whose tensors come in or go out, by the word that ``return_tensors`` takes."""

    PT = "pt"
    TF = "tf"
    JAX = "jax"
    NP = "np"

    @classmethod
    def parse(cls, word: object) -> TensorFormat:
        """The format called `word`.

        Raises:
            UnknownNameError: for any other word; it names the nearest and lists the legal ones.
        """
        for each in cls:
            if word == each.value:
                return each
        legal = {each.value: each.value for each in cls}
        mend = did_you_mean(str(word), legal | _LONG_NAMES)
        for long, short in _LONG_NAMES.items():
            mend = mend.replace(repr(long), repr(short))
        listed = f"legal words: {', '.join(legal)}"
        mend = f"{mend} {listed}" if mend.endswith("?") else listed
        raise UnknownNameError(f"unknown tensor format {word!r}", mend=mend)

    @classmethod
    def _missing_(cls, value: object) -> TensorFormat:
        return cls.parse(value)


_LONG_NAMES = {"pytorch": "pt", "torch": "pt", "tensorflow": "tf", "flax": "jax", "numpy": "np"}

_KINDS = (
    (TensorFormat.NP, "numpy", ("ndarray", "generic")),
    (TensorFormat.PT, "torch", ("Tensor",)),
    (TensorFormat.JAX, "jax", ("Array",)),
    (TensorFormat.TF, "tensorflow", ("Tensor", "Variable")),
)


def format_of(x: object) -> TensorFormat | None:
    """The framework that `x` belongs to, or None when it is no tensor. Imports nothing."""
    for each, module, names in _KINDS:
        loaded = sys.modules.get(module)
        kinds = [getattr(loaded, name, None) for name in names]
        if isinstance(x, tuple(kind for kind in kinds if isinstance(kind, type))):
            return each
    return None


def convert_tensor(x: Any, to: TensorFormat | str) -> Any:
    """`x`, a tensor of any of the four frameworks, a number or nested lists, as a tensor of the framework `to`.

    A tensor that is already of that framework is handed back as it is.

    Args:
        x: any shape, 0-dimensional and empty ones included.
        to: ``"pt"``, ``"tf"``, ``"jax"`` or ``"np"``.

    Raises:
        UnknownNameError: `to` is none of these.
        InputError: `x` is of another type, is ragged (the row is named), or has a dtype outside `DTYPES`.
        MissingExtraError: the framework is not installed.
    """
    to = TensorFormat.parse(to)
    if format_of(x) is to and to is not TensorFormat.NP:
        return x
    if to is TensorFormat.PT:
        return to_torch(x)
    if to is TensorFormat.TF:
        return _to_tensorflow(x)
    if to is TensorFormat.JAX:
        return _to_jax(x)
    return to_numpy(x)


def to_torch(x: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """`x` as a PyTorch tensor, as `convert_tensor` makes it, and then as `dtype` when one is given; the numbers of
    lists become that dtype without passing through float32."""
    torch = load("torch")
    form = format_of(x)
    if form is TensorFormat.PT:
        tensor = x
    elif form is TensorFormat.TF:
        dlpack = load("tensorflow").experimental.dlpack
        tensor = torch.utils.dlpack.from_dlpack(dlpack.to_dlpack(_eager(x)))
    elif form is TensorFormat.JAX and _on_one_cpu(_concrete(x)):
        tensor = torch.utils.dlpack.from_dlpack(x.__dlpack__())
    elif form is None:
        tensor = _torch_from_numpy(_numpy_from_numbers(x, TensorFormat.PT, wide=dtype is not None))
    else:
        tensor = _torch_from_numpy(to_numpy(x))
    return tensor if dtype is None else tensor.to(dtype)  # type: ignore[no-any-return]


def to_numpy(x: Any) -> np.ndarray[Any, Any]:
    """`x` as a NumPy array, as `convert_tensor` makes it. bfloat16 needs the package ml_dtypes, which JAX and
    TensorFlow bring along."""
    np = load("numpy")
    form = format_of(x)
    if form is TensorFormat.PT:
        return _numpy_from_torch(x)
    if form is TensorFormat.TF:
        x = _eager(x)
        x = x if x.shape.rank else x.numpy()  # a 0-dimensional bfloat16 has no working __array__
    elif form is TensorFormat.JAX:
        x = _concrete(x)
    elif form is None:
        return _numpy_from_numbers(x, TensorFormat.NP)
    elif isinstance(x, np.ma.MaskedArray):
        raise InputError("a masked array has values that are not there", mend="fill them in with .filled(value)")
    array = np.asarray(x)
    _check_dtype(array.dtype.name, x)
    if form is not TensorFormat.NP and array.flags.writeable:
        array = array.view()
        array.flags.writeable = False  # TensorFlow and JAX count on their tensors never changing
    return array  # type: ignore[no-any-return]


def _plain_torch(x: Any) -> Any:
    """A PyTorch tensor on the CPU, without gradient and pending conjugation; the same memory where that can be."""
    torch = load("torch")
    if x.layout is not torch.strided or x.is_nested:
        raise InputError("a sparse or nested tensor has no plain array", mend="call .to_dense() or pad it first")
    if x.is_meta:
        raise InputError("a tensor on the meta device has no values")
    _check_dtype(str(x.dtype).removeprefix("torch."), x)
    return x.detach().cpu().resolve_conj().resolve_neg()


def _numpy_from_torch(x: Any) -> np.ndarray[Any, Any]:
    """A view of a PyTorch tensor's memory, any strides."""
    torch, np = load("torch"), load("numpy")
    plain = _plain_torch(x)
    if plain.dtype is not torch.bfloat16:
        return plain.numpy()  # type: ignore[no-any-return]
    return plain.view(torch.int16).numpy().view(np.dtype(_bfloat16()))  # type: ignore[no-any-return]


def _torch_from_numpy(array: np.ndarray[Any, Any]) -> Any:
    """A PyTorch tensor on an array's memory, or on a copy of what PyTorch cannot or must not share."""
    torch = load("torch")
    array = _native(array)
    if not array.flags.writeable or any(step < 0 or step % array.itemsize for step in array.strides):
        array = array.copy()
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def _to_tensorflow(x: Any) -> Any:
    tf, np = load("tensorflow"), load("numpy")
    form = format_of(x)
    array = _native(_numpy_from_numbers(x, TensorFormat.TF) if form is None else to_numpy(x))
    exporter: Any = array
    if form is TensorFormat.PT:
        exporter = _plain_torch(x)
    elif form is TensorFormat.JAX and _on_one_cpu(x):
        exporter = x
    shareable = array.flags.c_contiguous and array.ctypes.data % _ALIGNMENT == 0
    if exporter is array:
        shareable &= array.flags.writeable and array.dtype.name != "bfloat16"
    if shareable:
        return tf.experimental.dlpack.from_dlpack(exporter.__dlpack__())
    return tf.convert_to_tensor(np.ascontiguousarray(array).reshape(array.shape))


def _to_jax(x: Any) -> Any:
    jax, np = load("jax"), load("numpy")
    array = _native(_numpy_from_numbers(x, TensorFormat.JAX) if format_of(x) is None else to_numpy(x))
    with _jax_64_bits(jax):
        return jax.device_put(np.ascontiguousarray(array).reshape(array.shape))


def _jax_64_bits(jax: Any) -> Any:
    """A context in which JAX makes arrays of 64-bit types; it holds for this thread only."""
    home = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")  # until JAX 0.8
    return home.enable_x64(True)


def _eager(x: Any) -> Any:
    """A TensorFlow tensor or variable as a tensor that has values, in the CPU's memory."""
    tf = load("tensorflow")
    x = tf.convert_to_tensor(x)
    if not hasattr(x, "numpy"):
        raise InputError("a tensor inside tf.function has no values yet", mend="convert it outside")
    _check_dtype(x.dtype.name, x)
    if "CPU" in x.device:
        return x
    with tf.device("CPU"):
        return tf.identity(x)


def _concrete(x: Any) -> Any:
    """A JAX array that has values."""
    jax = load("jax")
    if isinstance(x, jax.core.Tracer):
        raise InputError("an array inside a JAX transformation has no values yet", mend="convert it outside jax.jit")
    if x.is_deleted():
        raise InputError("this JAX array was deleted or donated")
    _check_dtype(str(x.dtype), x)
    return x


def _on_one_cpu(x: Any) -> bool:
    return [each.platform for each in x.devices()] == ["cpu"]


def _native(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array in this machine's byte order, and by the one of C's integer types that is known by its width."""
    if array.dtype.char in "qQ":  # (unsigned) long long, the twin of int64 and uint64 that PyTorch does not know
        return array.view(array.dtype.name)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _check_dtype(name: str, x: object) -> None:
    if name not in DTYPES:
        known = ", ".join(sorted(DTYPES))
        raise InputError(f"{type(x).__name__} of dtype {name} does not convert", mend=f"cast it to one of {known}")


def _numpy_from_numbers(x: Any, to: TensorFormat, *, wide: bool = False) -> np.ndarray[Any, Any]:
    """A number or nested lists of numbers or tensors as an array of the dtype that is usual in `to`, or if `wide` as
    float64 and complex128."""
    np = load("numpy")
    if not isinstance(x, list | tuple | int | float | complex):
        raise InputError(f"expected a tensor, nested lists or a number, found {type(x).__name__}")
    if format_of(_first_leaf(x)) is not None:
        return _stack(x)
    try:
        array = np.array(x)
    except (ValueError, TypeError, OverflowError):
        raise _fault(x) from None
    kind = array.dtype.kind if array.size else "i"
    if kind not in "biufc" or (kind == "f" and not _has_float(x)):
        raise _fault(x)
    if kind == "i":
        bounds = np.iinfo(np.int32)
        small = not array.size or (bounds.min <= array.min() and array.max() <= bounds.max)
        return array.astype(np.int32 if small and to in (TensorFormat.TF, TensorFormat.JAX) else np.int64)  # type: ignore[no-any-return]
    if kind in "fc" and not wide:
        with np.errstate(over="ignore"):
            single = array.astype(np.float32 if kind == "f" else np.complex64)
        if not np.array_equal(np.isinf(array), np.isinf(single)):
            raise InputError("a number is too large for float32", mend="hand in a NumPy array of float64")
        return single  # type: ignore[no-any-return]
    return array  # type: ignore[no-any-return]


def _stack(rows: Any) -> np.ndarray[Any, Any]:
    """Nested lists with tensors in them, as one array."""
    arrays = [to_numpy(each) for each in rows]
    for i, each in enumerate(arrays):
        if each.shape != arrays[0].shape:
            shapes = f"row {i} has shape {list(each.shape)}, row 0 {list(arrays[0].shape)}"
            raise InputError(f"ragged lists: {shapes}", mend="pad them to one length")
    return load("numpy").stack(arrays)  # type: ignore[no-any-return]


def _first_leaf(x: Any) -> Any:
    for _ in range(64):
        if not isinstance(x, list | tuple) or not x:
            break
        x = x[0]
    return x


def _has_float(x: Any) -> bool:
    return any(map(_has_float, x)) if isinstance(x, list | tuple) else isinstance(x, float)


def _fault(x: Any) -> InputError:
    """Why nested lists are no tensor: the first row that is not like row 0, or the first thing that is no number."""
    shape: list[int] = []
    first = x
    while isinstance(first, list | tuple) and len(shape) < 64:
        shape.append(len(first))
        first = first[0] if first else None
    what = next(_faults(x, shape, ()), "a number does not fit 64 bits, or the lists are nested too deeply")
    return InputError(what, mend="pad them to one length" if what.startswith("ragged") else None)


def _faults(x: Any, shape: Sequence[int], path: tuple[int, ...]) -> Iterator[str]:
    row = f"row {path[0]}" if len(path) == 1 else "row " + "".join(f"[{i}]" for i in path)
    if len(path) == len(shape):
        if isinstance(x, list | tuple):
            yield f"ragged lists: {row} is a list, the first one a number"
        elif not isinstance(x, int | float | complex):
            yield f"{row} holds {type(x).__name__}, not a number"
    elif not isinstance(x, list | tuple):
        yield f"ragged lists: {row} is {type(x).__name__}, the first one a list of {shape[len(path)]}"
    elif len(x) != shape[len(path)]:
        yield f"ragged lists: {row} has length {len(x)}, the first one {shape[len(path)]}"
    else:
        for i, each in enumerate(x):
            yield from _faults(each, shape, (*path, i))


def _bfloat16() -> Any:
    """NumPy's bfloat16, which lives in a package of its own."""
    return load("ml_dtypes").bfloat16
