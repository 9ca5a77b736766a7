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
    BN = min(next_power_of_2(geometry.C), 64)
    tiles = (
        TileConfig(min(area // BN, next_power_of_2(geometry.M)), BN, num_warps=warps)
        for area, warps in _TILES[kind_of(target)]
    )
    return tuple(dict.fromkeys(tiles))
