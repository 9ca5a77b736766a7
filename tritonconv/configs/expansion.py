"""Bands of expansion and depthwise convolution in one kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from triton import cdiv, next_power_of_2

from ..cpu.target import caches, host
from ..geometry import ConvGeometry
from .cpu import step

_ROOM = 4  # the part of the second-level cache that what lies between may take
_AGAIN = 1.15  # rows that a thread expands, over its share of the image's, from which on it is not worth it


@dataclass(frozen=True)
class BandConfig:
    """A program takes `rows` rows of outputs of BN channels: it expands BM pixels at a time, BK channels in a turn, and
    sums the windows of BQ columns at a time."""

    rows: int
    BM: int
    BN: int
    BK: int
    BQ: int


def band(C: int, depthwise: ConvGeometry, dtype: torch.dtype, threads: int) -> BandConfig | None:
    """The bands of an expansion from C channels that take least, or None where two kernels are predicted to take less.

    What it saves is to write what lies between, and to read it; what it costs are the rows that two bands see, and
    tiles that some threads have more of. Both show in how many rows a thread expands.
    """
    if dtype.itemsize < 4:  # whose products pass through scratch memory
        return None
    g, lanes = depthwise, host().lanes(dtype.itemsize)
    # As narrow as multiply-adds allow: more rows then have room.
    widths = [lanes, 2 * lanes] if g.K % (2 * lanes) == 0 else [lanes]
    BN = min(min(widths, key=lambda BN: _cycles(BN, dtype.itemsize)), next_power_of_2(g.K))
    tiles = g.N * cdiv(g.K, BN)
    best, least = None, _AGAIN * g.H * tiles / threads
    for rows in dict.fromkeys(cdiv(g.P, bands) for bands in range(1, g.P + 1)):  # bands of much the same height
        bands = cdiv(g.P, rows)
        expanded = cdiv(tiles * bands, threads) * _expanded(g, rows) / bands
        fits = room(g, rows, BN, 0) * dtype.itemsize <= caches().second // _ROOM
        if fits and expanded < least:
            best, least = rows, expanded
    if best is None:
        return None
    BM = min(128, next_power_of_2(min(height(g, best), g.H) * g.W))
    whole = C & -C  # channels in a turn that need no mask
    BK = max(1, min(64, whole if 8 <= whole < C else next_power_of_2(C) // 2))  # a loop of one turn would be none
    return BandConfig(best, BM, BN, BK, min(16, next_power_of_2(g.Q)))


def _cycles(columns: int, size: int) -> float:
    """Cycles of a multiply-add of one vector."""
    rows, vectors, width = host().register_tile(columns, size)
    return step(rows, vectors, width * size) / (rows * vectors)


def _expanded(g: ConvGeometry, rows: int) -> int:
    """Rows of the image that all bands see, those that two see counted twice."""
    starts = (first * g.stride[0] - g.padding[0][0] for first in range(0, g.P, rows))
    return sum(max(0, min(g.H, start + height(g, rows)) - max(0, start)) for start in starts)


def height(g: ConvGeometry, rows: int) -> int:
    """Rows of the padded image that windows of `rows` rows see."""
    return (rows - 1) * g.stride[0] + (g.R - 1) * g.dilation[0] + 1


def room(g: ConvGeometry, rows: int, BN: int, BQ: int) -> int:
    """Elements of such rows of BN channels, and of the pixels behind them that the windows of BQ columns may read."""
    width = max((g.Q - 1) * g.stride[1] + (g.S - 1) * g.dilation[1] + 1, g.padding[1][0] + g.W)
    return (height(g, rows) * width + BQ * g.stride[1]) * BN
