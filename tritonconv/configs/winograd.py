"""Tiles of Winograd's algorithm: blocks of BM tiles of OUT × OUT outputs, BN output and BK input channels at a time."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch
from triton import cdiv, next_power_of_2

from ..cpu.target import caches, host
from ..geometry import ConvGeometry, FractionalGeometry, Pair, RowGeometry
from .cpu import TILE_STARTS, TURN_STARTS, column, cut, step
from .tile import MACHINES, TileConfig, kind_of

_EXTENTS = {"cuda": (16,), "hip": (16,), "cpu": (8, 16, 32), "interpreter": (64,)}  # of BM
# Of BM, BN and BK, of the gradient of a weight.
_WGRAD_EXTENTS = dict.fromkeys(("cuda", "hip", "interpreter"), ((64,), (64,), (16,)))
_WGRAD_EXTENTS["cpu"] = (64, 32), (64, 32), (8, 16)
# By the window's side, and how far apart a phase's taps are. 3 × 3 windows at a stride of 2, as of 2 × 2 taps in each
# phase, would take 1.4 times fewer products, but 11 times the memory for weights: no more is gained than lost.
_OUTS = {(3, 1): (4, 2), (5, 1): (2,), (4, 2): (4, 2), (5, 2): (4, 2)}
_WGRAD_OUTS = {(3, 1): (4,), (4, 2): (4, 2), (5, 2): (4, 2)}


def takes(op: str, geometry: ConvGeometry) -> bool:
    """Whether the algorithm can compute `op`, "fprop", "dgrad" or "wgrad", of a convolution with such a window."""
    window, (stride, across) = (geometry.R, geometry.S), geometry.stride
    if geometry.groups > 1 or stride != across or (stride > 1 and geometry.dilation != (1, 1)):
        return False
    if isinstance(geometry, RowGeometry):  # "conv1d_fprop", "conv1d_dgrad"
        return not op.endswith("wgrad") and window == (1, 3)
    return geometry.R == geometry.S and (geometry.R, stride) in (_WGRAD_OUTS if op == "wgrad" else _OUTS)


def phases(geometry: ConvGeometry) -> Pair:
    """(how many phases a window of `as_fprop` has, the taps of each, at most), along an axis."""
    count = geometry.stride[0] * geometry.up[0]
    return count, cdiv(geometry.R, count)


def points(OUT: int, taps: int) -> int:
    """Products of an input channel and an output channel for OUT × OUT outputs of a window of taps × taps."""
    return (OUT + taps - 1) ** 2


def as_fprop(op: str, geometry: ConvGeometry) -> ConvGeometry | None:
    """The fprop by which the algorithm computes "fprop" or "dgrad" of a convolution; None where it cannot.

    dgrad convolves dy, where there is a stride with zeros between its pixels, with the flipped, transposed weight.
    """
    g = geometry
    if not takes(op, g):
        return None
    if op.endswith("fprop"):
        return g
    padding = tuple(map(_flipped, (g.H, g.W), (g.R, g.S), g.dilation, g.stride, g.padding))
    if min(map(min, padding)) < 0:
        return None
    if g.stride == (1, 1):
        return replace(g, C=g.K, H=g.P, W=g.Q, K=g.C, padding=padding)
    return FractionalGeometry(g.N, g.K, g.P, g.Q, g.C, g.R, g.S, padding=padding, up=g.stride)


def _flipped(size: int, taps: int, dilation: int, stride: int, padding: Pair) -> Pair:
    """What dgrad pads, along an axis, where fprop pads an input of this size so."""
    last, (before, after) = (taps - 1) * dilation, padding
    beyond = (size + before + after - last - 1) % stride  # pixels that no window reaches
    return last - before, last - after + beyond


def space(op: str, geometry: ConvGeometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    """`geometry` is that of `as_fprop`."""
    kind = kind_of(target)
    least = MACHINES[kind].smallest
    (count, taps), depth = phases(geometry), geometry.C * geometry.stride[0] ** 2
    BK = channels(depth) if kind == "cpu" else max(min(next_power_of_2(depth), 32), least)
    BN = max(min(next_power_of_2(geometry.K), 32), least)
    configs = []
    for OUT, extent in itertools.product(_OUTS[geometry.R, count], _EXTENTS[kind]):
        BM = max(min(extent, next_power_of_2(tiles(geometry, OUT))), least)
        warps = 4 if points(OUT, taps) <= 16 else 8  # a GPU holds all points in registers
        configs.append(TileConfig(BM, BN, BK, OUT=OUT, num_warps=warps))
    return tuple(sorted(dict.fromkeys(configs), key=lambda tile: cost(tile, op, geometry, dtype, target)))


def wgrad_space(op: str, geometry: ConvGeometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    """Of the gradient of a weight: BM × BN output and input channels, BK tiles at a time."""
    kind = kind_of(target)
    least, (K, C) = MACHINES[kind].smallest, map(next_power_of_2, (geometry.K, geometry.C))
    configs = []
    for OUT, *tile in itertools.product(_WGRAD_OUTS[geometry.R, geometry.stride[0]], *_WGRAD_EXTENTS[kind]):
        count = next_power_of_2(tiles(geometry, OUT)) // 2
        BM, BN, BK = (max(min(extent), least) for extent in zip(tile, (K, C, count), strict=True))
        configs.append(TileConfig(BM, BN, BK, OUT=OUT, num_warps=8))
    return tuple(sorted(dict.fromkeys(configs), key=lambda tile: cost(tile, op, geometry, dtype, target)))


def cost(tile: TileConfig, op: str, geometry: ConvGeometry, dtype: torch.dtype, target: str) -> float:
    """Of "winograd" or "winograd_wgrad". On GPUs, too, tiles are ordered by what a CPU takes."""
    return (wgrad_cycles if op == "winograd_wgrad" else cpu_cycles)(tile, geometry, dtype.itemsize)


def channels(C: int) -> int:
    """BK on a CPU: as much as leaves the reduction's loop two turns, and no turn's end to a mask.

    A loop of one turn would be dissolved, and its product would not be the kind that the CPU target interchanges.
    """
    divisor = min(C & -C, max(C // 2, 1))  # C & −C: the largest power of two in it
    return divisor if divisor >= 16 else min(max(next_power_of_2(C) // 2, 1), 32)


def filters(geometry: ConvGeometry, OUT: int) -> int:
    """Elements of the transformed weight."""
    classes = math.prod(geometry.stride) * math.prod(geometry.up)
    return classes * points(OUT, phases(geometry)[1]) * geometry.C * geometry.K


def tiles(geometry: ConvGeometry, OUT: int) -> int:
    """Of OUT × OUT outputs, the phases of the dilation each by itself; of one phase of a `FractionalGeometry`."""
    axes = zip(geometry.output[2:], geometry.up, geometry.dilation, strict=True)
    P, Q = (cdiv(cdiv(size, up), OUT * d) * d for size, up, d in axes)
    return geometry.N * P * Q


# Cycles, measured on two Zen 4 cores: of transforming 32 bytes at 36 points, and of finding a tile's pixels.
_TRANSFORM, _PIXELS = 100, 150
_CACHE_RATE, _MEMORY_RATE = 32, 4  # bytes a cycle that a core gets from the last cache, and from memory


def cpu_cycles(tile: TileConfig, geometry: ConvGeometry, itemsize: int) -> float:
    """Cycles of all programs, those that run beside each other counted once; comparable with those of a GEMM.

    Transforming a weight, where it is not kept, takes no longer than packing it for the GEMM.
    """
    programs, size = MACHINES["cpu"].programs, max(itemsize, 4)  # of an accumulator
    products, summed, classes = points(tile.OUT, phases(geometry)[1]), geometry.stride[0] ** 2, geometry.up[0] ** 2
    depth = geometry.C * summed
    blocks, k_tiles = classes * cdiv(tiles(geometry, tile.OUT), tile.BM), cdiv(geometry.K, tile.BN)
    split = min(k_tiles, cdiv(programs, blocks))
    rows, vectors, across = cut(tile, size)
    multiply = column(tile.BM, rows, vectors, TILE_STARTS + cdiv(depth, tile.BK) * TURN_STARTS, depth)
    transform = _TRANSFORM * products / 36 * size / 32  # of an element
    inputs = tile.BM * (_PIXELS * summed + transform * depth)
    outputs = tile.BM * (_PIXELS + transform * tile.BN)
    share = cdiv(k_tiles, split) * (products * across * multiply + outputs)
    compute = cdiv(blocks * split, programs) * (inputs + share)
    # Each block reads all weights of its class, or a part where it is split, from the last cache while it multiplies by
    # others. The first ones find them in memory, in a network of many layers; the GEMM, too, each core its own.
    weights = filters(geometry, tile.OUT) * size / classes
    passes = cdiv(blocks, programs) / classes if classes * weights > caches().last else 1 / min(classes, programs)
    passes = max(passes, 1 / min(classes, programs))
    memory = (classes * weights / split * passes - geometry.parameters * itemsize / programs) / _MEMORY_RATE
    shared = weights * blocks / _CACHE_RATE if weights > caches().second else 0
    return max(compute, shared / programs) + memory


def wgrad_cycles(tile: TileConfig, geometry: ConvGeometry, itemsize: int) -> float:
    """As `cpu_cycles`, of the gradient of a weight."""
    programs, size = MACHINES["cpu"].programs, max(itemsize, 4)
    (phase, taps), count = phases(geometry), tiles(geometry, tile.OUT)
    products = points(tile.OUT, taps)
    panels = cdiv(geometry.K, tile.BM), phase**2 * cdiv(geometry.C, tile.BN)
    channels = panels[0] * tile.BM + panels[1] * tile.BN
    count = cdiv(count, 2 * tile.BK) * 2 * tile.BK  # as the launches take them
    gather = count * (sum(panels) * _PIXELS + channels * _TRANSFORM * products / 36 * size / 32)
    rows, vectors, across = cut(tile, size)
    product = cdiv(tile.BM, rows) * across * (TILE_STARTS + count * step(rows, vectors, host().vector_bytes))
    sums = filters(geometry, tile.OUT) * size
    memory = 2 * sums / _MEMORY_RATE if sums > caches().second else 0
    return (gather + memory) / programs + cdiv(products * panels[0] * panels[1], programs) * product
