"""Reading PyTorch's own files (.bin, .pt, .pth), both kinds: zip archives, and the older sequence of pickles.

Only state dicts are read: names to tensors, perhaps one level down beside an optimizer, perhaps nested, as Megatron's
are; then the names are joined by dots. The pickle is interpreted, not run (`unpickle`), and what it says of storages,
shapes and strides is checked against the file before it is believed.

Source: torch/serialization.py, `_save`, `_legacy_save`; torch/_utils.py, `_rebuild_tensor_v2`, `_rebuild_tensor_v3`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tsumugu.checkpoints.archive import Archive
from tsumugu.checkpoints.entries import STORAGES, Storage, TensorEntry
from tsumugu.checkpoints.source import DAMAGED, Region, SourceFile
from tsumugu.checkpoints.unpickle import Name, PickleError, check_key, read_pickle
from tsumugu.core.errors import CheckpointError

PICKLE_LIMIT = 1 << 26
MAGIC_NUMBER, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MAX_DIMENSIONS, MAX_NESTING, LARGEST = 64, 16, 1 << 62
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Where training scripts commonly keep the state dict inside a larger checkpoint."""
SAVE_WEIGHTS = "it must hold weights alone: torch.save(model.state_dict(), path), or better, safetensors"

_CLASSES = {
    "Double": "F64",
    "Float": "F32",
    "Half": "F16",
    "BFloat16": "BF16",
    "Long": "I64",
    "Int": "I32",
    "Short": "I16",
    "Char": "I8",
    "Byte": "U8",
    "Bool": "BOOL",
    "ComplexFloat": "C64",
    "ComplexDouble": "C128",
}
_DTYPES = {form.torch_name: form for form in STORAGES.values()}


@dataclass(frozen=True)
class _Function:
    """One of the few things a pickle may call, by our name for it."""

    what: str


@dataclass(frozen=True)
class _StorageType:
    form: Storage | None  # None: bytes without a type


@dataclass(frozen=True)
class _Stored:
    """A storage: `size` bytes under `key`, of which a view begins `skip` bytes in."""

    key: str
    form: Storage | None
    size: int
    skip: int = 0


@dataclass(frozen=True)
class _Tensor:
    storage: _Stored
    form: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_FUNCTIONS = {
    "collections.OrderedDict": _Function("dict"),
    "torch._utils._rebuild_tensor_v2": _Function("tensor"),
    "torch._utils._rebuild_tensor_v3": _Function("typed tensor"),
    "torch._utils._rebuild_parameter": _Function("parameter"),
    "torch._tensor._rebuild_from_type_v2": _Function("tensor with attributes"),
    "torch.nn.parameter.Parameter": _Function("tensor class"),
    "torch.Tensor": _Function("tensor class"),
    "torch.Size": _Function("size"),
}
_NAMES: dict[str, Any] = {
    **_FUNCTIONS,
    **{f"torch.{name}Storage": _StorageType(STORAGES[word]) for name, word in _CLASSES.items()},
    "torch.storage.UntypedStorage": _StorageType(None),
    **{f"torch.{name}": form for name, form in _DTYPES.items()},
}


