"""A process that deletes and moves caches in children of its own, and has them killed half-way.

Reads one JSON object a line: {"do": "delete" | "move", "root", "ids" | "new", "at" | "after"}. A child is killed with
SIGKILL just before its `at`-th call that changes the file system (an audit hook counts), or `after` so many seconds.
Answers with one line: "killed" or "done N", N being how many such calls a whole run makes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

from tsumugu.hub.cache import choose, execute, find, plan_delete, scan
from tsumugu.hub.cache.move import move_cache, plan_move

CHANGING = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.utime"}


def work(task: dict[str, Any]) -> None:
    root = task["root"]
    if task["do"] == "delete":
        seen = scan(root=root)
        execute(plan_delete(seen, choose(seen, [row for each in task["ids"] for row in find(seen, each)])))
    else:
        move_cache(plan_move(root, task["new"], copy=True, link=task.get("link", False)))


def child(task: dict[str, Any], answer: int) -> None:
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in CHANGING or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            count += 1
            if count == task.get("at"):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work(task)
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
        if "after" in task:
            time.sleep(task["after"])
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        told = os.read(reader, 4096).decode()
        os.close(reader)
        print("killed" if os.WIFSIGNALED(status) and not told else f"done {told}", flush=True)


if __name__ == "__main__":
    main()
