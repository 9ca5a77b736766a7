"""Depthwise convolution: fprop, dgrad and wgrad without a matrix product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from triton import cdiv

from ..configs import TileConfig
from ..engines import Launch
from ..geometry import ConvGeometry
from ..kernels import depthwise
from ..kernels.depthwise_dgrad import depthwise_dgrad
from . import packing
from .common import config_of, empty_nhwc, nhwc, prepare, sizes, summed, window
from .norm import ABSENT, Norm

_CLASSES = 4  # the most residue classes of a stride that one program takes: its code grows with them


def takes(geometry: ConvGeometry) -> bool:
    """Channels of their own, each with few filters: many are a matrix product."""
    return geometry.groups == geometry.C > 1 and geometry.Kg <= 4


def _constexprs(geometry: ConvGeometry, config: TileConfig) -> dict:
    (top, _), (left, _) = geometry.padding
    channels = {"C": geometry.C, "K": geometry.K}
    return channels | window(geometry, (top, left)) | {"BM": config.BM, "BN": config.BN}


def fprop_launch(target: str, geometry: ConvGeometry, dtype, activation, config=None, eps: float = 0.0) -> Launch:
    """Tensors: those of `conv.fprop_launch`, but moments."""
    config = config or config_of("depthwise_fprop", geometry, dtype, target)
    grid = geometry.N * geometry.P * cdiv(geometry.Q, config.BM) * cdiv(geometry.K, config.BN), 1, 1
    constexprs = _constexprs(geometry, config) | {"EPS": eps, "ACTIVATION": activation}
    return Launch(depthwise.depthwise_fprop, grid, sizes(geometry), constexprs, config.num_warps, config.num_stages)


def dgrad_launch(target: str, geometry: ConvGeometry, dtype, config=None) -> Launch:
    """Tensors: dy, panels, dx."""
    config = config or config_of("depthwise_dgrad", geometry, dtype, target)
    stride_h, stride_w = geometry.stride
    tiles = geometry.N * cdiv(geometry.H, stride_h) * cdiv(cdiv(geometry.W, stride_w), config.BM)
    together = stride_h * stride_w <= _CLASSES
    grid = tiles * cdiv(geometry.C, config.BN) * (1 if together else stride_h * stride_w), 1, 1
    constexprs = _constexprs(geometry, config) | {"TOGETHER": together}
    return Launch(depthwise_dgrad, grid, sizes(geometry), constexprs, config.num_warps, config.num_stages)


def wgrad_launch(target: str, geometry: ConvGeometry, dtype, config=None) -> Launch:
    """Tensors: dy, x, and either dw (one split) or [splits, elements of dw] partial sums, in dw's order of elements."""
    config = config or config_of("depthwise_wgrad", geometry, dtype, target)
    rows = cdiv(geometry.N * geometry.P, config.SPLIT)
    grid = geometry.taps // config.BK, cdiv(geometry.K, config.BN), cdiv(geometry.N * geometry.P, rows)
    numbers = *sizes(geometry), rows, geometry.parameters, geometry.taps, 1
    block = {"TAPS_H": cdiv(config.BK, geometry.S), "TAPS_W": min(config.BK, geometry.S)}
    constexprs = _constexprs(geometry, config) | block
    return Launch(depthwise.depthwise_wgrad, grid, numbers, constexprs, config.num_warps, config.num_stages)


def _panels(weight: Tensor, geometry: ConvGeometry, columns: int, BN: int, keep: bool) -> Tensor:
    """[tiles of `columns`, R·S, K/columns, BN]: the taps of each column's K/columns filters."""
    as_dense = replace(geometry, C=geometry.K // columns, K=columns, groups=1)
    return packing.panels(weight, as_dense, "fprop", BN, keep)


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
    launch, run = prepare(x.device, fprop_launch, geometry, x.dtype, activation, config, norm.eps)
    panels = _panels(weight, geometry, geometry.K, launch.constexprs["BN"], keep_pack)
    bias = None if bias is None else bias.contiguous()
    vectors = norm.vectors

    def fprop(x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = empty_nhwc(x, *geometry.output)
        run(nhwc(x), panels, bias, y, *vectors, None if residual is None else nhwc(residual))
        return y

    return fprop


def dgrad(
    dy: Tensor, weight: Tensor, geometry: ConvGeometry, keep_pack: bool = True, config: TileConfig | None = None
) -> Tensor:
    """See `conv.dgrad`."""
    launch, run = prepare(dy.device, dgrad_launch, geometry, dy.dtype, config)
    dx = empty_nhwc(dy, geometry.N, geometry.C, geometry.H, geometry.W)
    run(nhwc(dy), _panels(weight, geometry, geometry.C, launch.constexprs["BN"], keep_pack), dx)
    return dx


def wgrad(
    dy: Tensor,
    x: Tensor,
    geometry: ConvGeometry,
    memory_format: torch.memory_format = torch.contiguous_format,
    config: TileConfig | None = None,
) -> Tensor:
    """See `conv.wgrad`."""
    launch, run = prepare(dy.device, wgrad_launch, geometry, dy.dtype, config)
    shape = geometry.K, 1, geometry.R, geometry.S
    dw = torch.empty(shape, dtype=dy.dtype, device=dy.device, memory_format=memory_format)
    dy, x = nhwc(dy), nhwc(x)
    summed(lambda sums: run(dy, x, sums), launch.grid[2], dw)
    return dw
