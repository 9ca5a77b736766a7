"""Fully connected layers of one vector or a few, which are convolutions of single pixels.

Their weights are read, and gradients written, where they lie: to pack one takes longer than to multiply by it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad
from triton import cdiv

from .. import engines
from ..configs import TileConfig
from ..configs.tile import kind_of
from ..cpu.target import caches
from ..engines import Launch
from ..geometry import ConvGeometry
from ..kernels import linear as kernels
from .common import config_of, empty_nhwc, nhwc, prepare, summed
from .norm import ABSENT, Norm
from .room import empty

_FEW = 64  # vectors; of more a product takes longer than reading the weight, even if that is packed first
_LARGE = 2 * caches().second  # bytes of a weight


def takes(x: Tensor, geometry: ConvGeometry) -> bool:
    """Whether these kernels convolve x, or compute gradients given one like it: a few single pixels, on a CPU, with a
    weight that a core's cache is far from holding."""
    if not 1 < geometry.N <= _FEW or geometry.P * geometry.Q > 1 or geometry.groups > 1 or not geometry.pointwise:
        return False
    if geometry.parameters * x.itemsize < _LARGE or x.dtype not in (torch.float32, torch.float64):
        return False
    return kind_of(engines.engine_for(x.device).target(x.device)) in ("cpu", "interpreter")


def linear_launch(target: str, geometry: ConvGeometry, dtype, activation: str | None, config=None) -> Launch:
    """Tensors: x [C], weight [K, C], bias [K] or None, y [K]."""
    config = config or config_of("linear", geometry, dtype, target)
    constexprs = {"C": geometry.C, "K": geometry.K, "ACTIVATION": activation, "BN": config.BN, "BK": config.BK}
    grid = cdiv(geometry.K, config.BN), 1, 1
    return Launch(kernels.linear, grid, (), constexprs, config.num_warps, config.num_stages)


@functools.lru_cache(maxsize=4096)
def geometry_of(N: int, C: int, K: int) -> ConvGeometry:
    """The layer as a convolution."""
    return ConvGeometry(N, C, 1, 1, K, 1, 1)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, config: TileConfig | None = None
) -> Tensor:
    """activation(x · weightᵀ + bias), [..., K], of a single vector x [..., C] and a contiguous weight [K, C]."""
    _, run = prepare(x.device, linear_launch, geometry_of(1, *weight.shape[::-1]), x.dtype, activation, config)
    y = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=x.dtype, device=x.device)
    run(x.contiguous(), weight, None if bias is None else bias.contiguous(), y)
    return y


def fprop_launch(
    target: str, geometry: ConvGeometry, dtype, activation: str | None, config=None, eps: float = 0.0
) -> Launch:
    """Tensors: those of `conv.fprop_launch`, but x [C, BM], the weight [K, C], and no moments."""
    config = config or config_of("linear_fprop", geometry, dtype, target)
    constexprs = _constexprs(geometry, config) | {"EPS": eps, "ACTIVATION": activation}
    grid = cdiv(geometry.K, config.BN), 1, 1
    return Launch(kernels.linear_fprop, grid, (geometry.N,), constexprs, config.num_warps, config.num_stages)


def dgrad_launch(target: str, geometry: ConvGeometry, dtype, config=None) -> Launch:
    """Tensors: dy [N, K], weight [K, C], and either dx [N, C] (one split) or [splits, N, C] partial sums."""
    config = config or config_of("linear_dgrad", geometry, dtype, target)
    rows = cdiv(cdiv(geometry.K, config.SPLIT), config.BK) * config.BK
    grid, numbers = (cdiv(geometry.C, config.BN), cdiv(geometry.K, rows), 1), (geometry.N, rows)
    constexprs = _constexprs(geometry, config)
    return Launch(kernels.linear_dgrad, grid, numbers, constexprs, config.num_warps, config.num_stages)


def wgrad_launch(target: str, geometry: ConvGeometry, dtype, config=None) -> Launch:
    """Tensors: dy [N, K], x [N, C], dw [K, C]."""
    config = config or config_of("linear_wgrad", geometry, dtype, target)
    grid, constexprs = (cdiv(geometry.K, config.BM), cdiv(geometry.C, config.BN), 1), _constexprs(geometry, config)
    return Launch(kernels.linear_wgrad, grid, (geometry.N,), constexprs, config.num_warps, config.num_stages)


def _constexprs(geometry: ConvGeometry, config: TileConfig) -> dict[str, int]:
    return {"C": geometry.C, "K": geometry.K, "BM": config.BM, "BN": config.BN, "BK": config.BK}


def bind_fprop(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: str | None = None,
    config: TileConfig | None = None,
    norm: Norm = ABSENT,
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """See `conv.bind_fprop`."""
    launch, run = prepare(x.device, fprop_launch, geometry, x.dtype, activation, config, norm.eps)
    weight = weight.detach().contiguous()
    bias = None if bias is None else bias.contiguous()
    vectors = norm.vectors

    def fprop(x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = empty_nhwc(x, *geometry.output)
        columns = pad(x.flatten(1).t(), (0, launch.constexprs["BM"] - geometry.N)).contiguous()
        run(columns, weight, bias, y, *vectors, None if residual is None else nhwc(residual))
        return y

    return fprop


def dgrad(dy: Tensor, weight: Tensor, geometry: ConvGeometry, config: TileConfig | None = None) -> Tensor:
    """See `conv.dgrad`."""
    launch, run = prepare(dy.device, dgrad_launch, geometry, dy.dtype, config)
    dx = empty_nhwc(dy, *geometry.input)
    dy, weight = nhwc(dy), weight.detach().contiguous()
    summed(lambda sums: run(dy, weight, sums), launch.grid[1], dx)
    return dx


def wgrad(
    dy: Tensor, x: Tensor, geometry: ConvGeometry, memory_format: torch.memory_format, config: TileConfig | None = None
) -> Tensor:
    """See `conv.wgrad`."""
    _, run = prepare(dy.device, wgrad_launch, geometry, dy.dtype, config)
    dw = empty(dy, (geometry.K, geometry.C, 1, 1), memory_format=memory_format)
    run(nhwc(dy), nhwc(x), dw)
    return dw
