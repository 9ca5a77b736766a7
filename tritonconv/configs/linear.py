"""Tiles of fully connected layers, by op: of one vector BN rows of the weight side by side, BK columns at a time; of a
few, BM of them or, in wgrad, BM rows of the weight. dgrad reads some hundreds of rows in a split: through so many pages
of memory a processor finds its way at once.
"""

from __future__ import annotations

import torch
from triton import cdiv, next_power_of_2

from ..geometry import ConvGeometry
from .tile import TileConfig

_TILES = {
    "cpu": ((8, 64), (4, 64), (16, 64), (8, 32), (4, 128), (8, 128), (2, 256)),
    "interpreter": ((256, 1024), (8, 64)),
}
# (BN, BK); of dgrad (BN, rows of a split); of wgrad (BM, BN).
_TILES_OF_FEW = {
    "linear_fprop": {"cpu": ((8, 64), (16, 64), (32, 64)), "interpreter": ((1024, 1024), (16, 64))},
    "linear_dgrad": {"cpu": ((256, 512), (512, 512), (1024, 256)), "interpreter": ((1024, 1024), (64, 64))},
    "linear_wgrad": {"cpu": ((64, 1024), (64, 512), (16, 512), (128, 256)), "interpreter": ((1024, 1024), (16, 64))},
}


def space(op: str, geometry: ConvGeometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    """`geometry`: the layer as a convolution of single pixels. It runs on CPUs only."""
    if op == "linear":
        rows, columns = map(next_power_of_2, (geometry.K, geometry.C))
        return tuple(dict.fromkeys(TileConfig(1, min(BN, rows), min(BK, columns)) for BN, BK in _TILES[target]))
    return tuple(dict.fromkeys(_fit(*tile, op, geometry) for tile in _TILES_OF_FEW[op][target]))


def _fit(first: int, second: int, op: str, geometry: ConvGeometry) -> TileConfig:
    N, C, K = map(next_power_of_2, (geometry.N, geometry.C, geometry.K))
    if op == "linear_fprop":
        return TileConfig(N, min(first, K), min(second, C))
    if op == "linear_dgrad":
        return TileConfig(N, min(first, C), min(64, K), SPLIT=cdiv(geometry.K, second))
    return TileConfig(min(first, K), min(second, C), BK=8)
