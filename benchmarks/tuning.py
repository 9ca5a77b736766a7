"""What tuning costs and gives: inference of ResNet-50, one image, in both memory formats.

It is tuned from nothing (no kernel is compiled yet), and once more, when all is stored; the second format finds the
operators of the first. The untuned and the tuned model each run in turns with the unpatched one.
"""

from __future__ import annotations

import argparse
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
from tritonconv.timing import interleaved

from .measure import provenance, save
from .zoo import NETWORKS

FORMATS = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}


def row(name: str, console: Console) -> dict[str, object]:
    plain = NETWORKS["ResNet-50"].build().eval().to(memory_format=FORMATS[name])
    x = torch.randn(1, 3, 224, 224).to(memory_format=FORMATS[name])
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
        untuned = interleaved((lambda: plain(x), run(model, Path(nothing))))
        tuning.forget()
        best = interleaved((lambda: plain(x), run(model, found)))
    calls = [outcome.config for outcome in tuned.outcomes if "arguments" in outcome.key]
    return {
        "format": name,
        "problems": len(tuned.outcomes),
        "calls": len(calls),
        "left_to_torch": calls.count(choice.TORCH),
        "tune_s": middle - start,
        "stored_s": again,
        "torch_ms": 1e3 * best[0],
        "untuned_ms": 1e3 * untuned[1],
        "untuned_over_torch": untuned[1] / untuned[0],
        "tuned_ms": 1e3 * best[1],
        "tuned_over_torch": best[1] / best[0],
    }


@torch.no_grad()
def main(arguments: Sequence[str] = ()) -> None:
    argparse.ArgumentParser(prog="python -m benchmarks tuning", description=__doc__).parse_args(arguments)
    console, rows = Console(), []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITONCONV_CACHE_DIR"] = folder
        for name in FORMATS:
            rows.append(row(name, console))
            console.print(rows[-1])
    headings = "problems", "tuning, s", "again, s", "torch, ms", "untuned ÷ torch", "tuned ÷ torch"
    table = Table("ResNet-50, one image", *headings)
    for r in rows:
        figures = f"{r['tune_s']:.0f}", f"{r['stored_s']:.1f}", f"{r['torch_ms']:.1f}"
        ratios = f"{r['untuned_over_torch']:.2f}", f"{r['tuned_over_torch']:.2f}"
        table.add_row(r["format"], str(r["problems"]), *figures, *ratios)
    console.print(table)
    console.print({k: v for k, v in provenance().items() if v is not None})
    console.print(f"stored in {save('tuning', rows)}")
