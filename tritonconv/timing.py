"""Times functions side by side, so that a slow spell of the machine meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

Function = Callable[[], object]
CPU = torch.device("cpu")
_NAP = 0.005  # seconds


def turns(
    functions: Sequence[Function],
    seconds: float = 1.0,
    rounds: int = 9,
    *,
    warm: int = 2,
    settle: float = 0.0,
    least: float = 0.0,
    device: torch.device = CPU,
) -> list[list[float]]:
    """Seconds that a call of each function took in each turn, after `warm` turns that compile and fill caches.

    At least `rounds` turns, and more until `seconds` have passed.
    settle: seconds to wait, at most, between two functions until no thread of this process works any more: pools that
        wait for work by spinning would steal time from the next function. 0 does not wait.
    least: seconds that a function is called for in its turn, their mean counting, after as many that do not count:
        they wake the function's own threads and bring its data back into the caches. A function that takes longer is
        called once.
    device: where the functions work. A GPU's own clock times what runs there.
    """
    warmed = [[_seconds(function, 1, device) for function in functions] for _ in range(warm)]
    calls = [int(least / min(once)) for once in zip(*warmed, strict=True)]
    times: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while len(times[0]) < rounds or time.perf_counter() < end:
        for function, count, mine in zip(functions, calls, times, strict=True):
            _settle(settle)
            for _ in range(count):
                function()
            mine.append(_seconds(function, max(1, count), device))
    return times


def _settle(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(_NAP)
        if time.process_time() - before < _NAP / 10:
            return


def _seconds(function: Function, calls: int, device: torch.device) -> float:
    """The mean of `calls` calls in a row."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            for _ in range(calls):
                function()
            end.record()
            end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls
