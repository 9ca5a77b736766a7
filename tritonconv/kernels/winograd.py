"""Convolution by Winograd's minimal filtering: F(4×4, 3×3) takes 36 products for 16 outputs of a 3 × 3 window, not
144; F(2×2, 3×3) takes 16 for 4, and less memory for weights; F(2×2, 5×5) takes 36 for 4, not 100.

Pixels as far apart as the dilation are an image of their own, a phase, in which the window is not dilated. At a stride
of 2 the rows and columns of the image, even or odd, are its four phases, and those of the window theirs: 4 × 4 taps are
four windows of 2 × 2, at stride 1, whose products are summed before they are transformed back: F(4×4, 2×2) takes 25 of
a phase for 16 outputs, not 64. Transposed convolution makes four phases of its outputs so, one of each window. If the
window's side is odd, zeros are behind its last taps: 5 × 5 taps are four windows of 3 × 3.
"""

import triton
import triton.language as tl

from .activations import activate
from .epilogue import normed
from .moments import store_partial
from .winograd_tiles import GAP, count_tiles, load_output, output_at, store_input, store_products, tile_at
from .winograd_transforms import column_of, transform_filter


@triton.jit
def winograd_filter(
    w_ptr, u_ptr, C: tl.constexpr, K: tl.constexpr,
    FIRST: tl.constexpr, STRIDE_C: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_TAP: tl.constexpr,
    STRIDE: tl.constexpr, UP: tl.constexpr, OUT: tl.constexpr, R: tl.constexpr,
    BC: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """u [UP², tiles of K, points, STRIDE² · C, BN]: the transformed taps of a weight of these strides, R × R from that
    at FIRST on, phase by phase, with a gap behind each point. One of STRIDE and UP is 1. Written past the caches, as of
    `winograd_wgrad`.

    Grid: (tiles of C, tiles of K, phases).
    """
    APART: tl.constexpr = STRIDE * UP  # the taps of a phase
    TAPS: tl.constexpr = (R + APART - 1) // APART
    IN: tl.constexpr = OUT + TAPS - 1
    DEPTH: tl.constexpr = STRIDE * STRIDE * C
    ACC: tl.constexpr = u_ptr.dtype.element_ty
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    k = tl.program_id(1) * BN + tl.arange(0, BN)
    phase = tl.program_id(2)
    first_r = phase // APART
    first_s = phase % APART
    p_w = w_ptr + FIRST + (first_r * R + first_s) * STRIDE_TAP
    p_w += c.to(tl.int64)[:, None] * STRIDE_C + k.to(tl.int64)[None, :] * STRIDE_K
    rows = ()
    for r in tl.static_range(TAPS):
        row = ()
        for s in tl.static_range(TAPS):
            mask = (c < C)[:, None] & (k < K)[None, :]
            if APART * TAPS > R:
                mask &= (first_r + APART * r < R) & (first_s + APART * s < R)
            p_tap = p_w + (R * r + s) * (APART * STRIDE_TAP)
            row = row + (tl.load(p_tap, mask=mask, other=0.0).to(ACC),)  # [BC, BN]
        rows = rows + (transform_filter(row, OUT),)
    tile = phase * tl.num_programs(1) + tl.program_id(1) if UP > 1 else tl.program_id(1)
    depth = phase * C + c if STRIDE > 1 else c
    p_u = u_ptr + tile.to(tl.int64) * (IN * IN * (DEPTH * BN + GAP)) + depth[:, None] * BN + tl.arange(0, BN)[None, :]
    columns = ()
    for j in tl.static_range(IN):
        columns = columns + (transform_filter(column_of(rows, j), OUT),)
    for i in tl.static_range(IN):
        for j in tl.static_range(IN):
            p_point = p_u + (IN * i + j) * (DEPTH * BN + GAP)
            tl.store(p_point, columns[j][i], mask=(c < C)[:, None], cache_modifier=".cs")


@triton.jit
def store_tile_moments(
    partial_ptr, block, blocks, y_ptr, o_y, p, q, P, Q, m_row, k,
    K: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr, OUT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The partial statistics of a block's outputs, which lie in cache, in the channels k [BN]."""
    total = tl.zeros(o_y.shape, ACC)
    count = tl.zeros(o_y.shape, ACC)
    for i in tl.static_range(OUT):
        for j in tl.static_range(OUT):
            at, mask = output_at(o_y, p, q, P, Q, m_row, k < K, K, DIL_H, DIL_W, i, j)
            total += tl.load(y_ptr + at, mask=mask, other=0.0).to(ACC)  # [BM, BN]
            count += mask.to(ACC)
    count = tl.sum(count, 0)
    mean = tl.sum(total, 0) / tl.maximum(count, 1.0)
    m2 = tl.zeros(o_y.shape, ACC)
    for i in tl.static_range(OUT):
        for j in tl.static_range(OUT):
            at, mask = output_at(o_y, p, q, P, Q, m_row, k < K, K, DIL_H, DIL_W, i, j)
            y = tl.load(y_ptr + at, mask=mask, other=0.0).to(ACC)  # [BM, BN]
            deviation = tl.where(mask, y - mean[None, :], 0.0)
            m2 += deviation * deviation
    store_partial(partial_ptr, block, blocks, count, mean, tl.sum(m2, 0), k, k < K, K)


@triton.constexpr_function
def tap_of_tile(window, tap, pool_h, pool_w, OUT):
    """Which of a tile's OUT² outputs is the tap of a window, the windows counted by rows."""
    i = window // (OUT // pool_w) * pool_h + tap // pool_w
    return OUT * i + window % (OUT // pool_w) * pool_w + tap % pool_w


@triton.jit
def store_maxima(
    z, y_ptr, tap_ptr, n, p, q, P, Q, m_row, k, K: tl.constexpr, ACTIVATION: tl.constexpr,
    POOL_H: tl.constexpr, POOL_W: tl.constexpr, OUT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y [N, P // POOL_H, Q // POOL_W, K] and the taps, of the OUT² outputs z [BM, BN] of tiles at (p, q) [BM]."""
    windows_p = P // POOL_H
    windows_q = Q // POOL_W
    for window in tl.static_range(OUT * OUT // (POOL_H * POOL_W)):
        i = window // (OUT // POOL_W)
        j = window % (OUT // POOL_W)
        best = tl.full(z[0].shape, float("-inf"), ACC)
        best_tap = tl.zeros(z[0].shape, tl.int32)
        for tap in tl.static_range(POOL_H * POOL_W):
            value = z[tap_of_tile(window, tap, POOL_H, POOL_W, OUT)].to(ACC)
            better = (value > best) | (value != value)
            best = tl.where(better, value, best)
            best_tap = tl.where(better, tap, best_tap)
        p_y = p // POOL_H + i
        q_y = q // POOL_W + j
        at = ((n * windows_p + p_y) * windows_q + q_y).to(tl.int64)[:, None] * K + k[None, :]
        mask = (m_row & (p_y < windows_p) & (q_y < windows_q))[:, None] & (k < K)[None, :]
        tl.store(y_ptr + at, activate(best, ACTIVATION).to(y_ptr.dtype.element_ty), mask=mask)
        if tap_ptr is not None:
            tl.store(tap_ptr + at, best_tap.to(tap_ptr.dtype.element_ty), mask=mask)


@triton.jit
def conv_winograd(
    x_ptr, u_ptr, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr, moments_ptr,
    tap_ptr, workspace_ptr, N, H, W, P, Q,
    C: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, UP: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    PIXEL_Y: tl.constexpr, POOL_H: tl.constexpr, POOL_W: tl.constexpr, ONCE: tl.constexpr,
    OUT: tl.constexpr, TAPS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """What `conv_fprop` computes of a window of TAPS taps along an axis in each phase, without groups; with UP of an
    image that has UP − 1 zeros between its pixels. One of STRIDE and UP is 1, and the dilation, if the other is not.

    Pixels of y are PIXEL_Y elements apart, unless there are statistics or y is pooled.

    Grid: (any number, any number, UP²). A program takes every num_programs(0)-th block of BM tiles of OUT × OUT
    outputs, of one of the phases that UP makes, and of the tiles of K its share of num_programs(1). It transforms a
    block's inputs once, all channels of them, then per tile of K multiplies and transforms back. What lies between,
    [points, BM, DEPTH] and [points, BM, BN] of `workspace_ptr`, with gaps, is its own, and stays in cache. `u_ptr`:
    transformed weights, as of `winograd_filter`, that are to come from memory if they are read ONCE.
    `moments_ptr`, where it is not None, gets the partial statistics [3, blocks, K] of what is stored, without UP.
    What is stored are the maxima of POOL_H × POOL_W windows, as `conv_max_pool` has them, if there is more than one
    output in a window. POOL_H and POOL_W divide OUT; then there are no UP, dilation, residual and statistics.
    """
    POOLED: tl.constexpr = POOL_H * POOL_W > 1
    POINTS: tl.constexpr = (OUT + TAPS - 1) * (OUT + TAPS - 1)
    DEPTH: tl.constexpr = STRIDE * STRIDE * C
    K_TILES: tl.constexpr = (K + BN - 1) // BN
    STEP_H: tl.constexpr = UP * DIL_H  # from output to output of a tile
    STEP_W: tl.constexpr = UP * DIL_W
    ACC: tl.constexpr = workspace_ptr.dtype.element_ty
    phase_p = tl.cdiv(P, UP)
    phase_q = tl.cdiv(Q, UP)
    tiles = count_tiles(N, phase_p, phase_q, DIL_H, DIL_W, OUT)
    blocks = tl.cdiv(tiles, BM)
    share = tl.cdiv(K_TILES, tl.num_programs(1))
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, K_TILES)
    tap_h = tl.program_id(2) // UP % UP  # the first taps of the phase that meet pixels
    tap_w = tl.program_id(2) % UP
    program = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * (UP * UP) + tl.program_id(2)
    v_ptr = workspace_ptr + program.to(tl.int64) * (POINTS * (BM * (DEPTH + BN) + 2 * GAP))
    m_ptr = v_ptr + POINTS * (BM * DEPTH + GAP)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        tile = block * BM + tl.arange(0, BM)
        m_row = tile < tiles
        n, p, q = tile_at(tile, phase_p, phase_q, DIL_H, DIL_W, OUT)
        p = p * UP + (PAD_H % UP + UP - tap_h) % UP
        q = q * UP + (PAD_W % UP + UP - tap_w) % UP
        for phase in range(STRIDE * STRIDE):
            h = (p * STRIDE - PAD_H + tap_h + phase // STRIDE) // UP  # exact
            w = (q * STRIDE - PAD_W + tap_w + phase % STRIDE) // UP
            p_x = x_ptr + ((n * H + h) * W + w).to(tl.int64) * C
            for c in range(0, C, BC):
                store_input(
                    v_ptr + phase * C, p_x, h, w, H, W, m_row, c + tl.arange(0, BC),
                    C, STRIDE * DIL_H, STRIDE * DIL_W, DEPTH, OUT, TAPS, BM,
                )  # fmt: skip
        tl.debug_barrier()
        pixel = ((n * P + p) * Q + q).to(tl.int64)
        p_u = u_ptr + (tl.program_id(2) * K_TILES + first).to(tl.int64) * (POINTS * (DEPTH * BN + GAP))
        for tile_n in range(first, last):
            store_products(m_ptr, v_ptr, p_u, POINTS, ONCE, DEPTH, BM, BN, BK, PRECISION)
            tl.debug_barrier()
            k = tile_n * BN + tl.arange(0, BN)
            o_y = pixel[:, None] * PIXEL_Y + k[None, :]
            o_residual = pixel[:, None] * K + k[None, :]
            columns = load_output(m_ptr, OUT, TAPS, BM, BN)
            y = ()
            for i in tl.static_range(OUT):
                for j in tl.static_range(OUT):
                    z = normed(
                        columns[j][i], bias_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, 0, k, K, EPS, ACTIVATION
                    )
                    if residual_ptr is not None:
                        at, mask = output_at(o_residual, p, q, P, Q, m_row, k < K, K, STEP_H, STEP_W, i, j)
                        z += tl.load(residual_ptr + at, mask=mask, other=0.0).to(ACC)  # [BM, BN]
                    if not POOLED:
                        z = activate(z, ACTIVATION, slope_ptr, k[None, :], (k < K)[None, :])
                    y = y + (z.to(y_ptr.dtype.element_ty),)
            if POOLED:
                store_maxima(y, y_ptr, tap_ptr, n, p, q, P, Q, m_row, k, K, ACTIVATION, POOL_H, POOL_W, OUT, ACC)
            else:
                for i in tl.static_range(OUT):
                    for j in tl.static_range(OUT):
                        at, mask = output_at(o_y, p, q, P, Q, m_row, k < K, PIXEL_Y, STEP_H, STEP_W, i, j)
                        tl.store(y_ptr + at, y[OUT * i + j], mask=mask)
            if moments_ptr is not None:
                store_tile_moments(
                    moments_ptr, block, blocks, y_ptr, o_y, p, q, P, Q, m_row, k, K, DIL_H, DIL_W, OUT, ACC
                )
            tl.debug_barrier()
            p_u += POINTS * (DEPTH * BN + GAP)
