"""Tiles of the implicit GEMMs: fprop, dgrad and wgrad."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from triton import cdiv, next_power_of_2

from ..geometry import ConvGeometry
from .tile import MACHINES, Machine, TileConfig, kind_of

_GPU_TILES_16BIT = (
    TileConfig(128, 128, 64, num_warps=8, num_stages=3),
    TileConfig(128, 64, 64, num_warps=8, num_stages=4),
    TileConfig(64, 128, 64, num_warps=4, num_stages=4),
    TileConfig(64, 64, 64, num_warps=4, num_stages=4),
    TileConfig(128, 32, 64, num_warps=4, num_stages=4),
    TileConfig(64, 32, 64, num_warps=4, num_stages=4),
    TileConfig(32, 64, 32, num_warps=4, num_stages=4),
    TileConfig(64, 16, 32, num_warps=4, num_stages=4),
)
_GPU_TILES_32BIT = (  # eight warps where four run out of registers for true float32, which has no tensor cores
    TileConfig(128, 64, 32, num_warps=8, num_stages=3),
    TileConfig(64, 128, 32, num_warps=8, num_stages=3),
    TileConfig(64, 64, 32, num_warps=8, num_stages=3),
    TileConfig(128, 32, 16, num_warps=8, num_stages=3),
    TileConfig(64, 32, 16, num_warps=4, num_stages=3),
    TileConfig(32, 64, 16, num_warps=4, num_stages=3),
    TileConfig(64, 16, 16, num_warps=4, num_stages=3),
)
_GPU_TILES_64BIT = (
    TileConfig(64, 32, 16, num_warps=4, num_stages=2),
    TileConfig(32, 32, 16, num_warps=4, num_stages=2),
    TileConfig(32, 16, 16, num_warps=4, num_stages=2),
)
_GPU_TILES = {2: _GPU_TILES_16BIT, 4: _GPU_TILES_32BIT, 8: _GPU_TILES_64BIT}
_TILES = {
    "cuda": _GPU_TILES,
    # Two stages are one buffer of shared memory, of which AMD has little; the next tiles wait in registers.
    "hip": {size: tuple(replace(tile, num_stages=2) for tile in tiles) for size, tiles in _GPU_TILES.items()},
    "cpu": dict.fromkeys(
        (2, 4, 8), tuple(TileConfig(*tile) for tile in itertools.product((64, 128), (16, 64), (64, 128, 256, 32)))
    ),
    "interpreter": dict.fromkeys((2, 4, 8), (TileConfig(4096, 256, 512), TileConfig(64, 16, 16))),
}


def space(op: str, geometry: ConvGeometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    kind = kind_of(target)
    fitted = (_fit(tile, op, geometry, MACHINES[kind]) for tile in _TILES[kind][dtype.itemsize])
    # Tables list large tiles first: of those that became equal in extent, the last has the warps meant for it.
    tiles = {(tile.BM, tile.BN, tile.BK): tile for tile in fitted}.values()
    return tuple(sorted(tiles, key=lambda tile: cost(tile, op, geometry, dtype, target)))


def cost(tile: TileConfig, op: str, geometry: ConvGeometry, dtype: torch.dtype, target: str) -> float:
    """What is predicted of `tile`, in a unit of the target's own."""
    kind = kind_of(target)
    if kind == "cpu":
        return cpu_cycles(tile, op, geometry, dtype.itemsize)
    return _cost(tile, op, geometry, MACHINES[kind])


def _classes(op: str, geometry: ConvGeometry) -> int:
    """The GEMMs of dgrad: one for each residue class of the stride, which share the taps."""
    return geometry.stride[0] * geometry.stride[1] if op == "dgrad" else 1


def _programs(tile: TileConfig, op: str, geometry: ConvGeometry) -> int:
    M, N, _ = geometry.gemm(op)
    copies = geometry.taps * tile.SPLIT if op == "wgrad" else _classes(op, geometry)
    return cdiv(M, tile.BM) * cdiv(N, tile.BN) * geometry.groups * copies


def _fit(tile: TileConfig, op: str, geometry: ConvGeometry, machine: Machine) -> TileConfig:
    """`tile`, no larger than the problem and with the splits that fill the machine."""
    sizes = geometry.gemm(op)
    channels = sizes[:2] if op == "wgrad" else sizes[2:]  # that lie side by side in what is loaded
    BK = min(tile.BK, machine.ragged_BK) if any(size % 8 for size in channels) else tile.BK
    M, N, K = (max(next_power_of_2(size), machine.smallest) for size in sizes)
    tile = replace(tile, BM=min(tile.BM, M), BN=min(tile.BN, N), BK=min(BK, K))
    if op == "wgrad":
        wanted = 2 * machine.programs // _programs(tile, op, geometry)
        tile = replace(tile, SPLIT=max(1, min(wanted, K // (4 * tile.BK))))
    return tile


def _cost(tile: TileConfig, op: str, geometry: ConvGeometry, machine: Machine) -> float:
    """Multiply-adds of a program, padding included, times how many programs run one after the other."""
    _, _, K = geometry.gemm(op)
    taps = geometry.taps / _classes(op, geometry)
    steps = cdiv(cdiv(K, tile.SPLIT), tile.BK) if op == "wgrad" else taps * cdiv(K, tile.BK)
    step = tile.BK * (tile.BM * tile.BN + machine.load * (tile.BM + tile.BN))
    return cdiv(_programs(tile, op, geometry), machine.programs) * (machine.start + steps * step)


# What the CPU target's code costs on two AVX2 cores, in cycles: a register tile of 6 rows × 2 vectors takes 6 a turn.
_ROWS, _TURN, _TURN_STARTS, _TILE_STARTS, _PROGRAM_STARTS, _PIXEL = 6, 6, 20, 60, 1500, 40
_L1 = 32 << 10


def cpu_cycles(tile: TileConfig, op: str, geometry: ConvGeometry, itemsize: int) -> float:
    """Cycles of all programs, those that run beside each other counted once.

    Full-width fprop and dgrad keep a register tile over the whole reduction and read both operands where they lie;
    wgrad, and half types, bring both operands' tiles into scratch memory first.
    """
    M, N, K = geometry.gemm(op)
    taps = geometry.taps / _classes(op, geometry)
    lanes = 32 // max(itemsize, 4)
    register_tiles = cdiv(min(tile.BM, M), _ROWS) * cdiv(tile.BN, 2 * lanes)
    if op != "wgrad" and itemsize >= 4:
        # A turn starts with its tap's row pointers; a pointwise convolution has them all along.
        starts = _TURN_STARTS if geometry.taps > 1 else 0
        turns = taps * cdiv(K, tile.BK) * (starts + tile.BK * _TURN)
        # Columns of a wide panel lie far apart: beyond the first cache they push each other out.
        if 2 * lanes < tile.BN and taps * K * tile.BN * itemsize > _L1:
            turns *= 1.3
        program = register_tiles * (_TILE_STARTS + turns)
    else:
        steps = cdiv(cdiv(K, tile.SPLIT), tile.BK) if op == "wgrad" else taps * cdiv(K, tile.BK)
        fill = 1.5 * tile.BK * (tile.BM + tile.BN) / lanes + 2 * _PIXEL * (tile.BK if op == "wgrad" else tile.BM)
        program = steps * (fill + register_tiles * (_TURN_STARTS + tile.BK * _TURN))
    machine = MACHINES["cpu"]
    return cdiv(_programs(tile, op, geometry), machine.programs) * (_PROGRAM_STARTS + program)
