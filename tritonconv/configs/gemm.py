"""Tiles of the implicit GEMMs: fprop, dgrad and wgrad."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from triton import cdiv, next_power_of_2

from ..geometry import ConvGeometry
from .boxes import accelerated, boxable, m_tiles
from .cpu import cycles as cpu_cycles
from .cpu import residue_classes
from .tile import MACHINES, Machine, TileConfig, in_stretches, kind_of

_GPU_TILES_16BIT = (
    TileConfig(128, 128, 64, num_warps=8, num_stages=3),
    TileConfig(128, 64, 64, num_warps=8, num_stages=4),
    TileConfig(64, 128, 64, num_warps=4, num_stages=4),
    TileConfig(64, 64, 64, num_warps=4, num_stages=4),
    TileConfig(128, 32, 64, num_warps=4, num_stages=4),
    TileConfig(64, 32, 64, num_warps=4, num_stages=4),
    TileConfig(32, 64, 32, num_warps=2, num_stages=4),
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
_TF32_TILE = TileConfig(128, 128, 32, num_warps=8, num_stages=3)  # where products are of what is in shared memory
_GPU_TILES_64BIT = (
    TileConfig(64, 32, 16, num_warps=4, num_stages=2),
    TileConfig(32, 32, 16, num_warps=4, num_stages=2),
    TileConfig(32, 16, 16, num_warps=4, num_stages=2),
)
_CPU_TILES = tuple(TileConfig(*tile, BK=64) for tile in itertools.product((128, 64, 32), (64, 32, 16)))
# Of wgrad, which copies BK pixels of both operands at a time.
_CPU_WGRAD_TILES = (
    TileConfig(64, 256, 32),
    TileConfig(128, 128, 32),
    TileConfig(64, 128, 32),
    TileConfig(256, 64, 32),
    TileConfig(128, 64, 32),
    TileConfig(64, 64, 64),
    TileConfig(64, 64, 32),
    TileConfig(128, 32, 32),
    TileConfig(64, 32, 64),
    TileConfig(32, 32, 32),
    TileConfig(128, 16, 64),
    TileConfig(128, 16, 32),
)
# Where it reads both in place: the wider and higher, the fewer times.
_CPU_STRETCHED_TILES = tuple(
    TileConfig(*tile, BK=32, SPLIT=split)
    for tile in ((128, 256), (128, 128), (64, 256), (64, 128), (128, 64), (64, 64), (128, 32), (32, 32), (128, 16))
    for split in (1, 2, 4)
)
_GPU_TILES = {2: _GPU_TILES_16BIT, 4: _GPU_TILES_32BIT, 8: _GPU_TILES_64BIT}
# Where operands come as boxes a turn costs much the same whatever is in it: the more products in one, the better.
_BOXED_TILES = (
    TileConfig(128, 256, 128, num_warps=8, num_stages=2, boxed=True),
    TileConfig(256, 128, 128, num_warps=8, num_stages=2, boxed=True),
    TileConfig(128, 128, 128, num_warps=4, num_stages=2, boxed=True),
    TileConfig(256, 64, 64, num_warps=4, num_stages=3, boxed=True),
    TileConfig(128, 64, 128, num_warps=4, num_stages=3, boxed=True),
    TileConfig(64, 128, 128, num_warps=4, num_stages=3, boxed=True),
    TileConfig(64, 64, 128, num_warps=4, num_stages=4, boxed=True),
    TileConfig(64, 32, 128, num_warps=4, num_stages=4, boxed=True),
)
_TILES = {
    "cuda": _GPU_TILES,
    # Two stages are one buffer of shared memory, of which AMD has little; the next tiles wait in registers.
    "hip": {size: tuple(replace(tile, num_stages=2) for tile in tiles) for size, tiles in _GPU_TILES.items()},
    "cpu": dict.fromkeys((2, 4, 8), _CPU_TILES),
    "interpreter": dict.fromkeys((2, 4, 8), (TileConfig(4096, 256, 512), TileConfig(64, 16, 16))),
}


def space(op: str, geometry: ConvGeometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    kind = kind_of(target)
    listed = _TILES[kind][dtype.itemsize]
    if kind == "cpu" and op == "wgrad":
        listed = _CPU_STRETCHED_TILES if in_stretches(geometry) else _CPU_WGRAD_TILES
    if boxable(op, geometry, dtype, target):
        listed = _BOXED_TILES + listed
    if accelerated(target) and dtype.itemsize == 4:
        listed = (_TF32_TILE, *listed)
    fitted = (_fit(tile, op, geometry, MACHINES[kind]) for tile in listed)
    # Tables list large tiles first: of those that became equal in extent, the last has the warps meant for it.
    tiles = {(tile.BM, tile.BN, tile.BK, tile.SPLIT, tile.boxed): tile for tile in fitted}.values()
    if op != "wgrad" and kind in ("cuda", "hip"):  # CPUs have few enough cores for every output
        tiles = dict.fromkeys(split for tile in tiles for split in (tile, _split(tile, op, geometry, MACHINES[kind])))
    return tuple(sorted(tiles, key=lambda tile: (cost(tile, op, geometry, dtype, target), not tile.boxed)))


def cost(tile: TileConfig, op: str, geometry: ConvGeometry, dtype: torch.dtype, target: str) -> float:
    """What is predicted of `tile`, in a unit of the target's own."""
    kind = kind_of(target)
    if kind == "cpu":
        return cpu_cycles(tile, op, geometry, dtype.itemsize)
    return _cost(tile, op, geometry, dtype.itemsize, MACHINES[kind])


