"""What is stored as tables for readers, as Markdown and as HTML."""

from __future__ import annotations

import html
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autotune.quality import percentile

from .comparison import OURS, PLAIN, Row, geometric_mean, rows_of
from .kernels import share
from .measure import markdown

# Columns of ratios, and the peers of which each takes the fastest.
BARS = {
    "torch": ("torch NCHW", "torch channels_last"),
    "torch.compile": ("torch.compile", "torch.compile frozen"),
    "ONNX Runtime": ("ONNX Runtime",),
    "OpenVINO": ("OpenVINO",),
}
MEAN = "geometric mean"


@dataclass(frozen=True)
class Table:
    """`slower`: the numbers of the rows in which a peer is better; `last` is set apart if it sums up the others."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    slower: frozenset[int] = frozenset()

    def markdown(self) -> str:
        table = markdown(self.headings, self.rows, numbers=True)
        return f"{self.title}\n\n{table}" if self.title else table

    def html(self) -> str:
        head = "".join(f"<th>{html.escape(text)}</th>" for text in self.headings)
        body = []
        for number, cells in enumerate(self.rows):
            classes = [name for name, holds in self._classes(number, cells[0]).items() if holds]
            marked = f' class="{" ".join(classes)}"' if classes else ""
            body.append(f"<tr{marked}>{''.join(f'<td>{html.escape(text)}</td>' for text in cells)}</tr>")
        title = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        rows = "\n".join(body)
        return f"<table>{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>"

    def _classes(self, number: int, name: str) -> dict[str, bool]:
        return {"slower": number in self.slower, "mean": name == MEAN}


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def number(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _grouped(stored: dict) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows_of(stored):
        groups.setdefault(row.group, []).append(row)
    return groups


def speedups(stored: dict) -> list[Table]:
    """Per group: ours, how far the times spread, and every kind of peer's time over ours."""
    tables = []
    for group, rows in _grouped(stored).items():
        bars = {label: peers for label, peers in BARS.items() if any(row.over(peers) for row in rows)}
        ours = {"the best of them": OURS} | ({"plain": PLAIN} if any(PLAIN in row.figures for row in rows) else {})
        lines = []
        for row in rows:
            timed = (number(row.figures[OURS][1]), f"{row.spread:.0%}") if OURS in row.figures else ("left out", "")
            best = (ratio(row.over(row.peers, each)) for each in ours.values())
            lines.append((row.name, *timed, *(ratio(row.over(peers)) for peers in bars.values()), *best))
        means = (ratio(geometric_mean(row.over(peers) for row in rows)) for peers in bars.values())
        best = (ratio(geometric_mean(row.over(row.peers, each) for row in rows)) for each in ours.values())
        lines.append((MEAN, "", "", *means, *best))
        headings = group, "ours, ms", "spread", *bars, *ours
        tables.append(Table("", headings, tuple(lines), _slower(rows)))
    return tables


def _slower(rows: Sequence[Row]) -> frozenset[int]:
    return frozenset(place for place, row in enumerate(rows) if row.slower)


def medians(stored: dict, groups: Callable[[str], bool] = lambda group: True) -> list[Table]:
    """Per group: the median of every peer, and the ratio."""
    tables = []
    for group, rows in _grouped(stored).items():
        if groups(group):
            peers = tuple(dict.fromkeys(peer for row in rows for peer in row.figures))
            lines = [
                (row.name, *(number(row.figures[p][1]) if p in row.figures else "" for p in peers), ratio(row.ratio))
                for row in rows
            ]
            if len(peers) > 1:
                lines.append((MEAN, *[""] * len(peers), ratio(geometric_mean(row.ratio for row in rows))))
            headings = group, *(f"{peer}, {rows[0].unit}" for peer in peers), "ratio"
            tables.append(Table("", headings, tuple(lines), _slower(rows)))
    return tables


def kinds(stored: dict) -> list[Table]:
    """The kernels benchmark, kind by kind: ratios to the better of torch's formats, and how near the ceilings."""
    lines, slower = [], []
    for direction, rows in _grouped(stored).items():
        for kind in dict.fromkeys(row.facts["kind"] for row in rows):
            members = [row for row in rows if row.facts["kind"] == kind and row.ratio]
            if members:
                ratios = sorted(row.ratio for row in members)
                mean = geometric_mean(ratios)
                shares = statistics.median(share(row) for row in members)
                faster = sum(r >= 1 for r in ratios)
                spans = f"{ratios[0]:.2f} to {ratios[-1]:.2f}", ratio(mean)
                lines.append((f"{kind}, {direction}", f"{shares:.0%}", f"{faster} of {len(ratios)}", *spans))
                slower.append(mean < 1)
    headings = "blocks", "of the ceilings, median", "faster than torch", "ratios", "geometric mean"
    return [Table("", headings, tuple(lines), frozenset(n for n, slow in enumerate(slower) if slow))]


