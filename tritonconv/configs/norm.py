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
    "cpu": ((16384, 1), (4096, 1)),
    "interpreter": ((1 << 18, 1), (1024, 1)),
}


def space(op: str, geometry: NormGeometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    # A CPU reads memory best from end to end: all channels of a pixel, then those of the next.
    channels = min(next_power_of_2(geometry.C), 1024 if target == "cpu" else 64)
    tiles = (_fit(area, warps, geometry, channels) for area, warps in _TILES[kind_of(target)])
    return tuple(dict.fromkeys(tiles))


def _fit(area: int, num_warps: int, geometry: NormGeometry, channels: int) -> TileConfig:
    pixels = next_power_of_2(geometry.M)
    if geometry.planar:  # what lies side by side is long
        BM = min(pixels, 1024)
        return TileConfig(BM, min(next_power_of_2(geometry.C), area // BM), num_warps=num_warps)
    return TileConfig(min(area // channels, pixels), channels, num_warps=num_warps)
