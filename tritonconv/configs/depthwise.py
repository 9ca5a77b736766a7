"""Tiles of depthwise convolution: a program takes BM columns of a row of pixels, BN channels at once, and for the
gradient of the weight a block of BK taps."""

from __future__ import annotations

import torch
from triton import cdiv, next_power_of_2

from ..cpu.target import caches, host
from ..geometry import ConvGeometry
from .tile import MACHINES, TileConfig, kind_of

# (BM, BN, num_warps). The gradient of the weight has a tile of sums for each tap of a block: on a GPU a few elements
# per thread, on a CPU one column of whole vectors, here counted, which stay in registers. That of the input has one for
# each residue class of the stride.
_GPU_TILES = ((16, 64, 4), (32, 64, 4), (8, 128, 4), (16, 32, 2))
_NARROW = ((8, 64, 4), (16, 64, 4), (8, 128, 4), (16, 32, 2))
_CPU_TILES = ((8, 64, 1), (8, 32, 1), (16, 32, 1), (64, 64, 1))
_INTERPRETED = ((4096, 256, 1), (16, 16, 1))
_TILES = {
    "depthwise_fprop": {"cuda": _GPU_TILES, "hip": _GPU_TILES, "cpu": _CPU_TILES, "interpreter": _INTERPRETED},
    "depthwise_dgrad": {"cuda": _NARROW, "hip": _GPU_TILES, "cpu": _CPU_TILES, "interpreter": _INTERPRETED},
    "depthwise_wgrad": {
        "cuda": ((8, 64, 4), (4, 128, 4), (8, 32, 2)),
        "hip": ((16, 64, 4), (8, 128, 4), (16, 32, 2)),
        "cpu": ((1, 2, 1), (1, 1, 1)),
        "interpreter": _INTERPRETED,
    },
}
_PROGRAMS = 8  # of the gradient of the weight, for each that runs at a time: the last ones to end leave others idle
_ROW = 7  # taps of a block on a GPU, at most a row of them


def space(op: str, geometry: ConvGeometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    kind = kind_of(target)
    if op == "depthwise_wgrad":
        configs = (_sums(*tile, geometry, dtype, kind) for tile in _TILES[op][kind])
        return tuple(sorted(dict.fromkeys(configs), key=lambda config: -config.BK))  # the fewest blocks first
    return tuple(dict.fromkeys(_fit(*tile, op, geometry) for tile in _TILES[op][kind]))


def _fit(BM: int, BN: int, num_warps: int, op: str, geometry: ConvGeometry) -> TileConfig:
    columns, channels = geometry.Q, geometry.K
    if op == "depthwise_dgrad":
        columns, channels = cdiv(geometry.W, geometry.stride[1]), geometry.C
    return TileConfig(min(BM, next_power_of_2(columns)), _width(BN, channels), num_warps=num_warps)


def _width(BN: int, channels: int) -> int:
    """Half of a tile that divides the channels is better than a whole one that does not."""
    return BN // 2 if channels % BN and channels % (BN // 2) == 0 else min(BN, next_power_of_2(channels))


def _sums(BM: int, BN: int, num_warps: int, geometry: ConvGeometry, dtype: torch.dtype, kind: str) -> TileConfig:
    rows = geometry.N * geometry.P
    if kind == "cpu":
        taps = _taps(geometry.R, geometry.S, host().registers // BN - 1)  # and as many vectors of dy as of sums
        BN *= host().lanes(max(4, dtype.itemsize))
    else:
        taps = _taps(1, geometry.S, _ROW)
    BN = _width(BN, geometry.K)
    splits = min(_PROGRAMS * MACHINES[kind].programs // (geometry.taps // taps * cdiv(geometry.K, BN)), rows // 4)
    pixels = rows * (geometry.Q + geometry.stride[0] * geometry.W)
    if kind == "cpu" and (size := pixels * geometry.K * dtype.itemsize) > caches().last // 2:
        # A program reads a few lines of each pixel; their neighbours are in cache while it is the next ones' turn.
        splits = max(splits, size // (2 * caches().second))
    return TileConfig(
        min(BM, next_power_of_2(geometry.Q)), BN, BK=taps, SPLIT=min(max(splits, 1), rows), num_warps=num_warps
    )


def _taps(R: int, S: int, most: int) -> int:
    """Taps of the largest block: rows of them that divide R, or a part of a row that divides S."""
    rows, parts = (n * S for n in range(1, R + 1) if R % n == 0), (n for n in range(1, S) if S % n == 0)
    return max(n for n in (1, *rows, *parts) if n <= most)