class _StateDict:
    """The meaning of the names, calls and outside values in the pickle of a state dict."""

    def __init__(self) -> None:
        self.storages: dict[str, _Stored] = {}

    def name(self, name: Name) -> Any:
        found = _NAMES.get(str(name))
        if found is None:
            raise PickleError(f"the pickle names {str(name)[:100]!r}, which is not run or loaded from a file")
        return found

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        match function, arguments:
            case _Function("dict"), ():
                return {}
            case _Function("dict"), (list(pairs),):
                return {check_key(key): value for key, value in pairs}
            case _Function("tensor"), (_Stored() as storage, offset, shape, strides, bool(), _, *rest):
                if storage.form is None or any(rest):
                    raise PickleError("the pickle has a tensor without a type, or one that is conjugated or negated")
                return _tensor(storage, storage.form, offset, shape, strides)
            case (
                _Function("typed tensor"),
                (_Stored() as storage, offset, shape, strides, bool(), _, Storage() as form, *rest),
            ):
                if any(rest):
                    raise PickleError("the pickle has a tensor that is conjugated or negated")
                return _tensor(storage, form, offset, shape, strides)
            case _Function("parameter"), (_Tensor() as tensor, bool(), _):
                return tensor
            case (
                _Function("tensor with attributes"),
                (_Function() as rebuild, _Function("tensor class"), tuple(inner), _),
            ) if rebuild.what in ("tensor", "typed tensor"):
                return self.call(rebuild, inner)
            case _Function("size"), ((tuple() | list()) as sizes,):
                return tuple(sizes)
        raise PickleError("the pickle calls something with arguments that do not belong to it")

    def persistent(self, id: Any) -> _Stored:
        match id:
            case ("storage", _StorageType(form), str(key), str(), int(count), *view) if count >= 0:
                item = form.size if form else 1
                whole = _Stored(key, form, count * item)
                if self.storages.setdefault(key, whole) != whole:
                    raise PickleError("the pickle gives two descriptions of one storage")
                match view:
                    case [] | [None]:
                        return whole
                    case [(str(), int(skip), int(size))] if min(skip, size) >= 0 and skip + size <= count:
                        return _Stored(key, form, count * item, skip * item)
        raise PickleError("the pickle refers to something outside it that is not a storage")


def _tensor(storage: _Stored, form: Storage, offset: Any, shape: Any, strides: Any) -> _Tensor:
    """A tensor whose elements all lie in its storage."""
    for sizes in (shape, strides, (offset,)):
        if type(sizes) is not tuple or any(type(size) is not int or not 0 <= size < LARGEST for size in sizes):
            raise PickleError("the pickle has a tensor whose shape, strides or offset is out of range")
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise PickleError("the pickle has a tensor whose shape and strides do not fit each other")
    first = storage.skip + offset * form.size
    if first + _extent(shape, strides) * form.size > storage.size or prod(shape) * form.size > storage.size:
        raise PickleError("the pickle has a tensor that is larger than its storage")
    return _Tensor(storage, form, offset, shape, strides)


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many elements of the storage lie from the first to the last of the tensor."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _by_rows(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements lie one behind the other; the stride of a dimension of one element does not matter."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return 0 in shape
        expected *= size
    return True


def read_pytorch(path: Path) -> tuple[dict[str, TensorEntry], dict[str, Any]]:
    """The tensors of a PyTorch file, and the plain values beside them; nothing in the file is executed.

    Raises:
        CheckpointError: the file is damaged, lies about itself, or holds anything but a state dict.
    """
    file = SourceFile(path)
    zipped = file.read(0, min(file.size, 4)) == b"PK\3\4"
    try:
        tree, regions = _read_zip(file) if zipped else _read_legacy(file)
    except PickleError as error:
        raise CheckpointError(str(error), where=str(path), mend=SAVE_WEIGHTS) from error
    tensors, beside = _state_dict(tree, path)
    return {name: _entry(name, tensor, regions, path) for name, tensor in tensors.items()}, beside


