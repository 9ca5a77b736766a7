"""Tiles of Winograd's algorithm: a block of BM tiles of 4 × 4 outputs, BN output and BK input channels at a time."""

from __future__ import annotations

import torch
from triton import cdiv, next_power_of_2

from ..cpu.target import host
from ..geometry import ConvGeometry
from .tile import MACHINES, TileConfig, kind_of

_EXTENTS = {"cuda": (16,), "hip": (16,), "cpu": (8, 16, 32), "interpreter": (64,)}  # of BM


def as_fprop(op: str, geometry: ConvGeometry) -> ConvGeometry | None:
    """The fprop by which the algorithm computes `op` of a convolution; None where it cannot.

    At stride 1 dgrad convolves dy with the flipped, transposed weight.
    """
    g = geometry
    if (g.R, g.S, *g.stride, *g.dilation, g.groups) != (3, 3, 1, 1, 1, 1, 1) or op not in ("fprop", "dgrad"):
        return None
    if op == "fprop":
        return g
    padding = tuple((2 - before, 2 - after) for before, after in g.padding)
    if min(map(min, padding)) < 0:
        return None
    return ConvGeometry(g.N, g.K, g.P, g.Q, g.C, 3, 3, padding=padding)


def space(op: str, geometry: ConvGeometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    """`geometry` is that of `as_fprop`."""
    machine = MACHINES[kind_of(target)]
    # A loop of one turn would be dissolved, and its product would not be the kind that the CPU target interchanges.
    BK = max(min(next_power_of_2(geometry.C) // 2, 32), machine.smallest)
    BN = max(min(next_power_of_2(geometry.K), 32), machine.smallest)
    tiles = next_power_of_2(_tiles(geometry))
    extents = dict.fromkeys(max(min(BM, tiles), machine.smallest) for BM in _EXTENTS[kind_of(target)])
    configs = [TileConfig(BM, BN, BK, num_warps=4, num_stages=1) for BM in extents]
    return tuple(sorted(configs, key=lambda tile: cpu_cycles(tile, geometry, dtype.itemsize)))


def _tiles(geometry: ConvGeometry) -> int:
    return geometry.N * cdiv(geometry.P, 4) * cdiv(geometry.Q, 4)


# Cycles of the CPU target's code on two AVX2 cores: of transforming a vector of each of 36 values, of finding a tile's
# pixels, of starting a register tile, of starting a turn of its loop, and of a vector that a turn takes.
_TRANSFORM, _PIXELS, _TILE_STARTS, _TURN_STARTS = 100, 150, 60, 20
_LATENCY = 4  # rows of two vectors that keep the multipliers busy
_CACHE, _STREAM = 16 << 20, 20  # bytes of the last cache, and those a cycle that come from beyond it
_PACK, _PACK_STREAM = 0.4, 1.6  # a weight's element, beyond what packing it plainly takes: in cache, and beyond


def cpu_cycles(tile: TileConfig, geometry: ConvGeometry, itemsize: int, kept: bool = True) -> float:
    """Cycles of all programs, those that run beside each other counted once; comparable with those of `gemm`.

    `kept`: whether the weight is packed already.
    """
    programs = MACHINES["cpu"].programs
    lanes = 32 // itemsize
    blocks, k_tiles = cdiv(_tiles(geometry), tile.BM), cdiv(geometry.K, tile.BN)
    split = min(k_tiles, cdiv(programs, blocks))
    rows, _ = host().dot_tile(2)
    full, rest = divmod(tile.BM, rows)
    panels = full + (rest > 0)
    turns = cdiv(geometry.C, tile.BK)
    multiply = panels * (_TILE_STARTS + turns * _TURN_STARTS)
    multiply += turns * tile.BK * (full * rows + (max(rest, _LATENCY) if rest else 0))
    multiply *= 36 * cdiv(tile.BN, 2 * lanes)
    transform = tile.BM * (_PIXELS + _TRANSFORM * cdiv(geometry.C, lanes))
    inverse = tile.BM * (_PIXELS + _TRANSFORM * cdiv(tile.BN, lanes))
    compute = cdiv(blocks * split, programs) * (transform + cdiv(k_tiles, split) * (multiply + inverse))
    weights = 36 * geometry.C * geometry.K
    large = weights * itemsize > _CACHE
    if large:  # read once by all programs that run beside each other
        compute += cdiv(blocks, programs) * weights * itemsize / _STREAM
    return compute if kept else compute + weights * (_PACK_STREAM if large else _PACK)
