"""The gradient of a weight by Winograd's algorithm, over as many tiles at a time as the caches hold."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from ..configs import TileConfig
from ..configs.tile import kind_of
from ..configs.winograd import phases, points, tiles
from ..cpu.target import caches
from ..engines import Launch
from ..geometry import ConvGeometry
from ..kernels import winograd_wgrad as kernels
from .common import config_of, nhwc, precision_of, prepare, scratch
from .room import empty
from .winograd import GAP


def _config(geometry: ConvGeometry, dtype: torch.dtype, target: str, config: TileConfig | None) -> TileConfig:
    return config or config_of("winograd_wgrad", geometry, dtype, target)


def _stretch(geometry: ConvGeometry, dtype: torch.dtype, config: TileConfig) -> int:
    """How many tiles are taken at a time: their transforms fit the last cache, or are worth adding to the sums."""
    count, taps = phases(geometry)
    channels = cdiv(geometry.K, config.BM) * config.BM + count**2 * cdiv(geometry.C, config.BN) * config.BN
    size = points(config.OUT, taps) * max(dtype.itemsize, 4)  # of an element at all points
    room = max(caches().last // 2, 2 * size * count**2 * geometry.K * geometry.C)
    step = 2 * config.BK  # a loop of one turn would be dissolved
    least = cdiv(tiles(geometry, config.OUT), step)
    return step * max(1, min(least, room // (size * channels * step)))


def gather_launch(
    target: str, geometry: ConvGeometry, dtype, outputs: bool, first: int, config: TileConfig | None = None
) -> Launch:
    """Tensors: x, or dy with `outputs`, and its transforms."""
    config = _config(geometry, dtype, target, config)
    g, count = geometry, _stretch(geometry, dtype, config)
    (top, _), (left, _) = g.padding
    channels, block, stride = (g.K, config.BM, 1) if outputs else (g.C, config.BN, g.stride[0])
    constexprs = {
        "C": channels,
        "STRIDE": stride,
        "PAD_H": 0 if outputs else top,
        "PAD_W": 0 if outputs else left,
        "DIL_H": g.dilation[0],
        "DIL_W": g.dilation[1],
        "OUT": config.OUT,
        "TAPS": phases(g)[1],
        "OUTPUTS": outputs,
        "BM": config.BK,
        "BC": block,
    }
    image = (g.P, g.Q) if outputs else (g.H, g.W)
    numbers = g.N, *image, g.P, g.Q, first, count
    grid = count // config.BK, stride**2 * cdiv(channels, block), 1
    return Launch(kernels.winograd_gather, grid, numbers, constexprs, config.num_warps, config.num_stages)


def correlate_launch(
    target: str, geometry: ConvGeometry, dtype, precision: str, more: bool, config: TileConfig | None = None
) -> Launch:
    """Tensors: the transforms of dy and of x, and the sums."""
    config = _config(geometry, dtype, target, config)
    g, (count, taps) = geometry, phases(geometry)
    grid = cdiv(g.K, config.BM) * count**2 * cdiv(g.C, config.BN), points(config.OUT, taps), 1
    constexprs = {"C": g.C, "K": g.K, "PHASES": count**2, "MORE": more, "PRECISION": precision}
    constexprs |= {"BM": config.BM, "BN": config.BN, "BK": config.BK}
    numbers = (_stretch(g, dtype, config),)
    return Launch(kernels.winograd_correlate, grid, numbers, constexprs, config.num_warps, config.num_stages)


def taps_launch(
    target: str, geometry: ConvGeometry, dtype, channels_last: bool, config: TileConfig | None = None
) -> Launch:
    """Tensors: the sums, dw."""
    config = _config(geometry, dtype, target, config)
    g, (count, _) = geometry, phases(geometry)
    # A CPU fetches long runs of memory ahead; a GPU has registers for a few channels.
    BM, BN = 4, config.BN if kind_of(target) in ("cuda", "hip") else min(256, next_power_of_2(g.C))
    stride_c, stride_tap = (1, g.C) if channels_last else (g.taps, 1)
    constexprs = {"C": g.C, "K": g.K, "STRIDE_C": stride_c, "STRIDE_TAP": stride_tap, "STRIDE": count}
    constexprs |= {"OUT": config.OUT, "R": g.R, "BM": BM, "BN": BN}
    grid = cdiv(g.K, BM), cdiv(g.C, BN), count**2
    return Launch(kernels.winograd_taps, grid, (), constexprs, config.num_warps, 1)


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
    dw = empty(dy, geometry.weight, memory_format=memory_format)
    launch, _ = prepare(device, gather_launch, geometry, dtype, False, 0, config)
    OUT, count = launch.constexprs["OUT"], launch.sizes[-1]
    each, apart = points(OUT, phases(geometry)[1]), geometry.stride[0] ** 2
    u = scratch("sums", dy, each * (apart * geometry.K * geometry.C + GAP))
    for first in range(0, tiles(geometry, OUT), count):
        transforms = []
        for outputs, image in ((True, dy), (False, x)):
            launch, gather = prepare(device, gather_launch, geometry, dtype, outputs, first, config)
            room = each * (count * launch.grid[1] * launch.constexprs["BC"] + GAP)
            transforms.append(scratch(f"transforms {outputs}", dy, room))
            gather(image, transforms[-1])
        _, correlate = prepare(device, correlate_launch, geometry, dtype, precision_of(dy), first > 0, config)
        correlate(*transforms, u)
    _, taps = prepare(device, taps_launch, geometry, dtype, memory_format is torch.channels_last, config)
    taps(u, dw)
    return dw
