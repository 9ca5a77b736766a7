"""Draws what is stored: speed-up bars, the roofline, how times scale. `python -m benchmarks pictures` draws all."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from . import ceilings
from .comparison import OURS, rows_of
from .measure import RESULTS, load
from .tables import BARS

matplotlib.use("Agg")  # draws without a display
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator  # noqa: E402

# Of Okabe and Ito, which colour-blind readers can tell apart.
INK, BLUE, ORANGE, GREEN, PURPLE, SKY, RED = "#24292f", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"
COLOURS = dict(zip(BARS, (BLUE, ORANGE, GREEN, PURPLE), strict=True))
KINDS = {
    "3×3": (BLUE, "o"),
    "1×1": (ORANGE, "s"),
    "larger": (GREEN, "^"),
    "stem": (SKY, "v"),
    "depthwise": (PURPLE, "D"),
    "dilated": (RED, "P"),
    "transposed": ("#8c6d31", "X"),
    "1-D": ("#7f7f7f", "*"),
}
LINES = {OURS: (BLUE, "o", "-"), "torch NCHW": (ORANGE, "s", "--"), "torch channels_last": (GREEN, "^", ":")}
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8c959f",
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#d0d7de",
    "legend.frameon": False,
    "svg.hashsalt": "tritonconv",  # the same picture is the same file
}


def speedups(stored: dict) -> Figure:
    """How many times as fast ours is as each peer, per network: up from 1 where ours is faster, else down."""
    rows = rows_of(stored)
    groups = list(dict.fromkeys(row.group for row in rows))
    bars = {label: peers for label, peers in BARS.items() if any(row.over(peers) for row in rows)}
    figure, panels = plt.subplots(len(groups), 1, figsize=(11, 0.9 + 3.2 * len(groups)), squeeze=False)
    for group, axes in zip(groups, panels[:, 0], strict=True):
        members = [row for row in rows if row.group == group]
        width = 0.84 / len(bars)
        for place, (label, peers) in enumerate(bars.items()):
            heights = [(row.over(peers) or 1) - 1 for row in members]
            at = np.arange(len(members)) + (place - (len(bars) - 1) / 2) * width
            axes.bar(at, heights, 0.92 * width, bottom=1, label=label, color=COLOURS[label])
        axes.axhline(1, color=INK, linewidth=1)
        axes.set_title(group)
        axes.set_ylabel("their time ÷ ours")
        _ratios(axes, [row.over(peers) for row in members for peers in bars.values()])
        axes.set_xticks(range(len(members)), [row.name.replace(" ", "\n", 1) for row in members], fontsize=8.5)
        axes.tick_params(axis="x", length=0)
        axes.margins(x=0.01)
        axes.grid(axis="y")
    legend = panels[0, 0].get_legend_handles_labels()
    figure.legend(*legend, ncols=len(bars), loc="upper left", bbox_to_anchor=(0.05, 1))
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    return figure


def _ratios(axes: Axes, ratios: Sequence[float | None]) -> None:
    """A logarithmic axis of ratios: 2 is as far from 1 as ½."""
    known = [ratio for ratio in ratios if ratio]
    axes.set_yscale("log")
    axes.set_ylim(min(0.8, min(known, default=1) / 1.1), max(1.25, max(known, default=1) * 1.1))
    marks = (0.1, 0.125, 0.25, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32, 64)
    axes.yaxis.set_major_locator(FixedLocator(marks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.yaxis.set_minor_locator(NullLocator())


def roofline(stored: dict) -> Figure:
    """Each block's rate over its intensity, under the ceilings of cores, caches and memory."""
    limit = ceilings.of_json(stored["ceilings"])
    rows = [row for row in rows_of(stored) if row.group == "forward" and OURS in row.figures and row.facts["flops"]]
    figure, axes = plt.subplots(figsize=(11, 6.4))
    intensities = [row.facts["flops"] / row.facts["bytes"] for row in rows]
    x = np.geomspace(min(intensities) / 1.5, max(intensities) * 1.6, 200)
    for size, rate in limit.bandwidth.items():
        axes.plot(x, np.minimum(x * rate, limit.flops) / 1e9, color="#8c959f", linewidth=1)
        corner = limit.flops / rate
        place = max(min(corner * 0.55, corner - 0.1), x[0])
        _note(axes, f"{rate / 1e9:.0f} GB/s on {size // ceilings.MIB} MiB", (place, place * rate / 1e9))
    _note(axes, f"{limit.flops / 1e9:.0f} GFLOP/s: multiply-adds in registers", (x[-1], limit.flops / 1e9))
    for kind, (colour, marker) in KINDS.items():
        for winograd in (False, True):
            mine = [
                (intensity, row.facts["flops"] / row.figures[OURS][1] / 1e6)
                for row, intensity in zip(rows, intensities, strict=True)
                if row.facts["kind"] == kind and (row.facts["algorithm"] == "Winograd") == winograd
            ]
            if mine:
                face = "none" if winograd else colour
                label = f"{kind}, Winograd" if winograd else kind
                look = {"marker": marker, "facecolors": face, "edgecolors": colour, "alpha": 0.85, "label": label}
                axes.scatter(*zip(*mine, strict=True), 34, **look)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte", ylabel="GFLOP/s", xlim=(x[0], x[-1]))
    axes.set_ylim(bottom=0.5, top=limit.flops / 1e9 * 6)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid()
    axes.legend(loc="lower right", ncols=2, fontsize=9)
    axes.set_title("Inference of one image: every block of the networks; hollow marks do fewer multiplications")
    figure.tight_layout()
    return figure


