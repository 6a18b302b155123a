"""Runs the examples of pages: a page is a line of JSON on standard input, its results a line on standard output.

The heavy imports happen once. This process then computes nothing: each page gets a fork of it; a fork of that keeps the
Python examples' variables, and each command of ours is run in a further fork, as a process with arguments, streams and
an exit code of its own. What needs a shell gets a real one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

FORK = multiprocessing.get_context("fork")


def main() -> None:
    import tsumugu.cli
    import tsumugu.engines.torch_session
    import tsumugu.tasks.pipeline  # noqa: F401  (imported so that the forks need not)

    for line in sys.stdin:
        job = json.loads(line)
        mine, theirs = FORK.Pipe()
        page = FORK.Process(target=_page, args=(job, theirs))
        page.start()
        theirs.close()
        try:
            results = mine.recv()
        except EOFError:
            results = None
        page.join()
        print(json.dumps(results), flush=True)


def _page(job: dict[str, Any], answer: Connection) -> None:
    """Run the examples of one page in its folder."""
    os.chdir(job["folder"])
    mine, theirs = FORK.Pipe()
    results: list[dict[str, Any]] = []
    python = None
    for step in job["steps"]:
        code = step["code"]
        words, pipe, ours = code.partition(" | ")
        if step["kind"] == "python":
            if python is None:
                python = FORK.Process(target=_interpreter, args=(theirs,))
                python.start()
            mine.send(code)
            results.append(mine.recv())
        elif _is_ours(code):
            results.append(_in_fork(code))
        elif pipe and words.startswith(("echo ", "printf ")) and _is_ours(ours):
            results.append(_in_fork(ours, _in_shell(words)["output"]))
        else:
            results.append(_in_shell(code))
    if python is not None:
        mine.send(None)
        python.join()
    answer.send(results)


def _in_shell(code: str) -> dict[str, Any]:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return {"output": done.stdout, "code": done.returncode}


def _is_ours(code: str) -> bool:
    """Whether it is one plain command of tsumugu, without anything that needs a shell."""
    bare = re.sub(r"\"[^\"$`\\]*\"|'[^']*'", "", code.replace("\\\n", " "))
    return bare.startswith("tsumugu ") and not re.search(r"[|<>&;$`*~#\\\n\"']", bare)


def _in_fork(code: str, given: str = "") -> dict[str, Any]:
    """Run one command of ours, with `given` on its standard input."""
    arguments = shlex.split(code.replace("\\\n", " "))[1:]

    def run() -> None:
        with tempfile.TemporaryFile() as file:
            file.write(given.encode())
            file.seek(0)
            os.dup2(file.fileno(), 0)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  (for the life of the fork)
        from tsumugu.cli import main as command

        command(arguments)

    with _caught() as output:
        child = FORK.Process(target=_leaving, args=(run,))
        child.start()
        child.join()
    return {"output": output(), "code": child.exitcode}


def _leaving(work: Callable[[], None]) -> None:
    try:
        work()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # noqa: BLE001  (shown, and judged by the test)
        traceback.print_exc()
        code = 1
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _interpreter(pipe: Connection) -> None:
    """Executes code that comes through the pipe, in one namespace, and sends back what it printed."""
    space: dict[str, Any] = {"__name__": "__main__"}
    while (code := pipe.recv()) is not None:
        with _caught() as output:
            try:
                exec(compile(code, "<example>", "exec"), space)
                result = 0
            except BaseException:  # noqa: BLE001  (shown, and judged by the test)
                traceback.print_exc()
                result = 1
            sys.stdout.flush()
            sys.stderr.flush()
        pipe.send({"output": output(), "code": result})


@contextmanager
def _caught() -> Iterator[Callable[[], str]]:
    """Standard output and error into one file meanwhile, in this process and its children."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        saved = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        text = ""

        def output() -> str:
            return text

        try:
            yield output
        finally:
            for old, new in zip(saved, (1, 2), strict=True):
                os.dup2(old, new)
                os.close(old)
            file.seek(0)
            text = file.read().decode("utf-8", "replace")


if __name__ == "__main__":
    main()
