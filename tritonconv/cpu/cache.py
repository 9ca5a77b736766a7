"""Machine code on disk: one file per kernel and everything that shapes its code, checked before it is run.

A file is its key, then the packed kernel with its checksum, in a folder that is this user's alone (0700). Anything else
counts as absent, with one warning. Files are written aside and renamed into place, so readers and other processes see
whole files only; a disk that cannot be written costs nothing but the next start.
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
    try:
        data = (room / name).read_bytes()
        if not data.startswith(name.encode()):
            raise Damaged("it is not the file of this kernel")
        return Binary.unpack(data[len(name) :])
    except FileNotFoundError:
        return None
    except (OSError, Damaged) as error:
        _warn(f"kernel {name} in {room} is built again: {_reason(error)}")
        return None


def keep(name: str, binary: Binary) -> None:
    room = _private(folder())
    if room is None:
        return
    try:
        handle, temporary = tempfile.mkstemp(dir=room, suffix=".tmp")
        try:
            with open(handle, "wb") as file:
                file.write(name.encode() + binary.pack())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, room / name)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        _warn(f"kernels are not kept in {room}: {_reason(error)}")


def _private(room: Path) -> Path | None:
    """The folder, made if need be; None, with a warning, if others could have written to it."""
    try:
        room.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = room.stat()
    except OSError as error:
        _warn(f"kernels are not kept in {room}: {_reason(error)}")
        return None
    if info.st_uid != os.getuid() or stat.S_IMODE(info.st_mode) & 0o077:
        _warn(f"kernels are not kept in {room}: it must belong to this user alone, with mode 0700")
        return None
    return room


def _reason(error: OSError | Damaged) -> str:
    return getattr(error, "strerror", None) or str(error)  # without the file's name, which would make every warning new


@cache
def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)
