"""Convolution and pooling in one kernel, and the way back from maxima."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from triton import cdiv

from .. import configs
from ..configs import TileConfig
from ..configs.tile import kind_of
from ..engines import Launch
from ..geometry import ConvGeometry, Pair, PoolGeometry
from ..kernels import conv_pool
from . import depthwise, winograd
from .common import config_of, empty_nhwc, nhwc, precision_of, prepare, sizes
from .conv import by_winograd, conv_constexprs, overlapping, overlaps
from .norm import ABSENT, Norm
from .packing import panels
from .padding import padded


def takes(x: Tensor, geometry: ConvGeometry, window: Pair) -> bool:
    """Whether the convolution's kernel can pool, over whole windows that lie side by side."""
    fits = 1 <= window[0] <= geometry.P and 1 <= window[1] <= geometry.Q
    if not fits or depthwise.takes(geometry):
        return False
    # The windows lie whole in the smallest tiles of Winograd's algorithm, and so in all of them.
    side_by_side = 2 % window[0] == 2 % window[1] == 0 and geometry.dilation == (1, 1)
    return side_by_side or not by_winograd("fprop", x, geometry, None)


def pooling(geometry: ConvGeometry, window: Pair) -> PoolGeometry:
    """The pooling behind the convolution."""
    return PoolGeometry(geometry.N, geometry.K, geometry.P, geometry.Q, *window, window)


def fprop_launch(
    target: str, firsts: ConvGeometry, window: Pair, dtype, precision, activation, config=None, eps=0.0, pixel=0
) -> Launch:
    """Tensors: x, panels "fprop", bias, y, then mean, var, gamma, beta of a norm, and the taps. All but x, panels and y
    may be None. Its tile is the one of the convolution that computes the first output of each window."""
    config = config or config_of("fprop", firsts, dtype, target)
    if kind_of(target) in ("cuda", "hip"):
        config = next(tile for tile in (config, *configs.space("fprop", firsts, dtype, target)) if _pools(tile))
    return _launch(conv_pool.conv_max_pool, firsts, window, precision, activation, config, eps, pixel)


def avg_launch(firsts: ConvGeometry, window: Pair, precision, activation, config, eps: float, pixel: int) -> Launch:
    """The same with means in place of maxima, on a CPU. Tensors: x, panels "fprop", bias, y, then mean, var, gamma,
    beta of a norm, and slopes of a PReLU."""
    return _launch(conv_pool.conv_avg_pool, firsts, window, precision, activation, config, eps, pixel)


def _launch(kernel, firsts: ConvGeometry, window: Pair, precision, activation, config, eps, pixel) -> Launch:
    M, N, _ = firsts.gemm("fprop")
    grid = cdiv(M, config.BM) * cdiv(N, config.BN), firsts.groups, 1
    constexprs = conv_constexprs(firsts, precision, config) | {
        "GROUP_M": config.GROUP_M,
        "WHOLE": firsts.are_inside,
        "PIXEL": pixel or firsts.C,
        "POOL_H": window[0],
        "POOL_W": window[1],
        "EPS": eps,
        "ACTIVATION": activation,
    }
    return Launch(kernel, grid, sizes(firsts), constexprs, config.num_warps, config.num_stages)


def _pools(tile: TileConfig) -> bool:
    """Whether a GPU can pool in such a tile. A box holds neighbouring outputs, and those of a tap are apart; beside the
    sums, registers hold the maxima and their taps."""
    per_thread = tile.BM * tile.BN / (32 * tile.num_warps)
    return not tile.boxed and per_thread <= 32


def spread_launch(target: str, geometry: PoolGeometry, dtype, config=None) -> Launch:
    """Tensors: dy, taps, dz."""
    config = config or config_of("max_pool", geometry, dtype, target)
    N, C, (R, S) = geometry.N, geometry.C, geometry.stride
    rows, columns = N * cdiv(geometry.H, R), cdiv(geometry.W, S)
    grid = cdiv(rows, config.BM), cdiv(columns, config.BK), cdiv(C, config.BN)
    constexprs = {"POOL_H": R, "POOL_W": S, "BM": config.BM, "BN": config.BN, "BK": config.BK}
    _, *image = sizes(geometry)
    return Launch(conv_pool.spread, grid, (N, C, *image), constexprs, config.num_warps, config.num_stages)


def bind_fprop(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    window: Pair,
    activation: str | None = None,
    keep_pack: bool = True,
    config: TileConfig | None = None,
    norm: Norm = ABSENT,
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """A function of (x, taps or None): activation(max-pooling(norm(x ∗ weight + bias))), [N, K, P, Q].

    taps, uint8 of the same shape in channels_last memory, gets which output of its window each maximum is. All else is
    as in `conv.bind_fprop`.
    """
    if by_winograd("fprop", x, geometry, config):
        return winograd.bind_max_pool(x, weight, bias, geometry, window, activation, keep_pack, None, norm)
    overlap = overlaps(geometry)
    problem = (overlapping(geometry) if overlap else geometry).firsts(window)
    made = problem, window, x.dtype, precision_of(x), activation, config, norm.eps, geometry.C
    launch, run = prepare(x.device, fprop_launch, *made)
    packed = panels(weight, geometry, "fprop", launch.constexprs["BN"], keep_pack)
    bias = None if bias is None else bias.contiguous()
    statistics = norm.tensors

    def fprop(x: Tensor, taps: Tensor | None = None) -> Tensor:
        y = empty_nhwc(x, *problem.output)
        run(padded(x, geometry) if overlap else nhwc(x), packed, bias, y, *statistics, taps)
        return y

    return fprop


def fprop(x: Tensor, *problem, **options) -> Tensor:
    """`bind_fprop`, called."""
    return bind_fprop(x, *problem, **options)(x, None)


def fprop_with_taps(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, window: Pair, *options):
    """(y, taps) of `bind_fprop`."""
    run = bind_fprop(x, weight, bias, geometry, window, *options)
    taps = empty_nhwc(x, *geometry.firsts(window).output, dtype=torch.uint8)
    return run(x, taps), taps


def spread(dy: Tensor, taps: Tensor, geometry: PoolGeometry, config: TileConfig | None = None) -> Tensor:
    """The gradient [N, C, H, W] of what was pooled, given that of the maxima and their taps, [N, C, P, Q] each."""
    _, run = prepare(dy.device, spread_launch, geometry, dy.dtype, config)
    dz = empty_nhwc(dy, *geometry.input)
    run(nhwc(dy), nhwc(taps), dz)
    return dz
