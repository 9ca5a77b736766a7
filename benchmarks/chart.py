"""Draws what `networks` has stored: how many times as fast ours is as each other peer, as bars."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import matplotlib

from .comparison import OURS
from .measure import RESULTS

matplotlib.use("Agg")  # draws without a display
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import LogLocator, NullFormatter  # noqa: E402

# Bars, and the peers of which each takes the fastest.
BARS = {
    "torch": ("torch NCHW", "torch channels_last"),
    "torch.compile": ("torch.compile", "torch.compile frozen"),
    "ONNX Runtime": ("ONNX Runtime",),
    "OpenVINO": ("OpenVINO",),
}


def speedup(row: dict, peers: Sequence[str]) -> float:
    """NaN, which draws nothing, where it was not measured."""
    medians = {peer: median for peer, (_, median, _) in row["ms"].items()}
    times = [medians[peer] for peer in peers if peer in medians]
    return min(times) / medians[OURS] if times and OURS in medians else float("nan")


def draw(stored: dict, path) -> None:
    rows = stored["rows"]
    batches = sorted({row["batch"] for row in rows})
    figure, panels = plt.subplots(len(batches), 1, figsize=(12, 1 + 3.5 * len(batches)), squeeze=False)
    for batch, axes in zip(batches, panels[:, 0], strict=True):
        group = [row for row in rows if row["batch"] == batch]
        for place, (label, peers) in enumerate(BARS.items()):
            heights = [speedup(row, peers) - 1 for row in group]
            positions = [x + (place - 1.5) / 5 for x in range(len(group))]
            axes.bar(positions, heights, 1 / 5, bottom=1, label=label)  # up from 1 where ours is faster, else down
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_title(f"batch {batch}", loc="left")
        axes.set(ylabel="their time ÷ ours", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(2))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        names = [row["network"].replace(" ", "\n") for row in group]
        axes.set_xticks(range(len(group)), names, fontsize=8, rotation=30)
        axes.grid(axis="y", alpha=0.3)
    panels[0, 0].legend(ncols=len(BARS), loc="lower right", bbox_to_anchor=(1, 1))
    figure.suptitle(f"Inference, fp32, {stored['threads']} threads of {stored['machine']}, {stored['date'][:10]}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] = ()) -> None:
    argparse.ArgumentParser(prog="python -m benchmarks chart", description=__doc__).parse_args(arguments)
    path = RESULTS / "networks.png"
    draw(json.loads((RESULTS / "networks.json").read_text(encoding="utf-8")), path)
    print(f"drawn in {path}")
