"""Pictures of what searches measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .quality import measured_trials


def draw(entries: Sequence[dict], folder: Path) -> list[Path]:
    """Writes landscape.png and predicted.png to `folder`, and returns their paths. It takes matplotlib.

    Raises `ValueError` if no entry has several measured trials.
    """
    from matplotlib.figure import Figure

    searches = [(str(e["key"].get("op", "")), t) for e in entries if len(t := measured_trials(e)) > 1]
    if not searches:
        raise ValueError("nothing to draw: no entry has several measured configurations")
    folder.mkdir(parents=True, exist_ok=True)
    ops = sorted({op for op, _ in searches})
    paths = []
    for name, panel in (("landscape", _landscape), ("predicted", _predicted)):
        figure = Figure(figsize=(5 * len(ops), 5), layout="constrained")
        for axes, op in zip(figure.subplots(1, len(ops), squeeze=False)[0], ops, strict=True):
            axes.set_title(op)
            panel(axes, [trials for other, trials in searches if other == op])
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1])
    return paths


def _landscape(axes, searches: list[list[dict]]) -> None:
    """Problems by configurations, in the order of prediction; the colour is time over the best of the problem."""
    width = max(map(len, searches))
    rows = []
    for trials in searches:
        best = min(trial["seconds"] for trial in trials)
        row = [trial["seconds"] / best for trial in trials]
        rows.append(row + [float("nan")] * (width - len(row)))
    image = axes.imshow(rows, aspect="auto", cmap="viridis_r", vmin=1, vmax=3)
    axes.figure.colorbar(image, ax=axes, label="time ÷ best (3: or more)")
    axes.plot([row.index(1.0) for row in rows], range(len(rows)), "r.", label="best")
    axes.set(xlabel="configuration, predicted best first", ylabel="problem")
    axes.legend(loc="upper right")


def _predicted(axes, searches: list[list[dict]]) -> None:
    """Predicted over measured cost of each trial, both relative to the predicted choice of its problem."""
    for trials in searches:
        priced = [trial for trial in trials if trial["cost"] is not None]
        if priced:
            x = [trial["cost"] / priced[0]["cost"] for trial in priced]
            y = [trial["seconds"] / priced[0]["seconds"] for trial in priced]
            axes.loglog(x, y, ".", alpha=0.6)
    low, high = axes.get_xlim()
    axes.plot((low, high), (low, high), "k:", linewidth=1)
    axes.set(xlabel="cost ÷ that of the predicted choice", ylabel="time ÷ that of the predicted choice")
