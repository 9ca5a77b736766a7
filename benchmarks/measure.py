"""Where figures are measured, and what a stored figure says of where it comes from."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from tritonconv import tuning
from tritonconv.cpu.target import host

RESULTS = Path(__file__).parent / "results"
SCHEMA = 1
# What all benchmarks run on.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PACKAGES = ("torch", "triton", "llvmlite", "onnxruntime", "openvino", "onnx")

_begin = time.monotonic()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    """What git says of this checkout; "" where there is none."""
    root = RESULTS.parent.parent
    command = "git", "-c", f"safe.directory={root}", *arguments  # a copy of it may belong to another user
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=root).stdout.strip()
    except FileNotFoundError:
        return ""


def provenance() -> dict[str, object]:
    """Machine, versions, commit and date of a run. A commit with a "+" had changes that are not committed."""
    changed = _git("status", "--porcelain", "--", "tritonconv", "autotune", "benchmarks/*.py")
    return {
        "machine": {
            "processor": tuning.name_of(DEVICE),
            "architecture": host().cpu if DEVICE.type == "cpu" else None,  # clouds give all their processors one name
            "device": DEVICE.type,
            "threads": torch.get_num_threads(),
            "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version()}
        | {name: version for name in PACKAGES if (version := _version(name))},
        "commit": (_git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else ""),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def about(stored: Mapping[str, object]) -> str:
    """One line on where stored figures come from."""
    machine = stored["machine"]
    architecture = f" ({machine['architecture']})" if machine.get("architecture") else ""
    versions = ", ".join(f"{name} {version}" for name, version in stored["versions"].items())
    return (
        f"{machine['processor']}{architecture}, {machine['threads']} threads, {machine['memory_gib']} GiB, "
        f"{machine['system']}; {versions}; commit {stored['commit']}, {stored['date'][:16].replace('T', ' ')} UTC"
    )


def printed_by(code: str, **environment: str) -> object:
    """What a process of its own prints as JSON."""
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, check=True)
    return json.loads(run.stdout)


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first}"[:160]


def markdown(headings: Sequence[str], lines: Iterable[Sequence[object]], numbers: bool = False) -> str:
    """A table; `numbers`: all columns but the first are aligned to the right."""
    rules = ["---", *["---:" if numbers else "---"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (headings, rules, *lines))


def stem(benchmark: str) -> str:
    """What its result is called: figures of a GPU are kept apart."""
    return f"{benchmark}-gpu" if DEVICE.type == "cuda" else benchmark


def result(benchmark: str, rows: Sequence[Mapping[str, object]], **more: object) -> dict[str, object]:
    """All that is stored of a run: `more`, its rows and where they come from."""
    origin = {
        "schema": SCHEMA,
        "benchmark": stem(benchmark),
        **provenance(),
        "seconds": round(time.monotonic() - _begin),
    }
    return {**origin, **more, "rows": list(rows)}


def save(benchmark: str, rows: Sequence[Mapping[str, object]], path: Path | None = None, **more: object) -> Path:
    """Writes the result of a run to `path`, which is `results/BENCHMARK.json` unless given, on a GPU BENCHMARK-gpu."""
    path = path or RESULTS / f"{stem(benchmark)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result(benchmark, rows, **more), indent=1) + "\n", encoding="utf-8")
    return path


def load(path: Path) -> dict[str, object]:
    """A stored result. Raises ValueError if it is none, or of another schema."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        schema = stored["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a benchmark's result ({type(error).__name__})") from error
    if schema != SCHEMA:
        raise ValueError(f"{path} has schema {schema}; this version reads schema {SCHEMA}")
    return stored
