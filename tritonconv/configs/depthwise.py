"""Tiles of depthwise convolution: a program takes BM pixels of BN channels at once."""

from __future__ import annotations

import torch
from triton import cdiv, next_power_of_2

from ..geometry import ConvGeometry
from .tile import MACHINES, TileConfig, kind_of

# (BM × BN, num_warps)
_GPU_TILES = ((1024, 4), (2048, 4), (512, 4))
_TILES = {
    "cuda": _GPU_TILES,
    "hip": _GPU_TILES,
    "cpu": ((4096, 1), (1024, 1), (16384, 1)),
    "interpreter": ((1 << 18, 1), (256, 1)),
}


def space(op: str, geometry: ConvGeometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    kind = kind_of(target)
    tiles = (_fit(area, warps, op, geometry, kind) for area, warps in _TILES[kind])
    return tuple(dict.fromkeys(tiles))


def _fit(area: int, num_warps: int, op: str, geometry: ConvGeometry, kind: str) -> TileConfig:
    channels = geometry.C if op == "depthwise_dgrad" else geometry.K
    # The widest tile that leaves few lanes without a channel.
    BN = next((n for n in (128, 64, 32) if channels % n == 0), min(next_power_of_2(channels), 16))
    if op != "depthwise_wgrad":
        pixels, _, _ = geometry.gemm(op.removeprefix("depthwise_"))
        return TileConfig(min(area // BN, next_power_of_2(pixels)), BN, num_warps=num_warps)
    rows, columns = geometry.N * geometry.P, min(area // BN, next_power_of_2(geometry.Q))
    wanted = 2 * MACHINES[kind].programs // (geometry.taps * cdiv(channels, BN))
    split = max(1, min(wanted, rows // 4))
    return TileConfig(columns, BN, SPLIT=split, num_warps=1)
