"""Convolution by Winograd's minimal filtering F(4×4, 3×3): 36 products for 16 outputs of a 3 × 3 window, not 144.

Along one axis, four outputs of a three-tap filter are the product of two polynomials. It is computed at the points 0,
±1/√2, ±√2 and ∞: there the transforms take six fused multiply-adds or sums for four outputs, and lose less to rounding
than at 0, ±1, ±2, ∞ (Lavin and Gray 2016; Barabasz et al. 2020). In two dimensions all is done along each axis.
"""

import triton
import triton.language as tl

from .activations import activate
from .common import inside, unravel
from .norm import affine, normalized

A = tl.constexpr(0.5**0.5)  # the points are 0, ±A, ±1/A, ∞
B = tl.constexpr(2**0.5)


@triton.jit
def transform_input(x):
    """Six inputs along one axis → their polynomial's remainders, each times one factor of the product."""
    t1 = x[4] - 2 * x[2]
    u1 = x[3] - 2 * x[1]
    t2 = x[4] - 0.5 * x[2]
    u2 = x[3] - 0.5 * x[1]
    first = x[4] - 2.5 * x[2] + x[0]
    last = x[5] - 2.5 * x[3] + x[1]
    return first, t1 + A * u1, t1 - A * u1, t2 + B * u2, t2 - B * u2, last


@triton.jit
def transform_output(m):
    """Six products along one axis → four outputs."""
    s1 = m[1] + m[2]
    d1 = m[1] - m[2]
    s2 = m[3] + m[4]
    d2 = m[3] - m[4]
    return m[0] + s1 + s2, A * d1 + B * d2, 0.5 * s1 + 2 * s2, 0.5 * A * d1 + 2 * B * d2 + m[5]


@triton.jit
def column_of(rows, j: tl.constexpr):
    return rows[0][j], rows[1][j], rows[2][j], rows[3][j], rows[4][j], rows[5][j]


@triton.jit
def store_input(v_ptr, x_ptr, h, w, H, W, m_row, c, C: tl.constexpr, BM: tl.constexpr):
    """v [36, BM, C]: the transforms of the 6 × 6 pixels at (h, w) [BM], of channels c [BC].

    `x_ptr` [BM] points at channel 0 of (h, w); pixels outside the H × W image and rows not m_row count as zero.
    """
    p_x = x_ptr[:, None] + c[None, :]
    p_v = v_ptr + tl.arange(0, BM)[:, None] * C + c[None, :]
    rows = ()
    for i in tl.static_range(6):
        row = ()
        for j in tl.static_range(6):
            mask = (m_row & inside(h + i, w + j, H, W))[:, None] & (c < C)[None, :]
            row = row + (tl.load(p_x + tl.cast(i * W + j, tl.int64) * C, mask=mask, other=0.0),)  # [BM, BC]
        rows = rows + (transform_input(row),)
    for j in tl.static_range(6):
        column = transform_input(column_of(rows, j))
        for i in tl.static_range(6):
            tl.store(p_v + (6 * i + j) * (BM * C), column[i], mask=(c < C)[None, :])


