"""A model as a JAX function of its parameters: jitted, differentiated, batched and saved like any other.

Each operator of the graph is one line of `jax.numpy`. Saved, the function is StableHLO for CPUs, GPUs and TPUs, of any
number of rows and tokens, which `jax.export` alone reads and differentiates.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tsumugu.checkpoints.load import save_tensors
from tsumugu.core.errors import InputError
from tsumugu.core.frameworks import load
from tsumugu.core.tensors import convert_tensor
from tsumugu.exporting.program import Operators, Program, check, run, too_long

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


class JaxModel(NamedTuple):
    """A function, and what it is to be called with.

    Attributes:
        function: `function(params, input_ids, attention_mask, …)`, by place or by name -> the outputs by name.
        params: weights by name, float arrays; a copy of the model's own.
    """

    function: JaxFunction
    params: dict[str, Any]


class JaxFunction:
    """A model without its weights, pure, for `jax.jit`, `jax.grad` and `jax.vmap`.

    Attributes:
        inputs: names of what it takes after the parameters; `attention_mask` (all ones) and `token_type_ids` (all
            zeros) may be left out.
        outputs: names of what it gives.
    """

    def __init__(self, program: Program) -> None:
        self.inputs, self.outputs = program.inputs, program.outputs
        self._longest = program.longest
        self._bound, self._steps, self._results = program.bound, program.steps, program.results
        self._placeholders = program.placeholders
        self._constants = {name: convert_tensor(each, "np").copy() for name, each in program.constants.items()}
        self._operators = operators()
        check(program, self._operators, "JAX")

    def __call__(self, params: Mapping[str, Any], *inputs: Any, **named: Any) -> dict[str, Any]:
        """The outputs by name.

        Args:
            params: weights by name.
            inputs, named: arrays; ids and masks `[batch, time]`, whole numbers of any width.

        Raises:
            InputError: an input is missing, given twice, not one of the model's, or longer than the model can read.
        """
        jnp = load("jax.numpy")
        given = self._given(inputs, named)
        if "attention_mask" in self.inputs:
            given.setdefault("attention_mask", jnp.ones_like(given["input_ids"]))
        if "token_type_ids" in self.inputs:
            given.setdefault("token_type_ids", jnp.zeros_like(given["input_ids"]))
        for name in self.inputs:
            if name not in given:
                raise InputError("is missing", where=name)
        values = {name: jnp.asarray(each) for name, each in self._constants.items()}
        values |= {value: params[name] for value, name in self._bound.items()}
        for value, name in zip(self._placeholders, self.inputs, strict=True):
            array = jnp.asarray(given[name])
            if array.shape[-1] > self._longest:
                raise InputError(too_long(array.shape[-1], self._longest), where=name, mend="truncate the text")
            values[value] = array.astype("int32") if jnp.issubdtype(array.dtype, jnp.integer) else array
        found = run(self._steps, self._results, values, self._operators, _cast)
        return dict(zip(self.outputs, found, strict=True))

    def _given(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        listed = ", ".join(self.inputs)
        if len(inputs) > len(self.inputs):
            raise InputError(f"{len(inputs)} inputs, where the model takes {listed}")
        given = dict(zip(self.inputs, inputs, strict=False))
        for name, value in named.items():
            if name in given or name not in self.inputs:
                problem = "is given twice" if name in given else "is no input of this model"
                raise InputError(problem, where=name, mend=f"it takes {listed}")
            given[name] = value
        if "input_ids" not in given:
            raise InputError("is missing", where="input_ids", mend=f"the model takes {listed}")
        return given


def to_jax(program: Program) -> JaxModel:
    """A function with its parameters.

    Raises:
        ConfigError: the model has an operator that is not written for JAX.
    """
    jnp = load("jax.numpy")
    params = {name: jnp.array(convert_tensor(each, "jax"), copy=True) for name, each in program.parameters.items()}
    return JaxModel(JaxFunction(program), params)


def write_jax(program: Program, folder: Path) -> None:
    """`model.jax`, what `jax.export.deserialize` reads, with its derivative, and `params.safetensors`."""
    jax, export = load("jax"), load("jax.export")
    function = JaxFunction(program)
    words = [each for shape in program.dimensions.values() for each in shape if isinstance(each, str)]
    names = ", ".join(dict.fromkeys(words))
    limits = [f"{each} <= {program.longest}" for each in dict.fromkeys(words) if each != "batch"]
    symbols = export.symbolic_shape(names, constraints=limits)
    sizes = dict(zip(dict.fromkeys(words), symbols, strict=True))
    inputs = {
        name: jax.ShapeDtypeStruct(
            tuple(sizes[each] if isinstance(each, str) else each for each in shape), jax.numpy.int32
        )
        for name, shape in program.dimensions.items()
    }
    params = {
        name: jax.ShapeDtypeStruct(tuple(each.shape), str(each.dtype).removeprefix("torch."))
        for name, each in program.parameters.items()
    }
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(params, **inputs)
    (folder / "model.jax").write_bytes(exported.serialize(vjp_order=1))
    save_tensors({name: each.contiguous() for name, each in program.parameters.items()}, folder / "params.safetensors")


def _cast(value: Any, dtype: str) -> Any:
    jnp = load("jax.numpy")
    return value.astype(dtype) if jnp.issubdtype(value.dtype, jnp.inexact) and value.dtype != dtype else value


def operators() -> Operators:
    """What computes each operator."""
    jax = load("jax")
    jnp, lax, nn = jax.numpy, jax.lax, jax.nn

    def dtype_of(word: str | None) -> Any:
        return None if word is None else {"int64": "int32", "float64": "float32"}.get(word, word)

    def at(dim: int, index: Any) -> tuple[Any, ...]:
        return (*(slice(None),) * dim, index) if dim >= 0 else (..., index, *(slice(None),) * (-1 - dim))

    def expand(x: Any, shape: list[Any]) -> Any:
        shape = list(shape)
        for axis in range(1, x.ndim + 1):
            if isinstance(shape[-axis], int) and shape[-axis] == -1:
                shape[-axis] = x.shape[-axis]
        return jnp.broadcast_to(x, shape)

    def layer_norm(x: Any, shape: list[int], weight: Any, bias: Any, eps: float) -> tuple[Any, ...]:
        axes = tuple(range(-len(shape), 0))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - wide.mean(axes, keepdims=True)
        y = centred * lax.rsqrt((centred**2).mean(axes, keepdims=True) + eps)
        y = y if weight is None else y * weight
        return ((y if bias is None else y + bias).astype(x.dtype),)

    def softmax(x: Any, dim: int, half_to_float: bool) -> Any:
        """Of a row that is all -inf zeros, with a derivative that is zero too, not NaN."""
        top = lax.stop_gradient(x.max(dim, keepdims=True))
        parts = jnp.exp(x - jnp.where(jnp.isfinite(top), top, 0))
        total = parts.sum(dim, keepdims=True)
        return parts / jnp.where(total == 0, 1, total)

    def pad(x: Any, widths: list[Any], value: float = 0.0) -> Any:
        pairs = [(0, 0)] * (x.ndim - len(widths) // 2)
        return jnp.pad(x, pairs + list(zip(widths[-2::-2], widths[::-2], strict=True)), constant_values=value)

    def split(x: Any, sizes: list[int], dim: int = 0) -> list[Any]:
        ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
        return [x[at(dim, slice(end - size, end))] for end, size in zip(ends, sizes, strict=True)]

    return {
        "aten._softmax": softmax,
        "aten._to_copy": lambda x, dtype=None: x if dtype is None else x.astype(dtype_of(dtype)),
        "aten.abs": jnp.abs,
        "aten.add": lambda x, y, alpha=1: x + (y if alpha == 1 else alpha * y),
        "aten.addmm": lambda bias, x, y: bias + x @ y,
        "aten.alias": lambda x: x,
        "aten.any": lambda x, dim, keepdim=False: x.any(dim, keepdims=keepdim),
        "aten.arange": lambda start, end, step=1, dtype=None: jnp.arange(start, end, step, dtype=dtype_of(dtype)),
        "aten.argmax": lambda x, dim=None, keepdim=False: jnp.argmax(x, dim, keepdims=keepdim),
        "aten.bitwise_and": jnp.bitwise_and,
        "aten.bitwise_not": jnp.bitwise_not,
        "aten.bmm": jnp.matmul,
        "aten.cat": lambda parts, dim=0: jnp.concatenate(parts, dim),
        "aten.clamp": lambda x, low=None, high=None: jnp.clip(x, low, high),
        "aten.clone": lambda x: x,
        "aten.constant_pad_nd": pad,
        "aten.cos": jnp.cos,
        "aten.cumsum": lambda x, dim: jnp.cumsum(x, dim),
        "aten.div": jnp.true_divide,
        "aten.embedding": lambda weight, ids, *_: weight[ids],
        "aten.eq": lambda x, y: x == y,
        "aten.expand": expand,
        "aten.full_like": lambda x, value, dtype=None: jnp.full_like(x, value, dtype=dtype_of(dtype)),
        "aten.gelu": lambda x, approximate="none": nn.gelu(x, approximate=approximate == "tanh"),
        "aten.gt": lambda x, y: x > y,
        "aten.index": lambda x, at: x[tuple(slice(None) if each is None else each for each in at)],
        "aten.le": lambda x, y: x <= y,
        "aten.log": jnp.log,
        "aten.logical_not": jnp.logical_not,
        "aten.lt": lambda x, y: x < y,
        "aten.mean": lambda x, dim, keepdim=False: x.mean(tuple(dim), keepdims=keepdim),
        "aten.mm": jnp.matmul,
        "aten.mul": lambda x, y: x * y,
        "aten.native_layer_norm": layer_norm,
        "aten.ne": lambda x, y: x != y,
        "aten.neg": jnp.negative,
        "aten.permute": lambda x, order: x.transpose(order),
        "aten.pow": lambda x, y: x**y,
        "aten.reciprocal": lambda x: 1 / x,
        "aten.relu": nn.relu,
        "aten.rsqrt": lax.rsqrt,
        "aten.scalar_tensor": lambda value, dtype=None: jnp.asarray(value, dtype_of(dtype)),
        "aten.select": lambda x, dim, index: x[at(dim, index)],
        "aten.sigmoid": nn.sigmoid,
        "aten.sin": jnp.sin,
        "aten.slice": lambda x, dim=0, start=None, end=None, step=1: x[at(dim, slice(start, end, step))],
        "aten.split_with_sizes": split,
        "aten.squeeze": lambda x, dims: jnp.squeeze(x, tuple(dims)),
        "aten.sub": lambda x, y, alpha=1: x - (y if alpha == 1 else alpha * y),
        "aten.sym_size": lambda x, dim: x.shape[dim],
        "aten.tanh": jnp.tanh,
        "aten.unsqueeze": jnp.expand_dims,
        "aten.view": jnp.reshape,
        "aten.where": jnp.where,
        "python.add": operator.add,
        "python.getitem": operator.getitem,
        "python.mul": operator.mul,
        "python.sub": operator.sub,
    }
