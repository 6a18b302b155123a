"""A process that prepares corpora in children of its own, and has them killed half-way.

Reads one JSON object a line: {"inputs", "target", "tokenizer", "options", "cleaning", "at"}. A child is killed with
SIGKILL just before its `at`-th call that changes the file system (an audit hook counts). Answers with one line:
"killed" or "done N", N being how many such calls a whole run makes. Blocks are small here, and each is committed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from tsumugu.corpus import blocks
from tsumugu.corpus import prepare as preparing
from tsumugu.corpus.cleaning import Cleaning

CHANGING = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.chmod"}


def child(task: dict[str, Any], answer: int) -> None:
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in CHANGING or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            count += 1
            if count == task.get("at"):
                os.kill(os.getpid(), signal.SIGKILL)

    blocks.BLOCK_BYTES = 4000
    preparing._SECONDS = 0.0
    sys.addaudithook(hook)
    cleaning = Cleaning.from_dict(task["cleaning"])
    preparing.prepare(
        task["inputs"], task["target"], tokenizer=task["tokenizer"], cleaning=cleaning, workers=1, **task["options"]
    )
    os.write(answer, str(count).encode())
    os._exit(0)


def main() -> None:
    for line in sys.stdin:
        task = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                child(task, writer)
            except Exception as error:  # noqa: BLE001
                os.write(writer, f"raised {error!r}".encode())
            finally:
                os._exit(1)
        os.close(writer)
        _, status = os.waitpid(pid, 0)
        told = os.read(reader, 4096).decode()
        os.close(reader)
        print("killed" if os.WIFSIGNALED(status) and not told else f"done {told}", flush=True)


if __name__ == "__main__":
    main()
