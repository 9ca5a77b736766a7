"""The gradient of a weight by Winograd's algorithm: fprop's product at each point is linear in the transformed weight,
so its gradient there is a product over all tiles, of transformed inputs and transposedly transformed outputs.

Transforms and sums are written past the caches (".cs"): each is read once, by another core of a CPU, whose lines are
several times as slow to be written again as what lies in memory.

Where the implicit GEMM takes 144 products for the 16 outputs of a tile of a 3 × 3 window, this takes 36. With a stride
the window is that of a phase, as in `winograd`, and gradients of all phases are products with the same outputs.
"""

import triton
import triton.language as tl

from .common import product
from .winograd_tiles import GAP, count_tiles, load_square, tile_at
from .winograd_transforms import column_of, transform_input, untransform_filter, untransform_output


@triton.jit
def winograd_gather(
    x_ptr, z_ptr, N, H, W, P, Q, first, count,
    C: tl.constexpr, STRIDE: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, OUT: tl.constexpr, TAPS: tl.constexpr, OUTPUTS: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """z [points, phases × tiles of C, count, BC]: transforms of `count` tiles from tile `first` on, zero beyond the
    last one; behind each point is a gap.

    They are the inputs' of a convolution with P × Q outputs; or, with OUTPUTS, its H × W outputs' gradients', by the
    transpose of the outputs' transform, as at a stride of 1. Grid: (blocks of `count`, phases × tiles of C). `count`: a
    multiple of BM.
    """
    IN: tl.constexpr = OUT + TAPS - 1
    C_TILES: tl.constexpr = (C + BC - 1) // BC
    ACC: tl.constexpr = z_ptr.dtype.element_ty
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    tile = first + row
    n, p, q = tile_at(tile, P, Q, DIL_H, DIL_W, OUT)
    phase = tl.program_id(1) // C_TILES
    h = p * STRIDE - PAD_H + phase // STRIDE
    w = q * STRIDE - PAD_W + phase % STRIDE
    m_row = tile < count_tiles(N, P, Q, DIL_H, DIL_W, OUT)
    c = tl.program_id(1) % C_TILES * BC + tl.arange(0, BC)
    p_x = x_ptr + ((n * H + h) * W + w).to(tl.int64) * C
    SIDE: tl.constexpr = OUT if OUTPUTS else IN
    pixels = load_square(p_x, h, w, H, W, m_row, c, C, STRIDE * DIL_H, STRIDE * DIL_W, SIDE, ACC)
    rows = ()
    for i in tl.static_range(len(pixels)):
        rows = rows + (untransform_output(pixels[i], TAPS) if OUTPUTS else transform_input(pixels[i]),)
    point = tl.num_programs(1) * count.to(tl.int64) * BC + GAP  # elements to the next one
    p_z = z_ptr + (tl.program_id(1) * count + row).to(tl.int64)[:, None] * BC + tl.arange(0, BC)[None, :]
    for j in tl.static_range(IN):
        column = column_of(rows, j)
        values = untransform_output(column, TAPS) if OUTPUTS else transform_input(column)
        for i in tl.static_range(IN):
            tl.store(p_z + (IN * i + j) * point, values[i], cache_modifier=".cs")


@triton.jit
def winograd_correlate(
    z_ptr, v_ptr, u_ptr, count,
    C: tl.constexpr, K: tl.constexpr, PHASES: tl.constexpr, MORE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """u [points, K, PHASES × C] = Σ z[point, tile, k] v[point, tile, c] over `count` tiles, a multiple of BK; with
    MORE, added.

    Grid: (tiles of K × phases × tiles of C, points). z: [points, tiles of K, count, BM], v: [points, phases × tiles of
    C, count, BN]. In each of the three there is a gap behind each point.
    """
    ACC: tl.constexpr = u_ptr.dtype.element_ty
    K_TILES: tl.constexpr = (K + BM - 1) // BM
    C_TILES: tl.constexpr = (C + BN - 1) // BN
    V_TILES: tl.constexpr = PHASES * C_TILES
    point = tl.program_id(1).to(tl.int64)
    tile_k = tl.program_id(0) // V_TILES
    tile_c = tl.program_id(0) % V_TILES
    t = tl.arange(0, BK)
    p_z = z_ptr + point * (K_TILES * count * BM + GAP) + (tile_k * count + t)[None, :] * BM
    p_v = v_ptr + point * (V_TILES * count * BN + GAP) + (tile_c * count + t)[:, None] * BN
    p_z += tl.arange(0, BM)[:, None]
    p_v += tl.arange(0, BN)[None, :]
    acc = tl.zeros((BM, BN), ACC)
    for start in range(0, count, BK):
        z = tl.load(p_z + start * BM)  # [BM, BK]
        v = tl.load(p_v + start * BN)  # [BK, BN]
        acc = product(z, v, acc, PRECISION)
    k = tile_k * BM + tl.arange(0, BM)
    c = tile_c % C_TILES * BN + tl.arange(0, BN)
    p_u = u_ptr + point * (K * PHASES * C + GAP) + k[:, None] * (PHASES * C) + tile_c // C_TILES * C + c[None, :]
    mask = (k < K)[:, None] & (c < C)[None, :]
    if MORE:
        acc += tl.load(p_u, mask=mask, other=0.0)  # [BM, BN]
    tl.store(p_u, acc, mask=mask, cache_modifier=".cs")


@triton.jit
def winograd_taps(
    u_ptr, dw_ptr,
    C: tl.constexpr, K: tl.constexpr, STRIDE_C: tl.constexpr, STRIDE_TAP: tl.constexpr,
    STRIDE: tl.constexpr, OUT: tl.constexpr, R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dw [K, C, R, R], of these strides, from the gradients u [points, K, phases × C] of its transform.

    Grid: (tiles of K, tiles of C, phases).
    """
    TAPS: tl.constexpr = (R + STRIDE - 1) // STRIDE
    IN: tl.constexpr = OUT + TAPS - 1
    DEPTH: tl.constexpr = STRIDE * STRIDE * C
    phase = tl.program_id(2)
    k = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (k < K)[:, None] & (c < C)[None, :]
    p_u = u_ptr + k.to(tl.int64)[:, None] * DEPTH + phase * C + c[None, :]
    rows = ()
    for i in tl.static_range(IN):
        row = ()
        for j in tl.static_range(IN):
            at = tl.cast(IN * i + j, tl.int64) * (K * DEPTH + GAP)
            row = row + (tl.load(p_u + at, mask=mask, other=0.0),)  # [BM, BN]
        rows = rows + (untransform_filter(row),)
    first_r = phase // STRIDE
    first_s = phase % STRIDE
    p_dw = dw_ptr + k.to(tl.int64)[:, None] * (R * R * C) + c[None, :] * STRIDE_C
    p_dw += (first_r * R + first_s) * STRIDE_TAP
    for s in tl.static_range(TAPS):
        column = untransform_filter(column_of(rows, s))
        for r in tl.static_range(TAPS):
            m_tap = mask
            if STRIDE * TAPS > R:
                m_tap &= (first_r + STRIDE * r < R) & (first_s + STRIDE * s < R)
            at = (R * r + s) * (STRIDE * STRIDE_TAP)
            tl.store(p_dw + at, column[r].to(dw_ptr.dtype.element_ty), mask=m_tap)
