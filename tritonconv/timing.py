"""Times functions side by side, so that a slow spell of the machine meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def interleaved(functions: Sequence[Callable[[], object]], seconds: float = 1.0, rounds: int = 9) -> list[float]:
    """Median seconds of each function: `turns`."""
    return list(map(statistics.median, turns(functions, seconds, rounds)))


def turns(
    functions: Sequence[Callable[[], object]], seconds: float, rounds: int, warm: int = 2, pause: float = 0.0
) -> list[list[float]]:
    """Seconds that each function took in each turn, after `warm` turns that compile and fill caches.

    At least `rounds` turns, and more until `seconds` have passed. `pause`: seconds between two functions, in which
    thread pools that wait for more work by spinning go to sleep, so that none steals time from the next.
    """
    for _ in range(warm):
        for function in functions:
            function()
    times: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while len(times[0]) < rounds or time.perf_counter() < end:
        for function, mine in zip(functions, times, strict=True):
            time.sleep(pause)
            _wait()
            start = time.perf_counter()
            function()
            _wait()
            mine.append(time.perf_counter() - start)
    return times


def _wait() -> None:
    """Until GPUs have done what they were given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
