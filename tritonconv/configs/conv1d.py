"""Tiles of 1-D convolution: fprop and dgrad, whose columns are positions of one image, and wgrad."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from triton import cdiv, next_power_of_2

from ..geometry import RowGeometry
from .tile import MACHINES, TileConfig, kind_of

_HALF = TileConfig(64, 128, 64, num_warps=4, num_stages=4), TileConfig(64, 64, 64, num_warps=4, num_stages=4)
_SINGLE = TileConfig(64, 128, 32, num_warps=8, num_stages=3), TileConfig(32, 64, 16, num_warps=4, num_stages=3)
_DOUBLE = TileConfig(32, 32, 16, num_warps=4, num_stages=2), TileConfig(16, 32, 16, num_warps=4, num_stages=2)
_GPU_TILES = {2: _HALF, 4: _SINGLE, 8: _DOUBLE}
# Positions that do not begin at a multiple of 16 bytes come one by one, each through a pointer in a register.
_GPU_STRIDED_TILES = _GPU_TILES | {
    2: (TileConfig(64, 64, 64, num_warps=8, num_stages=3),),
    4: (TileConfig(32, 128, 32, num_warps=8, num_stages=3),),
}
_GPU_WGRAD_TILES = _GPU_TILES | {2: (TileConfig(64, 64, 32, num_warps=8, num_stages=3),)}


def _two_stages(table: dict[int, tuple[TileConfig, ...]]) -> dict[int, tuple[TileConfig, ...]]:
    """Two stages are one buffer of shared memory, of which AMD has little."""
    return {size: tuple(replace(tile, num_stages=2) for tile in tiles) for size, tiles in table.items()}


_CPU_TILES = tuple(TileConfig(*tile) for tile in itertools.product((128, 64, 32), (128, 64), (128,)))
_TILES = {
    "cuda": _GPU_TILES,
    "hip": _two_stages(_GPU_TILES),
    "cpu": dict.fromkeys((2, 4, 8), _CPU_TILES),
    "interpreter": dict.fromkeys((2, 4, 8), (TileConfig(256, 4096, 512), TileConfig(16, 64, 16))),
}
_STRIDED_TILES = _TILES | {"cuda": _GPU_STRIDED_TILES, "hip": _two_stages(_GPU_STRIDED_TILES)}
_WGRAD_TILES = _TILES | {"cuda": _GPU_WGRAD_TILES, "hip": _two_stages(_GPU_WGRAD_TILES)}


def space(op: str, geometry: RowGeometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    kind = kind_of(target)
    strided = _TILES if geometry.stride == (1, 1) else _STRIDED_TILES
    listed = (_WGRAD_TILES if op == "conv1d_wgrad" else strided)[kind][dtype.itemsize]
    tiles = dict.fromkeys(_fit(tile, op, geometry, kind) for tile in listed)
    return tuple(sorted(tiles, key=lambda tile: _cost(tile, op, geometry, kind)))


def _programs(tile: TileConfig, op: str, geometry: RowGeometry) -> int:
    M, N, _ = geometry.gemm(op)
    copies = {"conv1d_fprop": geometry.N, "conv1d_dgrad": geometry.N * geometry.stride[1]}
    copies["conv1d_wgrad"] = geometry.taps * tile.SPLIT
    return cdiv(M, tile.BM) * cdiv(N, tile.BN) * geometry.groups * copies[op]


def _fit(tile: TileConfig, op: str, geometry: RowGeometry, kind: str) -> TileConfig:
    """`tile`, no larger than the problem and with the splits that fill the machine."""
    machine = MACHINES[kind]
    extents = (max(next_power_of_2(size), machine.smallest) for size in geometry.gemm(op))
    BM, BN, BK = map(min, (tile.BM, tile.BN, tile.BK), extents)
    if machine.loops and geometry.taps == 1 and BK > 1 and geometry.gemm(op)[2] <= BK:
        BK //= 2
    tile = replace(tile, BM=BM, BN=BN, BK=BK)
    if op != "conv1d_wgrad":
        return tile
    wanted = 2 * machine.programs // _programs(tile, op, geometry)
    return replace(tile, SPLIT=max(1, min(wanted, geometry.Q // (4 * BK))))


def _cost(tile: TileConfig, op: str, geometry: RowGeometry, kind: str) -> float:
    """Multiply-adds of a program, padding included, times how many programs run one after the other."""
    machine = MACHINES[kind]
    _, _, K = geometry.gemm(op)
    reduction = geometry.N * cdiv(K, tile.SPLIT) if op == "conv1d_wgrad" else geometry.taps * K
    program = reduction * (tile.BM * tile.BN + machine.load * (tile.BM + tile.BN))
    return cdiv(_programs(tile, op, geometry), machine.programs) * (machine.start + program)
