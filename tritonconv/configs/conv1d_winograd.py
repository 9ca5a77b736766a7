"""Tiles of Winograd's algorithm in one dimension: BM output channels of blocks of BN tiles of 4 outputs."""

from __future__ import annotations

import itertools

import torch
from triton import cdiv, next_power_of_2

from ..cpu.target import caches, host
from ..geometry import RowGeometry
from .cpu import TILE_STARTS, column, cut
from .tile import MACHINES, TileConfig, kind_of
from .winograd import channels

OUT, POINTS = 4, 6
_EXTENTS = {"cpu": ((32, 64, 128), (64, 32))}
_ELSEWHERE = (64,), (16,)
# Cycles, measured on two Zen 4 cores: of transforming vectors of 64 bytes at all points, there and back; more where
# neighbouring tiles are no neighbours in memory.
_TRANSFORM, _APART = 90, 400
_CACHE_RATE = 32  # bytes a cycle that a core gets from the last cache


def space(op: str, geometry: RowGeometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    """`geometry` is that of `winograd.as_fprop`."""
    kind = kind_of(target)
    least = MACHINES[kind].smallest
    BK = channels(geometry.C) if kind == "cpu" else max(min(next_power_of_2(geometry.C), 32), least)
    found = {}
    for BM, BN in itertools.product(*_EXTENTS.get(kind, _ELSEWHERE)):
        BM, BN = (max(min(size, next_power_of_2(n)), least) for size, n in ((BM, geometry.K), (BN, tiles(geometry))))
        found[TileConfig(BM, BN, BK, OUT=OUT, num_warps=4)] = None
    return tuple(sorted(found, key=lambda tile: cost(tile, op, geometry, dtype, target)))


def tiles(geometry: RowGeometry) -> int:
    """Of 4 outputs, in one image, the phases of the dilation each by itself."""
    dilation = geometry.dilation[1]
    return cdiv(geometry.Q, OUT * dilation) * dilation


def cost(tile: TileConfig, op: str, geometry: RowGeometry, dtype: torch.dtype, target: str) -> float:
    """Cycles, on a CPU, of all programs, those that run beside each other counted once."""
    machine, programs = host(), MACHINES["cpu"].programs
    size = max(dtype.itemsize, 4)  # of an accumulator
    blocks, k_tiles = geometry.N * cdiv(tiles(geometry), tile.BN), cdiv(geometry.K, tile.BM)
    split = min(k_tiles, cdiv(programs, blocks))
    # As far as a nest's two vectors reach, neighbours are found to be such.
    near = geometry.dilation[1] % (2 * machine.lanes(size)) == 0
    transform = (_TRANSFORM if near else _APART) / 2 * size / 64  # of an element, one way
    inputs = tile.BN * geometry.C * transform
    outputs = tile.BM * tile.BN * transform
    share = cdiv(k_tiles, split) * (POINTS * _product(tile, geometry.C, size) + outputs)
    weights = POINTS * geometry.C * geometry.K * size
    shared = weights * blocks / _CACHE_RATE / programs if weights > caches().second else 0
    return cdiv(blocks * split, programs) * (inputs + share) + shared


def gemm_cost(tile: TileConfig, op: str, geometry: RowGeometry, dtype: torch.dtype, target: str) -> float:
    """The same of the GEMM that computes "conv1d_fprop" or "conv1d_dgrad"; only on a CPU there is a choice."""
    M, N, K = geometry.gemm(op)
    programs = cdiv(M, tile.BM) * cdiv(N, tile.BN) * geometry.groups * geometry.N
    return cdiv(programs, MACHINES["cpu"].programs) * geometry.taps * _product(tile, K, max(dtype.itemsize, 4))


def _product(tile: TileConfig, reduction: int, size: int) -> float:
    """Of a product [BM, reduction] × [reduction, BN]."""
    rows, vectors, across = cut(tile, size)
    return across * column(tile.BM, rows, vectors, TILE_STARTS, reduction)
