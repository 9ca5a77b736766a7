"""Pictures of what searches measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .quality import measured_trials

Search = tuple[Mapping, list[dict]]  # a key, and its trials
_WORST = 1.5  # the time, over the best, of the darkest colour


def draw(entries: Sequence[dict], folder: Path) -> list[Path]:
    """Writes landscape.png and predicted.png to `folder`, and returns their paths. It takes matplotlib.

    Raises `ValueError` if no entry has several measured trials.
    """
    from matplotlib.figure import Figure

    searches = [(e["key"], t) for e in entries if len(t := measured_trials(e)) > 1]
    if not searches:
        raise ValueError("nothing to draw: no entry has several measured configurations")
    folder.mkdir(parents=True, exist_ok=True)
    ops = sorted({str(key.get("op", "")) for key, _ in searches})
    columns = min(3, len(ops))
    rows = -(-len(ops) // columns)
    paths = []
    for name, panel in (("landscape", _landscape), ("predicted", _predicted)):
        figure = Figure(figsize=(5.5 * columns, 4.5 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for each, op in zip(axes, ops):  # noqa: B905
            each.set_title(op)
            panel(each, _labelled([search for search in searches if str(search[0].get("op", "")) == op]))
        for empty in axes[len(ops) :]:
            empty.set_axis_off()
        if panel is _landscape:
            label = f"time ÷ best ({_WORST:g}: or more), the best with a dot"
            figure.colorbar(axes[0].images[0], ax=list(axes), label=label, extend="max")
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths


def _landscape(axes, searches: Mapping[str, list[dict]]) -> None:
    """Problems by configurations, in the order of prediction; the colour is time over the best of the problem."""
    from matplotlib.ticker import MaxNLocator

    width = max(map(len, searches.values()))
    rows = []
    for trials in searches.values():
        best = min(trial["seconds"] for trial in trials)
        row = [trial["seconds"] / best for trial in trials]
        rows.append(row + [float("nan")] * (width - len(row)))
    axes.set_facecolor("0.9")
    extent = 0.5, width + 0.5, len(rows) - 0.5, -0.5
    axes.imshow(rows, aspect="auto", cmap="viridis_r", vmin=1, vmax=_WORST, interpolation="none", extent=extent)
    axes.plot([row.index(1.0) + 1 for row in rows], range(len(rows)), "ro", markersize=5)
    axes.set_yticks(range(len(rows)), labels=searches, fontsize="small")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("configuration, predicted best first")


def _predicted(axes, searches: Mapping[str, list[dict]]) -> None:
    """Predicted over measured cost of each trial, both relative to the predicted choice of its problem."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low, high = 0.9, 1.1
    for label, trials in searches.items():
        priced = [trial for trial in trials if trial["cost"] is not None]
        if priced:
            x = [trial["cost"] / priced[0]["cost"] for trial in priced]
            y = [trial["seconds"] / priced[0]["seconds"] for trial in priced]
            axes.plot(x, y, "o", markersize=4, alpha=0.7, label=label)
            low, high = min(low, 0.97 * min(y)), max(high, 1.03 * max(x), 1.03 * max(y))
    axes.plot((low, high), (low, high), "k:", linewidth=1)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set(xlabel="cost ÷ that of the predicted choice", ylabel="time ÷ that of the predicted choice")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="x-small", loc="best")


def _labelled(searches: Sequence[Search]) -> dict[str, list[dict]]:
    """The trials of each problem, by what tells it from the others: the fields that differ, but those that differ as
    another one does."""
    keys = [key for key, _ in searches]
    told: dict[tuple, str] = {}
    for name in sorted(set().union(*keys)):
        values = tuple(str(key.get(name)) for key in keys)
        if len(set(values)) > 1:
            places = {value: place for place, value in reversed([*enumerate(values)])}
            told.setdefault(tuple(places[value] for value in values), name)
    ordered = sorted(searches, key=lambda search: [_order(search[0].get(name)) for name in told.values()])
    return {" ".join(f"{name}={key.get(name)}" for name in told.values()): trials for key, trials in ordered}


def _order(value: object) -> tuple[bool, float, str]:
    """Numbers by their size, before all else."""
    number = isinstance(value, int | float)
    return not number, value if number else 0, str(value)
