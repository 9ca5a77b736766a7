"""From a problem to a running kernel: algorithm and tile config, grid, launch, engine.

`*_launch` are pure functions from a target and a problem to a `Launch`, which a compiler can take without a device;
they run once a problem. The others run once a call: they allocate the output, fetch the packed weight and start the
bound kernel. Activations are [N, C, H, W] tensors of any strides, and results are in channels_last memory: NHWC, as the
kernels see them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor
from triton import cdiv

import autotune

from . import configs, engines, packing
from .configs import TileConfig
from .engines import Engine, Launch
from .geometry import ConvGeometry, PoolGeometry
from .kernels import conv, pool

Geometry = ConvGeometry | PoolGeometry
Bound = tuple[Launch, Callable[..., None]]


def _config(op: str, geometry: Geometry, dtype: torch.dtype, target: str) -> TileConfig:
    """The stored config of the problem, else the predicted one."""
    key = {"op": op, "dtype": str(dtype).removeprefix("torch."), "target": target, **asdict(geometry)}
    stored = autotune.lookup(key)
    return configs.space(op, geometry, dtype, target)[0] if stored is None else TileConfig(**stored)


def _window(geometry: Geometry, padding: tuple[int, int]) -> dict[str, int]:
    """The constexprs that say which pixels a window covers; `padding` is (top, left)."""
    names = ("R", "S", "STRIDE_H", "STRIDE_W", "PAD_H", "PAD_W", "DIL_H", "DIL_W")
    return dict(zip(names, (geometry.R, geometry.S, *geometry.stride, *padding, *geometry.dilation), strict=True))


def _sizes(geometry: Geometry) -> tuple[int, ...]:
    return geometry.N, geometry.H, geometry.W, geometry.P, geometry.Q


def _conv_constexprs(geometry: ConvGeometry, precision: str, config: TileConfig) -> dict:
    (top, _), (left, _) = geometry.padding
    return {
        "GROUPS": geometry.groups,
        "C": geometry.Cg,
        "K": geometry.Kg,
        **_window(geometry, (top, left)),
        "PRECISION": precision,
        "BM": config.BM,
        "BN": config.BN,
        "BK": config.BK,
    }


def fprop_launch(target: str, geometry: ConvGeometry, dtype, precision, activation, config=None) -> Launch:
    """Tensors: x, panels "fprop", bias or None, y."""
    config = config or _config("fprop", geometry, dtype, target)
    M, N, _ = geometry.gemm("fprop")
    grid = cdiv(M, config.BM) * cdiv(N, config.BN), geometry.groups, 1
    constexprs = _conv_constexprs(geometry, precision, config) | {"GROUP_M": config.GROUP_M, "ACTIVATION": activation}
    return Launch(conv.conv_fprop, grid, _sizes(geometry), constexprs, config.num_warps, config.num_stages)


def dgrad_launch(target: str, geometry: ConvGeometry, dtype, precision, config=None) -> Launch:
    """Tensors: dy, panels "dgrad", dx."""
    config = config or _config("dgrad", geometry, dtype, target)
    M, N, _ = geometry.gemm("dgrad")
    classes = geometry.stride[0] * geometry.stride[1]
    grid = cdiv(M, config.BM) * cdiv(N, config.BN), geometry.groups, classes
    constexprs = _conv_constexprs(geometry, precision, config) | {"GROUP_M": config.GROUP_M}
    return Launch(conv.conv_dgrad, grid, _sizes(geometry), constexprs, config.num_warps, config.num_stages)


def wgrad_launch(target: str, geometry: ConvGeometry, dtype, precision, channels_last: bool, config=None) -> Launch:
    """Tensors: dy, x, and either dw (one split) or [splits, elements of dw] partial sums, in dw's order of elements."""
    config = config or _config("wgrad", geometry, dtype, target)
    M, N, pixels = geometry.gemm("wgrad")
    rows = cdiv(cdiv(pixels, config.SPLIT), config.BK) * config.BK  # of a split
    stride_c, stride_tap = (1, geometry.Cg) if channels_last else (geometry.taps, 1)
    strides = geometry.parameters, geometry.Cg * geometry.taps, stride_c, stride_tap
    grid = cdiv(M, config.BM) * cdiv(N, config.BN), geometry.taps, geometry.groups * cdiv(pixels, rows)
    sizes = *_sizes(geometry), rows, *strides
    constexprs = _conv_constexprs(geometry, precision, config)
    return Launch(conv.conv_wgrad, grid, sizes, constexprs, config.num_warps, config.num_stages)


def sum_splits_launch(target: str, splits: int, size: int) -> Launch:
    """Tensors: partial [splits, size], out [size]."""
    block = 1024
    return Launch(conv.sum_splits, (cdiv(size, block), 1, 1), (splits, size), {"BLOCK": block}, 4, 1)


