"""The command line: a lazy table of verbs, and the one place where errors become a line and an exit code.

Exit codes: 0 done, 2 bad input or a failed operation (one line on standard error), 130 interrupted, 141 the reader of
a pipe went away.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from tsumugu import __version__
from tsumugu.core.errors import TsumuguError, UnknownNameError, did_you_mean, one_line

if TYPE_CHECKING:
    from cyclopts import App, CycloptsError

VERBS = {
    "run": ("tsumugu.cli.run:run", "Solve a task on a text, a file, or standard input."),
    "chat": ("tsumugu.cli.chat:chat", "Talk with a model in the terminal."),
    "embed": ("tsumugu.cli.embed:embed", "Turn texts into vectors."),
    "similarity": ("tsumugu.cli.similarity:similarity", "Say how alike texts are in meaning."),
    "pull": ("tsumugu.cli.pull:pull", "Fetch a model into the cache."),
    "tokenizer": ("tsumugu.cli.tokenizer:app", "Train a tokenizer, measure it, see how it cuts a text."),
    "data": ("tsumugu.cli.data:data", "Check labelled data, and say what is in them."),
    "label": ("tsumugu.cli.label:label", "Make labelled data out of raw text, in the terminal."),
    "evaluate": ("tsumugu.cli.evaluate:evaluate", "Score a model, predictions or a baseline on labelled data."),
    "compare": ("tsumugu.cli.compare:compare", "Rank what was evaluated, and tell differences from chance."),
    "plan": ("tsumugu.cli.plan:plan", "Say what a training run takes: memory, time, cost, a layout, how much text."),
    "pretrain": ("tsumugu.cli.pretrain:pretrain", "Pre-train a model on raw text, as a recipe says."),
    "finetune": ("tsumugu.cli.finetune:finetune", "Tune a pre-trained model for a task, with labelled examples."),
    "resume": ("tsumugu.cli.pretrain:resume", "Go on with a run that was stopped or killed."),
    "runs": ("tsumugu.cli.runs:app", "List training runs, show one, compare several."),
    "prepare": ("tsumugu.cli.prepare:app", "Prepare raw text for training: cleaned, tokenised once."),
    "inspect": ("tsumugu.cli.inspect:inspect", "Say what a model is: algorithm, parameters, hyperparameters, data."),
    "explain": ("tsumugu.cli.explain:explain", "Say why a model answered so: what each token adds."),
    "probe": ("tsumugu.cli.probe:probe", "Say what each layer of a model knows about labelled data."),
    "neurons": ("tsumugu.cli.neurons:neurons", "Say which texts excite single neurons the most."),
    "plot": ("tsumugu.cli.plot:app", "Draw texts as points, a tokenizer, attention."),
    "diff": ("tsumugu.cli.diff:diff", "Say what changed between two checkpoints."),
    "compile": ("tsumugu.cli.compile:compile", "Make a model ready for the quick engine."),
    "quantize": ("tsumugu.cli.quantize:quantize", "Write a model with its weights in 4 or 8 bits, as a GGUF file."),
    "bench": ("tsumugu.cli.bench:bench", "Say what this machine can do, and how much of it a model reaches."),
    "export": (
        "tsumugu.cli.export:export",
        "Write a model as a graph for another runtime: ONNX, JAX, TensorFlow, torch.export.",
    ),
    "models": ("tsumugu.cli.models:models", "List the families, what each loads, and what is in the cache."),
    "cache": ("tsumugu.cli.cache:app", "See and clean the model cache."),
    "demo": ("tsumugu.cli.demo:demo", "Show the toolkit at work on real weights."),
    "completion": ("tsumugu.cli.completion:completion", "Print the completion script for a shell."),
}


OPTIONS = ("--help", "-h", "--version")


def build_app() -> App:
    """The cyclopts application. Verbs are named by text and imported when called."""
    from cyclopts import App

    app = App(
        name="tsumugu",
        help="One small toolkit for the whole life of a language model (紡ぐ, to spin words).",
        help_format="plaintext",  # Markdown would take a quarter of the time of --help
        version=f"tsumugu {__version__}",
        suppress_keyboard_interrupt=False,
    )
    for verb, (home, summary) in VERBS.items():
        app.command(home, name=verb, help=summary)
    return app


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one verb and leave. Bad input is one line on standard error and code 2, never a traceback."""
    code: str | int | None = 0
    # Threads that soon sleep while they wait: on a busy machine torch is several times quicker than with threads that
    # spin; on a quiet one, small steps are twice as quick as with threads that sleep at once.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if sys.stdin is None:  # closed by whoever started us: nothing to read, and nobody to ask
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115  (it stays open as long as the program)
    try:
        _let_any_text_be_printed()
        try:
            _run(sys.argv[1:] if arguments is None else list(arguments))
        except SystemExit as leaving:  # a verb may choose its own code; rich leaves so when the reader went away
            code = 141 if isinstance(leaving.__context__, BrokenPipeError) else leaving.code
        if sys.stdout is not None:
            sys.stdout.flush()
    except TsumuguError as error:
        code = _fail(str(error))
    except KeyboardInterrupt as interrupt:
        code = _fail(str(interrupt) or "interrupted", code=130)
    except BrokenPipeError:  # the reader went away (`tsumugu … | head`), which is no error of ours
        _forget_output()
        code = 141
    except UnicodeDecodeError as error:
        code = _fail(f"the input is not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start})")
    except OSError as error:
        where = None if error.filename is None else os.fsdecode(error.filename)
        code = _fail(str(TsumuguError(error.strerror or str(error) or type(error).__name__, where=where)))
        _forget_output()
    except MemoryError:
        code = _fail(_OUT_OF_MEMORY)
    except RuntimeError as error:
        if "memory" not in str(error) or "alloc" not in str(error).lower():  # so PyTorch says it
            raise
        code = _fail(_OUT_OF_MEMORY)
    raise SystemExit(code)


_OUT_OF_MEMORY = "out of memory; use a smaller batch, a shorter text or a smaller model"


def _run(arguments: list[str]) -> None:
    verb = arguments[0] if arguments else "--help"
    if verb.startswith("-") and verb not in OPTIONS:
        raise UnknownNameError(f"unknown option {verb!r}", mend=did_you_mean(verb, OPTIONS))
    if not verb.startswith("-") and verb not in VERBS:
        raise UnknownNameError(f"unknown verb {verb!r}", mend=did_you_mean(verb, VERBS))
    from cyclopts import CycloptsError

    from tsumugu.cli.dash import hide_dashes

    try:
        build_app()(hide_dashes(arguments) or ["--help"], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise TsumuguError(_said(error, verb)) from None


def _said(error: CycloptsError, verb: str) -> str:
    """The parser's message in our manner: one clause, then where to read on."""
    from cyclopts import UnusedCliTokensError

    line = one_line(str(error)).rstrip(".").replace(". Did you mean", "; did you mean")
    line = line[:1].lower() + line[1:]
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        line = f"unexpected argument {error.unused_tokens[0]!r}"
    return f"{line}{'' if line.endswith('?') else ';'} see tsumugu {verb} --help"


def _fail(line: str, *, code: int = 2) -> int:
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"tsumugu: {line}", file=sys.stderr, flush=True)
    return code


def _let_any_text_be_printed() -> None:
    """Characters that the terminal's encoding lacks, and file names that are no text, are shown as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _forget_output() -> None:
    """Drop what could not be written, so that the interpreter does not try again, and complain, at exit."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
