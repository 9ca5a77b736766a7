"""How good predictions were, by the trials that entries keep."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rich.table import Table


def measured_trials(entry: dict) -> list[dict]:
    """The trials that have a time, in the order of prediction."""
    return [trial for trial in entry["provenance"].get("trials", ()) if trial["seconds"] is not None]


def seconds_of(entry: dict) -> float | None:
    """What the chosen configuration took."""
    return next((t["seconds"] for t in measured_trials(entry) if t["config"] == entry["config"]), None)


def shortfall(trials: Sequence[dict]) -> float:
    """How many times the best time the predicted choice takes."""
    return trials[0]["seconds"] / min(trial["seconds"] for trial in trials)


def rank_correlation(trials: Sequence[dict]) -> float:
    """Spearman's ρ of predicted order and time."""
    times = [trial["seconds"] for trial in trials]
    return statistics.correlation(range(len(times)), [sorted(times).index(t) for t in times])


def ordered_rightly(trials: Sequence[dict], apart: float = 1.05) -> float | None:
    """Of the pairs whose times differ by more than 5 %, the share that is predicted in the right order, or None.

    Where all take the same time, within noise, a rank correlation says nothing, and there are no such pairs.
    """
    times = [trial["seconds"] for trial in trials]
    pairs = [(a, b) for n, a in enumerate(times) for b in times[n + 1 :] if max(a, b) > apart * min(a, b)]
    return sum(a < b for a, b in pairs) / len(pairs) if pairs else None


def spread(trials: Sequence[dict]) -> float:
    """How many times the best time the worst candidate takes: what a prediction can lose."""
    times = [trial["seconds"] for trial in trials]
    return max(times) / min(times)


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of `values` that `percent` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def table(entries: Iterable[dict]) -> Table:
    """Per `op`, of entries with several measured trials: medians, where nothing else is said."""
    by_op = defaultdict(list)
    for entry in entries:
        trials = measured_trials(entry)
        if len({trial["seconds"] for trial in trials}) > 1 and trials[0]["cost"] is not None:
            by_op[str(entry["key"].get("op", ""))].append(trials)
    chosen = "predicted ÷ best: median", "90 %", "worst"
    made = Table("op", "problems", "configs", *chosen, "worst config ÷ best", "ordered rightly", "rank correlation")
    for op, groups in sorted(by_op.items()):
        ratios = [shortfall(trials) for trials in groups]
        shares = [share for trials in groups if (share := ordered_rightly(trials)) is not None]
        figures = statistics.median(ratios), percentile(ratios, 90), max(ratios), statistics.median(map(spread, groups))
        right = f"{statistics.median(shares):.0%}" if shares else ""
        correlation = f"{statistics.median(map(rank_correlation, groups)):.2f}"
        configs = str(sum(map(len, groups)))
        made.add_row(op, str(len(groups)), configs, *(f"{f:.2f}" for f in figures), right, correlation)
    return made
