"""Convolution: fprop, dgrad and wgrad as implicit GEMMs."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import cdiv

from .. import packing
from ..configs import TileConfig
from ..engines import Launch
from ..geometry import ConvGeometry
from ..kernels import conv
from .common import config_of, empty_nhwc, nhwc, precision_of, prepare, sizes, window


def _conv_constexprs(geometry: ConvGeometry, precision: str, config: TileConfig) -> dict:
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


def fprop_launch(target: str, geometry: ConvGeometry, dtype, precision, activation, config=None) -> Launch:
    """Tensors: x, panels "fprop", bias or None, y."""
    config = config or config_of("fprop", geometry, dtype, target)
    M, N, _ = geometry.gemm("fprop")
    grid = cdiv(M, config.BM) * cdiv(N, config.BN), geometry.groups, 1
    constexprs = _conv_constexprs(geometry, precision, config) | {"GROUP_M": config.GROUP_M, "ACTIVATION": activation}
    return Launch(conv.conv_fprop, grid, sizes(geometry), constexprs, config.num_warps, config.num_stages)


def dgrad_launch(target: str, geometry: ConvGeometry, dtype, precision, config=None) -> Launch:
    """Tensors: dy, panels "dgrad", dx."""
    config = config or config_of("dgrad", geometry, dtype, target)
    M, N, _ = geometry.gemm("dgrad")
    classes = geometry.stride[0] * geometry.stride[1]
    grid = cdiv(M, config.BM) * cdiv(N, config.BN), geometry.groups, classes
    constexprs = _conv_constexprs(geometry, precision, config) | {"GROUP_M": config.GROUP_M}
    return Launch(conv.conv_dgrad, grid, sizes(geometry), constexprs, config.num_warps, config.num_stages)


def wgrad_launch(target: str, geometry: ConvGeometry, dtype, precision, channels_last: bool, config=None) -> Launch:
    """Tensors: dy, x, and either dw (one split) or [splits, elements of dw] partial sums, in dw's order of elements."""
    config = config or config_of("wgrad", geometry, dtype, target)
    M, N, pixels = geometry.gemm("wgrad")
    rows = cdiv(cdiv(pixels, config.SPLIT), config.BK) * config.BK  # of a split
    stride_c, stride_tap = (1, geometry.Cg) if channels_last else (geometry.taps, 1)
    strides = geometry.parameters, geometry.Cg * geometry.taps, stride_c, stride_tap
    grid = cdiv(M, config.BM) * cdiv(N, config.BN), geometry.taps, geometry.groups * cdiv(pixels, rows)
    numbers = *sizes(geometry), rows, *strides
    constexprs = _conv_constexprs(geometry, precision, config)
    return Launch(conv.conv_wgrad, grid, numbers, constexprs, config.num_warps, config.num_stages)


def sum_splits_launch(target: str, splits: int, size: int) -> Launch:
    """Tensors: partial [splits, size], out [size]."""
    block = 1024
    return Launch(conv.sum_splits, (cdiv(size, block), 1, 1), (splits, size), {"BLOCK": block}, 4, 1)


def fprop(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: str | None = None,
    keep_pack: bool = True,
    config: TileConfig | None = None,
) -> Tensor:
    """activation(x ∗ weight + bias), [N, K, P, Q]. `keep_pack` is False for a weight in training."""
    launch, run = prepare(x.device, fprop_launch, geometry, x.dtype, precision_of(x), activation, config)
    y = empty_nhwc(x, geometry.N, geometry.K, geometry.P, geometry.Q)
    panels = packing.panels(weight, geometry, "fprop", launch.constexprs["BN"], keep_pack)
    run(nhwc(x), panels, None if bias is None else bias.contiguous(), y)
    return y


def dgrad(
    dy: Tensor, weight: Tensor, geometry: ConvGeometry, keep_pack: bool = True, config: TileConfig | None = None
) -> Tensor:
    """The gradient [N, C, H, W] of the input, given that of the output, dy [N, K, P, Q]."""
    launch, run = prepare(dy.device, dgrad_launch, geometry, dy.dtype, precision_of(dy), config)
    dx = empty_nhwc(dy, geometry.N, geometry.C, geometry.H, geometry.W)
    run(nhwc(dy), packing.panels(weight, geometry, "dgrad", launch.constexprs["BN"], keep_pack), dx)
    return dx


def wgrad(
    dy: Tensor,
    x: Tensor,
    geometry: ConvGeometry,
    memory_format: torch.memory_format = torch.contiguous_format,
    config: TileConfig | None = None,
) -> Tensor:
    """The gradient [K, C/groups, R, S] of the weight, in `memory_format`; the order of summation is always the same."""
    device = dy.device
    channels_last = memory_format is torch.channels_last
    launch, run = prepare(device, wgrad_launch, geometry, dy.dtype, precision_of(dy), channels_last, config)
    shape = geometry.K, geometry.Cg, geometry.R, geometry.S
    dw = torch.empty(shape, dtype=dy.dtype, device=device, memory_format=memory_format)
    splits = launch.grid[2] // geometry.groups
    if splits == 1:
        run(nhwc(dy), nhwc(x), dw)
        return dw
    dtype = torch.float64 if dy.dtype is torch.float64 else torch.float32
    partial = torch.empty((splits, dw.numel()), dtype=dtype, device=device)
    run(nhwc(dy), nhwc(x), partial)
    _, sum_splits = prepare(device, sum_splits_launch, splits, dw.numel())
    sum_splits(partial, dw)
    return dw
