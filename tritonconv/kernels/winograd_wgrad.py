"""The gradient of a 3 × 3 weight by Winograd's algorithm: fprop's product at each point is linear in the transformed
weight, so its gradient there is a product over all tiles, of transformed inputs and transposedly transformed outputs.

Where the implicit GEMM takes 144 products for the 16 outputs of a tile, this takes 36. The transforms are those of
`winograd`, and the transposes of its other two.
"""

import triton
import triton.language as tl

from .winograd import count_tiles, load_square, tile_at
from .winograd_transforms import A, B, column_of, transform_input


@triton.jit
def untransform_output(y, OUT: tl.constexpr):
    """The transpose of `transform_output`: OUT outputs' gradients along one axis → those of OUT + 2 products."""
    if OUT == 2:
        return y[0], y[0] + y[1], y[0] - y[1], y[1]
    else:
        s1 = y[0] + 0.5 * y[2]
        d1 = A * y[1] + (0.5 * A) * y[3]
        s2 = y[0] + 2 * y[2]
        d2 = B * y[1] + (2 * B) * y[3]
        return y[0], s1 + d1, s1 - d1, s2 + d2, s2 - d2, y[3]


@triton.jit
def untransform_filter(u, OUT: tl.constexpr):
    """The transpose of `transform_filter`: OUT + 2 values' gradients along one axis → those of three taps."""
    if OUT == 2:
        s = 0.5 * (u[1] + u[2])
        return s - u[0], 0.5 * (u[1] - u[2]), s + u[3]
    else:
        s1 = u[1] + u[2]
        s2 = u[3] + u[4]
        w1 = (-2 / 3 * A) * (u[1] - u[2]) + (1 / 6 * B) * (u[3] - u[4])
        return u[0] - (2 / 3) * s1 + (1 / 6) * s2, w1, u[5] + (1 / 3) * (s2 - s1)


@triton.jit
def winograd_gather(
    x_ptr, z_ptr, N, H, W, P, Q, first, count,
    C: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    OUT: tl.constexpr, OUTPUTS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """z [points, tiles of C, count, BC]: transforms of `count` tiles from tile `first` on, zero beyond the last one.

    They are the inputs' of a convolution with P × Q outputs; or, with OUTPUTS, its H × W outputs' gradients', by the
    transpose of the outputs' transform. Grid: (blocks of `count`, tiles of C). `count`: a multiple of BM.
    """
    IN: tl.constexpr = OUT + 2
    ACC: tl.constexpr = z_ptr.dtype.element_ty
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    tile = first + row
    n, p, q = tile_at(tile, P, Q, DIL_H, DIL_W, OUT)
    h = p - PAD_H
    w = q - PAD_W
    m_row = tile < count_tiles(N, P, Q, DIL_H, DIL_W, OUT)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    p_x = x_ptr + ((n * H + h) * W + w).to(tl.int64) * C
    pixels = load_square(p_x, h, w, H, W, m_row, c, C, DIL_H, DIL_W, OUT if OUTPUTS else IN, ACC)
    rows = ()
    for i in tl.static_range(len(pixels)):
        rows = rows + (untransform_output(pixels[i], OUT) if OUTPUTS else transform_input(pixels[i]),)
    point = tl.num_programs(1) * count.to(tl.int64) * BC  # elements of a point
    p_z = z_ptr + (tl.program_id(1) * count + row).to(tl.int64)[:, None] * BC + tl.arange(0, BC)[None, :]
    for j in tl.static_range(IN):
        column = column_of(rows, j)
        values = untransform_output(column, OUT) if OUTPUTS else transform_input(column)
        for i in tl.static_range(IN):
            tl.store(p_z + (IN * i + j) * point, values[i])


@triton.jit
def winograd_correlate(
    z_ptr, v_ptr, u_ptr, count,
    C: tl.constexpr, K: tl.constexpr, MORE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """u [points, K, C] = Σ z[point, tile, k] v[point, tile, c] over `count` tiles, a multiple of BK; with MORE, added.

    Grid: (tiles of K × tiles of C, points). z: [points, tiles of K, count, BM], v: [points, tiles of C, count, BN].
    """
    ACC: tl.constexpr = u_ptr.dtype.element_ty
    K_TILES: tl.constexpr = (K + BM - 1) // BM
    C_TILES: tl.constexpr = (C + BN - 1) // BN
    point = tl.program_id(1).to(tl.int64)
    tile_k = tl.program_id(0) // C_TILES
    tile_c = tl.program_id(0) % C_TILES
    t = tl.arange(0, BK)
    p_z = z_ptr + (point * K_TILES + tile_k) * count * BM + tl.arange(0, BM)[:, None] + t[None, :] * BM
    p_v = v_ptr + (point * C_TILES + tile_c) * count * BN + t[:, None] * BN + tl.arange(0, BN)[None, :]
    acc = tl.zeros((BM, BN), ACC)
    for start in range(0, count, BK):
        z = tl.load(p_z + start * BM)  # [BM, BK]
        v = tl.load(p_v + start * BN)  # [BK, BN]
        acc = tl.dot(z, v, acc, input_precision=PRECISION, out_dtype=ACC)
    k = tile_k * BM + tl.arange(0, BM)
    c = tile_c * BN + tl.arange(0, BN)
    p_u = u_ptr + point * (K * C) + k[:, None] * C + c[None, :]
    mask = (k < K)[:, None] & (c < C)[None, :]
    if MORE:
        acc += tl.load(p_u, mask=mask, other=0.0)  # [BM, BN]
    tl.store(p_u, acc, mask=mask)


@triton.jit
def winograd_taps(
    u_ptr, dw_ptr,
    C: tl.constexpr, K: tl.constexpr, STRIDE_C: tl.constexpr, STRIDE_TAP: tl.constexpr,
    OUT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dw [K, C, 3, 3], of these strides, from the gradients u [points, K, C] of its transform.

    Grid: (tiles of K, tiles of C).
    """
    IN: tl.constexpr = OUT + 2
    k = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (k < K)[:, None] & (c < C)[None, :]
    p_u = u_ptr + k.to(tl.int64)[:, None] * C + c[None, :]
    rows = ()
    for i in tl.static_range(IN):
        row = ()
        for j in tl.static_range(IN):
            row = row + (tl.load(p_u + tl.cast(IN * i + j, tl.int64) * (K * C), mask=mask, other=0.0),)  # [BM, BN]
        rows = rows + (untransform_filter(row, OUT),)
    p_dw = dw_ptr + k.to(tl.int64)[:, None] * (9 * C) + c[None, :] * STRIDE_C
    for s in tl.static_range(3):
        column = untransform_filter(column_of(rows, s), OUT)
        for r in tl.static_range(3):
            tl.store(p_dw + (3 * r + s) * STRIDE_TAP, column[r].to(dw_ptr.dtype.element_ty), mask=mask)
