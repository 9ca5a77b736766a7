"""Tiles of pooling."""

from __future__ import annotations

import torch
from triton import next_power_of_2

from ..geometry import PoolGeometry
from .tile import TileConfig, kind_of

# (BM × BN, num_warps)
_GPU_TILES = ((512, 4), (1024, 8))
_TILES = {
    "cuda": _GPU_TILES,
    "hip": _GPU_TILES,
    "cpu": ((4096, 1), (1024, 1), (16384, 1)),
    "interpreter": ((1 << 18, 1),),
}


def space(op: str, geometry: PoolGeometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    tiles = (_fit(area, warps, op, geometry) for area, warps in _TILES[kind_of(target)])
    return tuple(dict.fromkeys(tiles))


def _fit(area: int, num_warps: int, op: str, geometry: PoolGeometry) -> TileConfig:
    pixels = geometry.N * (geometry.P * geometry.Q if op == "max_pool" else geometry.H * geometry.W)
    BN = min(next_power_of_2(geometry.C), 64)
    return TileConfig(min(area // BN, next_power_of_2(pixels)), BN, num_warps=num_warps)
