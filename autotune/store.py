"""A store of tuned configurations: one JSON file per key, so that writers never meet and stores merge by copying files.

An entry is `{"schema": 1, "key": {...}, "config": {...}, "provenance": {...}}` under a name derived from its key. It is
written aside and then renamed into place: a reader finds a whole entry or none. An entry that cannot be used counts as
absent, with one warning; it is never removed, and replaced only if no later version wrote it.
"""

import contextlib
import functools
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import platformdirs

SCHEMA = 1
_folder: Path | None = None
_listeners: list[dict[str, None]] = []


def directory() -> Path:
    """Where the entries lie: `$TRITONCONV_CACHE_DIR/tuned`, else `tritonconv/tuned` in the user's cache directory."""
    if _folder is not None:
        return _folder
    return Path(os.environ.get("TRITONCONV_CACHE_DIR") or platformdirs.user_cache_dir("tritonconv"), "tuned")


@contextlib.contextmanager
def at(folder: Path) -> Iterator[None]:
    """Within this context `folder` is the store, and all there is."""
    global _folder
    previous, _folder = _folder, folder
    try:
        yield
    finally:
        _folder = previous


def is_set() -> bool:
    """Whether `at` has set the store."""
    return _folder is not None


def lookup(key: Mapping) -> dict | None:
    """The configuration stored under `key` (anything JSON can hold), or None. Reads each file once per process."""
    name = canonical(key)
    for listener in _listeners:
        listener[name] = None
    entry = _entry(name)
    return None if entry is None else entry["config"]


@contextlib.contextmanager
def asked() -> Iterator[list[dict]]:
    """Yields a list that, when the context ends, holds every key that was looked up in it, in any thread, once."""
    keys, listener = [], {}
    _listeners.append(listener)
    try:
        yield keys
    finally:
        _listeners[:] = [other for other in _listeners if other is not listener]
        keys += map(json.loads, listener)


def record(key: Mapping, config: Mapping, provenance: Mapping) -> Path:
    """Stores `config` under `key` in place of what was there, and returns the entry's path.

    provenance: how it was found, for people: `{"how": "measured" | "predicted", …}` with device, versions and time.
    Raises `TypeError` for what JSON cannot hold, `OSError` where the directory cannot be written, and as `write`.
    """
    return write({"schema": SCHEMA, "key": json.loads(canonical(key)), "config": config, "provenance": provenance})


def write(entry: Mapping) -> Path:
    """Stores a whole entry in place of what was there. Raises `ValueError` if that `is_later`."""
    path = path_of(entry)
    if is_later(entry["key"]):
        raise ValueError(f"{path} was written by a later version, and stays")
    _write_atomically(path, json.dumps(entry, indent=2, allow_nan=False) + "\n")
    _read.cache_clear()
    return path


def entry_of(key: Mapping) -> dict | None:
    """The whole entry stored under `key`, or None."""
    return _entry(canonical(key))


def _entry(name: str) -> dict | None:
    text = _read(directory(), name)
    return None if text is None else json.loads(text)


def is_later(key: Mapping) -> bool:
    """Whether what lies under `key` was written by a later version, whose knowledge must not be lost."""
    try:
        schema = json.loads(_path(directory(), canonical(key)).read_text(encoding="utf-8"))["schema"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return isinstance(schema, int) and schema > SCHEMA


def forget() -> None:
    """Makes the next lookups read the files again: another process may have written some."""
    _read.cache_clear()


def path_of(entry: Mapping) -> Path:
    return _path(directory(), canonical(entry["key"]))


def check_writable() -> None:
    """Raises `OSError`, in one sentence, if entries cannot be stored."""
    try:
        directory().mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory()).close()
    except OSError as error:
        hint = "set TRITONCONV_CACHE_DIR to a folder that can"
        raise type(error)(f"the tuning store {directory()} cannot be written ({error.strerror}): {hint}") from None


def entries() -> Iterator[tuple[Path, dict | str]]:
    """Every file of the store with its entry or, if that cannot be used, the reason."""
    for path in sorted(directory().glob("*.json")):
        try:
            entry = parse(json.loads(path.read_text(encoding="utf-8")))
            yield path, entry if path == path_of(entry) else "it is about another key"
        except (OSError, ValueError) as error:
            yield path, str(error)


def parse(entry: object) -> dict:
    """`entry`, if it is one. Raises `ValueError`, in one sentence, if it is not."""
    if not isinstance(entry, dict) or "schema" not in entry:
        raise ValueError("it is no tuning entry")
    check_schema(entry["schema"])
    if not all(isinstance(entry.get(field), dict) for field in ("key", "config", "provenance")):
        raise ValueError("its key, config and provenance are not all objects")
    return entry


def check_schema(schema: object) -> None:
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        raise ValueError(f"its schema is {schema!r}, not {SCHEMA}" + (": it was written by a later version" * newer))


def canonical(key: Mapping) -> str:
    """The key as the text that tells it from others."""
    return json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _path(folder: Path, name: str) -> Path:
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"


@functools.cache
def _read(folder: Path, name: str) -> str | None:
    """The entry as JSON text, if it can be used: callers get a copy of their own to change."""
    path = _path(folder, name)
    try:
        text = path.read_text(encoding="utf-8")
        if canonical(parse(json.loads(text))["key"]) != name:
            raise ValueError("it is about another key")
        return text
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
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