def programs_of(tile: TileConfig, op: str, geometry: ConvGeometry) -> int:
    _, N, _ = geometry.gemm(op)
    copies = geometry.taps if op == "wgrad" else residue_classes(op, geometry)
    return m_tiles(tile, op, geometry) * cdiv(N, tile.BN) * geometry.groups * copies * tile.SPLIT


def steps_of(tile: TileConfig, op: str, geometry: ConvGeometry) -> int:
    """Turns of a program's loop, its part of a split reduction."""
    _, _, K = geometry.gemm(op)
    turns = cdiv(K, tile.BK) if op == "wgrad" else geometry.taps * cdiv(K, tile.BK) // residue_classes(op, geometry)
    return cdiv(turns, tile.SPLIT)


def _split(tile: TileConfig, op: str, geometry: ConvGeometry, machine: Machine) -> TileConfig:
    """`tile` with the splits that fill the machine, of at least four turns each, or more if it has more."""
    fill = 2 if op == "wgrad" else 1
    wanted = fill * machine.programs // programs_of(tile, op, geometry)
    return replace(tile, SPLIT=max(tile.SPLIT, min(wanted, steps_of(tile, op, geometry) // 4)))


def _fit(tile: TileConfig, op: str, geometry: ConvGeometry, machine: Machine) -> TileConfig:
    """`tile`, no larger than the problem."""
    sizes = geometry.gemm(op)
    channels = sizes[:2] if op == "wgrad" else sizes[2:]  # that lie side by side in what is loaded
    BK = min(tile.BK, machine.ragged_BK) if any(size % 8 for size in channels) else tile.BK
    M, N, K = (max(next_power_of_2(size), machine.smallest) for size in sizes)
    if machine.loops and op != "wgrad" and geometry.taps == 1 and machine.smallest < K:
        K //= 2
    if tile.boxed:  # whole blocks only
        BK = min(BK, sizes[2] & -sizes[2])
    tile = replace(tile, BM=min(tile.BM, M), BN=min(tile.BN, N), BK=min(BK, K))
    return _split(tile, op, geometry, machine) if op == "wgrad" else tile


def _cost(tile: TileConfig, op: str, geometry: ConvGeometry, itemsize: int, machine: Machine) -> float:
    """Waves of programs times what one takes: the work of the programs that a multiprocessor holds, padding included,
    or the turns that each waits for; and what adding the splits up takes."""
    held, turns = _held(tile, itemsize, machine), steps_of(tile, op, geometry)
    turned = 3 if tile.boxed and tile.BN >= 128 else 1  # on its way out the tile passes through shared memory
    work = turns * tile.BK * (tile.BM * tile.BN + machine.load * (tile.BM + tile.BN))
    work += turned * machine.store * tile.BM * tile.BN
    programs = programs_of(tile, op, geometry)
    cost = cdiv(programs, held * machine.programs) * (machine.start + max(held * work, turns * machine.turn))
    if tile.SPLIT > 1:
        cost += machine.launch + machine.sum * programs * tile.BM * tile.BN / machine.programs
    return cost


def _held(tile: TileConfig, itemsize: int, machine: Machine) -> int:
    """Programs that a multiprocessor holds at a time, by its shared memory, its warps and its registers."""
    shared = tile.num_stages * (tile.BM + tile.BN) * tile.BK * itemsize
    registers = tile.BM * tile.BN + tile.num_warps * 32 * 64  # sums, and what else a thread needs
    return max(1, min(machine.shared // shared, 16 // tile.num_warps, (1 << 16) // registers))
