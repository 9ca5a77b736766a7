"""The tuned entries that come with this package: a file for each machine where `python -m benchmarks ship` ran."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import torch

import autotune

from ..cpu.target import host

FOLDER = Path(__file__).parent


def machine() -> dict[str, object]:
    """What tells CPUs for which the same is fastest."""
    return {"processor": host().cpu, "features": _features(), "threads": torch.get_num_threads()}


@functools.cache
def _features() -> str:
    return hashlib.sha256(host().features.encode()).hexdigest()[:16]


for _path in sorted(FOLDER.glob("*.json")):
    autotune.ship(_path, machine)
