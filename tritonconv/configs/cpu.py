"""What a GEMM's tile is predicted to cost on the CPU target, in cycles of one core.

The code of fprop and dgrad holds a register tile of `rows` × `vectors` accumulators (`cpu.target`) over the whole
reduction, reading both operands where they lie. A step of the reduction takes the longest of

- rows · vectors multiply-adds of vectors, two of 32 bytes a cycle,
- the loads of its vectors and the broadcasts of its rows, likewise,
- the latency of one multiply-add, which the next one to the same accumulator waits for.

A tile of BM rows is cut into register tiles; the last of them has fewer rows and may be bound by latency, and those
beyond the last row of the problem are skipped: both are tail loss that depends on BM. wgrad of small images and
larger windows, and half types, first copy both operands' tiles into scratch memory. Programs are shared out among the
threads, of which one may have more of the whole tiles. Bytes from beyond the caches are the same for every tile, near
enough: weights and pixels are read about once. They are counted in wgrad, where every program reads its pixels again,
and where a tile's part of a row of a gradient too large for the caches ends before the row does: the processor then
fetches lines of memory that no one is about to write.

The constants were measured on two Zen 4 cores; `python -m benchmarks predictor` says how well they do.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from triton import cdiv

from ..cpu.target import caches, host
from ..geometry import ConvGeometry
from .tile import MACHINES, STRETCH, TileConfig, in_stretches

_LATENCY = 4
_MANY = 32  # programs a thread, which take as long for all threads
# Of a program; of a register tile; of a turn of the loop over taps and channel blocks, with its row pointers.
_PROGRAM_STARTS, TILE_STARTS, TURN_STARTS = 1500, 60, 20
_DISSOLVED = 1.4  # a loop of one turn is none, and its product is not the kind that stays in registers
_FAR = 1.3  # columns of a panel wider than the register tile lie far apart, and push each other out of the cache
_LARGE = 1.05  # every register tile reads a whole panel, which the second-level cache does not hold
_SUM = 1.5  # an element of a split's partial sums, written and added up
_LINE, _BYTES = 29, 64  # a line of a gradient beyond the caches, written
_AHEAD, _FETCHED = 25, 8  # one that is fetched in vain, and how many beyond the end of several, at most
_NEAR_RATE, _FAR_RATE = 8, 4  # bytes a cycle that come in time, from a split's pixels that fit the last cache or do not


def cycles(tile: TileConfig, op: str, geometry: ConvGeometry, itemsize: int) -> float:
    """Cycles until all threads are through."""
    size = max(itemsize, 4)  # half types are multiplied in float32
    threads, in_place = MACHINES["cpu"].programs, itemsize >= 4 and (op != "wgrad" or in_stretches(geometry))
    if op == "wgrad":
        M, N, _ = geometry.gemm(op)
        programs = cdiv(M, tile.BM) * cdiv(N, tile.BN) * geometry.groups * geometry.taps * tile.SPLIT
        program = (_stretched if in_place else _copied)(tile, op, geometry, size)
        return cdiv(programs, threads) * (_PROGRAM_STARTS + program) + _written(tile, geometry, itemsize) / threads
    program, last = _streamed(tile, op, geometry, size) if in_place else (_copied(tile, op, geometry, size),) * 2
    return _shared(tile, op, geometry, threads, _PROGRAM_STARTS + program, _PROGRAM_STARTS + last)


def _shared(tile: TileConfig, op: str, geometry: ConvGeometry, threads: int, program: float, last: float) -> float:
    """Cycles until all programs have run, those with the last rows taking `last`. Threads have equal shares of programs
    that follow each other. One that is through takes of the others', whose rows its cache does not have: that makes up
    for about half of what the longest share is longer. Where there are many, all have about as much to do."""
    M, N, _ = geometry.gemm(op)
    m_tiles, beside = cdiv(M, tile.BM), cdiv(N, tile.BN) * residue_classes(op, geometry)
    programs = m_tiles * beside * geometry.groups
    even = cdiv(programs, threads) * (program + (last - program) / m_tiles)
    if programs > _MANY * threads:
        return even

    def cost(number: int) -> float:
        return last if number % (m_tiles * beside) // beside == m_tiles - 1 else program

    bounds = [programs * thread // threads for thread in range(threads + 1)]
    longest = max(sum(map(cost, range(*share))) for share in pairwise(bounds))
    return (longest + even) / 2


def _written(tile: TileConfig, geometry: ConvGeometry, itemsize: int) -> float:
    """Cycles to write wgrad's result, or the parts of one that is split and their sum."""
    sums = _SUM * tile.SPLIT * geometry.parameters if tile.SPLIT > 1 else 0
    size, run = geometry.parameters * itemsize, tile.BN * itemsize / _BYTES
    if size <= caches().second:
        return sums
    ahead = min(run, _FETCHED) / run if 1 < run < geometry.Cg * itemsize / _BYTES else 0
    return sums + size / _BYTES * (_LINE + ahead * _AHEAD)