def _note(axes: Axes, text: str, place: tuple[float, float]) -> None:
    """Above a ceiling, left of `place`."""
    axes.annotate(text, place, (-5, 4), textcoords="offset points", ha="right", fontsize=8.5, color="#57606a")


def scaling(stored: dict) -> Figure:
    """Rates of one block as each of its dimensions grows; bands are the middle half of what was measured."""
    rows = rows_of(stored)
    groups = list(dict.fromkeys(row.group for row in rows))
    figure, panels = plt.subplots(1, len(groups), figsize=(3.3 * len(groups) + 0.6, 3.9), sharey=True, squeeze=False)
    for group, axes in zip(groups, panels[0], strict=True):
        members = [row for row in rows if row.group == group]
        for peer, (colour, marker, dash) in LINES.items():
            found = [row for row in members if peer in row.figures]
            values = [row.facts["value"] for row in found]
            slow, middle, fast = (
                [row.facts["flops"] / row.figures[peer][which] / 1e6 for row in found] for which in (2, 1, 0)
            )
            axes.plot(values, middle, dash, marker=marker, markersize=5, color=colour, label=peer)
            axes.fill_between(values, slow, fast, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, [str(value) for value in values])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(group)
        axes.set_ylim(bottom=0)
        axes.grid()
    panels[0, 0].set_ylabel("GFLOP/s")
    panels[0, 0].legend(fontsize=9)
    figure.tight_layout()
    return figure


# Picture, the result that it draws, and how.
PICTURES: Mapping[str, tuple[str, Callable[[dict], Figure]]] = {
    "speedup": ("networks", speedups),
    "training": ("training", speedups),
    "roofline": ("kernels", roofline),
    "scaling": ("scaling", scaling),
}


def draw(name: str, folder: Path, suffix: str = "png") -> Path | None:
    """Draws a picture; None if its figures are not stored."""
    benchmark, make = PICTURES[name]
    source, path = RESULTS / f"{benchmark}.json", folder / f"{name}.{suffix}"
    if not source.exists():
        return None
    with plt.rc_context(STYLE):
        figure = make(load(source))
        figure.savefig(path, dpi=130, metadata={"Date": None} if suffix == "svg" else None)
        plt.close(figure)
    return path


def main(arguments: Sequence[str] = ()) -> None:
    argparse.ArgumentParser(prog="python -m benchmarks pictures", description=__doc__).parse_args(arguments)
    for name in PICTURES:
        if path := draw(name, RESULTS):
            print(f"drawn in {path}")
