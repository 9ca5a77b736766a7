"""Tiles of batch norm: a program takes BM pixels of BN channels at once."""

from __future__ import annotations

from dataclasses import replace

import torch
from triton import cdiv, next_power_of_2

from ..geometry import NormGeometry
from .tile import MACHINES, TileConfig, kind_of

# (BM × BN, num_warps)
_TILES = {
    "cuda": ((2048, 4), (4096, 8)),
    "hip": ((2048, 4), (4096, 8)),
    "cpu": ((1 << 14, 1), (1 << 12, 1)),
    "interpreter": ((1 << 18, 1), (1024, 1)),
}
# On a CPU what a tile computes and leaves for each channel takes as long as some pixels: few large tiles take less, as
# long as there are so many for each thread.
_LARGE, _EACH = (1 << 16, 1), 8
# There a program reads planar memory from end to end: so many pixels of one channel, or, where it sums none up, of
# more channels where these have fewer pixels than the other.
_STRETCH, _SHORT = 4096, 128
# On GPUs, which take small tiles, what each leaves for another kernel to add up would be as much to read again: there
# so many programs, all of which run at once, take several tiles each.
_SUMS = "norm_moments", "norm_backward_sums"
_PARTS = {kind: 8 * MACHINES[kind].programs for kind in ("cuda", "hip")}


def space(op: str, geometry: NormGeometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    # A CPU reads memory best from end to end: all channels of a pixel, then those of the next.
    channels = min(next_power_of_2(geometry.C), 1024 if target == "cpu" else 64)
    tiles = _TILES[kind_of(target)]
    enough = _EACH * MACHINES["cpu"].programs * _LARGE[0]
    if target == "cpu" and not geometry.planar and geometry.N * geometry.M * channels >= enough:
        tiles = (_LARGE, *tiles)
    fitted = dict.fromkeys(_fit(area, warps, geometry, channels) for area, warps in tiles)
    if target == "cpu" and geometry.planar:
        stretch = {TileConfig(min(next_power_of_2(geometry.M), _STRETCH), 1): None}
        fitted = fitted | stretch if geometry.M < _SHORT and op not in _SUMS else stretch | fitted
    if op in _SUMS and kind_of(target) in _PARTS:
        return tuple(_in_parts(tile, geometry, _PARTS[kind_of(target)]) for tile in fitted)
    return tuple(fitted)


def _in_parts(tile: TileConfig, geometry: NormGeometry, parts: int) -> TileConfig:
    """`tile`, of which a program takes as many along M as leave about so many programs."""
    tiles = geometry.N * cdiv(geometry.M, tile.BM) * cdiv(geometry.C, tile.BN)
    return replace(tile, BK=next_power_of_2(cdiv(tiles, parts)))


def _fit(area: int, num_warps: int, geometry: NormGeometry, channels: int) -> TileConfig:
    pixels = next_power_of_2(geometry.M)
    if geometry.planar:  # what lies side by side is long
        BM = min(pixels, 1024)
        return TileConfig(BM, min(next_power_of_2(geometry.C), area // BM), num_warps=num_warps)
    return TileConfig(min(area // channels, pixels), channels, num_warps=num_warps)