def of_layers(stored: dict) -> list[Table]:
    """Every row of the kernels benchmark."""
    tables = []
    for direction, rows in _grouped(stored).items():
        rows = [row for row in rows if OURS in row.figures]
        lines = []
        for row in rows:
            flops, size, ms = row.facts["flops"], row.facts["bytes"], row.figures[OURS][1]
            rates = f"{flops / ms / 1e6:.0f}" if flops else "", f"{size / ms / 1e6:.1f}", f"{share(row):.0%}"
            torchs = (number(row.figures[p][1]) if p in row.figures else "" for p in BARS["torch"])
            lines.append((row.name, row.facts["algorithm"] or "", number(ms), *torchs, *rates, ratio(row.ratio)))
        headings = (
            *(direction, "algorithm", "ours, ms", "NCHW, ms", "channels_last, ms"),
            *("GFLOP/s", "GB/s", "of ceiling", "ratio"),
        )
        tables.append(Table("", headings, tuple(lines), _slower(rows)))
    return tables


def first_calls(stored: dict) -> list[Table]:
    return medians(stored, lambda group: group.startswith(("import", "first")))


def kernel_loading(stored: dict) -> str:
    """A sentence."""
    groups = _grouped(stored)
    middle = {group: statistics.median(row.figures[OURS][1] for row in rows) for group, rows in groups.items()}
    count = len(groups["compile a kernel"])
    return (
        f"A kernel compiles in {middle['compile a kernel']:.0f} ms (median of {count}), loads from disk in "
        f"{middle['load it from disk']:.1f} ms, and a launch costs {middle['launch']:.1f} µs of Python."
    )


def minutes(stored: Mapping[str, dict]) -> Table:
    """What each benchmark took, and when, by the name that it is stored under."""
    lines = [
        (f"`{name}`", number(one["seconds"] / 60), one["commit"], one["date"][:10])
        for name, one in sorted(stored.items())
    ]
    return Table("", ("as stored", "minutes", "commit", "date"), tuple(lines))


def predictions(stored: dict) -> list[Table]:
    """Per operator: how many times the best time the predicted tile takes, and the worst, and how pairs are ordered."""
    headings = "median", "90 %", "the worst tile", "ordered rightly", "rank correlation"
    lines = []
    for op, rows in sorted(_grouped(stored).items()):
        times = [row.figures[OURS][1] for row in rows]
        worst, right, ranks = (
            [value for row in rows if (value := row.facts[name]) is not None]
            for name in ("worst_over_best", "ordered_rightly", "rank_correlation")
        )
        figures = statistics.median(times), percentile(times, 90), statistics.median(worst)
        shares = f"{statistics.median(right):.0%}", f"{statistics.median(ranks):.2f}"
        lines.append((op, str(len(rows)), *map(ratio, figures), *shares))
    return [Table("", ("", "layers", *headings), tuple(lines))]


def tuned(stored: dict) -> list[Table]:
    """Per memory format: what tuning takes, what it leaves to torch, and what it gives."""
    headings = "problems", "from nothing, s", "stored, s", "calls left to torch", "untuned ÷ torch", "tuned ÷ torch"
    lines = []
    for row in rows_of(stored):
        facts = row.facts
        seconds = number(facts["tune_s"]), number(facts["stored_s"])
        calls = f"{facts['left_to_torch']} of {facts['calls']}"
        ratios = ratio(facts["untuned_over_torch"]), ratio(1 / row.ratio)
        lines.append((row.name, str(facts["problems"]), *seconds, calls, *ratios))
    return [Table("", ("", *headings), tuple(lines))]


# The tables of each benchmark.
TABLES: Mapping[str, Callable[[dict], list[Table]]] = {
    "networks": speedups,
    "training": speedups,
    "networks-gpu": speedups,
    "training-gpu": speedups,
    "memory": medians,
    "startup": first_calls,
    "kernels": kinds,
    "cpu": medians,
    "predictor": predictions,
    "tuning": tuned,
}