def _read_zip(file: SourceFile) -> tuple[Any, dict[str, Region]]:
    """The pickle's value and the storages of a zip archive, each an entry of its own."""
    archive = Archive(file)
    pickles = [name for name in archive.entries if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise PickleError("is a zip archive, but not one that torch.save wrote")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.entries and archive.head(f"{root}byteorder", 8) != b"little":
        raise PickleError("is in big-endian byte order")
    if archive.entries[pickles[0]].file_size > PICKLE_LIMIT:
        raise PickleError(f"the pickle is larger than {PICKLE_LIMIT} bytes")
    meaning = _StateDict()
    tree = read_pickle(io.BytesIO(b"".join(map(bytes, archive.stored(pickles[0]).pieces(1 << 20)))), meaning)
    names = {key: f"{root}data/{key}" for key in meaning.storages}
    return tree, {key: archive.stored(name) for key, name in names.items() if name in archive.entries}


def _read_legacy(file: SourceFile) -> tuple[Any, dict[str, Region]]:
    """The pickle's value and the storages of the older kind: five pickles, then each storage behind its length."""
    if file.size == 0:
        raise PickleError("is empty")
    regions: dict[str, Region] = {}
    with file.mapped(PICKLE_LIMIT) as mapping:
        stream: Any = mapping  # as good as an IO[bytes] for reading, though not one by its type
        meaning = _StateDict()
        if (read_pickle(stream, meaning), read_pickle(stream, meaning)) != (MAGIC_NUMBER, PROTOCOL):
            raise PickleError("is not a file that torch.save wrote")
        about = read_pickle(stream, meaning)
        if not isinstance(about, dict) or about.get("little_endian") is not True:
            raise PickleError("is in big-endian byte order")
        tree, keys = read_pickle(stream, meaning), read_pickle(stream, meaning)
        position = stream.tell()
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in meaning.storages for key in keys):
        raise PickleError("the list of storages does not fit the tensors")
    for key in keys:
        stored = meaning.storages[key]
        count = int.from_bytes(file.read(position, 8), "little") if position + 8 <= file.size else -1
        position += 8
        if count * (stored.form.size if stored.form else 1) != stored.size or position + stored.size > file.size:
            raise PickleError(f"storage {key[:100]!r} is cut short or has another size than it says")
        regions[key] = Region(file, position, stored.size)
        position += stored.size
    return tree, regions


def _entry(name: str, tensor: _Tensor, regions: dict[str, Region], path: Path) -> TensorEntry:
    where, stored, size = f"{path}: {name}", tensor.storage, tensor.form.size
    storage = regions.get(stored.key)
    if storage is None:
        raise CheckpointError(f"its storage {stored.key[:100]!r} is not in the file", where=where, mend=DAMAGED)
    if storage.length != stored.size:
        raise CheckpointError("its storage has another size than it says", where=where, mend=DAMAGED)
    first = storage.offset + stored.skip + tensor.offset * size
    data = Region(storage.file, first, _extent(tensor.shape, tensor.strides) * size, storage.seal)
    strides = None if _by_rows(tensor.shape, tensor.strides) else tensor.strides
    return TensorEntry(name, tensor.shape, tensor.form, data, strides, str(path))


def _state_dict(tree: Any, path: Path) -> tuple[dict[str, _Tensor], dict[str, Any]]:
    """The tensors by name, at the top or one level down, and whatever plain values lie beside them."""
    if not isinstance(tree, dict):
        raise CheckpointError("holds no state dict", where=str(path), mend=SAVE_WEIGHTS)
    inner = [tree, *(tree[key] for key in WRAPPERS if isinstance(tree.get(key), dict))]
    for state in inner:
        tensors = {name: value for name, value in state.items() if isinstance(value, _Tensor)}
        if not all(isinstance(name, str) for name in tensors):
            raise CheckpointError("has a tensor whose name is not text", where=str(path), mend=SAVE_WEIGHTS)
        if tensors:
            return tensors, _plain(tree)
    for state in reversed(inner):
        tensors = _flattened(state)
        if tensors:
            return tensors, _plain(tree)
    raise CheckpointError("holds no tensors by name", where=str(path), mend=SAVE_WEIGHTS)


def _flattened(tree: dict[Any, Any]) -> dict[str, _Tensor]:
    """The tensors of nested dictionaries, their keys joined by dots. A dictionary that comes again is read once."""
    tensors: dict[str, _Tensor] = {}
    left: list[tuple[tuple[str, ...], dict[Any, Any]]] = [((), tree)]
    seen = {id(tree)}
    while left:
        path, state = left.pop()
        for name, value in state.items():
            if not isinstance(name, str):
                continue
            if isinstance(value, _Tensor):
                tensors[".".join((*path, name))] = value
            elif isinstance(value, dict) and len(path) < MAX_NESTING and id(value) not in seen:
                seen.add(id(value))
                left.append(((*path, name), value))
    return tensors


def _plain(tree: dict[Any, Any]) -> dict[str, Any]:
    plain = (str, int, float, bool)
    return {name: value for name, value in tree.items() if isinstance(name, str) and isinstance(value, plain)}