@triton.jit
def store_products(
    m_ptr, v_ptr, u_ptr, C: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """m [36, BM, BN] = v [36, BM, C] × u [36, C, BN]."""
    o_m = tl.arange(0, BM)[:, None]
    o_c = tl.arange(0, BK)
    o_n = tl.arange(0, BN)[None, :]
    for point in range(36):
        p_v = v_ptr + point * (BM * C) + o_m * C + o_c[None, :]
        p_u = u_ptr + point * (C * BN) + o_c[:, None] * BN + o_n
        acc = tl.zeros((BM, BN), v_ptr.dtype.element_ty)
        for c in range(0, C, BK):
            if C % BK == 0:
                v = tl.load(p_v + c)  # [BM, BK]
                u = tl.load(p_u + c * BN)  # [BK, BN]
            else:
                m_c = o_c < C - c
                v = tl.load(p_v + c, mask=m_c[None, :], other=0.0)  # [BM, BK]
                u = tl.load(p_u + c * BN, mask=m_c[:, None], other=0.0)  # [BK, BN]
            acc = tl.dot(v, u, acc, input_precision=PRECISION, out_dtype=v_ptr.dtype.element_ty)
        tl.store(m_ptr + point * (BM * BN) + o_m * BN + o_n, acc)


@triton.jit
def load_output(m_ptr, BM: tl.constexpr, BN: tl.constexpr):
    """The 4 × 4 outputs of each tile, [BM, BN] each, from m [36, BM, BN]."""
    p_m = m_ptr + tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
    rows = ()
    for i in tl.static_range(6):
        row = ()
        for j in tl.static_range(6):
            row = row + (tl.load(p_m + (6 * i + j) * (BM * BN)),)  # [BM, BN]
        rows = rows + (transform_output(row),)
    columns = ()
    for j in tl.static_range(4):
        columns = columns + (transform_output(column_of(rows, j)),)
    return columns


@triton.jit
def output_at(pixel, p, q, P, Q, m_row, k, K: tl.constexpr, i: tl.constexpr, j: tl.constexpr):
    """Offset and mask [BM, BN] of output (i, j) of tiles at (p, q) [BM], which is `pixel` of all; channels k [BN]."""
    offset = pixel.to(tl.int64)[:, None] * K + k[None, :] + tl.cast(i * Q + j, tl.int64) * K
    return offset, (m_row & (p + i < P) & (q + j < Q))[:, None] & (k < K)[None, :]


@triton.jit
def conv_winograd(
    x_ptr, u_ptr, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, residual_ptr, workspace_ptr, N, H, W, P, Q,
    C: tl.constexpr, K: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """What `conv_fprop` computes of a 3 × 3 window with stride and dilation 1, without groups, in float32 or float64.

    Grid: (any number, any number). A program takes every num_programs(0)-th block of BM tiles of 4 × 4 outputs, and of
    the tiles of K its share of num_programs(1). It transforms a block's inputs once, all channels of them, then per
    tile of K multiplies and transforms back. What lies between, [36, BM, C] and [36, BM, BN] of `workspace_ptr`, is its
    own, and stays in cache. `u_ptr`: transformed weights [tiles of K, 36, C, BN].
    """
    K_TILES: tl.constexpr = (K + BN - 1) // BN
    tiles_p = tl.cdiv(P, 4)
    tiles_q = tl.cdiv(Q, 4)
    tiles = N * tiles_p * tiles_q
    share = tl.cdiv(K_TILES, tl.num_programs(1))
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, K_TILES)
    program = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    v_ptr = workspace_ptr + program * (36 * BM * (C + BN))
    m_ptr = v_ptr + 36 * BM * C
    for block in range(tl.program_id(0), tl.cdiv(tiles, BM), tl.num_programs(0)):
        tile = block * BM + tl.arange(0, BM)
        n, p, q = unravel(tile, tiles_p, tiles_q)
        p *= 4
        q *= 4
        h = p - PAD_H
        w = q - PAD_W
        p_x = x_ptr + ((n * H + h) * W + w).to(tl.int64) * C
        for c in range(0, C, BC):
            store_input(v_ptr, p_x, h, w, H, W, tile < tiles, c + tl.arange(0, BC), C, BM)
        tl.debug_barrier()
        p_u = u_ptr + first.to(tl.int64) * (36 * C * BN)
        for tile_n in range(first, last):
            store_products(m_ptr, v_ptr, p_u, C, BM, BN, BK, PRECISION)
            tl.debug_barrier()
            k = tile_n * BN + tl.arange(0, BN)
            columns = load_output(m_ptr, BM, BN)
            y = ()
            for i in tl.static_range(4):
                for j in tl.static_range(4):
                    z = columns[j][i]
                    if bias_ptr is not None:
                        z += tl.load(bias_ptr + k, mask=k < K, other=0.0)[None, :]  # [BN]
                    if mean_ptr is not None:
                        z, _ = normalized(z, mean_ptr, var_ptr, k, K, EPS)
                        z = affine(z, gamma_ptr, beta_ptr, 0, k, K)
                    if residual_ptr is not None:
                        at, mask = output_at((n * P + p) * Q + q, p, q, P, Q, tile < tiles, k, K, i, j)
                        z += tl.load(residual_ptr + at, mask=mask, other=0.0)  # [BM, BN]
                    y = y + (activate(z, ACTIVATION),)
            for i in tl.static_range(4):
                for j in tl.static_range(4):
                    at, mask = output_at((n * P + p) * Q + q, p, q, P, Q, tile < tiles, k, K, i, j)
                    tl.store(y_ptr + at, y[4 * i + j], mask=mask)
            tl.debug_barrier()
            p_u += 36 * C * BN
