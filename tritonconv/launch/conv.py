"""Convolution: fprop, dgrad and wgrad as implicit GEMMs, or by the algorithm that takes the geometry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from triton import cdiv

from .. import engines
from ..configs import TileConfig, boxes
from ..configs.tile import STRETCH, in_stretches
from ..engines import Box, Launch
from ..geometry import ConvGeometry, NormGeometry, RowGeometry
from ..kernels import conv, conv_wgrad
from . import conv1d, conv1d_winograd, depthwise, linear, packing, split, winograd, winograd_wgrad
from .common import (
    algorithm_of,
    config_of,
    empty_nhwc,
    nhwc,
    precision_of,
    prepare,
    sizes,
    summed,
    window,
)
from .norm import ABSENT, Norm, empty_moments, moments
from .padding import padded
from .room import empty


def conv_constexprs(geometry: ConvGeometry, precision: str, config: TileConfig) -> dict:
    (top, _), (left, _) = geometry.padding
    return {
        "GROUPS": geometry.groups,
        "C": geometry.Cg,
        "K": geometry.Kg,
        **window(geometry, (top, left)),
        "PRECISION": precision,
        "BM": config.BM,
        "BN": config.BN,
        "BK": config.BK,
    }


def _gemm_constexprs(op: str, geometry: ConvGeometry, precision: str, config: TileConfig, target: str) -> dict:
    """What both fprop and dgrad take.

    Matrix instructions for TF32 in shared memory want what is summed over side by side, in both operands.
    """
    box = dict(zip(("BOX_N", "BOX_H", "BOX_W"), boxes.box(config, op, geometry), strict=True))
    turned = precision == "tf32" and boxes.accelerated(target) and not config.boxed
    tile = {"GROUP_M": config.GROUP_M, "SPLIT": config.SPLIT, "BOXED": config.boxed, "TURNED": turned}
    return {**conv_constexprs(geometry, precision, config), **tile, **box}


def _described(op: str, geometry: ConvGeometry, config: TileConfig) -> dict[int, Box]:
    """How x or dy, the first tensor of a launch, and the panels, the second, are described."""
    if not config.boxed:
        return {}
    _, columns, reduced = geometry.gemm(op)
    rows = geometry.groups * cdiv(columns, config.BN) * geometry.taps * reduced
    described = {1: Box((rows, config.BN), (config.BK, config.BN))}
    if boxes.box(config, op, geometry)[0]:
        N, H, W, P, Q = sizes(geometry)
        height, width = (H, W) if op == "fprop" else (P, Q)
        (down, across), (images, rows, columns) = geometry.stride, boxes.box(config, op, geometry)
        channels = geometry.groups * reduced
        if geometry.stride == (1, 1):
            described[0] = Box((N, height, width, channels), (images, rows, columns, config.BK))
        else:
            shape = N, height // down, down, width // across, across * channels
            described[0] = Box(shape, (images, rows, 1, columns, config.BK))
    return described


def overlaps(geometry: ConvGeometry) -> bool:
    return geometry.C <= 4 and geometry.groups == 1 < geometry.S and geometry.dilation[1] == 1


def overlapping(geometry: ConvGeometry) -> ConvGeometry:
    """The convolution of few channels as one of S·C channels, with filters one pixel wide, over a padded input.

    In a row of NHWC memory the S pixels of a window lie side by side, if none of them is padding: they are as good as
    one pixel of S·C channels, which shares most of them with its neighbours. So a row of the filter is one reduction
    that is long enough for a matrix product. An inf of dy meets the padding's zeros in memory and makes NaN, as in most
    of torch's own kernels.
    """
    (top, bottom), (left, right) = geometry.padding
    H, W = geometry.H + top + bottom, geometry.W + left + right
    # The last S − 1 pixels of a row begin no window.
    padding = (0, 0), (0, 1 - geometry.S)
    return replace(geometry, C=geometry.S * geometry.C, S=1, H=H, W=W, padding=padding)


def spreads(geometry: ConvGeometry) -> bool:
    """Whether transposed convolution, or dgrad, is of single pixels, each of which meets every tap."""
    window, none = (geometry.R, geometry.S), ((0, 0), (0, 0))
    return geometry.groups == 1 < geometry.taps and window == (geometry.H, geometry.W) and geometry.padding == none


def spread(geometry: ConvGeometry) -> ConvGeometry:
    """It as a pointwise convolution with a channel for each tap and channel, as they lie in NHWC memory."""
    return ConvGeometry(geometry.N, geometry.K, 1, 1, geometry.taps * geometry.C, 1, 1)


def fprop_launch(
    target: str, geometry: ConvGeometry, dtype, precision, activation, config=None, eps: float = 0.0, pixel: int = 0
) -> Launch:
    """Tensors: x, panels "fprop", bias, y, then mean, var, gamma, beta of a norm, slopes of a PReLU, residual, moments.
    All but x, panels and y may be None. Of several splits only x, panels and [splits, elements of y] parts are given.
    """
    config = config or config_of("fprop", geometry, dtype, target)
    if config.boxed:
        geometry = boxes.in_a_row(geometry)
    grid = boxes.m_tiles(config, "fprop", geometry) * cdiv(geometry.Kg, config.BN), geometry.groups, config.SPLIT
    constexprs = _gemm_constexprs("fprop", geometry, precision, config, target) | {
        "WHOLE": geometry.are_inside,
        "PIXEL": pixel or geometry.C,
        "PIXEL_Y": geometry.K,
        "EPS": eps,
        "ACTIVATION": activation,
    }
    described = _described("fprop", geometry, config)
    return Launch(conv.conv_fprop, grid, sizes(geometry), constexprs, config.num_warps, config.num_stages, described)


def dgrad_launch(
    target: str, geometry: ConvGeometry, dtype, precision, activation, config=None, eps: float = 0.0
) -> Launch:
    """Tensors: dy, panels "dgrad", bias, dx, then mean, var, gamma, beta of a norm, slopes of a PReLU. All but dy,
    panels and dx may be None. Of several splits only dy, panels and [splits, elements of dx] parts are given."""
    config = config or config_of("dgrad", geometry, dtype, target)
    if config.boxed:
        geometry = boxes.in_a_row(geometry)
    tiles = boxes.m_tiles(config, "dgrad", geometry) * cdiv(geometry.Cg, config.BN)
    grid = tiles * geometry.stride[0] * geometry.stride[1], geometry.groups, config.SPLIT
    constexprs = _gemm_constexprs("dgrad", geometry, precision, config, target) | {
        "EPS": eps,
        "ACTIVATION": activation,
    }
    described = _described("dgrad", geometry, config)
    return Launch(conv.conv_dgrad, grid, sizes(geometry), constexprs, config.num_warps, config.num_stages, described)


def wgrad_launch(
    target: str, geometry: ConvGeometry, dtype, precision, channels_last: bool, config=None, pixel: int = 0
) -> Launch:
    """Tensors: dy, x, and either dw (one split) or [splits, elements of dw] partial sums, in dw's order of elements."""
    config = config or config_of("wgrad", geometry, dtype, target)
    M, N, pixels = geometry.gemm("wgrad")
    stretch = STRETCH.get(target, 0) if in_stretches(geometry) else 0
    unit = geometry.Q if stretch and not geometry.pointwise else config.BK
    rows = cdiv(cdiv(pixels, config.SPLIT), unit) * unit  # of a split
    stride_c, stride_tap = (1, geometry.Cg) if channels_last else (geometry.taps, 1)
    strides = geometry.parameters, geometry.Cg * geometry.taps, stride_c, stride_tap
    grid = cdiv(M, config.BM) * cdiv(N, config.BN), geometry.taps, geometry.groups * cdiv(pixels, rows)
    numbers = *sizes(geometry), rows, *strides
    constexprs = conv_constexprs(geometry, precision, config)
    constexprs |= {"PIXEL": pixel or geometry.C, "STRETCH": stretch}
    return Launch(conv_wgrad.conv_wgrad, grid, numbers, constexprs, config.num_warps, config.num_stages)


