"""A store of tuned configurations: one JSON file per key, so that writers never meet and stores merge by copying files.

An entry is `{"schema": 1, "key": {...}, "config": {...}, "provenance": {...}}` under a name derived from its key. It is
written aside and then renamed into place: a reader finds a whole entry or none. An entry that cannot be used counts as
absent, with one warning; it is never removed.
"""

import functools
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

SCHEMA = 1


def directory() -> Path:
    """Where the entries lie: `$TRITONCONV_CACHE_DIR/tuned`, else `tritonconv/tuned` in the user's cache directory."""
    root = os.environ.get("TRITONCONV_CACHE_DIR")
    if not root:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tritonconv")
    return Path(root, "tuned")


def lookup(key: Mapping) -> dict | None:
    """The configuration stored under `key` (anything JSON can hold), or None. Reads each file once per process."""
    config = _read(directory(), _canonical(key))
    return None if config is None else json.loads(config)


def record(key: Mapping, config: Mapping, provenance: Mapping) -> Path:
    """Stores `config` under `key` in place of what was there, and returns the entry's path.

    provenance: how it was found, for people: `{"how": "measured" | "predicted", …}` with device, versions and time.
    Raises `TypeError` for what JSON cannot hold, and `OSError` where the directory cannot be written.
    """
    folder, canonical = directory(), _canonical(key)
    entry = {"schema": SCHEMA, "key": json.loads(canonical), "config": config, "provenance": provenance}
    path = _path(folder, canonical)
    _write_atomically(path, json.dumps(entry, indent=2, allow_nan=False) + "\n")
    _read.cache_clear()
    return path


def _canonical(key: Mapping) -> str:
    return json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _path(folder: Path, canonical: str) -> Path:
    return folder / f"{hashlib.sha256(canonical.encode()).hexdigest()[:32]}.json"


@functools.cache
def _read(folder: Path, canonical: str) -> str | None:
    """The entry's configuration as JSON text: callers get a copy of their own to change."""
    path = _path(folder, canonical)
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry["schema"] != SCHEMA:
            raise ValueError(f"its schema is {entry['schema']!r}, not {SCHEMA}")
        if _canonical(entry["key"]) != canonical:
            raise ValueError("it is about another key")
        if not isinstance(entry["config"], dict):
            raise ValueError("its config is no object")
        return json.dumps(entry["config"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"tuning entry {path} is not used: {type(error).__name__}: {error}", stacklevel=4)
        return None


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".tmp")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
