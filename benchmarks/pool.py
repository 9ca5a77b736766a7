"""Poolings of common networks against torch's, fp32, forward and backward, in both memory formats.

`ratio` is torch's median time over ours: above 1 we are faster.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tritonconv import functional
from tritonconv.timing import interleaved

from .measure import provenance, save

# function, its arguments, C, size
POOLINGS = (
    ("max_pool2d", (2, 2), 64, 224),
    ("avg_pool2d", (2, 2), 64, 224),
    ("max_pool2d", (3, 2, 1), 64, 112),
    ("avg_pool2d", (3, 2, 1), 64, 112),
    ("lp_pool2d", (2, 2, 2), 64, 112),
    ("adaptive_avg_pool2d", (1,), 512, 7),
    ("adaptive_avg_pool2d", (1,), 2048, 7),
    ("adaptive_avg_pool2d", (7,), 512, 10),
)
FORMATS = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}


@dataclass(frozen=True)
class Row:
    """`ours` and `theirs` compute the same."""

    name: str
    memory_format: str
    direction: str
    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]


def rows() -> Iterator[Row]:
    for (function, arguments, C, size), N, (label, memory_format) in itertools.product(
        POOLINGS, (1, 8), FORMATS.items()
    ):
        x = torch.randn(N, C, size, size).contiguous(memory_format=memory_format)
        runs = [_runs(getattr(module, function), x, arguments) for module in (functional, F)]
        for direction, pair in zip(("forward", "backward"), zip(*runs, strict=True), strict=True):
            yield Row(f"{function}{arguments} {N}×{C} @ {size}²", label, direction, *pair)


def _runs(pool: Callable, x: Tensor, arguments: tuple) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    leaf = x.clone().requires_grad_()
    y = pool(leaf, *arguments)
    dy = torch.ones_like(y)
    return lambda: pool(x, *arguments), lambda: torch.autograd.grad(y, leaf, dy, retain_graph=True)[0]


def main(arguments: Sequence[str] = ()) -> None:
    argparse.ArgumentParser(prog="python -m benchmarks pool", description=__doc__).parse_args(arguments)
    torch.manual_seed(0)
    table = Table("fp32", "format", "direction", "ours, µs", "torch, µs", "ratio", title="poolings against torch")
    measured = []
    for row in rows():
        torch.testing.assert_close(row.ours(), row.theirs())
        ours, theirs = interleaved((row.ours, row.theirs), seconds=0.3)
        names = {"name": row.name, "format": row.memory_format, "direction": row.direction}
        measured.append(names | {"us": ours * 1e6, "torch_us": theirs * 1e6, "ratio": theirs / ours})
        table.add_row(*names.values(), f"{ours * 1e6:.0f}", f"{theirs * 1e6:.0f}", f"{theirs / ours:.2f}")
    console = Console(width=120)
    console.print(table)
    console.print({k: v for k, v in provenance().items() if k != "commit"})
    console.print(f"stored in {save('pool', measured)}")
