"""The gradient of a 3 × 3 weight by Winograd's algorithm, over as many tiles at a time as the caches hold."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import cdiv

from ..configs import TileConfig
from ..configs.winograd import tiles
from ..cpu.target import caches
from ..engines import Launch
from ..geometry import ConvGeometry
from ..kernels import winograd_wgrad as kernels
from .common import config_of, nhwc, precision_of, prepare, scratch


def _config(geometry: ConvGeometry, dtype: torch.dtype, target: str, config: TileConfig | None) -> TileConfig:
    return config or config_of("winograd_wgrad", geometry, dtype, target)


def _stretch(geometry: ConvGeometry, dtype: torch.dtype, config: TileConfig) -> int:
    """How many tiles are taken at a time: their transforms fit the last cache, or are worth adding to the sums."""
    channels = cdiv(geometry.K, config.BM) * config.BM + cdiv(geometry.C, config.BN) * config.BN
    points, size = (config.OUT + 2) ** 2, max(dtype.itemsize, 4)
    room = max(caches().last // 2, 2 * points * geometry.K * geometry.C * size)
    step = 2 * config.BK  # a loop of one turn would be dissolved
    least = cdiv(tiles(geometry, config.OUT), step)
    return step * max(1, min(least, room // (points * channels * size * step)))


def gather_launch(
    target: str, geometry: ConvGeometry, dtype, outputs: bool, first: int, config: TileConfig | None = None
) -> Launch:
    """Tensors: x, or dy with `outputs`, and its transforms."""
    config = _config(geometry, dtype, target, config)
    g, count = geometry, _stretch(geometry, dtype, config)
    (top, _), (left, _) = g.padding
    channels, block = (g.K, config.BM) if outputs else (g.C, config.BN)
    constexprs = {
        "C": channels,
        "PAD_H": 0 if outputs else top,
        "PAD_W": 0 if outputs else left,
        "DIL_H": g.dilation[0],
        "DIL_W": g.dilation[1],
        "OUT": config.OUT,
        "OUTPUTS": outputs,
        "BM": config.BK,
        "BC": block,
    }
    image = (g.P, g.Q) if outputs else (g.H, g.W)
    numbers = g.N, *image, g.P, g.Q, first, count
    grid = count // config.BK, cdiv(channels, block), 1
    return Launch(kernels.winograd_gather, grid, numbers, constexprs, config.num_warps, config.num_stages)


def correlate_launch(
    target: str, geometry: ConvGeometry, dtype, precision: str, more: bool, config: TileConfig | None = None
) -> Launch:
    """Tensors: the transforms of dy and of x, and the sums."""
    config = _config(geometry, dtype, target, config)
    g = geometry
    grid = cdiv(g.K, config.BM) * cdiv(g.C, config.BN), (config.OUT + 2) ** 2, 1
    constexprs = {"C": g.C, "K": g.K, "MORE": more, "PRECISION": precision}
    constexprs |= {"BM": config.BM, "BN": config.BN, "BK": config.BK}
    numbers = (_stretch(g, dtype, config),)
    return Launch(kernels.winograd_correlate, grid, numbers, constexprs, config.num_warps, config.num_stages)


def taps_launch(
    target: str, geometry: ConvGeometry, dtype, channels_last: bool, config: TileConfig | None = None
) -> Launch:
    """Tensors: the sums, dw."""
    config = _config(geometry, dtype, target, config)
    g, (BM, BN) = geometry, (4, config.BN)
    stride_c, stride_tap = (1, g.C) if channels_last else (9, 1)
    constexprs = {"C": g.C, "K": g.K, "STRIDE_C": stride_c, "STRIDE_TAP": stride_tap, "OUT": config.OUT}
    grid = cdiv(g.K, BM), cdiv(g.C, BN), 1
    return Launch(kernels.winograd_taps, grid, (), constexprs | {"BM": BM, "BN": BN}, config.num_warps, 1)


def wgrad(
    dy: Tensor,
    x: Tensor,
    geometry: ConvGeometry,
    memory_format: torch.memory_format = torch.contiguous_format,
    config: TileConfig | None = None,
) -> Tensor:
    """See `conv.wgrad`."""
    device, dtype = dy.device, dy.dtype
    dy, x = nhwc(dy), nhwc(x)
    dw = torch.empty((geometry.K, geometry.C, 3, 3), dtype=dtype, device=device, memory_format=memory_format)
    launch, _ = prepare(device, gather_launch, geometry, dtype, False, 0, config)
    OUT, count = launch.constexprs["OUT"], launch.sizes[-1]
    points = (OUT + 2) ** 2
    u = scratch("sums", dy, points * geometry.K * geometry.C)
    for first in range(0, tiles(geometry, OUT), count):
        transforms = []
        for outputs, image in ((True, dy), (False, x)):
            launch, gather = prepare(device, gather_launch, geometry, dtype, outputs, first, config)
            room = points * count * launch.grid[1] * launch.constexprs["BC"]
            transforms.append(scratch(f"transforms {outputs}", dy, room))
            gather(image, transforms[-1])
        _, correlate = prepare(device, correlate_launch, geometry, dtype, precision_of(dy), first > 0, config)
        correlate(*transforms, u)
    _, taps = prepare(device, taps_launch, geometry, dtype, memory_format is torch.channels_last, config)
    taps(u, dw)
    return dw
