"""Convolution by Winograd's algorithm: fprop, and dgrad as the fprop of the flipped, transposed weight."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from ..configs import TileConfig
from ..configs.tile import kind_of
from ..configs.winograd import as_fprop, filters, phases, points, tiles
from ..cpu.target import caches
from ..engines import Launch
from ..geometry import ConvGeometry, Pair
from ..kernels import winograd
from . import packing
from .common import accumulator_of, config_of, empty_nhwc, nhwc, precision_of, prepare, scratch, sizes
from .norm import ABSENT, Norm, empty_moments
from .room import lasting

GAP = winograd.GAP.value


def fprop_launch(
    target: str, geometry: ConvGeometry, dtype, precision, activation, threads: int, config=None, eps: float = 0.0,
    window: Pair = (1, 1),
) -> Launch:  # fmt: skip
    """Tensors: x, filters, bias, y, then mean, var, gamma, beta of a norm, slopes of a PReLU, residual, moments, taps,
    workspace. All but x, filters, y and workspace may be None. `threads`: how many programs at least there should be;
    `window`: what is max-pooled.
    """
    config = config or config_of("winograd", geometry, dtype, target)
    blocks, classes = cdiv(tiles(geometry, config.OUT), config.BM), geometry.up[0] ** 2
    # More programs than threads, so that none waits for long; not more still, for each has a workspace of its own.
    share = cdiv(threads, blocks * classes)
    grid = min(blocks, cdiv(4 * threads, classes)), min(cdiv(geometry.K, config.BN), share), classes
    (top, _), (left, _) = geometry.padding
    constexprs = {
        "C": geometry.C,
        "K": geometry.K,
        "STRIDE": geometry.stride[0],
        "UP": geometry.up[0],
        "PAD_H": top,
        "PAD_W": left,
        "DIL_H": geometry.dilation[0],
        "DIL_W": geometry.dilation[1],
        "EPS": eps,
        "ACTIVATION": activation,
        "PRECISION": precision,
        "PIXEL_Y": geometry.K,
        "POOL_H": window[0],
        "POOL_W": window[1],
        # Others of a network push so much out of the last cache.
        "ONCE": kind_of(target) == "cpu" and filters(geometry, config.OUT) * max(dtype.itemsize, 4) > caches().last / 4,
        "OUT": config.OUT,
        "TAPS": phases(geometry)[1],
        "BM": config.BM,
        "BN": config.BN,
        "BK": config.BK,
        # A GPU has registers for a few channels. Elsewhere a tile's pixels are best found once for all of them.
        "BC": config.BK if kind_of(target) in ("cuda", "hip") else next_power_of_2(geometry.C),
    }
    return Launch(winograd.conv_winograd, grid, sizes(geometry), constexprs, config.num_warps, config.num_stages)


def filter_launch(
    target: str, op: str, problem: ConvGeometry, strides: tuple[int, ...], OUT: int, BN: int
) -> Launch:
    """Tensors: the weight of `op`, of these strides, and its transformed taps. `problem` is `op` as an fprop."""
    backwards = op == "dgrad"
    reduced, columns = (0, 1) if backwards else (1, 0)
    C, K, tap = problem.C, problem.K, strides[3]
    BC = 16 if kind_of(target) in ("cuda", "hip") else min(64, next_power_of_2(C))
    count, _ = phases(problem)
    constexprs = {
        "C": C,
        "K": K,
        "FIRST": (problem.taps - 1) * tap if backwards else 0,
        "STRIDE_C": strides[reduced],
        "STRIDE_K": strides[columns],
        "STRIDE_TAP": -tap if backwards else tap,
        "STRIDE": problem.stride[0],
        "UP": problem.up[0],
        "OUT": OUT,
        "R": problem.R,
        "BC": BC,
        "BN": BN,
    }
    return Launch(winograd.winograd_filter, (cdiv(C, BC), cdiv(K, BN), count**2), (), constexprs, 4, 1)


def _filters(
    weight: Tensor, op: str, problem: ConvGeometry, OUT: int, BN: int, keep: bool
) -> Callable[[], Tensor]:
    """What gives the transformed taps of a weight [K, C, R, R], at the time of the launch that reads them:
    [phases of outputs × tiles of columns, points, phases of inputs × reduced channels × BN and a gap]."""
    w = weight.detach()
    if not w.is_contiguous(memory_format=torch.channels_last):
        w = w.contiguous()
    launch, transform = prepare(w.device, filter_launch, op, problem, w.stride(), OUT, BN)
    panels, depth = problem.up[0] ** 2 * launch.grid[1], problem.stride[0] ** 2 * problem.C
    shape = panels, points(OUT, phases(problem)[1]), depth * BN + GAP

    def into(u: Tensor) -> Tensor:
        transform(w, u)
        return u

    if not keep:
        return lambda: into(scratch("filters", w, math.prod(shape)))
    key = "winograd", op, OUT, BN, problem.stride, problem.up
    u = packing.kept(weight, key, keep, lambda: into(lasting(shape, accumulator_of(w), w.device)))
    return lambda: u


def _bind(
    op, x, weight, bias, problem, activation=None, keep_pack=True, config=None, norm=ABSENT, window=(1, 1)
) -> tuple[Launch, Callable[..., Tensor]]:
    """`problem` is `op` as an fprop of x. The function takes room for statistics, too, and for the maxima's taps."""
    threads = torch.get_num_threads()
    made = problem, x.dtype, precision_of(x), activation, threads, config, norm.eps, window
    launch, run = prepare(x.device, fprop_launch, *made)
    OUT, BM, BN = (launch.constexprs[name] for name in ("OUT", "BM", "BN"))
    depth, (_, taps) = problem.C * problem.stride[0] ** 2, phases(problem)
    room = math.prod(launch.grid) * points(OUT, taps) * (BM * (depth + BN) + 2 * GAP)
    bias = None if bias is None else bias.contiguous()
    vectors = norm.vectors
    transformed = _filters(weight, op, problem, OUT, BN, keep_pack)

    output = problem.N, problem.K, problem.P // window[0], problem.Q // window[1]

    def fprop(x: Tensor, residual: Tensor | None = None, moments: Tensor | None = None, taps=None) -> Tensor:
        y = empty_nhwc(x, *output)
        residual = None if residual is None else nhwc(residual)
        workspace = scratch("workspace", x, room)
        run(nhwc(x), transformed(), bias, y, *vectors, residual, moments, taps, workspace)
        return y

    return launch, fprop


