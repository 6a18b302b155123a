"""Workers as actors of a Ray cluster: more machines than one, the same lines, and so the same results in order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tsumugu.core.children import ONE_THREAD
from tsumugu.core.errors import MissingExtraError, TsumuguError
from tsumugu.tasks.workers import Server

STORE_BYTES = 256 << 20
"""Of a cluster on this machine alone; what is sent is small."""


@contextmanager
def joined(count: int | None) -> Iterator[int]:
    """Within a cluster: the one that RAY_ADDRESS names, else one on this machine. Gives how many workers to start.

    Raises:
        MissingExtraError: Ray is not installed.
        TsumuguError: the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", extra="ray", purpose="--engine ray") from None
    address = os.environ.get("RAY_ADDRESS")
    own: dict[str, Any] = {"num_cpus": count, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else own))
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise TsumuguError(f"the cluster cannot be reached ({error})", where=f"RAY_ADDRESS={address}") from None
    try:
        yield count or int(ray.cluster_resources().get("CPU", 1))
    finally:
        ray.shutdown()


class RayActor:
    """One worker, an actor with one core."""

    def __init__(self, first: str) -> None:
        import ray

        self._ray = ray
        self._actor = ray.remote(num_cpus=1, runtime_env={"env_vars": ONE_THREAD})(Server).remote()
        self._coming: Any = None
        self.ask(first)

    def ask(self, line: str) -> None:
        """Send a line."""
        self._coming = self._actor.answer.remote(line)

    def answer(self) -> str:
        """The line that it answers. Raises what says how it ended."""
        try:
            return str(self._ray.get(self._coming))
        except self._ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[-1]
            raise TsumuguError(f"a worker broke down: {why}", mend="if memory ran out, use fewer --workers") from None

    def kill(self) -> None:
        """End it at once."""
        self._ray.kill(self._actor)

    def close(self) -> None:
        """Nothing is left to let go of."""
