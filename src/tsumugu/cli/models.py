"""``tsumugu models``: the families, the short names, and what is in the caches. Loads no network code."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.table import Table


def models(
    *,
    cached: Annotated[bool, Parameter(negative="")] = False,
    unsupported: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """List the families, what each loads, the short names, and what is in the caches.

    Parameters
    ----------
    cached
        Only what is in the caches.
    unsupported
        What is not loaded here, and what to use instead.
    as_json
        One JSON object instead of tables.
    """
    found = _elsewhere() if unsupported else inventory(cached_only=cached)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    from tsumugu.cli.console import stdout

    for table in _tables(found) if not unsupported else [_elsewhere_table(found)]:
        stdout().print(table)
        stdout().print()


def inventory(*, cached_only: bool = False) -> dict[str, Any]:
    """The list as plain values: ``families``, ``short_names``, ``cached`` and the caches' ``folders``."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from tsumugu.core.registry import FAMILY_SUMMARIES
    from tsumugu.hub.home import home
    from tsumugu.hub.listing import cached_models, short_name_path
    from tsumugu.hub.names import SHORT_NAMES

    found: dict[str, Any] = {}
    if not cached_only:
        found["families"] = [{"name": name, **asdict(each)} for name, each in FAMILY_SUMMARIES.items()]
        found["short_names"] = [
            {
                "name": name,
                "source": each.source,
                "size": each.size,
                "licence": each.licence,
                "summary": each.summary,
                "path": str(path) if (path := short_name_path(name)) else None,
            }
            for name, each in SHORT_NAMES.items()
        ]
    found["cached"] = [{**asdict(each), "path": str(each.path)} for each in cached_models()]
    found["folders"] = {"tsumugu": str(home()), "hub": str(HF_HUB_CACHE)}
    return found


def _elsewhere() -> dict[str, Any]:
    from tsumugu.anatomy.unsupported import unsupported

    return {"unsupported": [asdict(each) for each in unsupported()]}


def _elsewhere_table(found: dict[str, Any]) -> Table:
    table = _table("Not loaded here", "what", "known by", "use instead")
    for each in found["unsupported"]:
        table.add_row(each["what"], ", ".join(each["model_types"]), each["instead"])
    return table


def _tables(found: dict[str, Any]) -> list[Table]:
    from tsumugu.cli.downloads import megabytes

    tables = []
    if "families" in found:
        families = _table("Families", "name", "loads model_type", "")
        for each in found["families"]:
            families.add_row(each["name"], ", ".join(each["model_types"]), each["summary"])
        short = _table("Short names", "name", "cached", "size", "licence", "")
        for each in found["short_names"]:
            there = "yes" if each["path"] else "no"
            short.add_row(each["name"], there, megabytes(each["size"]), each["licence"], each["summary"])
        tables += [families, short]
    total = megabytes(sum(each["size"] for each in found["cached"]))
    cache = _table(f"In the caches: {total}", "name", "revision", "size", "licence", "")
    for each in found["cached"]:
        state = "" if each["whole"] else "incomplete"
        revision = each["revision"][:12]
        cache.add_row(each["name"], revision, megabytes(each["size"]), each["licence"] or "not stated", state)
    places = found["folders"]
    cache.caption = f"tsumugu: {places['tsumugu']}\nhub: {places['hub']}"
    cache.caption_justify = "left"
    return [*tables, cache]


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    return table