def max_pool_launch(target: str, geometry: PoolGeometry, dtype, config=None) -> Launch:
    """Tensors: x, y, indices or None."""
    config = config or _config("max_pool", geometry, dtype, target)
    return _pool_launch(pool.max_pool, geometry, geometry.P * geometry.Q, config)


def max_pool_backward_launch(target: str, geometry: PoolGeometry, dtype, config=None) -> Launch:
    """Tensors: dy, indices, dx."""
    config = config or _config("max_pool_backward", geometry, dtype, target)
    return _pool_launch(pool.max_pool_backward, geometry, geometry.H * geometry.W, config)


def _pool_launch(kernel, geometry: PoolGeometry, pixels: int, config: TileConfig) -> Launch:
    grid = cdiv(geometry.N * pixels, config.BM), cdiv(geometry.C, config.BN), 1
    constexprs = _window(geometry, geometry.padding) | {"BM": config.BM, "BN": config.BN}
    N, *image = _sizes(geometry)
    return Launch(kernel, grid, (N, geometry.C, *image), constexprs, config.num_warps, config.num_stages)


@functools.lru_cache(maxsize=4096)
def _bind(engine: Engine, device: torch.device, make: Callable[..., Launch], *problem) -> Bound:
    launch = make(engine.target(device), *problem)
    return launch, engine.bind(launch)


def _prepare(device: torch.device, make: Callable[..., Launch], *problem) -> Bound:
    return _bind(engines.engine_for(device), device, make, *problem)


def _precision(x: Tensor) -> str:
    # The flag is cuDNN's: AMD GPUs, of which few know TF32, convolve in true float32.
    cudnn = x.is_cuda and torch.version.hip is None
    tf32 = cudnn and x.dtype is torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


def _nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty_nhwc(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)


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
    launch, run = _prepare(x.device, fprop_launch, geometry, x.dtype, _precision(x), activation, config)
    y = _empty_nhwc(x, geometry.N, geometry.K, geometry.P, geometry.Q)
    panels = packing.panels(weight, geometry, "fprop", launch.constexprs["BN"], keep_pack)
    run(_nhwc(x), panels, None if bias is None else bias.contiguous(), y)
    return y


def dgrad(
    dy: Tensor, weight: Tensor, geometry: ConvGeometry, keep_pack: bool = True, config: TileConfig | None = None
) -> Tensor:
    """The gradient [N, C, H, W] of the input, given that of the output, dy [N, K, P, Q]."""
    launch, run = _prepare(dy.device, dgrad_launch, geometry, dy.dtype, _precision(dy), config)
    dx = _empty_nhwc(dy, geometry.N, geometry.C, geometry.H, geometry.W)
    run(_nhwc(dy), packing.panels(weight, geometry, "dgrad", launch.constexprs["BN"], keep_pack), dx)
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
    launch, run = _prepare(device, wgrad_launch, geometry, dy.dtype, _precision(dy), channels_last, config)
    shape = geometry.K, geometry.Cg, geometry.R, geometry.S
    dw = torch.empty(shape, dtype=dy.dtype, device=device, memory_format=memory_format)
    splits = launch.grid[2] // geometry.groups
    if splits == 1:
        run(_nhwc(dy), _nhwc(x), dw)
        return dw
    dtype = torch.float64 if dy.dtype is torch.float64 else torch.float32
    partial = torch.empty((splits, dw.numel()), dtype=dtype, device=device)
    run(_nhwc(dy), _nhwc(x), partial)
    _, sum_splits = _prepare(device, sum_splits_launch, splits, dw.numel())
    sum_splits(partial, dw)
    return dw


def max_pool(
    x: Tensor, geometry: PoolGeometry, index_dtype: torch.dtype | None = None, config: TileConfig | None = None
) -> tuple[Tensor, Tensor | None]:
    """The maxima [N, C, P, Q] and, of `index_dtype`, where in its H × W image each lies; None without a dtype."""
    _, run = _prepare(x.device, max_pool_launch, geometry, x.dtype, config)
    shape = geometry.N, geometry.C, geometry.P, geometry.Q
    y = _empty_nhwc(x, *shape)
    indices = None if index_dtype is None else _empty_nhwc(x, *shape, dtype=index_dtype)
    run(_nhwc(x), y, indices)
    return y, indices


def max_pool_backward(dy: Tensor, indices: Tensor, geometry: PoolGeometry, config: TileConfig | None = None) -> Tensor:
    """The gradient [N, C, H, W] of max-pooling's input."""
    _, run = _prepare(dy.device, max_pool_backward_launch, geometry, dy.dtype, config)
    dx = _empty_nhwc(dy, geometry.N, geometry.C, geometry.H, geometry.W)
    run(_nhwc(dy), _nhwc(indices), dx)
    return dx
