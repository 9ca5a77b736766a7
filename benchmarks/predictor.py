"""How good the predicted tile configs are: every candidate of every pass of typical layers is measured.

"Predicted ÷ best" is how many times the time of the best candidate the predicted one takes: 1 is perfect.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

import autotune
from autotune import files, pictures, quality, store
from tritonconv import launch, tuning
from tritonconv.geometry import ConvGeometry

from .cpu import CONVOLUTIONS
from .measure import RESULTS, provenance, save


def keys() -> list[dict]:
    """Those that the launches of these layers, one image, look up."""
    launch.common.forget()
    with autotune.asked() as keys:
        for C, H, K, R, stride, padding in CONVOLUTIONS:
            g = ConvGeometry(1, C, H, H, K, R, R, (stride,) * 2, ((padding,) * 2,) * 2, (1, 1), 1)
            launch.conv.fprop_launch("cpu", g, torch.float32, "ieee", None)
            launch.conv.dgrad_launch("cpu", g, torch.float32, "ieee", None)
            launch.conv.wgrad_launch("cpu", g, torch.float32, "ieee", True)
    return keys


def main(arguments: Sequence[str] = ()) -> None:
    argparse.ArgumentParser(prog="python -m benchmarks predictor", description=__doc__).parse_args(arguments)
    console = Console()
    with tempfile.TemporaryDirectory() as folder, store.at(Path(folder)):
        tuning.tune_keys(keys(), torch.device("cpu"), exhaustive=True, console=console)
        entries = files.matching(())
        drawn = pictures.draw(entries, RESULTS)
    rows = [
        {
            "problem": entry["key"],
            "configs": len(trials := quality.measured_trials(entry)),
            "best_ms": 1e3 * min(trial["seconds"] for trial in trials),
            "predicted_over_best": quality.shortfall(trials),
            "rank_correlation": quality.rank_correlation(trials),
        }
        for entry in entries
    ]
    console.print(quality.table(entries))
    console.print({k: v for k, v in provenance().items() if v is not None})
    console.print(f"stored in {save('predictor', rows)}", *drawn)
