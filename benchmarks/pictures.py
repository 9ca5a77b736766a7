"""Draws what is stored: speed-up bars, the roofline, how times scale. `python -m benchmarks pictures` draws all."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from . import ceilings
from .comparison import OURS, geometric_mean, rows_of
from .kernels import saving
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
GREY = "#6e7781"
NOTE = {"textcoords": "offset points", "fontsize": 8.5, "color": GREY}
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8c959f",
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
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
    figure, panels = plt.subplots(len(groups), 1, figsize=(12.5, 0.9 + 3.2 * len(groups)), squeeze=False)
    for group, axes in zip(groups, panels[:, 0], strict=True):
        members = [row for row in rows if row.group == group]
        width = 0.84 / len(bars)
        for place, (label, peers) in enumerate(bars.items()):
            ratios = [row.over(peers) for row in members]
            heights = [(ratio or 1) - 1 for ratio in (*ratios, geometric_mean(ratios))]
            at = np.arange(len(heights)) + (place - (len(bars) - 1) / 2) * width
            at[-1] += 0.3  # the mean stands apart
            axes.bar(at, heights, 0.92 * width, bottom=1, label=label, color=COLOURS[label])
        axes.axhline(1, color=INK, linewidth=1)
        axes.set_title(group)
        axes.set_ylabel("their time ÷ ours")
        _ratios(axes, [row.over(peers) for row in members for peers in bars.values()])
        names = [*(_broken(row.name) for row in members), "geometric\nmean"]
        axes.set_xticks([*range(len(members)), len(members) + 0.3], names, fontsize=8.5)
        axes.axvline(len(members) - 0.35, color="#d0d7de", linewidth=1, zorder=0)
        axes.tick_params(axis="x", length=0)
        axes.margins(x=0.01)
        axes.grid(axis="y")
    legend = panels[0, 0].get_legend_handles_labels()
    figure.legend(*legend, ncols=len(bars), loc="upper left", bbox_to_anchor=(0.05, 1))
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    return figure


def _broken(name: str) -> str:
    """Into lines that fit beside their neighbours."""
    return name.replace(" ", "\n") if len(name) < 12 or " " in name else name.replace("-", "-\n")


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
    points = [
        (row, row.facts["flops"] / row.facts["bytes"], row.facts["flops"] / row.figures[OURS][1] / 1e6) for row in rows
    ]
    x = np.geomspace(min(x for _, x, _ in points) / 1.5, max(x for _, x, _ in points) * 1.6, 200)
    figure, axes = plt.subplots(figsize=(11, 6.4))
    for kind, (colour, marker) in KINDS.items():
        for algorithm, face in {kind: colour, f"{kind}, Winograd": "none"}.items():
            mine = [
                (x, y)
                for row, x, y in points
                if row.facts["kind"] == kind and (row.facts["algorithm"] == "Winograd") == (algorithm != kind)
            ]
            if mine:
                look = {"marker": marker, "facecolors": face, "edgecolors": colour, "label": algorithm}
                axes.scatter(*zip(*mine, strict=True), 34, alpha=0.8, **look)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte", ylabel="GFLOP/s", xlim=(x[0], x[-1]))
    axes.set_ylim(min(y for _, _, y in points) / 2, saving(4, (3, 3)) * limit.flops / 1e9 * 1.8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid()
    axes.legend(loc="lower right", ncols=2, fontsize=9)
    axes.set_title("Inference of one image, block by block, under the machine's ceilings")
    figure.tight_layout()
    _ceilings(axes, limit, x)
    return figure


def _ceilings(axes: Axes, limit: ceilings.Ceilings, x: np.ndarray) -> None:
    """Lines, each with its name along it; those of memories that are passed by a larger one's are not drawn."""
    sizes: dict[float, int] = {}
    for size in limit.bandwidth:
        sizes[limit.bytes_per_second(size)] = size
    for rate, size in sizes.items():
        axes.plot(x, np.minimum(x * rate, limit.flops) / 1e9, color=GREY, linewidth=1)
        start = max(x[0], axes.get_ylim()[0] * 1e9 / rate) * 1.15
        ends = axes.transData.transform([(start, start * rate / 1e9), (2 * start, 2 * start * rate / 1e9)])
        angle = float(np.degrees(np.arctan2(*(ends[1] - ends[0])[::-1])))
        text = f"{rate / 1e9:.0f} GB/s up to {size // ceilings.MIB} MiB"
        axes.annotate(text, (start, start * rate / 1e9), (-3, 4), rotation=angle, rotation_mode="anchor", **NOTE)
    axes.plot(x, np.full_like(x, saving(4, (3, 3)) * limit.flops / 1e9), "--", color=GREY, linewidth=1)
    for times, text in {
        1: "multiply-adds in registers",
        saving(4, (3, 3)): "Winograd's F(4×4, 3×3), by a quarter of the products",
    }.items():
        peak = times * limit.flops / 1e9
        axes.annotate(f"{peak:.0f} GFLOP/s: {text}", (x[-1], peak), (-4, 4), ha="right", **NOTE)


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
        axes.grid()
    panels[0, 0].set_ylabel("GFLOP/s")
    panels[0, 0].set_ylim(bottom=0)  # of all
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), ncols=len(LINES), loc="upper left", bbox_to_anchor=(0.04, 1)
    )
    figure.tight_layout(rect=(0, 0, 1, 0.92))
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