def residue_classes(op: str, geometry: ConvGeometry) -> int:
    """The GEMMs of dgrad: one for each residue class of the stride, which share the taps."""
    return geometry.stride[0] * geometry.stride[1] if op == "dgrad" else 1


def cut(tile: TileConfig, size: int) -> tuple[int, int, int]:
    """(rows, vectors) of the register tiles that a tile is cut into, and how many of them lie side by side."""
    across = cdiv(tile.BN, host().lanes(size))
    rows, vectors = host().dot_tile(across)
    return rows, vectors, cdiv(across, vectors)


def step(rows: int, vectors: int, bytes: int) -> float:
    """Cycles of one step of the reduction, of vectors of so many bytes."""
    halves = bytes / 32
    return max(rows * vectors * halves / 2, (vectors * halves + rows) / 2, _LATENCY)


def column(height: int, rows: int, vectors: int, starts: float, reduction: float) -> float:
    """Cycles of a column of register tiles, `height` rows in all, each of which takes `starts` to begin."""
    full, rest = divmod(height, rows)
    cycles = full * (starts + reduction * step(rows, vectors, host().vector_bytes))
    return cycles + (starts + reduction * step(rest, vectors, host().vector_bytes) if rest else 0)


def _streamed(tile: TileConfig, op: str, geometry: ConvGeometry, size: int) -> tuple[float, float]:
    """A program's cycles where operands are read in place, and those of one with the last rows."""
    machine = host()
    M, N, K = geometry.gemm(op)
    columns = min(tile.BN, N)
    rows, vectors, width = machine.register_tile(columns, size)
    across = cdiv(columns, vectors * width)
    taps = geometry.taps / residue_classes(op, geometry)
    turns = taps * cdiv(K, tile.BK)
    # A turn starts with its tap's row pointers; a pointwise convolution has them all along.
    starts = TILE_STARTS + (turns * TURN_STARTS if geometry.taps > 1 else 0)
    full, rest = divmod(tile.BM, rows)
    beyond = M % tile.BM or tile.BM  # the rows of the last tile
    program = last = 0.0
    for height, at, count in ((rows, 0, full), (rest, full * rows, 1)):
        if height:
            one = starts + taps * K * step(height, vectors, width * size)
            program += count * one
            last += min(count, max(0, cdiv(beyond - at, height))) * one
    cost = across
    if turns == 1 and geometry.taps == 1:
        cost *= _DISSOLVED
    panel = taps * K * tile.BN * size
    if across > 1 and panel > caches().first:
        cost *= _FAR
    if panel > caches().second:
        cost *= _LARGE
    return cost * program, cost * last


def _stretched(tile: TileConfig, op: str, geometry: ConvGeometry, size: int) -> float:
    """A program's cycles where the register tiles read a stretch of pixels, one after the other, where they lie."""
    M, N, K = geometry.gemm(op)
    rows, vectors, across = cut(tile, size)
    pixels = cdiv(K, tile.SPLIT)
    starts = cdiv(pixels, STRETCH["cpu"] if geometry.pointwise else geometry.Q) * TILE_STARTS
    multiply = column(min(tile.BM, M), rows, vectors, starts, pixels)
    far = pixels * (M + N) * size > caches().last / 2
    return across * multiply + pixels * (tile.BM + tile.BN) * size / (_FAR_RATE if far else _NEAR_RATE)


@dataclass(frozen=True)
class Copies:
    """Cycles of what passes through scratch memory: to find a pixel, to copy a vector of the left and of the right
    operand, and to begin a register tile in each turn."""

    pixel: float
    left: float
    right: float
    tile: float


# wgrad copies pixels with all that they have, and of the half types the others copy pixels to the left.
_COPIES = {"wgrad": Copies(0, 6, 6, 50)} | dict.fromkeys(("fprop", "dgrad"), Copies(8, 1.4, 3.2, 0))


def _copied(tile: TileConfig, op: str, geometry: ConvGeometry, size: int) -> float:
    """A program's cycles where operands pass through scratch memory."""
    copies, (_, _, K) = _COPIES[op], geometry.gemm(op)
    rows, vectors, across = cut(tile, size)
    taps = geometry.taps / residue_classes(op, geometry)
    turns = cdiv(cdiv(K, tile.SPLIT), tile.BK) if op == "wgrad" else taps * cdiv(K, tile.BK)
    multiply = column(tile.BM, rows, vectors, copies.tile, tile.BK)
    copied = tile.BK * (copies.left * tile.BM + copies.right * tile.BN) / host().lanes(size)
    return turns * (across * multiply + copied + copies.pixel * tile.BM)