def bind_fprop(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: str | None = None,
    keep_pack: bool = True,
    config: TileConfig | None = None,
    norm: Norm = ABSENT,
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """See `conv.bind_fprop`."""
    _, run = _bind("fprop", x, weight, bias, geometry, activation, keep_pack, config, norm)
    return run


def bind_max_pool(
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
    """See `conv_pool.bind_fprop`."""
    _, run = _bind("fprop", x, weight, bias, geometry, activation, keep_pack, config, norm, window)
    return lambda x, taps=None: run(x, taps=taps)


def fprop_with_moments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    keep_pack: bool = True,
    config: TileConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """See `conv.fprop_with_moments`."""
    launch, run = _bind("fprop", x, weight, bias, geometry, None, keep_pack, config)
    blocks = cdiv(tiles(geometry, launch.constexprs["OUT"]), launch.constexprs["BM"])
    partial = empty_moments(x, blocks, geometry.K)
    return run(x, None, partial), partial


def dgrad(
    dy: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: str | None = None,
    keep_pack: bool = True,
    config: TileConfig | None = None,
    norm: Norm = ABSENT,
) -> Tensor:
    """See `conv.dgrad`."""
    _, run = _bind("dgrad", dy, weight, bias, as_fprop("dgrad", geometry), activation, keep_pack, config, norm)
    return run(dy)
