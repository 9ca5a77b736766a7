"""Inference of whole networks against torch, ONNX Runtime and OpenVINO: fp32, the same threads, interleaved.

A peer whose result is wrong is left out. `ratio` is the median time of the fastest other peer over ours: above 1 ours
is the fastest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from .comparison import Row, apart, compare, parser, publish
from .measure import DEVICE
from .peers import PEERS, Run
from .zoo import NETWORKS

# Of the largest output. Rounding to float32 stays below; to a smaller type it would not: one to TF32 is off by 5e-4.
TOLERANCE = 1e-4


def checked(peer: Callable[..., Run], model: nn.Module, x: Tensor, directory: Path, want: Tensor) -> Run:
    run = peer(model, x, directory)
    error = float((run() - want).abs().max() / want.abs().max())
    if not error <= TOLERANCE:
        raise ValueError(f"its result is off by {error:.1e} of the largest element, so it is not timed")
    return run


@torch.no_grad()
def measure(name: str, batch: int, seconds: float) -> Row:
    model = NETWORKS[name].build().eval().to(DEVICE)
    x = torch.randn(batch, *NETWORKS[name].input, device=DEVICE)
    with tempfile.TemporaryDirectory() as directory:
        problem = model, x, Path(directory), model(x)
        peers = {peer: partial(checked, make, *problem) for peer, make in PEERS.items()}
        return compare(f"batch {batch}", name, peers, seconds, {"batch": batch})


def main(arguments: Sequence[str] = ()) -> None:
    options = parser("networks", __doc__, NETWORKS, seconds=3.0, batches=(1, 8)).parse_args(arguments)
    names = options.only or NETWORKS
    rows = [apart(measure, name, batch, options.seconds) for batch in options.batch for name in names]
    publish("networks", "inference, fp32", rows, options)
