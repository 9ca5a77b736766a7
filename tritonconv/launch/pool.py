"""Pooling."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import cdiv

from ..configs import TileConfig
from ..engines import Launch
from ..geometry import PoolGeometry
from ..kernels import pool
from .common import config_of, empty_nhwc, nhwc, prepare, sizes, window


def max_pool_launch(target: str, geometry: PoolGeometry, dtype, config=None) -> Launch:
    """Tensors: x, y, indices or None."""
    config = config or config_of("max_pool", geometry, dtype, target)
    return _pool_launch(pool.max_pool, geometry, geometry.P * geometry.Q, config)


def max_pool_backward_launch(target: str, geometry: PoolGeometry, dtype, config=None) -> Launch:
    """Tensors: dy, indices, dx."""
    config = config or config_of("max_pool_backward", geometry, dtype, target)
    return _pool_launch(pool.max_pool_backward, geometry, geometry.H * geometry.W, config)


def _pool_launch(kernel, geometry: PoolGeometry, pixels: int, config: TileConfig) -> Launch:
    grid = cdiv(geometry.N * pixels, config.BM), cdiv(geometry.C, config.BN), 1
    constexprs = window(geometry, geometry.padding) | {"BM": config.BM, "BN": config.BN}
    N, *image = sizes(geometry)
    return Launch(kernel, grid, (N, geometry.C, *image), constexprs, config.num_warps, config.num_stages)


def max_pool(
    x: Tensor, geometry: PoolGeometry, index_dtype: torch.dtype | None = None, config: TileConfig | None = None
) -> tuple[Tensor, Tensor | None]:
    """The maxima [N, C, P, Q] and, of `index_dtype`, where in its H × W image each lies; None without a dtype."""
    _, run = prepare(x.device, max_pool_launch, geometry, x.dtype, config)
    shape = geometry.N, geometry.C, geometry.P, geometry.Q
    y = empty_nhwc(x, *shape)
    indices = None if index_dtype is None else empty_nhwc(x, *shape, dtype=index_dtype)
    run(nhwc(x), y, indices)
    return y, indices


def max_pool_backward(dy: Tensor, indices: Tensor, geometry: PoolGeometry, config: TileConfig | None = None) -> Tensor:
    """The gradient [N, C, H, W] of max-pooling's input."""
    _, run = prepare(dy.device, max_pool_backward_launch, geometry, dy.dtype, config)
    dx = empty_nhwc(dy, geometry.N, geometry.C, geometry.H, geometry.W)
    run(nhwc(dy), nhwc(indices), dx)
    return dx
