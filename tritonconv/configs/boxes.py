"""Tiles whose operands come as boxes, through tensor descriptors (`kernels.boxes`): where they can, and how large."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import torch
from triton import cdiv

from ..geometry import ConvGeometry
from .tile import TileConfig

_LONGEST = 256  # of a box, along any axis


def accelerated(target: str) -> bool:
    """Whether it has a tensor memory accelerator, and matrix instructions that read shared memory."""
    return target.startswith("sm_") and int(target[3:]) >= 90


def boxable(op: str, geometry: ConvGeometry, dtype: torch.dtype, target: str) -> bool:
    """Whether the panels, at least, can come as boxes: whole ones, on a GPU with a tensor memory accelerator.

    Half types only: where products are not of operands in shared memory nothing is gained.
    """
    return accelerated(target) and op != "wgrad" and dtype.itemsize == 2 and geometry.gemm(op)[2] % 16 == 0


@functools.lru_cache(maxsize=4096)
def box(tile: TileConfig, op: str, geometry: ConvGeometry) -> tuple[int, int, int]:
    """[images, rows, columns] of output pixels that a tile covers, if the pixels that it reads can come as boxes: of
    all extents the one of which the fewest cover the output. (0, 0, 0) if they cannot.

    That takes pixels that do not overlap (`launch.conv.overlapping`, whose padding is negative), and for fprop an image
    that the stride divides, for dgrad stride 1.
    """
    g, divided = geometry, geometry.H % geometry.stride[0] == geometry.W % geometry.stride[1] == 0
    if not tile.boxed or min(map(min, g.padding)) < 0 or not (divided if op == "fprop" else g.stride == (1, 1)):
        return 0, 0, 0
    powers = [1 << power for power in reversed(range(min(tile.BM, _LONGEST).bit_length()))]
    extents = [(tile.BM // (h * w), h, w) for w in powers for h in powers if h * w <= tile.BM]
    return min(extents, key=lambda extent: _cover(extent, op, geometry))


def in_a_row(geometry: ConvGeometry) -> ConvGeometry:
    """The geometry with its pixels in one long row, if each of the output's depends on one of the input's alone."""
    return replace(geometry, N=1, H=1, W=geometry.N * geometry.H * geometry.W) if geometry.pointwise else geometry


def m_tiles(tile: TileConfig, op: str, geometry: ConvGeometry) -> int:
    """Tiles along M of a GEMM."""
    extent = box(tile, op, geometry)
    return _cover(extent, op, geometry) if extent[0] else cdiv(geometry.gemm(op)[0], tile.BM)


def _cover(extent: tuple[int, int, int], op: str, geometry: ConvGeometry) -> int:
    """How many boxes cover the output of fprop or dgrad."""
    g = in_a_row(geometry)
    sizes = (g.N, g.P, g.Q) if op == "fprop" else (g.N, g.H, g.W)
    return math.prod(map(cdiv, sizes, extent))
