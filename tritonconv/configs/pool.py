"""Tiles of pooling."""

from __future__ import annotations

import torch
from triton import next_power_of_2

from ..geometry import AdaptiveGeometry, PoolGeometry
from .tile import TileConfig, kind_of

# (BM × BN, num_warps)
_GPU_TILES = ((512, 4), (1024, 8))
_TILES = {
    "cuda": _GPU_TILES,
    "hip": _GPU_TILES,
    "cpu": ((4096, 1), (1024, 1), (16384, 1)),
    "interpreter": ((1 << 18, 1),),
}

Geometry = PoolGeometry | AdaptiveGeometry


def space(op: str, geometry: Geometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    channels = 256 if target == "cpu" else 64  # where each pixel costs as much as many channels do
    tiles = (_fit(area, warps, op, geometry, channels) for area, warps in _TILES[kind_of(target)])
    return tuple(dict.fromkeys(tiles))


def _fit(area: int, num_warps: int, op: str, geometry: Geometry, channels: int) -> TileConfig:
    """BM rows of BK pixels of BN channels: of the input for a gradient, of the output for anything else."""
    rows, columns = (geometry.H, geometry.W) if op.endswith("backward") else (geometry.P, geometry.Q)
    BN = min(next_power_of_2(geometry.C), channels)
    BK = min(next_power_of_2(columns), area // BN)
    return TileConfig(min(area // (BN * BK), next_power_of_2(geometry.N * rows)), BN, BK, num_warps=num_warps)


def unpool_space(op: str, geometry: AdaptiveGeometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    """BM pixels of BN channels."""
    BN = min(next_power_of_2(geometry.C), 64)
    pixels = next_power_of_2(geometry.N * geometry.P * geometry.Q)
    tiles = (TileConfig(min(area // BN, pixels), BN, num_warps=warps) for area, warps in _TILES[kind_of(target)])
    return tuple(dict.fromkeys(tiles))


def global_space(op: str, geometry: PoolGeometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    """BM images of BN channels, read BK pixels at a time."""
    tiles = (_fit_global(area, warps, geometry) for area, warps in _TILES[kind_of(target)])
    return tuple(dict.fromkeys(tiles))


def _fit_global(area: int, num_warps: int, geometry: PoolGeometry) -> TileConfig:
    BN = min(next_power_of_2(geometry.C), 64)
    BK = min(next_power_of_2(geometry.H * geometry.W), area // BN, 64)
    return TileConfig(min(area // (BN * BK), next_power_of_2(geometry.N)), BN, BK, num_warps=num_warps)
