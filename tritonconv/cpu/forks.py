"""Compilers side by side: neither Python nor LLVM nor MLIR lets two threads compile at once, so each has a process."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


def forked(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """`map(function, items)` in child processes, which inherit the items: they need not be picklable, results must."""
    if len(items) < 2:
        yield from map(function, items)
        return
    workers = min(len(items), len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _inherit, (function, items)) as pool:
        yield from pool.map(_call, range(len(items)))


def _inherit(*inherited) -> None:
    global _inherited
    _inherited = inherited


def _call(index: int) -> object:
    function, items = _inherited
    return function(items[index])
