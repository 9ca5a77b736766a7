"""Whether what calls would launch on a GPU that need not be there compiles for it and fits in."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import torch
from rich.progress import track

from tritonconv import engines
from tritonconv.cpu.forks import forked
from tritonconv.engines import Typed
from tritonconv.targets import machine_code
from tritonconv.targets.compiling import distinct
from tritonconv.targets.machine_code import TARGETS

Key = TypeVar("Key")


def compiled(calls: Mapping[Key, Callable[[], object]], target: str) -> dict[Key, bool]:
    """Of each call, on tensors of the CPU, whether it launches anything on the target, and all of it compiles. No
    kernel runs; Triton keeps what it compiled."""
    launches = {key: launched(call, target) for key, call in calls.items()}
    different = {key: typed for listed in launches.values() for key, typed in listed.items()}
    results = track(forked(partial(_compiles, target), list(different.values())), target, len(different))
    right = {key for key, compiles in zip(different, results, strict=True) if compiles}
    return {key: bool(listed) and listed.keys() <= right for key, listed in launches.items()}


def launched(call: Callable[[], object], target: str) -> dict[Hashable, Typed]:
    """What a call on tensors of the CPU would launch on a target, each once. No kernel runs."""
    with _zeros_for_empty(), engines.listing(torch.device("cpu"), target) as listed:
        call()
    return distinct(listed)


@contextlib.contextmanager
def _zeros_for_empty() -> Iterator[None]:
    """Where no kernel writes indices, what is in memory may be out of bounds."""
    empty = torch.empty
    torch.empty = lambda *args, **options: empty(*args, **options).zero_()
    try:
        yield
    finally:
        torch.empty = empty


def _compiles(target: str, typed: Typed) -> bool:
    try:
        _, files = machine_code.files(*typed, target)
    except Exception:  # whatever Triton's compiler raises
        return False
    (metadata,) = (json.loads(data) for name, data in files.items() if name.endswith(".json"))
    return metadata["shared"] <= TARGETS[target].shared_program
