"""The native CPU target against torch: matrix products, convolution layers, memory-bound programs; fp32.

A row is refused if its result is wrong. `ratio` is torch's median time over ours: above 1 we are faster. Memory that a
call frees is kept for the next, on both sides: fresh pages would cost more than some of the rows.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from triton import cdiv, next_power_of_2

from tritonconv import cpu, launch
from tritonconv.geometry import ConvGeometry

from . import programs
from .comparison import OURS, Row, compare, parser, publish

# C, size, K, R, stride, padding: layers of ResNet-18/50 and VGG-16, batch 1
CONVOLUTIONS = (
    (64, 56, 64, 3, 1, 1),
    (128, 28, 128, 3, 1, 1),
    (256, 14, 256, 3, 1, 1),
    (512, 7, 512, 3, 1, 1),
    (64, 224, 64, 3, 1, 1),
    (512, 28, 512, 3, 1, 1),
    (64, 56, 256, 1, 1, 0),
    (256, 56, 64, 1, 1, 0),
    (512, 28, 128, 1, 1, 0),
)


@dataclass(frozen=True)
class Pair:
    """`ours` and `theirs` compute the same; `work` is in `unit`s of 1e9 a call."""

    group: str
    name: str
    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]
    work: float
    unit: str
    tolerance: float  # largest error allowed, relative to the largest element


def _matmul(n: int) -> Pair:
    a, b, c = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    out = torch.empty(n, n)
    BM, BN, BK = 128, 128, 256

    def ours():
        programs.matmul[(cdiv(n, BM) * cdiv(n, BN),)](a, b, c, n, n, n, n, n, n, BM, BN, BK, GROUP_M=4)
        return c

    return Pair("matmul", f"{n}³", ours, lambda: torch.mm(a, b, out=out), 2 * n**3 / 1e9, "GFLOP", 1e-5)


def _convolution(C: int, H: int, K: int, R: int, stride: int, padding: int) -> Pair:
    """Ours with bias and ReLU, torch's plain: what fusion gives is part of the comparison."""
    x = torch.randn(1, C, H, H).to(memory_format=torch.channels_last)
    weight = (torch.randn(K, C, R, R) / math.sqrt(C * R * R)).to(memory_format=torch.channels_last)
    bias = torch.zeros(K)
    geometry = ConvGeometry(1, C, H, H, K, R, R, (stride,) * 2, ((padding,) * 2,) * 2, (1, 1), 1)
    return Pair(
        "conv+bias+ReLU",
        f"{R}×{R} {C}→{K} @ {H}²",
        lambda: launch.conv.fprop(x, weight, bias, geometry, activation="relu"),
        lambda: torch.conv2d(x, weight, bias, stride, padding),
        geometry.flops / 1e9,
        "GFLOP",
        1e-5,
    )


def _softmax(rows: int, columns: int) -> Pair:
    x, y = torch.randn(rows, columns), torch.empty(rows, columns)
    out = torch.empty_like(y)

    def ours():
        programs.softmax[(rows,)](x, y, columns, BLOCK=next_power_of_2(columns))
        return y

    theirs = lambda: torch.softmax(x, 1, out=out)  # noqa: E731
    return Pair("memory-bound", f"softmax {rows}×{columns}", ours, theirs, 8 * x.numel() / 1e9, "GB", 1e-6)


def _layer_norm(rows: int, columns: int) -> Pair:
    x, weight, bias = torch.randn(rows, columns), torch.randn(columns), torch.randn(columns)

    def ours():
        y = torch.empty_like(x)
        programs.layer_norm[(rows,)](x, weight, bias, y, columns, 1e-5, BLOCK=next_power_of_2(columns))
        return y

    theirs = lambda: F.layer_norm(x, (columns,), weight, bias)  # noqa: E731
    return Pair("memory-bound", f"layer norm {rows}×{columns}", ours, theirs, 8 * x.numel() / 1e9, "GB", 1e-5)


def _elementwise(name: str, kernel, reference, inputs: int, size: int = 1 << 24) -> Pair:
    tensors, y, out = [torch.randn(size) for _ in range(inputs)], torch.empty(size), torch.empty(size)

    def ours():
        kernel[(cdiv(size, 4096),)](*tensors, y, size, BLOCK=4096)
        return y

    work = 4 * (inputs + 1) * size / 1e9
    return Pair("memory-bound", f"{name} {size >> 20} Mi", ours, lambda: reference(*tensors, out=out), work, "GB", 1e-6)


def pairs() -> Iterator[Pair]:
    for n in (512, 1024, 2048):
        yield _matmul(n)
    for layer in CONVOLUTIONS:
        yield _convolution(*layer)
    for shape in ((8192, 1024), (4096, 1000), (1024, 8192)):
        yield _softmax(*shape)
        yield _layer_norm(*shape)
    yield _elementwise("add", programs.add, torch.add, 2)
    yield _elementwise("gelu", programs.gelu, torch._C._nn.gelu, 1)


def check(pair: Pair) -> None:
    """Raises ValueError if its two results differ."""
    got, want = pair.ours(), pair.theirs()
    if pair.group.startswith("conv"):
        want = want.relu()
    error = float((got - want).abs().max() / want.abs().max())
    if not error <= pair.tolerance:
        raise ValueError(
            f"{pair.group} {pair.name}: the results differ by {error:.1e} of the largest element, so it is not timed"
        )


def measure(pair: Pair, seconds: float) -> Row:
    check(pair)
    peers = {OURS: lambda: pair.ours, "torch": lambda: pair.theirs}
    return compare(pair.group, pair.name, peers, seconds, {"work": pair.work, "unit": pair.unit})


def rate(row: Row) -> str:
    return f"{1e3 * row.facts['work'] / row.figures[OURS][1]:.1f} {row.facts['unit']}/s"


def keep_memory() -> None:
    """Has glibc give no freed memory back to the system."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4
        libc.mallopt(trim_threshold, 1 << 30)
        libc.mallopt(mmap_max, 0)


@torch.no_grad()
def main(arguments: Sequence[str] = ()) -> None:
    options = parser("cpu", __doc__, seconds=1.0).parse_args(arguments)
    cpu.register()
    keep_memory()
    torch.manual_seed(0)
    publish("cpu", "CPU target, fp32", [measure(pair, options.seconds) for pair in pairs()], options, {"rate": rate})
