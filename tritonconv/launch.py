"""From a problem to a running kernel: algorithm and tile config, grid, launch, engine.

`*_launch` are pure functions from a target and a problem to a `Launch`, which a compiler can take without a device; they run
once a problem. The others run once a call: they allocate the output, fetch the packed weight and start the bound kernel.
Activations are [N, C, H, W] tensors of any strides, and results are in channels_last memory: NHWC, as the kernels see them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict

import autotune
import torch
from torch import Tensor
from triton import cdiv

from . import configs, engines, packing
from .configs import TileConfig
from .engines import Engine, Launch
from .geometry import ConvGeometry, PoolGeometry
from .kernels import conv, pool

Geometry = ConvGeometry | PoolGeometry


def _config(op: str, geometry: Geometry, dtype: torch.dtype, target: str) -> TileConfig:
    """The stored config of the problem, else the predicted one."""
    key = {"op": op, "dtype": str(dtype).removeprefix("torch."), "target": target, **asdict(geometry)}
    stored = autotune.lookup(key)
    return configs.space(op, geometry, dtype, target)[0] if stored is None else TileConfig(**stored)


def _window(geometry: Geometry, padding: tuple[int, int]) -> dict[str, int]:
    """The constexprs that say which pixels a window covers; `padding` is (top, left)."""
    names = ("R", "S", "STRIDE_H", "STRIDE_W", "PAD_H", "PAD_W", "DIL_H", "DIL_W")
    return dict(zip(names, (geometry.R, geometry.S, *geometry.stride, *padding, *geometry.dilation), strict=True))


def _image_sizes(geometry: Geometry) -> tuple[int, ...]:
    return geometry.H, geometry.W, geometry.P, geometry.Q


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
    return Launch(
        kernel=conv.conv_fprop,
        grid=(cdiv(M, config.BM) * cdiv(N, config.BN), geometry.groups, 1),
        sizes=(geometry.N, *_image_sizes(geometry)),
        constexprs=_conv_constexprs(geometry, precision, config) | {"GROUP_M": config.GROUP_M, "ACTIVATION": activation},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def dgrad_launch(target: str, geometry: ConvGeometry, dtype, precision, config=None) -> Launch:
    """Tensors: dy, panels "dgrad", dx."""
    config = config or _config("dgrad", geometry, dtype, target)
    M, N, _ = geometry.gemm("dgrad")
    classes = geometry.stride[0] * geometry.stride[1]
    return Launch(
        kernel=conv.conv_dgrad,
        grid=(cdiv(M, config.BM) * cdiv(N, config.BN), geometry.groups, classes),
        sizes=(geometry.N, *_image_sizes(geometry)),
        constexprs=_conv_constexprs(geometry, precision, config) | {"GROUP_M": config.GROUP_M},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def wgrad_launch(target: str, geometry: ConvGeometry, dtype, precision, channels_last: bool, config=None) -> Launch:
    """Tensors: dy, x, and either dw (one split) or [splits, elements of dw] partial sums, in dw's order of elements."""
    config = config or _config("wgrad", geometry, dtype, target)
    M, N, pixels = geometry.gemm("wgrad")
    rows = cdiv(cdiv(pixels, config.SPLIT), config.BK) * config.BK  # of a split
    stride_k, stride_c, stride_tap = geometry.Cg * geometry.taps, *((1, geometry.Cg) if channels_last else (geometry.taps, 1))
    return Launch(
        kernel=conv.conv_wgrad,
        grid=(cdiv(M, config.BM) * cdiv(N, config.BN), geometry.taps, geometry.groups * cdiv(pixels, rows)),
        sizes=(geometry.N, *_image_sizes(geometry), rows, geometry.parameters, stride_k, stride_c, stride_tap),
        constexprs=_conv_constexprs(geometry, precision, config),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def sum_splits_launch(target: str, splits: int, size: int) -> Launch:
    """Tensors: partial [splits, size], out [size]."""
    block = 1024
    return Launch(conv.sum_splits, (cdiv(size, block), 1, 1), (splits, size), {"BLOCK": block}, num_warps=4, num_stages=1)


def _pool_launch(op: str, kernel, pixels: int, target: str, geometry: PoolGeometry, dtype, config) -> Launch:
    config = config or _config(op, geometry, dtype, target)
    return Launch(
        kernel=kernel,
        grid=(cdiv(geometry.N * pixels, config.BM), cdiv(geometry.C, config.BN), 1),
        sizes=(geometry.N, geometry.C, *_image_sizes(geometry)),
        constexprs=_window(geometry, geometry.padding) | {"BM": config.BM, "BN": config.BN},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def max_pool_launch(target: str, geometry: PoolGeometry, dtype, config=None) -> Launch:
    """Tensors: x, y, indices or None."""
    return _pool_launch("max_pool", pool.max_pool, geometry.P * geometry.Q, target, geometry, dtype, config)


def max_pool_backward_launch(target: str, geometry: PoolGeometry, dtype, config=None) -> Launch:
    """Tensors: dy, indices, dx."""
    pixels = geometry.H * geometry.W
    return _pool_launch("max_pool_backward", pool.max_pool_backward, pixels, target, geometry, dtype, config)


@functools.lru_cache(maxsize=4096)
def _bound(engine: Engine, device: torch.device, make: Callable[..., Launch], *problem) -> tuple[Launch, Callable[..., None]]:
    launch = make(engine.target(device), *problem)
    return launch, engine.bind(launch)


def _prepare(device: torch.device, make: Callable[..., Launch], *problem) -> tuple[Launch, Callable[..., None]]:
    return _bound(engines.engine_for(device), device, make, *problem)


def _precision(x: Tensor) -> str:
    tf32 = x.is_cuda and x.dtype is torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"
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
    config: TileConfig | None = None,
) -> Tensor:
    """activation(x ∗ weight + bias), [N, K, P, Q]."""
    launch, run = _prepare(x.device, fprop_launch, geometry, x.dtype, _precision(x), activation, config)
    y = _empty_nhwc(x, geometry.N, geometry.K, geometry.P, geometry.Q)
    panels = packing.panels(weight, geometry, "fprop", launch.constexprs["BN"])
    run(_nhwc(x), panels, None if bias is None else bias.contiguous(), y)
    return y


def dgrad(dy: Tensor, weight: Tensor, geometry: ConvGeometry, config: TileConfig | None = None) -> Tensor:
    """The gradient [N, C, H, W] of the input, given that of the output, dy [N, K, P, Q]."""
    launch, run = _prepare(dy.device, dgrad_launch, geometry, dy.dtype, _precision(dy), config)
    dx = _empty_nhwc(dy, geometry.N, geometry.C, geometry.H, geometry.W)
    run(_nhwc(dy), packing.panels(weight, geometry, "dgrad", launch.constexprs["BN"]), dx)
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
