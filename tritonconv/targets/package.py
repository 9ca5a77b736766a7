"""Kernel packages: what was compiled in one place, loaded in another.

A package is a folder: the files that the target's cache of kernels would hold, the chosen configs as an export of
`autotune`, a report for people, and a manifest with the target, what it was compiled with, and a checksum of each file.
Loading puts the kernels into that cache and the configs into the tuning store, so that models find both as if they had
been compiled and tuned there. It takes a package whole, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import llvmlite
import torch
import triton
from triton.compiler import make_backend
from triton.runtime.cache import get_cache_manager, triton_key

import autotune.files
import autotune.store

from .. import engines, tuning
from ..cpu import build, cache
from ..cpu.target import host
from .machine_code import TARGETS

SCHEMA = 1
MANIFEST, TUNED, REPORT = "manifest.json", "tuned.json", "report.md"


@dataclass(frozen=True)
class Package:
    """What a package holds: kernels, by the names of the target's cache, and tuned configs, by number."""

    folder: Path
    target: str
    kernels: tuple[str, ...]
    configs: int

    def __str__(self) -> str:
        return f"{len(self.kernels)} kernels and {self.configs} configs for {self.target} in {self.folder}"


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def toolchain(target: str) -> dict[str, str]:
    """All that must be the same where a package is made and where it is loaded, by names for people."""
    kernels = build.sources(Path(__file__).parents[1] / "kernels")
    facts = {"triton": triton.__version__, "source of the kernels": kernels[:16]}
    if target == "cpu":
        machine = {"processor": host().cpu, "processor's features": host().features}
        return facts | machine | {"llvmlite": llvmlite.__version__, "compiler": build.fingerprint()[:16]}
    built = hashlib.sha256(triton_key().encode()).hexdigest()[:16]
    return facts | {"build of triton": built, "compiler": make_backend(TARGETS[target].gpu).hash()}


def check_writable(folder: Path) -> None:
    """Makes the folder of a package. Raises `OSError`, in one sentence, if it cannot hold one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise type(error)(f"{folder} cannot hold a package ({error.strerror})") from None


def write(folder: Path, target: str, kernels: Mapping[str, Mapping[str, bytes]], entries: list[dict], report: str):
    """Makes a package of kernels {name: {file: content}} and tuning entries. Raises `OSError`."""
    contents = {f"kernels/{name}/{file}": data for name, files in kernels.items() for file, data in files.items()}
    contents[TUNED] = json.dumps({"schema": autotune.store.SCHEMA, "entries": entries}, indent=1).encode()
    contents[REPORT] = report.encode()
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    manifest = {
        "schema": SCHEMA,
        "target": target,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "toolchain": toolchain(target),
        "files": {name: digest_of(data) for name, data in contents.items()},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")  # last: now it is whole
    return Package(folder, target, tuple(kernels), len(entries))


def load_package(folder: str | Path) -> Package:
    """Loads what `tritonconv compile` wrote: from now on, and in other processes, its kernels need no compiling here.

    Configs that were measured here stay. Raises `ValueError`, in one sentence, if the package is not whole, or made for
    another target or with other versions than those here, and `OSError` if kernels or configs cannot be stored.
    """
    folder = Path(folder)
    try:
        manifest = _manifest(folder)
        _check_target(manifest["target"])
        _check_toolchain(manifest["toolchain"], toolchain(manifest["target"]))
        contents = _contents(folder, manifest["files"])
        changes = autotune.files.changes(folder / TUNED)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"its {MANIFEST} is damaged"
        raise ValueError(f"{folder} is not loaded: {reason}") from error
    autotune.store.check_writable()
    kernels: dict[str, dict[str, bytes]] = {}
    for name, data in contents.items():
        if name.startswith("kernels/"):
            _, kernel, file = name.split("/")
            kernels.setdefault(kernel, {})[file] = data
    install = _install_native if manifest["target"] == "cpu" else _install_triton
    for kernel, files in kernels.items():
        install(kernel, files)
    for entry in changes.to_take:
        autotune.store.write(entry)
    tuning.forget()
    configs = sum(map(len, (changes.new, changes.newer, changes.kept)))
    return Package(folder, manifest["target"], tuple(kernels), configs)


def _manifest(folder: Path) -> dict:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"it holds no {MANIFEST}, as every whole package does") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"its {MANIFEST} is damaged") from error
    schema = manifest.get("schema")
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        raise ValueError(f"its schema is {schema!r}, not {SCHEMA}" + (": it was made by a later version" * newer))
    return manifest


def _check_target(target: str) -> None:
    if target != "cpu" and target not in TARGETS:
        raise ValueError(f"it is for {target!r}, which this version does not know")
    here = _targets()
    if target not in here:
        raise ValueError(f"it is for {target}, and here is {' and '.join(sorted(here))}")


def _targets() -> set[str]:
    """What kernels can run on here."""
    gpus = (torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    return {"cpu", *map(engines.ENGINES["triton"].target, gpus)}


def _check_toolchain(theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise ValueError(f"its {name} is {theirs.get(name)}, and here it is {value}")


def _contents(folder: Path, files: Mapping[str, str]) -> dict[str, bytes]:
    """The files, once all of them are known to be what was written."""
    contents = {}
    for name, digest in files.items():
        path = folder / name
        parts = Path(name).parts
        if ".." in parts or Path(name).is_absolute() or len(parts) != (3 if parts[0] == "kernels" else 1):
            raise ValueError(f"{name!r} is no file of a package")
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        contents[name] = path.read_bytes()
        if digest_of(contents[name]) != digest:
            raise ValueError(f"the checksum of {name} does not match")
    return contents


def _install_native(name: str, files: Mapping[str, bytes]) -> None:
    (data,) = files.values()
    cache.keep(name, build.Binary.unpack(data))


def _install_triton(name: str, files: Mapping[str, bytes]) -> None:
    """As `triton.compile` leaves what it has compiled: a group names its files by absolute paths."""
    manager = get_cache_manager(name)
    group = {file: manager.put(data, file) for file, data in files.items()}
    manager.put_group(next(file for file in group if file.endswith(".json")), group)
