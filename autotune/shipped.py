"""Entries that come with a package: found where the store has none, on machines like the one where they were measured.

A package ships exports (`files`), one for each machine, and nothing here writes them.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from . import files, store

_shipped: list[tuple[Path, Callable[[], Mapping[str, object]]]] = []


def ship(path: Path, machine: Callable[[], Mapping[str, object]]) -> None:
    """From now on `lookup` finds the entries of the export `path` whose provenance has all facts of `machine()`."""
    _shipped.append((path, machine))


def lookup(key: Mapping) -> dict | None:
    """The configuration for `key` (anything JSON can hold): the store's, else one that is shipped, else None."""
    found = store.lookup(key)
    if found is None and (entry := entry_of(key)) is not None:
        return dict(entry["config"])
    return found


def entry_of(key: Mapping) -> dict | None:
    """The shipped entry for `key`, or None. While a store is set by `store.at` nothing is shipped."""
    for path, machine in () if store.is_set() else _shipped:
        entry = _entries(path).get(store.canonical(key))
        if entry is not None and machine().items() <= entry["provenance"].items():
            return entry
    return None


@functools.cache
def _entries(path: Path) -> dict[str, dict]:
    try:
        return {store.canonical(entry["key"]): entry for entry in files.read(path)}
    except (OSError, ValueError) as error:
        warnings.warn(f"shipped tuning entries are not used: {error}", stacklevel=2)
        return {}
