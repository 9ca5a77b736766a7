"""Pooling."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from triton import cdiv

from ..configs import TileConfig
from ..engines import Launch
from ..geometry import AdaptiveGeometry, Pair, PoolGeometry
from ..kernels import avg_pool as averages
from ..kernels import max_pool as maxima
from .common import config_of, empty_nhwc, nhwc, prepare, sizes, window

Geometry = PoolGeometry | AdaptiveGeometry

_LARGEST = 36  # taps of a window, or pixels of a cell, that are written out one by one


def max_pool_launch(target: str, geometry: Geometry, dtype, config=None) -> Launch:
    """Tensors: x, y, indices or None."""
    return _forward_launch(maxima.max_pool, target, geometry, dtype, config, PIXEL=None)


def max_pool_backward_launch(target: str, geometry: Geometry, dtype, config=None) -> Launch:
    """Tensors: dy, indices, dx."""
    kernels = maxima.max_pool_backward, maxima.max_pool_backward_cells
    return _backward_launch(*kernels, target, geometry, dtype, config)


def avg_pool_launch(target: str, geometry: Geometry, dtype, divisor: int | str, norm: int = 1, config=None) -> Launch:
    """Tensors: x, y."""
    return _forward_launch(averages.avg_pool, target, geometry, dtype, config, DIVISOR=divisor, NORM=norm)


def avg_pool_backward_launch(target: str, geometry: Geometry, dtype, divisor: int | str, config=None) -> Launch:
    """Tensors: dy, dx."""
    kernels = averages.avg_pool_backward, averages.avg_pool_backward_cells
    return _backward_launch(*kernels, target, geometry, dtype, config, DIVISOR=divisor, PIXEL=None)


def max_unpool_launch(target: str, geometry: AdaptiveGeometry, dtype, config=None) -> Launch:
    """Tensors: x, indices, y. `geometry` pools what is unpooled: x is [N, C, P, Q]."""
    config = config or config_of("max_unpool", geometry, dtype, target)
    pixels = geometry.P * geometry.Q
    grid = cdiv(geometry.N * pixels, config.BM), cdiv(geometry.C, config.BN), 1
    problem = geometry.N * pixels, geometry.C, pixels, geometry.H * geometry.W
    return Launch(maxima.max_unpool, grid, problem, {"BM": config.BM, "BN": config.BN}, config.num_warps, 1)


def global_avg_pool_launch(target: str, geometry: PoolGeometry, dtype, config=None) -> Launch:
    """Tensors: x, y."""
    config = config or config_of("global_avg_pool", geometry, dtype, target)
    grid = cdiv(geometry.N, config.BM), cdiv(geometry.C, config.BN), 1
    constexprs = {"BM": config.BM, "BN": config.BN, "BK": config.BK}
    problem = geometry.N, geometry.C, geometry.H * geometry.W
    return Launch(averages.global_avg_pool, grid, problem, constexprs, config.num_warps, config.num_stages)


def _forward_launch(kernel, target: str, geometry: Geometry, dtype, config: TileConfig | None, **constexprs) -> Launch:
    """A launch of a kernel with windows, over the output's pixels."""
    config = config or config_of(kernel.__name__, geometry, dtype, target)
    if isinstance(geometry, AdaptiveGeometry):
        constexprs |= _adaptive(geometry.windows) | {"WHOLE": False}  # they differ in length
    else:
        constexprs |= window(geometry, geometry.padding) | {"ADAPTIVE": False, "WHOLE": geometry.are_inside}
    return _launch(kernel, geometry, geometry.P, geometry.Q, config, constexprs)


def _backward_launch(
    kernel, cells, target: str, geometry: Geometry, dtype, config: TileConfig | None, **constexprs
) -> Launch:
    """A launch of a gradient's kernel: over the input's pixels, or, where the windows are small, over its cells."""
    config = config or config_of(kernel.__name__, geometry, dtype, target)
    if isinstance(geometry, AdaptiveGeometry):
        constexprs |= _adaptive(geometry.coverings)
        return _launch(kernel, geometry, geometry.H, geometry.W, config, constexprs)
    constexprs |= window(geometry, geometry.padding)
    if max(geometry.R * geometry.S, geometry.stride[0] * geometry.stride[1]) > _LARGEST:
        return _launch(kernel, geometry, geometry.H, geometry.W, config, constexprs | {"ADAPTIVE": False})
    axes = zip((geometry.H, geometry.W), geometry.padding, geometry.stride, strict=True)
    rows, columns = (cdiv(size + pad, stride) for size, pad, stride in axes)
    return _launch(cells, geometry, rows, columns, config, constexprs)


