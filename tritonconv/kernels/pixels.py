"""Which pixels and channels of an activation a norm's program takes, and where these and their statistics are.

NHWC memory is one matrix of M pixels × C channels. PLANAR memory, [N, C, M], is one for each image, transposed.
Statistics are those of a channel or, where EACH image has its own, of a channel of an image: then NHWC memory, too, is
a matrix for each.
"""

import triton
import triton.language as tl


@triton.jit
def place(
    tile, M, C: tl.constexpr, PLANAR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, EACH: tl.constexpr = False
):  # fmt: skip
    """Of a tile along M: its pixels [BM], this program's channels [BN], and where its elements lie [BM, BN]."""
    # In int64 from the start: a sum in int32, which may wrap, is no run of addresses.
    c = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
    if PLANAR or EACH:
        tiles = tl.cdiv(M, BM)
        n = (tile // tiles).to(tl.int64)
        m = (tile % tiles).to(tl.int64) * BM + tl.arange(0, BM)
        at = (n * C + c)[None, :] * M + m[:, None] if PLANAR else (n * M + m)[:, None] * C + c[None, :]
    else:
        m = tl.cast(tile, tl.int64) * BM + tl.arange(0, BM)
        at = m[:, None] * C + c[None, :]
    return m, c, at


@triton.jit
def tiles_of(M, N, TILES: tl.constexpr, BM: tl.constexpr, EACH: tl.constexpr):
    """This program's first tile, the one behind its last, and the row of its part: of parts of images that have
    statistics of their own, those of all images lie side by side."""
    tiles = tl.cdiv(M, BM)
    if EACH:
        parts = tl.cdiv(tiles, TILES)
        n = tl.program_id(0) // parts
        part = tl.program_id(0) % parts
        first = n * tiles + part * TILES
        end = tl.minimum(first + TILES, (n + 1) * tiles)
        row = part * N + n
    else:
        first = tl.program_id(0) * TILES
        end = tl.minimum(first + TILES, N * tiles)
        row = tl.program_id(0)
    return first, end, row


@triton.jit
def statistic_of(tile, M, c, C: tl.constexpr, EACH: tl.constexpr, BM: tl.constexpr):
    """Where the statistics of channels c [BN] are, in [C] or [N, C]."""
    if EACH:
        return (tile // tl.cdiv(M, BM)).to(tl.int64) * C + c
    return c
