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
    paths = []
    for name, panel in (("landscape", _landscape), ("predicted", _predicted)):
        figure = Figure(figsize=(5.5 * len(ops), 5), layout="constrained")
        for axes, op in zip(figure.subplots(1, len(ops), squeeze=False)[0], ops, strict=True):
            axes.set_title(op)
            panel(axes, [search for search in searches if str(search[0].get("op", "")) == op])
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths


def _landscape(axes, searches: list[Search]) -> None:
    """Problems by configurations, in the order of prediction; the colour is time over the best of the problem."""
    searches = sorted(searches, key=lambda search: -len(search[1]))
    width = len(searches[0][1])
    rows = []
    for _, trials in searches:
        best = min(trial["seconds"] for trial in trials)
        row = [trial["seconds"] / best for trial in trials]
        rows.append(row + [float("nan")] * (width - len(row)))
    axes.set_facecolor("0.9")
    image = axes.imshow(rows, aspect="auto", cmap="viridis_r", vmin=1, vmax=_WORST, interpolation="none")
    axes.figure.colorbar(image, ax=axes, label=f"time ÷ best ({_WORST:g}: or more)", extend="max")
    axes.plot([row.index(1.0) for row in rows], range(len(rows)), "ro", markersize=5, label="best measured")
    axes.set_yticks(range(len(rows)), labels=_labels([key for key, _ in searches]), fontsize="small")
    axes.set(xlabel="configuration, predicted best first")
    axes.legend(loc="lower right")


def _predicted(axes, searches: list[Search]) -> None:
    """Predicted over measured cost of each trial, both relative to the predicted choice of its problem."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    largest = 1.1
    for (_, trials), label in zip(searches, _labels([key for key, _ in searches]), strict=True):
        priced = [trial for trial in trials if trial["cost"] is not None]
        if priced:
            x = [trial["cost"] / priced[0]["cost"] for trial in priced]
            y = [trial["seconds"] / priced[0]["seconds"] for trial in priced]
            axes.plot(x, y, "o", markersize=4, alpha=0.7, label=label)
            largest = max(largest, *x, *y)
    low, high = 0.75, 1.03 * largest
    axes.plot((low, high), (low, high), "k:", linewidth=1)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set(xlabel="cost ÷ that of the predicted choice", ylabel="time ÷ that of the predicted choice")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="x-small", loc="lower right")


def _labels(keys: Sequence[Mapping]) -> list[str]:
    """What tells the problems apart: the fields that differ, but those that differ as another one does."""
    told: dict[tuple, str] = {}
    for name in sorted(set().union(*keys)):
        values = tuple(str(key.get(name)) for key in keys)
        if len(set(values)) > 1:
            places = {value: place for place, value in reversed([*enumerate(values)])}
            told.setdefault(tuple(places[value] for value in values), name)
    return [" ".join(f"{name}={key.get(name)}" for name in told.values()) for key in keys]
