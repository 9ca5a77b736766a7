"""Tiles of batch norm: a program takes BM pixels of BN channels at once."""

from __future__ import annotations

import torch
from triton import next_power_of_2

from ..geometry import NormGeometry
from .tile import TileConfig, kind_of

# (BM × BN, num_warps)
_TILES = {
    "cuda": ((2048, 4), (4096, 8)),
    "hip": ((2048, 4), (4096, 8)),
    "cpu": ((4096, 1), (16384, 1)),
    "interpreter": ((1 << 18, 1), (1024, 1)),
}


def space(op: str, geometry: NormGeometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    tiles = (_fit(area, warps, geometry) for area, warps in _TILES[kind_of(target)])
    return tuple(dict.fromkeys(tiles))


def _fit(area: int, num_warps: int, geometry: NormGeometry) -> TileConfig:
    pixels, channels = next_power_of_2(geometry.M), next_power_of_2(geometry.C)
    if geometry.planar:  # what lies side by side is long
        BM = min(pixels, 1024)
        return TileConfig(BM, min(channels, area // BM), num_warps=num_warps)
    BN = min(channels, 64)
    return TileConfig(min(area // BN, pixels), BN, num_warps=num_warps)
