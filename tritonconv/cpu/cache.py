"""Machine code on disk: one file per kernel and everything that shapes its code, checked before it is run.

A file is trusted only if its checksum holds and its folder is this user's alone (0700); anything else counts as absent, with one
warning. Files are written aside and renamed into place, so readers and other processes see whole files only.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import warnings
from functools import cache
from pathlib import Path

import platformdirs

from .build import Binary, Damaged, fingerprint


def folder() -> Path:
    """`$TRITONCONV_CACHE_DIR/kernels`, else `tritonconv/kernels` in the user's cache directory."""
    return Path(os.environ.get("TRITONCONV_CACHE_DIR") or platformdirs.user_cache_dir("tritonconv"), "kernels")


def key(*parts: object) -> str:
    """Names a kernel's code: the compiler and machine (`fingerprint`) and the caller's parts."""
    return hashlib.sha256(repr((fingerprint(), *parts)).encode()).hexdigest()


def find(name: str) -> Binary | None:
    room = _private(folder())
    if room is None:
        return None
    path = room / name
    try:
        return Binary.unpack(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, Damaged) as error:
        _warn(f"cached kernel {path} is not used and will be built again: {error}")
        return None


def keep(name: str, binary: Binary) -> None:
    room = _private(folder())
    if room is None:
        return
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=room, suffix=".tmp")
        with open(handle, "wb") as file:
            file.write(binary.pack())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, room / name)
    except OSError as error:  # a full or read-only disk: the kernel is in memory all the same
        _warn(f"kernels are not kept on disk in {room}: {error}")
        if temporary:
            Path(temporary).unlink(missing_ok=True)


@cache
def _private(room: Path) -> Path | None:
    """The folder, made if need be; None, with a warning, if others could have written to it."""
    try:
        room.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = room.stat()
        if hasattr(os, "getuid") and (info.st_uid != os.getuid() or stat.S_IMODE(info.st_mode) & 0o077):
            raise PermissionError(f"it must belong to this user alone (mode 0700), not have mode {stat.S_IMODE(info.st_mode):04o}")
    except OSError as error:
        _warn(f"kernels are not kept on disk in {room}: {error}")
        return None
    return room


@cache
def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)
