"""Tiles of a fully connected layer of one vector: BN rows of the weight side by side, BK columns at a time."""

from __future__ import annotations

import torch
from triton import next_power_of_2

from ..geometry import ConvGeometry
from .tile import TileConfig

_TILES = {
    "cpu": ((8, 64), (4, 64), (16, 64), (8, 32), (4, 128), (8, 128), (2, 256)),
    "interpreter": ((256, 1024), (8, 64)),
}


def space(op: str, geometry: ConvGeometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    """`geometry`: the layer as a convolution of one pixel. It runs on CPUs only."""
    rows, columns = map(next_power_of_2, (geometry.K, geometry.C))
    return tuple(dict.fromkeys(TileConfig(1, min(BN, rows), min(BK, columns)) for BN, BK in _TILES[target]))