def _adaptive(longest: Pair) -> dict[str, object]:
    regular = {"STRIDE_H": 1, "STRIDE_W": 1, "PAD_H": 0, "PAD_W": 0, "DIL_H": 1, "DIL_W": 1}
    return {"R": longest[0], "S": longest[1], **regular, "ADAPTIVE": True}


def _launch(kernel, geometry: Geometry, rows: int, columns: int, config: TileConfig, constexprs: dict) -> Launch:
    """Over rows × columns of each image."""
    grid = cdiv(geometry.N * rows, config.BM), cdiv(columns, config.BK), cdiv(geometry.C, config.BN)
    constexprs = constexprs | {"BM": config.BM, "BN": config.BN, "BK": config.BK}
    N, *image = sizes(geometry)
    return Launch(kernel, grid, (N, geometry.C, *image), constexprs, config.num_warps, config.num_stages)


def max_pool(
    x: Tensor, geometry: Geometry, index_dtype: torch.dtype | None = None, config: TileConfig | None = None
) -> tuple[Tensor, Tensor | None]:
    """The maxima [N, C, P, Q] and, of `index_dtype`, where in its H × W image each lies; None without a dtype."""
    _, run = prepare(x.device, max_pool_launch, geometry, x.dtype, config)
    y = empty_nhwc(x, *geometry.output)
    indices = None if index_dtype is None else empty_nhwc(x, *geometry.output, dtype=index_dtype)
    run(nhwc(x), y, indices)
    return y, indices


def max_pool_backward(dy: Tensor, indices: Tensor, geometry: Geometry, config: TileConfig | None = None) -> Tensor:
    """The gradient [N, C, H, W] of max-pooling's input."""
    _, run = prepare(dy.device, max_pool_backward_launch, geometry, dy.dtype, config)
    dx = empty_nhwc(dy, *geometry.input)
    run(nhwc(dy), nhwc(indices), dx)
    return dx


def max_unpool(x: Tensor, indices: Tensor, geometry: AdaptiveGeometry, config: TileConfig | None = None) -> Tensor:
    """[N, C, H, W]: x [N, C, P, Q] where the indices say, zero elsewhere."""
    _, run = prepare(x.device, max_unpool_launch, geometry, x.dtype, config)
    y = empty_nhwc(x, *geometry.input).zero_()
    run(nhwc(x), nhwc(indices), y)
    return y


def avg_pool(
    x: Tensor, geometry: Geometry, divisor: int | str, norm: int = 1, config: TileConfig | None = None
) -> Tensor:
    """The mean of each window [N, C, P, Q] or, with norm 2, √(R · S · the mean of its squares).

    divisor: what sums are divided by: a number, or "padded" or "inside" for the pixels that are in the window.
    """
    y = empty_nhwc(x, *geometry.output)
    is_global = isinstance(geometry, PoolGeometry) and geometry.is_global
    if is_global and norm == 1 and divisor == geometry.H * geometry.W:
        if x.is_contiguous():  # NCHW is as good: each plane an image of one channel, with results in the same order
            geometry = replace(geometry, N=geometry.N * geometry.C, C=1)
        else:
            x = nhwc(x)
        _, run = prepare(x.device, global_avg_pool_launch, geometry, x.dtype, config)
    else:
        x = nhwc(x)
        _, run = prepare(x.device, avg_pool_launch, geometry, x.dtype, divisor, norm, config)
    run(x, y)
    return y


def avg_pool_backward(dy: Tensor, geometry: Geometry, divisor: int | str, config: TileConfig | None = None) -> Tensor:
    """The gradient [N, C, H, W] of average pooling's input."""
    _, run = prepare(dy.device, avg_pool_backward_launch, geometry, dy.dtype, divisor, config)
    dx = empty_nhwc(dy, *geometry.input)
    run(nhwc(dy), dx)
    return dx
