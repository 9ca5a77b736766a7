"""What a GEMM's tile is predicted to cost on a GPU, given what its code compiled to; in cycles.

A multiprocessor holds `occupancy` programs, so that all programs take so many waves, of which the last may be mostly
empty: tail loss. A wave takes the longest of

- the multiply-adds of its programs, padding of the tile included, at the rate of the instructions that their dtype has,
- the bytes that they read of both operands, each program its own, at the rate of the second-level cache,
- the latency of a turn of the loop, which `num_stages` turns and the other programs hide,

and no launch is faster than its operands and its result pass through memory once. Each access to spilled registers
costs what it holds up. The rates are from the vendors' data sheets, rounded; none of them was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from triton import cdiv

from ..geometry import ConvGeometry
from .gemm import programs_of, steps_of
from .tile import TileConfig


@dataclass(frozen=True)
class Rates:
    """Of a GPU: its multiprocessors; multiply-adds a cycle of one, by precision; bytes a cycle from the second-level
    cache for one, and from memory for all."""

    multiprocessors: int
    products: dict[str, int]
    cached: int
    memory: int


RATES = {
    "sm_80": Rates(108, {"half": 1024, "tf32": 512, "single": 64, "double": 64}, 64, 1100),
    "sm_90": Rates(132, {"half": 2048, "tf32": 1024, "single": 128, "double": 128}, 64, 1900),
    "sm_100": Rates(148, {"half": 4096, "tf32": 2048, "single": 128, "double": 64}, 64, 4200),
    "gfx942": Rates(304, {"half": 1024, "tf32": 512, "single": 128, "double": 128}, 64, 2500),
}
_LATENCY = 800  # from issuing a load to having its value, beyond the first cache
_SPILL = 20
_PROGRAM_STARTS = 2000
_ANOTHER = 5000  # kernel, which adds up the parts of a split reduction


def cycles(
    tile: TileConfig, op: str, geometry: ConvGeometry, dtype: torch.dtype, tf32: bool, target: str, occupancy: int,
    spills: int,
) -> float:  # fmt: skip
    """Of "fprop", "dgrad" or "wgrad", compiled to code of this occupancy with so many accesses to spilled registers."""
    rates = RATES[target]
    turns = steps_of(tile, op, geometry)
    resident = max(occupancy, 1)
    kind = {2: "half", 8: "double"}.get(dtype.itemsize, "tf32" if tf32 else "single")
    multiply = resident * turns * tile.BM * tile.BN * tile.BK / rates.products[kind]
    read = resident * turns * tile.BK * (tile.BM + tile.BN) * dtype.itemsize / rates.cached
    wait = turns * _LATENCY / tile.num_stages
    wave = _PROGRAM_STARTS + max(multiply, read, wait) + turns * _SPILL * spills
    waves = cdiv(programs_of(tile, op, geometry), rates.multiprocessors * resident)
    parts = 0 if tile.SPLIT == 1 else 2 * 4 * tile.SPLIT * math.prod(geometry.gemm(op)[:2])  # written, and read again
    sums = _ANOTHER + parts / rates.memory if parts else 0
    return max(waves * wave, geometry.bytes(dtype.itemsize) / rates.memory) + sums