def by_winograd(op: str, x: Tensor, geometry: ConvGeometry, config: TileConfig | None) -> bool:
    """Whether to compute `op` by Winograd's algorithm. `config`, a tile of the GEMM, asks for the GEMM."""
    target = engines.engine_for(x.device).target(x.device)
    return config is None and algorithm_of(op, geometry, x.dtype, target) == "winograd"


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
    """A function of (x, residual or None): activation(norm(x ∗ weight + bias) + residual), [N, K, P, Q], in the memory
    format of the geometry's kernels.

    It holds for other inputs of the shape and dtype of `x`. `keep_pack` is False for a weight in training.
    """
    if isinstance(geometry, RowGeometry):
        made = conv1d_winograd if by_winograd("conv1d_fprop", x, geometry, config) else conv1d
        return made.bind_fprop(x, weight, bias, geometry, activation, keep_pack, config, norm)
    if depthwise.takes(geometry):
        return depthwise.bind_fprop(x, weight, bias, geometry, activation, keep_pack, config, norm)
    if config is None and linear.takes(x, geometry):
        return linear.bind_fprop(x, weight, bias, geometry, activation, None, norm)
    if by_winograd("fprop", x, geometry, config):
        return winograd.bind_fprop(x, weight, bias, geometry, activation, keep_pack, None, norm)
    _, run = _bind_gemm(x, weight, bias, geometry, activation, keep_pack, config, norm)
    return run


def _bind_gemm(
    x, weight, bias, geometry, activation=None, keep_pack=True, config=None, norm=ABSENT
) -> tuple[int, Callable[..., Tensor]]:
    """The implicit GEMM of `bind_fprop`, whose function takes room for partial statistics too, and how many of them."""
    overlap = overlaps(geometry)
    problem = overlapping(geometry) if overlap else geometry
    made = problem, x.dtype, precision_of(x), activation, config, norm.eps, geometry.C
    launch, run = prepare(x.device, fprop_launch, *made)
    pixels = NormGeometry(geometry.N * geometry.P * geometry.Q, geometry.K)
    tiles, run = split.bind(x, launch, run, pixels, activation, norm.eps)
    tile = launch.constexprs
    panels = packing.panels(weight, geometry, "fprop", tile["BN"], keep_pack, tile["TURNED"])
    bias = None if bias is None else bias.contiguous()
    vectors = norm.vectors

    def fprop(x: Tensor, residual: Tensor | None = None, moments: Tensor | None = None) -> Tensor:
        y = empty_nhwc(x, *geometry.output)
        x = padded(x, geometry) if overlap else nhwc(x)
        run(x, panels, bias, y, *vectors, None if residual is None else nhwc(residual), moments)
        return y

    return tiles, fprop


