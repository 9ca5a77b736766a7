"""Inference of whole networks against torch, ONNX Runtime and OpenVINO: fp32, the same threads, interleaved. On a GPU
against torch, in any arithmetic, with each peer's call captured in a CUDA graph, too.

A peer whose result is wrong is left out. `ratio` is the median time of the fastest other peer over ours: above 1 ours
is the fastest.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from . import models
from .arithmetic import MEASURED
from .comparison import Row, publish
from .measure import DEVICE
from .peers import PEERS, Run
from .zoo import NETWORKS

# Of the largest output a result may be off by so much, or by so many times what torch's own, in NCHW memory, is off by.
# Rounding to float32 stays below; to a smaller type it would not: one to TF32 is off by 5e-4.
TOLERANCE, TIMES = 1e-4, 4


def error_of(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def check(want: Tensor, allowed: float, run: Run) -> None:
    error = error_of(run(), want)
    if not error <= allowed:
        raise ValueError(f"its result is off by {error:.1e} of the largest element, so it is not timed")


@torch.no_grad()
def measure(arithmetic: str, batch: int, name: str, seconds: float | None) -> list[Row]:
    chosen = MEASURED[arithmetic]
    chosen.choose()
    model = NETWORKS[name].build().eval().to(DEVICE, chosen.dtype)
    x = torch.randn(batch, *NETWORKS[name].input, device=DEVICE, dtype=chosen.dtype)
    want = copy.deepcopy(model).double()(x.double())
    right = partial(check, want, max(TOLERANCE, TIMES * error_of(model(x), want)))
    with tempfile.TemporaryDirectory() as directory:
        peers = {peer: partial(make, model, x, Path(directory)) for peer, make in PEERS.items()}
        return models.compare_in_groups(arithmetic, batch, name, peers, right, seconds)


def main(arguments: Sequence[str] = ()) -> None:
    options = models.options_of("networks", __doc__, (1, 8), arguments)
    publish("networks", f"inference, {', '.join(options.arithmetic)}", models.rows(measure, options), options)
