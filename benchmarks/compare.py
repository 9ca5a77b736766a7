"""Compares two results of the same benchmark, and fails if ours has become worse by more than what was noise.

A row is worse if even the lower quartile of the new run lies above the upper quartile of the old one, and the median by
more than the margin; times are first divided by how much slower the machine was as a whole: the geometric mean of what
the other peers took, new over old. A row that could be measured before and cannot be now is worse too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .comparison import OURS, WIDTH, Row, geometric_mean, rows_of
from .measure import about, load

MARGIN = 0.05
TIMES = "ms", "µs"  # the units that drift with the machine


@dataclass(frozen=True)
class Change:
    """Of ours in a row: medians, and new over old, the machine's drift taken out; None where not measured."""

    row: Row
    old: float | None
    new: float | None
    factor: float | None
    verdict: str


def drift(old: Mapping, new: Mapping) -> float:
    """How many times as much the other peers took as before, in the geometric mean."""
    factors = [
        row.figures[peer][1] / old[key].figures[peer][1]
        for key, row in new.items()
        if key in old and row.unit in TIMES
        for peer in row.peers
        if peer in old[key].figures and old[key].figures[peer][1]
    ]
    return geometric_mean(factors) or 1.0


def keyed(stored: dict) -> dict[tuple[str, str], Row]:
    return {(row.group, row.name): row for row in rows_of(stored)}


def changes(old: Mapping, new: Mapping, margin: float, scale: float) -> Iterator[Change]:
    for key, before in old.items():
        after = new.get(key)
        had = before.figures.get(OURS)
        if after is None or had is None:
            continue  # not asked for, or nothing to lose
        has = after.figures.get(OURS)
        if has is None:
            yield Change(after, had[1], None, None, "not measured any more")
            continue
        by = scale if after.unit in TIMES else 1.0  # only times drift
        lower, median, upper = (value / by for value in has)
        factor = median / had[1] if had[1] else 1.0 + median
        worse = lower > had[2] and factor > 1 + margin
        better = upper < had[0] and factor < 1 / (1 + margin)
        yield Change(after, had[1], has[1], factor, "worse" if worse else "better" if better else "")


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description=__doc__)
    parser.add_argument("old", type=Path, metavar="OLD.json")
    parser.add_argument("new", type=Path, metavar="NEW.json")
    parser.add_argument("--margin", type=float, default=MARGIN, help="that is no change (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        stored = load(options.old), load(options.new)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if stored[0]["benchmark"] != stored[1]["benchmark"]:
        parser.error(f"{options.old} is of {stored[0]['benchmark']}, {options.new} of {stored[1]['benchmark']}")
    old, new = map(keyed, stored)
    scale = drift(old, new)
    found = list(changes(old, new, options.margin, scale))
    console = Console(width=WIDTH)
    for label, one in zip(("old", "new"), stored, strict=True):
        console.print(f"{label}: {about(one)}", markup=False)
    console.print(f"the other peers' times, new ÷ old: {scale:.2f}")
    table = Table("group", "row", title=f"{stored[0]['benchmark']}: {len(found)} rows compared, those that changed")
    for heading in ("old", "new", "new ÷ old", ""):
        table.add_column(heading, justify="right")
    for change in sorted(found, key=lambda change: change.factor or float("inf"), reverse=True):
        if change.verdict:
            figures = ("–" if value is None else f"{value:.3g}" for value in (change.old, change.new, change.factor))
            style = "green" if change.verdict == "better" else "red"
            table.add_row(change.row.group, change.row.name, *figures, change.verdict, style=style)
    console.print(table)
    worse = [change for change in found if change.verdict not in ("", "better")]
    if worse:
        raise SystemExit(f"compare: {len(worse)} of {len(found)} rows have become worse")
