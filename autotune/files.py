"""Entries as files that people pass around: selection, export, what an import would change, what is to go.

An export is `{"schema": 1, "entries": [entry, …]}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import store

Conditions = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Changes:
    """The entries of a file beside the store's: `new` to it, `newer` than its own, those it would keep its own of, and
    those of the store that are `missing` in the file."""

    new: list[dict]
    newer: list[dict]
    kept: list[dict]
    missing: list[dict]

    @property
    def to_take(self) -> list[dict]:
        return self.new + self.newer


def matching(where: Conditions) -> list[dict]:
    """The store's good entries that meet all conditions."""
    return [entry for _, entry in store.entries() if isinstance(entry, dict) and _meets(entry, where)]


def unusable() -> list[tuple[Path, str]]:
    """Files of the store that are no good entries, and why."""
    return [(path, entry) for path, entry in store.entries() if isinstance(entry, str)]


def _meets(entry: dict, where: Conditions) -> bool:
    facts = entry["provenance"] | entry["key"]
    return all(name in facts and str(facts[name]) == value for name, value in where)


def export(path: Path, entries: Sequence[Mapping], brief: bool = False) -> None:
    """Writes an export, an entry on each line; a `brief` one without what the search for them took and tried."""
    if brief:
        entries = [entry | {"provenance": _brief(entry["provenance"])} for entry in entries]
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    path.write_text(f'{{"schema": {store.SCHEMA}, "entries": [\n{lines}\n]}}\n', encoding="utf-8")


def _brief(provenance: Mapping) -> dict:
    return {name: value for name, value in provenance.items() if name not in ("trials", "search_seconds")}


def read(path: Path) -> list[dict]:
    """The entries of an export. Raises `ValueError`, in one sentence, for anything else or a later version's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("entries"), list):
            raise ValueError("it is no export of tuning entries")
        store.check_schema(content.get("schema"))
        return [store.parse(entry) for entry in content["entries"]]
    except ValueError as error:
        raise ValueError(f"{path} is not taken: {error}") from error


def changes(path: Path) -> Changes:
    """A measured configuration goes before a predicted one, then the later before the earlier; what a later version of
    this program stored stays."""
    found = Changes([], [], [], [])
    theirs = read(path)
    for entry in theirs:
        mine = store.entry_of(entry["key"])
        newer = mine is not None and _rank(entry) > _rank(mine)
        fresh = mine is None and not store.is_later(entry["key"])
        (found.new if fresh else found.newer if newer else found.kept).append(entry)
    named = {store.path_of(entry) for entry in theirs}
    found.missing.extend(entry for entry in matching(()) if store.path_of(entry) not in named)
    return found


def _rank(entry: dict) -> tuple[bool, str]:
    about = entry["provenance"]
    return about.get("how") == "measured", str(about.get("date", ""))


def prunable(where: Conditions, before: str | None) -> list[tuple[Path, str]]:
    """The files to remove, and why: those that cannot be used, and the good ones that the conditions select."""
    doomed = unusable()
    if where or before:
        for entry in matching(where):
            found = str(entry["provenance"].get("date", ""))
            if before is None or found < before:
                doomed.append((store.path_of(entry), f"found {found or 'at no date'}"))
    return doomed
