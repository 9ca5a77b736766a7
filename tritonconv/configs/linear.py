"""Tiles of fully connected layers, by op: of one vector BN rows of the weight side by side, BK columns at a time; of a
few, BM of them or, in wgrad, BM rows of the weight. dgrad reads some hundreds of rows in a split: through so many pages
of memory a processor finds its way at once.

A sum of four vectors of columns is what the CPU target keeps in registers, of more it makes a loop with a sum of its
own: of one vector BK is that, whatever the width of a processor's vectors.
"""

from __future__ import annotations

import torch
from triton import cdiv, next_power_of_2

from ..cpu.target import host
from ..geometry import ConvGeometry
from .tile import TileConfig

_VECTORS = (8, 4), (4, 4), (16, 4), (8, 2), (4, 8), (8, 8), (2, 16)  # BN, and vectors of columns, on a CPU
_INTERPRETED = (256, 1024), (8, 64)
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
        lanes = host().lanes(max(4, dtype.itemsize))
        tiles = [(BN, vectors * lanes) for BN, vectors in _VECTORS] if target == "cpu" else _INTERPRETED
        return tuple(dict.fromkeys(TileConfig(1, min(BN, rows), min(BK, columns)) for BN, BK in tiles))
    return tuple(dict.fromkeys(_fit(*tile, op, geometry) for tile in _TILES_OF_FEW[op][target]))


def _fit(first: int, second: int, op: str, geometry: ConvGeometry) -> TileConfig:
    N, C, K = map(next_power_of_2, (geometry.N, geometry.C, geometry.K))
    if op == "linear_fprop":
        return TileConfig(N, min(first, K), min(second, C))
    if op == "linear_dgrad":
        return TileConfig(N, min(first, C), min(64, K), SPLIT=cdiv(geometry.K, second))
    return TileConfig(min(first, K), min(second, C), BK=8)
