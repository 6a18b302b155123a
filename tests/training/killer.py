"""A process that trains in children of its own, and has them killed at chosen moments.

Reads one JSON object a line: {"values": recipe, "folder", "after": seconds or null}. A child trains in the folder, or
goes on with what is there, and is killed with SIGKILL after so many seconds. Answers "killed" or "done".
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from tsumugu.training import pretrain  # noqa: F401  (loaded once, for all children)
from tsumugu.training.pretrain import resume, train
from tsumugu.training.runs import RECIPE


def child(task: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    if task["after"] is not None:

        def kill() -> None:
            time.sleep(task["after"])
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()
    folder = Path(task["folder"])
    if (folder / RECIPE).is_file():
        resume(folder, quiet=True)
    else:
        train(task["values"], folder, quiet=True)
    os._exit(0)


def main() -> None:
    for line in sys.stdin:
        task = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                child(task)
            except BaseException as error:  # noqa: BLE001
                print(f"raised {error!r}", file=sys.stderr, flush=True)
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        print("killed" if code == -signal.SIGKILL else "done" if code == 0 else f"failed {code}", flush=True)


if __name__ == "__main__":
    main()
