"""How long it takes until anything happens: the command line, against importing torch and against the hub's own."""

from __future__ import annotations

import os

from huggingface_hub import constants

from benchmarks.harness import Report, child

HUB_CLI = "import sys; sys.argv = ['hf', 'cache', 'ls', '-q']; from huggingface_hub.cli.hf import main; main()"


def run(report: Report) -> None:
    def torch() -> float:
        return child("-c", "import torch")[0]

    for what, arguments, limit in (
        ("import tsumugu", ("-c", "import tsumugu"), "the interpreter's own start"),
        ("tsumugu --help", ("-m", "tsumugu", "--help"), "imports of cyclopts and rich"),
    ):
        report.compare(
            what,
            lambda arguments=arguments: child(*arguments)[0],  # type: ignore[misc]
            torch,
            peer_name="import torch",
            limit=limit,
        )
    os.makedirs(constants.HF_HUB_CACHE, exist_ok=True)  # noqa: PTH103  (the peer fails where there is no cache yet)
    report.compare(
        "tsumugu models",
        lambda: child("-m", "tsumugu", "models")[0],
        lambda: child("-c", HUB_CLI)[0],
        peer_name="hf cache ls",
        limit="imports of cyclopts and rich",
    )
