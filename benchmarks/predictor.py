"""How good the predicted tile configs are: every candidate of every pass of typical layers is measured, by the implicit
GEMM and, 3 × 3, by Winograd's algorithm.

"Predicted ÷ best" is how many times the time of the best candidate the predicted one takes: 1 is perfect. "Ordered
rightly" is the share of pairs of candidates, of those whose times differ by more than 5 %, that are predicted in the
right order: where nearly all candidates are as fast as the best one, a rank correlation measures noise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

import autotune
from autotune import files, pictures, quality, store
from tritonconv import launch, tuning
from tritonconv.configs import winograd
from tritonconv.geometry import ConvGeometry

from .comparison import OURS, Row, figure, keep, parser
from .cpu import CONVOLUTIONS
from .measure import RESULTS


def keys() -> list[dict]:
    """Those that the launches of these layers, one image, look up."""
    launch.common.forget()
    with autotune.asked() as keys:
        for C, H, K, R, stride, padding in CONVOLUTIONS:
            g = ConvGeometry(1, C, H, H, K, R, R, (stride,) * 2, ((padding,) * 2,) * 2, (1, 1), 1)
            launch.conv.fprop_launch("cpu", g, torch.float32, "ieee", None)
            launch.conv.dgrad_launch("cpu", g, torch.float32, "ieee", None)
            launch.conv.wgrad_launch("cpu", g, torch.float32, "ieee", True)
            if winograd.takes("fprop", g):
                launch.winograd.fprop_launch("cpu", g, torch.float32, "ieee", None, threads=1)
                launch.winograd_wgrad.gather_launch("cpu", g, torch.float32, outputs=False, first=0)
    return keys


def main(arguments: Sequence[str] = ()) -> None:
    options = parser("predictor", __doc__).parse_args(arguments)
    console = Console()
    with tempfile.TemporaryDirectory() as folder, store.at(Path(folder)):
        tuning.tune_keys(keys(), torch.device("cpu"), exhaustive=True, console=console)
        entries = files.matching(())
        drawn = pictures.draw(entries, RESULTS)
    Console(width=160).print(quality.table(entries))
    keep("predictor", map(row_of, entries), options, console)
    console.print(*drawn)


def row_of(entry: dict) -> Row:
    key, trials = entry["key"], quality.measured_trials(entry)
    name = f"{key['R']}×{key['S']} {key['C']}→{key['K']} @ {key['H']}²"
    facts = {
        "problem": key,
        "configs": len(trials),
        "best_ms": 1e3 * min(trial["seconds"] for trial in trials),
        "worst_over_best": quality.spread(trials),
        "ordered_rightly": quality.ordered_rightly(trials),
        "rank_correlation": quality.rank_correlation(trials),
    }
    return Row(key["op"], name, "× the best config's time", {OURS: figure([quality.shortfall(trials)])}, facts=facts)
