"""Tiles of depthwise convolution: a program takes BM columns of a row of pixels, BN channels at once."""

from __future__ import annotations

import torch
from triton import cdiv, next_power_of_2

from ..geometry import ConvGeometry
from .tile import MACHINES, TileConfig, kind_of

# (BM, BN, num_warps)
_GPU_TILES = ((16, 64, 4), (32, 64, 4), (8, 128, 4), (16, 32, 2))
_TILES = {
    "cuda": _GPU_TILES,
    "hip": _GPU_TILES,
    "cpu": ((16, 32, 1), (8, 32, 1), (64, 64, 1)),
    "interpreter": ((4096, 256, 1), (16, 16, 1)),
}
_CACHED = 1 << 16  # bytes of a split that its taps read one after the other on a CPU


def space(op: str, geometry: ConvGeometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    kind = kind_of(target)
    return tuple(dict.fromkeys(_fit(*tile, op, geometry, dtype, kind) for tile in _TILES[kind]))


def _fit(
    BM: int, BN: int, num_warps: int, op: str, geometry: ConvGeometry, dtype: torch.dtype, kind: str
) -> TileConfig:
    columns, channels = geometry.Q, geometry.K
    if op == "depthwise_dgrad":
        columns, channels = cdiv(geometry.W, geometry.stride[1]), geometry.C
    # Half of a tile that divides the channels is better than a whole one that does not.
    BN = BN // 2 if channels % BN and channels % (BN // 2) == 0 else min(BN, next_power_of_2(channels))
    BM = min(BM, next_power_of_2(columns))
    if op != "depthwise_wgrad":
        return TileConfig(BM, BN, num_warps=num_warps)
    rows = geometry.N * geometry.P
    wanted = 2 * MACHINES[kind].programs // (geometry.taps * cdiv(channels, BN))
    least = 1
    if kind == "cpu":  # the taps' programs, one after the other, find a split's pixels in cache
        row = BN * (geometry.Q + geometry.stride[0] * geometry.W) * dtype.itemsize
        least = cdiv(rows * row, _CACHED)
    return TileConfig(BM, BN, SPLIT=min(max(least, min(wanted, rows // 4), 1), rows), num_warps=1)
