"""Rows of figures, ours beside those of peers: how they are measured, printed and stored."""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from rich.console import Console
from rich.table import Table

from tritonconv.timing import turns

from .measure import DEVICE, about, provenance, reason, save, stem

OURS, PLAIN = "ours", "ours, plain"  # with all that makes it faster; and by `patch(model)` alone
WIDTH = 130  # of what is printed, wherever that is
SETTLE = 0.5  # seconds at most until a peer's threads sleep
LEAST = 0.02  # seconds of a peer's turn, once to warm up and once to be timed
WARM = 4  # calls of each peer before; what is recorded and compiled with the first ones says nothing of the later ones

Figure = tuple[float, float, float]  # lower quartile, median, upper quartile


@dataclass(frozen=True)
class Row:
    """Figures of ours and its peers for one thing, in `unit`; less is better. PLAIN is no peer of OURS.

    group, name: tell it from the other rows of its benchmark.
    left_out: the other peers, and why. facts: what else is known of it.
    """

    group: str
    name: str
    unit: str
    figures: Mapping[str, Figure]
    left_out: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def best(self) -> str | None:
        """The best other peer."""
        return min(self.peers, key=lambda peer: self.figures[peer][1], default=None)

    @property
    def peers(self) -> list[str]:
        return [peer for peer in self.figures if peer not in (OURS, PLAIN)]

    @property
    def ratio(self) -> float | None:
        """The best other peer's median over ours: above 1 ours is better."""
        return self.over(self.peers)

    def over(self, peers: Iterable[str], ours: str = OURS) -> float | None:
        """The best median of these peers over ours."""
        medians = [self.figures[peer][1] for peer in peers if peer in self.peers]
        return min(medians) / self.figures[ours][1] if ours in self.figures and medians else None

    @property
    def slower(self) -> bool:
        """Whether a peer is better than ours."""
        return self.ratio is not None and self.ratio < 1

    @property
    def spread(self) -> float:
        """The widest of the peers' interquartile ranges, over its median."""
        return max(((upper - lower) / median for lower, median, upper in self.figures.values()), default=math.nan)

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"ratio": self.ratio}


def rows_of(stored: Mapping[str, object]) -> list[Row]:
    """The rows of a stored result that compare."""
    rows = ({key: value for key, value in row.items() if key != "ratio"} for row in stored["rows"] if "figures" in row)
    return [Row(**row) for row in rows]


def geometric_mean(ratios: Iterable[float | None]) -> float | None:
    known = [ratio for ratio in ratios if ratio is not None]
    return statistics.geometric_mean(known) if known else None


def figure(values: Sequence[float]) -> Figure:
    """Quartiles; of one value, that value."""
    if len(values) == 1:
        return (values[0],) * 3
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


Prepare = Callable[[], Callable[[], object]]


def compare(
    group: str,
    name: str,
    peers: Mapping[str, Prepare],
    seconds: float,
    facts: Mapping[str, object] | None = None,
    least: float = LEAST,
    rounds: int = 5,
) -> Row:
    """Times, in milliseconds, what the values of `peers` return, having run it. A peer that raises is left out."""
    torch._dynamo.reset()  # a network's graphs are of no use to the next
    return timed(group, name, *prepared(peers), seconds, facts, least, rounds)


def prepared(peers: Mapping[str, Prepare]) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """What the values of `peers` return, and of those that raise why."""
    runs, left_out = {}, {}
    for peer, prepare in peers.items():
        try:
            runs[peer] = prepare()
        except Exception as error:
            left_out[peer] = reason(error)
    return runs, left_out


def timed(
    group: str,
    name: str,
    runs: Mapping[str, Callable[[], object]],
    left_out: Mapping[str, str],
    seconds: float,
    facts: Mapping[str, object] | None = None,
    least: float = LEAST,
    rounds: int = 5,
) -> Row:
    """The row of what is prepared, in milliseconds."""
    functions = tuple(runs.values())
    gc.collect()
    gc.disable()  # what a collection takes would fall to whoever's turn it is
    try:
        times = turns(functions, seconds, rounds, warm=WARM, settle=SETTLE, least=least, device=DEVICE) if runs else []
    finally:
        gc.enable()
    figures = {peer: figure([1e3 * s for s in mine]) for peer, mine in zip(runs, times, strict=True)}
    return Row(group, name, "ms", figures, left_out, facts or {})


def parser(
    benchmark: str,
    purpose: str,
    names: Iterable[str] = (),
    seconds: float | None = None,
    batches: tuple[int, ...] = (),
) -> argparse.ArgumentParser:
    """Of a benchmark's options: where to store, and, where it has them, which of `names`, seconds, batches."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks {benchmark}", description=purpose)
    option, names = made.add_argument, tuple(names)
    if names:
        text = f"of {', '.join(names)}; stored only by --out then"
        option("--only", metavar="NAME", nargs="+", choices=names, default=(), help=text)
    option("--out", metavar="FILE", type=Path, help=f"store there, and not in results/{stem(benchmark)}.json")
    if seconds is not None:
        option("--seconds", type=float, default=seconds, help="at least, for each row (default: %(default)s)")
    if batches:
        option("--batch", metavar="N", nargs="+", type=int, default=batches, help="sizes (default: %(default)s)")
    return made


Columns = Mapping[str, Callable[[Row], str]]


def table_of(title: str, rows: Sequence[Row], columns: Columns) -> Table:
    """One group: medians of each peer; `columns` are more of them."""
    peers = tuple(dict.fromkeys(peer for row in rows for peer in (*row.figures, *row.left_out)))
    table = Table("", title=title)
    for heading in (*columns, *peers, "spread", "ratio"):
        table.add_column(heading.replace(" ", "\n"), justify="right")
    for row in rows:
        medians = (f"{row.figures[peer][1]:.3g}" if peer in row.figures else "–" for peer in peers)
        cells = *(text(row) for text in columns.values()), *medians, f"{row.spread:.0%}"
        ratio = "–" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.name, *cells, ratio, style="red" if row.slower else None)
    if mean := geometric_mean(row.ratio for row in rows):
        table.add_section()
        table.add_row("geometric mean", *[""] * (len(columns) + len(peers) + 1), f"{mean:.2f}")
    return table


def publish(
    benchmark: str,
    title: str,
    rows: Sequence[Row],
    options: argparse.Namespace,
    columns: Columns = MappingProxyType({}),
    **more: object,
) -> None:
    """Prints the rows, stores them if they are all there are, and fails if ours is missing from any."""
    console = Console(width=WIDTH)
    for group, members in itertools.groupby(rows, lambda row: row.group):
        members = list(members)
        console.print(table_of(f"{title}, {group}: median {members[0].unit}", members, columns))
    for row in rows:
        for peer, why in row.left_out.items():
            console.print(f"left out: {peer}, {row.name}, {row.group}: {why}", markup=False)
    keep(benchmark, rows, options, console, title=title, **more)
    failed = [f"{row.name} ({row.group})" for row in rows if OURS in row.left_out]
    if failed:
        raise SystemExit(f"{benchmark}: ours could not be measured on {', '.join(failed)}")


def keep(benchmark: str, rows: Iterable[Row], options: argparse.Namespace, console: Console, **more: object) -> None:
    """Says where the figures come from, and stores them unless they are a part and no file is named for it."""
    asked = {key: value for key, value in vars(options).items() if key != "out"}
    console.print(about(provenance()), markup=False)
    if options.out or not asked.get("only"):
        path = save(benchmark, [row.to_json() for row in rows], options.out, options=asked, **more)
        console.print(f"stored in {path}", markup=False)
