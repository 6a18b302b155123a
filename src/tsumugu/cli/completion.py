"""``tsumugu completion``: the script that teaches a shell the verbs and their options."""

from __future__ import annotations

from typing import Literal


def completion(shell: Literal["bash", "zsh", "fish"]) -> None:
    """Print the completion script.

    Put it where your shell looks, for bash for example:
    ``tsumugu completion bash > ~/.local/share/bash-completion/completions/tsumugu``.
    """
    from tsumugu.cli import build_app

    print(build_app().generate_completion(shell=shell))
