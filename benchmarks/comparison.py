"""Comparing whole networks: the options of such a benchmark, its rows, and the table it prints and stores."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table

from tritonconv.timing import turns

from .measure import provenance, reason, save
from .zoo import NETWORKS

OURS = "ours"
WIDTH = 130  # of what is printed, wherever that is


@dataclass(frozen=True)
class Options:
    names: tuple[str, ...]
    batches: tuple[int, ...]
    seconds: float
    partial: bool  # whether only some networks were asked for

    @classmethod
    def parse(cls, name: str, arguments: Sequence[str], purpose: str, batches: tuple[int, ...]) -> Options:
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=purpose)
        option = parser.add_argument
        option("--only", metavar="NETWORK", nargs="+", help=f"of {', '.join(NETWORKS)}; nothing is stored then")
        option("--batch", metavar="N", nargs="+", type=int, default=batches, help="batch sizes (default: %(default)s)")
        option("--seconds", type=float, default=5.0, help="at least, for each row (default: %(default)s)")
        options = parser.parse_args(arguments)
        for network in options.only or ():
            if network not in NETWORKS:
                parser.error(f"no network {network!r}; there are {', '.join(NETWORKS)}")
        return cls(tuple(options.only or NETWORKS), tuple(options.batch), options.seconds, bool(options.only))


@dataclass(frozen=True)
class Row:
    """Milliseconds of each peer: lower quartile, median, upper quartile. `left_out`: the other peers, and why."""

    network: str
    batch: int
    ms: Mapping[str, tuple[float, float, float]]
    left_out: Mapping[str, str]

    @property
    def ratio(self) -> float | None:
        """The best other peer's median over ours."""
        others = [median for peer, (_, median, _) in self.ms.items() if peer != OURS]
        return min(others) / self.ms[OURS][1] if OURS in self.ms and others else None

    @property
    def spread(self) -> float:
        """The widest of the peers' interquartile ranges, over its median."""
        return max(((upper - lower) / median for lower, median, upper in self.ms.values()), default=math.nan)


def compare(network: str, batch: int, peers: Mapping[str, Callable[[], Callable[[], object]]], seconds: float) -> Row:
    """Times what the values of `peers` return. A peer that raises is left out."""
    torch._dynamo.reset()  # a network's graphs are of no use to the next
    runs, left_out = {}, {}
    for peer, prepare in peers.items():
        try:
            runs[peer] = prepare()
        except Exception as error:
            left_out[peer] = reason(error)
    times = turns(tuple(runs.values()), seconds, rounds=5, pause=0.02)
    ms = {}
    for peer, mine in zip(runs, times, strict=True):
        lower, median, upper = statistics.quantiles(mine, n=4, method="inclusive")
        ms[peer] = lower * 1e3, median * 1e3, upper * 1e3
    return Row(network, batch, ms, left_out)


def table_of(title: str, rows: Sequence[Row]) -> Table:
    peers = tuple(dict.fromkeys(peer for row in rows for peer in (*row.ms, *row.left_out)))
    table = Table("network", title=title)
    for heading in (*peers, "spread", "ratio"):
        table.add_column(heading.replace(" ", "\n"), justify="right")
    for row in rows:
        times = (f"{row.ms[peer][1]:.3g}" if peer in row.ms else "–" for peer in peers)
        table.add_row(row.network, *times, f"{row.spread:.0%}", "–" if row.ratio is None else f"{row.ratio:.2f}")
    ratios = [row.ratio for row in rows if row.ratio]
    if ratios:
        table.add_section()
        table.add_row("geometric mean", *[""] * (len(peers) + 1), f"{statistics.geometric_mean(ratios):.2f}")
    return table


def publish(name: str, title: str, rows: Sequence[Row], options: Options, **more: object) -> None:
    """Prints the rows, stores them if they are all there are, and fails if ours is missing from any."""
    console = Console(width=WIDTH)
    for batch in options.batches:
        console.print(table_of(f"{title}, batch {batch}", [row for row in rows if row.batch == batch]))
    for row in rows:
        for peer, why in row.left_out.items():
            console.print(f"left out: {peer}, {row.network}, batch {row.batch}: {why}", markup=False)
    console.print({k: v for k, v in (provenance() | more).items() if k != "commit"})
    if not options.partial:
        console.print(f"stored in {save(name, [asdict(row) | {'ratio': row.ratio} for row in rows], **more)}")
    failed = [f"{row.network} (batch {row.batch})" for row in rows if OURS in row.left_out]
    if failed:
        raise SystemExit(f"{name}: ours could not be timed on {', '.join(failed)}")
