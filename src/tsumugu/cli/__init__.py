"""The command line: a lazy table of verbs, and the one place where errors become a line and an exit code.

Exit codes: 0 done, 2 bad input or a failed operation (one line on standard error), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from tsumugu import __version__
from tsumugu.core.errors import TsumuguError, did_you_mean

if TYPE_CHECKING:
    from cyclopts import App

VERBS = {
    "run": ("tsumugu.cli.run:run", "Solve a task on a text, a file, or standard input."),
    "chat": ("tsumugu.cli.chat:chat", "Talk with a model in the terminal."),
    "embed": ("tsumugu.cli.embed:embed", "Turn texts into vectors."),
    "similarity": ("tsumugu.cli.similarity:similarity", "Say how alike texts are in meaning."),
    "pull": ("tsumugu.cli.pull:pull", "Fetch a model into the cache."),
    "models": ("tsumugu.cli.models:models", "List the families, what each loads, and what is in the cache."),
    "cache": ("tsumugu.cli.cache:app", "See and clean the model cache."),
    "demo": ("tsumugu.cli.demo:demo", "Show the toolkit at work on real weights."),
    "completion": ("tsumugu.cli.completion:completion", "Print the completion script for a shell."),
}


def build_app() -> App:
    """The cyclopts application. Verbs are named by text and imported when called."""
    from cyclopts import App

    app = App(
        name="tsumugu",
        help="One small toolkit for the whole life of a language model (紡ぐ, to spin words).",
        version=f"tsumugu {__version__}",
    )
    for verb, (home, summary) in VERBS.items():
        app.command(home, name=verb, help=summary)
    return app


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one verb and leave. Bad input is one line on standard error and code 2, never a traceback."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    from cyclopts import CycloptsError

    try:
        verb = arguments[0] if arguments else "--help"
        if not verb.startswith("-") and verb not in VERBS:
            raise TsumuguError(f"unknown verb {verb!r}", mend=did_you_mean(verb, VERBS))
        build_app()(arguments or ["--help"], exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except TsumuguError as error:
        _fail(str(error))
    except CycloptsError as error:
        _fail(_plain(str(error)) + f"; see tsumugu {verb if verb in VERBS else ''} --help".replace("  ", " "))
    except KeyboardInterrupt:
        print("\ntsumugu: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader went away (`tsumugu … | head`): not our error. Keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}")
    except MemoryError:
        _fail("out of memory; use a smaller batch, a shorter text or a smaller model")
    raise SystemExit(0)


def _fail(line: str) -> NoReturn:
    with contextlib.suppress(OSError):
        print(f"tsumugu: {line}", file=sys.stderr)
    raise SystemExit(2)


def _plain(message: str) -> str:
    """A parser's message as one line without markup or a closing full stop."""
    return " ".join(message.split()).rstrip(".")
