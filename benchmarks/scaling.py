"""How the time of a block (3×3 convolution, batch norm, ReLU; inference, fp32) grows with each of its dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from .comparison import OURS, Row, compare, parser, publish
from .measure import DEVICE
from .models import checked
from .networks import TOLERANCE, check
from .peers import eager, eager_channels_last, ours
from .zoo.layers import conv_bn

PEERS = {OURS: ours, "torch NCHW": eager, "torch channels_last": eager_channels_last}
LEAST = 0.01  # seconds of a peer's turn


@dataclass(frozen=True)
class Block:
    N: int = 1
    C: int = 64
    H: int = 56
    threads: int | None = None

    @property
    def flops(self) -> int:
        return 2 * 9 * self.N * self.C**2 * self.H**2


# What grows, and the field that it is.
AXES: dict[str, tuple[str, tuple[int, ...]]] = {
    "batch": ("N", (1, 2, 4, 8, 16, 32)),
    "channels": ("C", (8, 16, 32, 64, 128, 256, 512)),
    "image size": ("H", (7, 14, 28, 56, 112, 224)),
}


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    usual = torch.get_num_threads()
    torch.set_num_threads(count or usual)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def measure(axis: str, value: int, block: Block, seconds: float) -> Row:
    model = nn.Sequential(*conv_bn(block.C, block.C)).eval().to(DEVICE)
    x = torch.randn(block.N, block.C, block.H, block.H, device=DEVICE)
    with threads(block.threads):
        right = partial(check, model(x), TOLERANCE)
        peers = {peer: partial(checked, partial(make, model, x, None), right) for peer, make in PEERS.items()}
        facts = {"value": value, "flops": block.flops}
        return compare(axis, str(value), peers, seconds, facts, LEAST)


@torch.no_grad()
def main(arguments: Sequence[str] = ()) -> None:
    axes = dict(AXES)
    if DEVICE.type == "cpu":
        axes["threads"] = "threads", tuple(range(1, torch.get_num_threads() + 1))
    options = parser("scaling", __doc__, axes, seconds=0.5).parse_args(arguments)
    rows = [
        measure(axis, value, replace(Block(), **{field: value}), options.seconds)
        for axis in options.only or axes
        for field, values in (axes[axis],)
        for value in values
    ]
    publish("scaling", "3×3 convolution + batch norm + ReLU, 64 channels, 56², fp32", rows, options)
