"""A traced graph taken apart into steps of a few dozen core ATen operators, which a table of another framework runs.

What is left holds no PyTorch but the weights: names, numbers and operators. Checks of shapes are dropped.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export.graph_signature import InputKind

from tsumugu.core.errors import ConfigError
from tsumugu.exporting.trace import Traced, plain_attention, words_of

Operators = Mapping[str, Callable[..., Any]]
"""Name of an operator (`aten.mul`, or `python.mul` of two sizes) -> the function that computes it."""

LAYOUT = ("device", "layout", "pin_memory", "memory_format", "non_blocking")
"""Keywords of operators that say where a tensor lies and not what is in it."""


@dataclass(frozen=True)
class Ref:
    """A value that an earlier step gave."""

    name: str


@dataclass(frozen=True)
class Step:
    """One operator. `dtype` is that of the tensor it gives; None when it gives several, or a size."""

    name: str
    operator: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dtype: str | None


@dataclass(frozen=True)
class Program:
    """A model as steps.

    Attributes:
        parameters: weights and buffers by our names; one that is used at two places is there once.
        bound: name of a value in the steps -> name in `parameters`.
        constants: small tensors that are no weights, by the name of the value.
        inputs, outputs: the names of what goes in and comes out, in order.
        dimensions: for each input the words for its sizes, or the number that is fixed.
        input_dtypes: for each input.
        longest: tokens that fit.
    """

    parameters: dict[str, Tensor]
    bound: dict[str, str]
    constants: dict[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dimensions: dict[str, tuple[str | int, ...]]
    input_dtypes: dict[str, str]
    longest: int
    steps: tuple[Step, ...]
    placeholders: tuple[str, ...]
    results: tuple[Ref, ...]


def take_apart(traced: Traced) -> Program:
    """The steps of a graph."""
    with plain_attention(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on what it will change in later versions
        program = traced.program.run_decompositions()
    graph = program.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and _operator(node.target).startswith("aten._assert"):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    bound: dict[str, str] = {}
    constants: dict[str, Tensor] = {}
    placeholders = []
    for spec in program.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind is InputKind.USER_INPUT:
            placeholders.append(name)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            constants[name] = program.constants[str(spec.target)]
        else:
            bound[name] = str(spec.target)
    kept = {**program.constants, **program.state_dict}
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    (output,) = (node for node in graph.nodes if node.op == "output")
    given = dict(zip(traced.inputs, traced.examples, strict=True))
    return Program(
        parameters={name.removeprefix("model."): kept[name].detach() for name in bound.values()},
        bound={value: name.removeprefix("model.") for value, name in bound.items()},
        constants=constants,
        inputs=traced.inputs,
        outputs=traced.outputs,
        dimensions={name: tuple(_dimensions(name, tensor)) for name, tensor in given.items()},
        input_dtypes={name: _word(tensor.dtype) for name, tensor in given.items()},
        longest=traced.longest,
        steps=tuple(_step(node) for node in nodes),
        placeholders=tuple(placeholders),
        results=tuple(_plain(each) for each in output.args[0]),
    )


def check(program: Program, operators: Operators, framework: str) -> None:
    """Refuse a graph with an operator that `operators` lacks.

    Raises:
        ConfigError: it has one.
    """
    absent = sorted({each.operator for each in program.steps} - set(operators))
    if absent:
        raise ConfigError(f"the model has operators that are not written for {framework}: {', '.join(absent)}")


def run(
    steps: tuple[Step, ...],
    results: tuple[Ref, ...],
    values: dict[str, Any],
    operators: Operators,
    cast: Callable[[Any, str], Any],
) -> list[Any]:
    """Run the steps.

    Args:
        steps, results: of a program.
        values: weights, constants and inputs, by the names of the values.
        operators: what computes each.
        cast: a tensor and the dtype it has in PyTorch -> the tensor in it. PyTorch's rules of mixed types differ.
    """

    def filled(each: Any) -> Any:
        if isinstance(each, Ref):
            return values[each.name]
        return [filled(one) for one in each] if isinstance(each, list) else each

    for step in steps:
        kwargs = {key: filled(each) for key, each in step.kwargs.items()}
        value = operators[step.operator](*(filled(each) for each in step.args), **kwargs)
        values[step.name] = value if step.dtype is None else cast(value, step.dtype)
    return [values[each.name] for each in results]


def too_long(tokens: object, longest: int) -> str:
    """What is said of a text that does not fit."""
    return f"{tokens} tokens are more than the {longest} this model can read"


def _dimensions(name: str, tensor: Tensor) -> list[str | int]:
    words = words_of(name)
    return [words.get(axis, size) for axis, size in enumerate(tensor.shape)]


def _step(node: torch.fx.Node) -> Step:
    kwargs = {key: _plain(each) for key, each in node.kwargs.items() if key not in LAYOUT}
    value = node.meta.get("val")
    dtype = _word(value.dtype) if isinstance(value, Tensor) else None
    return Step(node.name, _operator(node.target), tuple(_plain(each) for each in node.args), kwargs, dtype)


def _operator(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return f"aten.{target.overloadpacket.__name__}"
    return f"python.{target.__name__}"


def _plain(value: Any) -> Any:
    if isinstance(value, torch.fx.Node):
        return Ref(value.name)
    if isinstance(value, torch.dtype):
        return _word(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