def fprop(x: Tensor, weight: Tensor, bias: Tensor | None, *problem, residual: Tensor | None = None, **options):
    """`bind_fprop`, called."""
    return bind_fprop(x, weight, bias, *problem, **options)(x, residual)


def fprop_with_moments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    keep_pack: bool = True,
    config: TileConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """x ∗ weight + bias, [N, K, P, Q], and its partial statistics (`norm.finalize`)."""
    if isinstance(geometry, RowGeometry):
        return conv1d.fprop_with_moments(x, weight, bias, geometry, keep_pack, config)
    if depthwise.takes(geometry) or (config is None and linear.takes(x, geometry)):  # which take no statistics
        y = fprop(x, weight, bias, geometry, None, keep_pack, config)
        return y, moments(y)
    if by_winograd("fprop", x, geometry, config):
        return winograd.fprop_with_moments(x, weight, bias, geometry, keep_pack)
    tiles, run = _bind_gemm(x, weight, bias, geometry, None, keep_pack, config)
    partial = empty_moments(x, tiles, geometry.K)
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
    """The gradient [N, C, H, W] of the input, given that of the output, dy [N, K, P, Q]; or transposed convolution of
    dy, which is activation(norm(gradient + bias))."""
    if isinstance(geometry, RowGeometry):
        made = conv1d_winograd if by_winograd("conv1d_dgrad", dy, geometry, config) else conv1d
        return made.dgrad(dy, weight, bias, geometry, activation, keep_pack, config, norm)
    if bias is None and activation is None and norm is ABSENT:  # these have no epilogue
        if depthwise.takes(geometry):
            return depthwise.dgrad(dy, weight, geometry, keep_pack, config)
        if config is None and linear.takes(dy, geometry):
            return linear.dgrad(dy, weight, geometry)
    if by_winograd("dgrad", dy, geometry, config):
        return winograd.dgrad(dy, weight, bias, geometry, activation, keep_pack, None, norm)
    vectors, seen = norm.vectors, NormGeometry(geometry.N * geometry.H * geometry.W, geometry.C)
    if spreads(geometry) and config is None:
        layout, vectors = "spread", (*vectors, None, None)
        launch, run = prepare(dy.device, fprop_launch, spread(geometry), dy.dtype, precision_of(dy), None)
        apart = bias is not None or activation is not None or norm is not ABSENT
    else:
        layout, apart = "dgrad", False
        problem = geometry, dy.dtype, precision_of(dy), activation, config, norm.eps
        launch, run = prepare(dy.device, dgrad_launch, *problem)
    _, run = split.bind(dy, launch, run, seen, activation, norm.eps, apart)
    dx = empty_nhwc(dy, *geometry.input)
    tile = launch.constexprs
    panels = packing.panels(weight, geometry, layout, tile["BN"], keep_pack, tile["TURNED"])
    run(nhwc(dy), panels, None if bias is None else bias.contiguous(), dx, *vectors)
    return dx


def wgrad(
    dy: Tensor,
    x: Tensor,
    geometry: ConvGeometry,
    memory_format: torch.memory_format = torch.contiguous_format,
    config: TileConfig | None = None,
) -> Tensor:
    """The gradient [K, C/groups, R, S] of the weight, in `memory_format`; the order of summation is always the same."""
    rows = isinstance(geometry, RowGeometry)
    if not rows and depthwise.takes(geometry):
        return depthwise.wgrad(dy, x, geometry, memory_format, config)
    if not rows and config is None and linear.takes(dy, geometry):
        return linear.wgrad(dy, x, geometry, memory_format)
    if not rows and by_winograd("wgrad", dy, geometry, config):
        return winograd_wgrad.wgrad(dy, x, geometry, memory_format)
    # A program sums one tap. On a CPU that takes longer where its elements do not lie side by side than to copy all.
    apart = geometry.taps > 1 and dy.device.type == "cpu"
    computed = torch.channels_last if apart or overlaps(geometry) else memory_format
    dw, pixel = empty(dy, geometry.weight, memory_format=computed), geometry.C
    if overlaps(geometry):
        x, geometry = padded(x, geometry), overlapping(geometry)
    problem = geometry, dy.dtype, precision_of(dy), computed is torch.channels_last, config, pixel
    launch, run = prepare(dy.device, conv1d.wgrad_launch if rows else wgrad_launch, *problem)
    dy, x = dy.contiguous() if rows else nhwc(dy), nhwc(x)
    summed(lambda sums: run(dy, x, sums), launch.grid[2] // geometry.groups, dw)
    return dw.contiguous(memory_format=memory_format)
