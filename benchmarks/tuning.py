"""What tuning costs and gives: inference of ResNet-50, one image, in both memory formats.

It is tuned from nothing (no kernel is compiled yet), and once more, when all is stored; the second format finds the
operators of the first. The untuned and the tuned model each run in turns with the unpatched one.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import tritonconv
from autotune import store
from tritonconv import choice, tuning
from tritonconv.timing import turns

from .comparison import OURS, Row, figure, keep, parser
from .measure import DEVICE
from .zoo import NETWORKS

FORMATS = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}


def row(name: str, console: Console) -> Row:
    plain = NETWORKS["ResNet-50"].build().eval().to(DEVICE, memory_format=FORMATS[name])
    x = torch.randn(1, 3, 224, 224, device=DEVICE).to(memory_format=FORMATS[name])
    model = tritonconv.patch(copy.deepcopy(plain))
    start = time.perf_counter()
    tuned = tritonconv.tune(model, x, console=console)
    middle = time.perf_counter()
    tritonconv.tune(model, x, console=console)
    again = time.perf_counter() - middle
    found = store.directory()

    def run(model, folder: Path):
        """The verdicts and configs of a store hold for a process, so each model's are read again before its turn."""

        def run():
            with store.at(folder):
                return model(x)

        return run

    with tempfile.TemporaryDirectory() as nothing:
        tuning.forget()
        untuned = _milliseconds(lambda: plain(x), run(model, Path(nothing)))
        tuning.forget()
        best = _milliseconds(lambda: plain(x), run(model, found))
    calls = [outcome.config for outcome in tuned.outcomes if "arguments" in outcome.key]
    facts = {
        "problems": len(tuned.outcomes),
        "calls": len(calls),
        "left_to_torch": calls.count(choice.TORCH),
        "tune_s": middle - start,
        "stored_s": again,
        "untuned_over_torch": untuned[1][1] / untuned[0][1],
    }
    return Row("ResNet-50, one image", name, "ms", {OURS: best[1], "torch": best[0]}, facts=facts)


def _milliseconds(*runs) -> list[tuple[float, float, float]]:
    return [figure([1e3 * s for s in mine]) for mine in turns(runs, device=DEVICE)]


@torch.no_grad()
def main(arguments: Sequence[str] = ()) -> None:
    options = parser("tuning", __doc__).parse_args(arguments)
    console, rows = Console(), []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITONCONV_CACHE_DIR"] = folder
        for name in FORMATS:
            rows.append(row(name, console))
            console.print(rows[-1])
    headings = "problems", "tuning, s", "again, s", "torch, ms", "untuned ÷ torch", "tuned ÷ torch"
    table = Table("ResNet-50, one image", *headings)
    for r in rows:
        figures = f"{r.facts['tune_s']:.0f}", f"{r.facts['stored_s']:.1f}", f"{r.figures['torch'][1]:.1f}"
        ratios = f"{r.facts['untuned_over_torch']:.2f}", f"{1 / r.ratio:.2f}"
        table.add_row(r.name, str(r.facts["problems"]), *figures, *ratios)
    console.print(table)
    keep("tuning", rows, options, console)
