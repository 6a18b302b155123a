"""``tsumugu chat``: talk with a model in the terminal."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Annotated, Any

from cyclopts import Parameter

from tsumugu.cli.console import stderr
from tsumugu.cli.downloads import downloads
from tsumugu.cli.options import (
    Adapter,
    Device,
    DType,
    Engine,
    GenerationFlags,
    KVCache,
    Model,
    Quantize,
    Quiet,
    quantization,
)
from tsumugu.core.errors import InputError

HELP = "/reset forgets the conversation, /system TEXT sets the instruction, /help shows this, /exit ends (or Ctrl-D)."


def chat(
    *,
    model: Model = "smollm2",
    adapter: Adapter = None,
    system: Annotated[str | None, Parameter(help="An instruction that stands before the conversation.")] = None,
    dtype: DType = "float32",
    device: Device = "cpu",
    engine: Engine = "auto",
    quantize: Quantize = "auto",
    kv_cache: KVCache = "float32",
    quiet: Quiet = False,
    flags: GenerationFlags | None = None,
) -> None:
    """Talk with a model. Lines from a pipe are answered one by one; Ctrl-C stops an answer, twice ends the talk."""
    from tsumugu.tasks.pipeline import pipeline

    options = {"max_new_tokens": 512} | (flags or GenerationFlags()).chosen()
    with downloads(quiet=quiet) as watch:
        computing = {
            "dtype": dtype,
            "device": device,
            "engine": engine,
            "quantize": quantization(quantize),
            "kv_cache": kv_cache,
            "adapter": adapter,
        }
        talk: Any = pipeline("chat", model, progress=watch, **computing)
    person = sys.stdin.isatty()
    if person:
        with suppress(ImportError):
            import readline  # noqa: F401  (line editing and history for input())
        if not quiet:
            stderr().print(f"[dim]{model}. {HELP}[/dim]")
    while (line := _ask(person)) is not None:
        if not line.strip():
            continue
        if line.startswith("/"):
            command, _, rest = line.partition(" ")
            if command == "/exit":
                return
            try:
                system = _command(talk, command, rest.strip() or None, system)
            except InputError as error:
                if not person:
                    raise
                stderr().print(str(error), markup=False)
            continue
        try:
            for piece in talk.say(line, system=system, **options):
                print(piece, end="", flush=True)
            print(flush=True)
        except KeyboardInterrupt:
            if not person:
                raise
            print(flush=True)


def _ask(person: bool) -> str | None:
    """The next line; None at the end of the input, or after Ctrl-C twice in a row."""
    for attempt in range(2):
        try:
            return input("> ") if person else input()
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not person:
                raise
            if attempt == 0:
                stderr().print("\n[dim]Ctrl-C again ends the talk.[/dim]")
    return None


def _command(talk: Any, command: str, rest: str | None, system: str | None) -> str | None:
    """Obey a line that begins with a slash; gives the instruction that now holds."""
    match command:
        case "/reset":
            talk.reset()
        case "/system":
            return rest
        case "/help":
            stderr().print(HELP)
        case _:
            raise InputError(f"unknown command {command!r}", where="chat", mend=HELP)
    return system
