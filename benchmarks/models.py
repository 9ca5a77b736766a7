"""What inference and training of whole networks have in common: rows in processes of their own and, on a GPU, several
arithmetics and two groups.

On a GPU small networks wait for the host, which starts their kernels. So each peer is timed twice there: as a user
calls it, and "captured", its call recorded once in a CUDA graph and replayed, which leaves the kernels' own time. A
peer that cannot be captured is left out of the second group.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import ExitStack
from functools import partial

import torch
from torch.utils._pytree import tree_leaves

from .arithmetic import MEASURED
from .comparison import OURS, Prepare, Row, parser, prepared, timed
from .measure import DEVICE, reason
from .zoo import NETWORKS

WARM = 3  # calls before one is captured
# measure(arithmetic, batch, name, seconds) gives a network's rows; without seconds it only prepares, and gives none.
Problem = tuple[str, int, str]
Measure = Callable[[str, int, str, float | None], list[Row]]
Run = Callable[[], object]


def options_of(benchmark: str, purpose: str, batches: tuple[int, ...], arguments: Sequence[str]) -> argparse.Namespace:
    made = parser(benchmark, purpose, NETWORKS, seconds=3.0, batches=batches)
    option, names = made.add_argument, ", ".join(MEASURED)
    text = f"of {names}; on a CPU float32 (default: float32)"
    option("--arithmetic", metavar="NAME", nargs="+", choices=MEASURED, default=["float32"], help=text)
    text = "rows that are prepared side by side, before they are timed one after another (default: %(default)s)"
    option("--prepare", metavar="N", type=int, default=1, help=text)
    option("--minutes", type=float, help="after which no row is begun any more (default: no limit)")
    options = made.parse_args(arguments)
    if DEVICE.type == "cpu" and options.arithmetic != ["float32"]:
        made.error(f"--arithmetic must be float32 on a CPU, got {' '.join(options.arithmetic)}")
    if options.prepare < 1:
        made.error(f"--prepare must be at least 1, got {options.prepare}")
    return options


def rows(measure: Measure, options: argparse.Namespace) -> list[Row]:
    """The rows of all that is asked for, group by group. Each network is measured in a process of its own, as a user's
    is: how long memory takes to get depends on what a process had before. All that is prepared side by side with others
    is prepared again alone, and finds then what was compiled: `patch` times what it chooses from."""
    end = time.monotonic() + 60 * (options.minutes or float("inf"))
    problems = list(itertools.product(options.arithmetic, options.batch, options.only or NETWORKS))
    found: list[Row] = []
    for first in range(0, len(problems), options.prepare):
        with ExitStack() as stack:
            processes = {
                problem: stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
                for problem in problems[first : first + options.prepare]
            }
            if len(processes) > 1:
                wait([process.submit(measure, *problem, None) for problem, process in processes.items()])
            for problem, process in processes.items():
                if time.monotonic() < end:
                    found += _rows_of(problem, process, measure, options.seconds)
                else:
                    print(f"no time left for {', '.join(map(str, problem))}", flush=True)
                process.shutdown()
    groups = list(dict.fromkeys(row.group for row in found))
    return sorted(found, key=lambda row: groups.index(row.group))


def _rows_of(problem: Problem, process: ProcessPoolExecutor, measure: Measure, seconds: float) -> list[Row]:
    """The rows of one network; one without figures if that fails, so that it does not cost the others."""
    try:
        return process.submit(measure, *problem, seconds).result()
    except Exception as error:
        traceback.print_exception(error)
        arithmetic, batch, name = problem
        return [Row(group_of(arithmetic, batch), name, "ms", {}, {OURS: reason(error)})]


def group_of(arithmetic: str, batch: int) -> str:
    return f"batch {batch}" if DEVICE.type == "cpu" else f"batch {batch}, {arithmetic}"


def compare_in_groups(
    arithmetic: str,
    batch: int,
    name: str,
    peers: Mapping[str, Prepare],
    check: Callable[[Run], None],
    seconds: float | None,
    rounds: int = 5,
) -> list[Row]:
    """The rows of a network, of the peers whose run passes `check`, which raises; on a GPU also of them captured."""
    _give_back()  # what the result in float64 took
    runs, left_out = prepared({peer: partial(checked, make, check) for peer, make in peers.items()})
    if seconds is None:
        runs.clear()
        _give_back()
        return []
    facts, group = {"batch": batch, "arithmetic": arithmetic}, group_of(arithmetic, batch)
    found = [timed(group, name, runs, left_out, seconds, facts, rounds=rounds)]
    if DEVICE.type == "cuda":
        make = {peer: partial(captured, run) for peer, run in runs.items()}
        graphs, refused = prepared({peer: partial(checked, make, check) for peer, make in make.items()})
        group = f"{group}, captured"
        found.append(timed(group, name, graphs, left_out | refused, seconds, facts, rounds=rounds))
    for row in found:
        medians = (f"{peer} {median:.3g}" for peer, (_, median, _) in row.figures.items())
        print(f"{row.group}: {row.name}: {', '.join(medians)} ms", flush=True)
    return found


def _give_back() -> None:
    """Leaves the GPU's memory that is free to the processes beside this one."""
    gc.collect()
    torch.cuda.empty_cache()


def checked(make: Prepare, check: Callable[[Run], None]) -> Run:
    """What `make` returns, once it has passed `check`."""
    run = make()
    check(run)
    return run


def captured(run: Run) -> Run:
    """What replays the kernels of a call of `run`, and returns the tensors that the call returned."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # which is left again even where capturing fails
        for _ in range(WARM):
            run()
        with torch.cuda.graph(graph, stream=stream):
            results = run()
    torch.cuda.current_stream().wait_stream(stream)
    for result in tree_leaves(results):
        result.fill_(float("nan"))  # a kernel that was not captured would leave it

    def replay() -> object:
        graph.replay()
        return results

    return replay
