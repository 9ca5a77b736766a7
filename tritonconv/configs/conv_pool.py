"""Tiles of a convolution whose outputs are averaged in windows side by side, in one kernel."""

from __future__ import annotations

from dataclasses import replace

import torch
from triton import cdiv

from ..geometry import ConvGeometry
from .tile import TileConfig

_WINDOWS = 16  # of a tile: so few that one tap's outputs of all of them are in the first-level cache for the next
_UNEVEN = 1.3  # a thread's windows over an even share, from which on it is not worth it


def averaged(firsts: ConvGeometry, conv: TileConfig, dtype: torch.dtype, threads: int) -> TileConfig | None:
    """The tile of windows whose first outputs `firsts` computes, given that of the convolution alone; None where two
    kernels are predicted to take less.

    What it saves is to write the outputs, and to read them; the products are the same. What it costs are tiles that are
    not full, since there are fewer windows than outputs, and that some threads have more of.
    """
    windows, K, _ = firsts.gemm("fprop")
    if dtype.itemsize < 4 or windows < _WINDOWS:  # products of half types pass through scratch memory
        return None
    programs = cdiv(windows, _WINDOWS) * cdiv(K, conv.BN) * firsts.groups
    share = windows * cdiv(K, conv.BN) * firsts.groups / threads
    return replace(conv, BM=_WINDOWS) if cdiv(programs, threads) * _WINDOWS <= _UNEVEN * share else None
