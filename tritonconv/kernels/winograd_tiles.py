"""The tiles of Winograd's algorithm: where they are in an image, and their way through a program's own memory."""

import triton
import triton.language as tl

from .common import inside, product, unravel
from .winograd_transforms import column_of, transform_input, transform_output

# Elements that are left out behind what lies in memory for each point: a transform goes through all points at a time,
# and a cache has room for few lines whose addresses are a power of two apart.
GAP = tl.constexpr(16)


@triton.jit
def tile_at(tile, P, Q, DIL_H: tl.constexpr, DIL_W: tl.constexpr, OUT: tl.constexpr):
    """(n, p, q) of the first output of each tile. Neighbouring tiles are of different phases, which read between each
    other's pixels."""
    n, p, q = unravel(tile, tl.cdiv(P, OUT * DIL_H) * DIL_H, tl.cdiv(Q, OUT * DIL_W) * DIL_W)
    return n, p // DIL_H * (OUT * DIL_H) + p % DIL_H, q // DIL_W * (OUT * DIL_W) + q % DIL_W


@triton.jit
def count_tiles(N, P, Q, DIL_H: tl.constexpr, DIL_W: tl.constexpr, OUT: tl.constexpr):
    return N * (tl.cdiv(P, OUT * DIL_H) * DIL_H) * (tl.cdiv(Q, OUT * DIL_W) * DIL_W)


@triton.jit
def load_square(
    x_ptr, h, w, H, W, m_row, c,
    C: tl.constexpr, STEP_H: tl.constexpr, STEP_W: tl.constexpr, SIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The rows of SIDE × SIDE pixels from (h, w) [BM] on, a step apart, [BM, BC] each, of channels c [BC].

    `x_ptr` [BM] points at channel 0 of (h, w); pixels outside the H × W image and rows not m_row count as zero.
    """
    p_x = x_ptr[:, None] + c[None, :]
    rows = ()
    for i in tl.static_range(SIDE):
        row = ()
        for j in tl.static_range(SIDE):
            mask = (m_row & inside(h + i * STEP_H, w + j * STEP_W, H, W))[:, None] & (c < C)[None, :]
            at = tl.cast(i * STEP_H * W + j * STEP_W, tl.int64) * C
            row = row + (tl.load(p_x + at, mask=mask, other=0.0).to(ACC),)  # [BM, BC]
        rows = rows + (row,)
    return rows


@triton.jit
def store_input(
    v_ptr, x_ptr, h, w, H, W, m_row, c,
    C: tl.constexpr, STEP_H: tl.constexpr, STEP_W: tl.constexpr, DEPTH: tl.constexpr,
    OUT: tl.constexpr, TAPS: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """v [points, BM, DEPTH], with gaps: the transforms of the (OUT + TAPS − 1)² pixels from (h, w) [BM] on, of channels
    c [BC]."""
    IN: tl.constexpr = OUT + TAPS - 1
    p_v = v_ptr + tl.arange(0, BM)[:, None] * DEPTH + c[None, :]
    pixels = load_square(x_ptr, h, w, H, W, m_row, c, C, STEP_H, STEP_W, IN, v_ptr.dtype.element_ty)
    rows = ()
    for i in tl.static_range(IN):
        rows = rows + (transform_input(pixels[i]),)
    for j in tl.static_range(IN):
        column = transform_input(column_of(rows, j))
        for i in tl.static_range(IN):
            tl.store(p_v + (IN * i + j) * (BM * DEPTH + GAP), column[i], mask=(c < C)[None, :])


@triton.jit
def store_products(
    m_ptr, v_ptr, u_ptr, POINTS: tl.constexpr, ONCE: tl.constexpr,
    C: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """m [POINTS, BM, BN] = v [POINTS, BM, C] × u [POINTS, C, BN], all with gaps. ONCE: whether u comes from memory, and
    is not read again soon."""
    EVICT: tl.constexpr = "evict_first" if ONCE else ""
    o_m = tl.arange(0, BM)[:, None]
    o_c = tl.arange(0, BK)
    o_n = tl.arange(0, BN)[None, :]
    for point in range(POINTS):
        p_v = v_ptr + point * (BM * C + GAP) + o_m * C + o_c[None, :]
        p_u = u_ptr + point * (C * BN + GAP) + o_c[:, None] * BN + o_n
        acc = tl.zeros((BM, BN), v_ptr.dtype.element_ty)
        for c in range(0, C, BK):
            if C % BK == 0:
                v = tl.load(p_v + c)  # [BM, BK]
                u = tl.load(p_u + c * BN, eviction_policy=EVICT)  # [BK, BN]
            else:
                m_c = o_c < C - c
                v = tl.load(p_v + c, mask=m_c[None, :], other=0.0)  # [BM, BK]
                u = tl.load(p_u + c * BN, mask=m_c[:, None], other=0.0, eviction_policy=EVICT)  # [BK, BN]
            acc = product(v, u, acc, PRECISION)
        tl.store(m_ptr + point * (BM * BN + GAP) + o_m * BN + o_n, acc)


@triton.jit
def load_output(m_ptr, OUT: tl.constexpr, TAPS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """The OUT columns of OUT outputs of each tile, [BM, BN] each, from m [points, BM, BN]."""
    IN: tl.constexpr = OUT + TAPS - 1
    p_m = m_ptr + tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
    rows = ()
    for i in tl.static_range(IN):
        row = ()
        for j in tl.static_range(IN):
            row = row + (tl.load(p_m + (IN * i + j) * (BM * BN + GAP)),)  # [BM, BN]
        rows = rows + (transform_output(row, OUT),)
    columns = ()
    for j in tl.static_range(OUT):
        columns = columns + (transform_output(column_of(rows, j), OUT),)
    return columns


@triton.jit
def output_at(
    o_y, p, q, P, Q, m_row, m_k, PIXEL: tl.constexpr, STEP_H: tl.constexpr, STEP_W: tl.constexpr,
    i: tl.constexpr, j: tl.constexpr,
):  # fmt: skip
    """Offset and mask [BM, BN] of output (i, j) of the tiles m_row [BM], which start at (p, q) [BM], o_y [BM, BN]."""
    offset = o_y + tl.cast(i * STEP_H * Q + j * STEP_W, tl.int64) * PIXEL
    return offset, (m_row & (p + i * STEP_H < P) & (q + j * STEP_W < Q))[:, None] & m_k[None, :]
