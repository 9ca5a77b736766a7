"""dgrad of depthwise convolution. Its programs, and the sizes that vary, are those of `depthwise`."""

import triton
import triton.language as tl

from .common import accumulator, inside, tap_step, taps_of
from .depthwise import row_tile, tail_mask


@triton.jit
def class_sum(
    p_dy, p, q, m_c, P, Q, p_w, H0: tl.constexpr, W0: tl.constexpr,
    K: tl.constexpr, MULTIPLIER: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr,
    INSIDE: tl.constexpr,
):  # fmt: skip
    """dx[p·stride + H0, q·stride + W0] [BM, BN]: of the class (H0, W0) of pixels the columns q [BM] of a row.

    `p_dy` [BM, BN] points at dy[p, q], `p_w` [BN] at tap (0, 0). INSIDE: all that the window reads exists.
    """
    acc = tl.zeros((BM, BN), ACC)
    for r in tl.static_range(R):
        for s in tl.static_range(S):
            below = H0 + PAD_H - r * DIL_H
            after = W0 + PAD_W - s * DIL_W
            if below % STRIDE_H == 0 and after % STRIDE_W == 0:
                mask = m_c if INSIDE else inside(p + below // STRIDE_H, q + after // STRIDE_W, P, Q)[:, None] & m_c
                o_dy = (tl.cast(below // STRIDE_H, tl.int64) * Q + after // STRIDE_W) * K
                for i in tl.static_range(MULTIPLIER):
                    dy = tl.load(p_dy + o_dy + i, mask=mask, other=0.0).to(ACC)  # [BM, BN]
                    weight = tl.load(p_w + ((r * S + s) * MULTIPLIER + i) * BN).to(ACC)  # [BN]
                    acc += dy * weight[None, :]
    return acc


@triton.jit
def residue_sum(
    p_dy, p, q, m_c, P, Q, p_w, h0, w0, K: tl.constexpr, MULTIPLIER: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What `class_sum` returns, of a class that is not known beforehand."""
    acc = tl.zeros((BM, BN), ACC)
    first_r, taps_h = taps_of(h0 + PAD_H, STRIDE_H, DIL_H, R)
    first_s, taps_w = taps_of(w0 + PAD_W, STRIDE_W, DIL_W, S)
    for tap in range(taps_h * taps_w):
        r = first_r + tap // taps_w * tap_step(STRIDE_H, DIL_H)
        s = first_s + tap % taps_w * tap_step(STRIDE_W, DIL_W)
        below = (h0 + PAD_H - r * DIL_H) // STRIDE_H  # exact: the taps are the class's
        after = (w0 + PAD_W - s * DIL_W) // STRIDE_W
        mask = inside(p + below, q + after, P, Q)[:, None] & m_c
        o_dy = (below.to(tl.int64) * Q + after) * K
        for i in tl.static_range(MULTIPLIER):
            dy = tl.load(p_dy + o_dy + i, mask=mask, other=0.0).to(ACC)  # [BM, BN]
            weight = tl.load(p_w + ((r * S + s) * MULTIPLIER + i) * BN).to(ACC)  # [BN]
            acc += dy * weight[None, :]
    return acc


@triton.jit
def store_classes(
    p_dy, p_dx, p, q, m_c, H, W, P, Q, p_w, C: tl.constexpr,
    K: tl.constexpr, MULTIPLIER: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr,
    INSIDE: tl.constexpr,
):  # fmt: skip
    """Writes what `class_sum` returns for each class to dx; `p_dx` [BM, BN] points at the pixels of the first."""
    sums = ()
    for i in tl.static_range(STRIDE_H * STRIDE_W):
        acc = class_sum(
            p_dy, p, q, m_c, P, Q, p_w, i // STRIDE_W, i % STRIDE_W, K, MULTIPLIER, R, S,
            STRIDE_H, STRIDE_W, PAD_H, PAD_W, DIL_H, DIL_W, BM, BN, ACC, INSIDE,
        )  # fmt: skip
        sums += (acc,)
    for i in tl.static_range(STRIDE_H * STRIDE_W):
        h0 = i // STRIDE_W
        w0 = i % STRIDE_W
        mask = m_c if INSIDE else ((p * STRIDE_H + h0 < H) & (q * STRIDE_W + w0 < W))[:, None] & m_c
        tl.store(p_dx + (tl.cast(h0, tl.int64) * W + w0) * C, sums[i].to(p_dx.dtype.element_ty), mask=mask)


@triton.jit
def depthwise_dgrad(
    dy_ptr, w_ptr, dx_ptr, N, H, W, P, Q,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, TOGETHER: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dx[n, h, w, c] = Σ dy[n, p, q, k] w[r, s, k] where p·stride + r·dilation = h + pad, and so for (q, s) and w.

    Which taps take part depends only on (h, w) modulo the stride. TOGETHER: a program takes a row of pixels of every
    residue class, which read the same dy; else of one. Grid: (rows × tiles of columns × tiles of C, by classes if not
    together). `w_ptr`: panels [tiles of C, R·S, K/C, BN].
    """
    ACC: tl.constexpr = accumulator(dy_ptr.dtype.element_ty)
    MULTIPLIER: tl.constexpr = K // C
    C_TILES: tl.constexpr = (C + BN - 1) // BN
    # The window reaches from so many rows of dy above a pixel's own, and columns before it, to so many after.
    ABOVE: tl.constexpr = ((R - 1) * DIL_H - PAD_H) // STRIDE_H
    BELOW: tl.constexpr = (STRIDE_H - 1 + PAD_H) // STRIDE_H
    BEFORE: tl.constexpr = ((S - 1) * DIL_W - PAD_W) // STRIDE_W
    AFTER: tl.constexpr = (STRIDE_W - 1 + PAD_W) // STRIDE_W
    rows = (H + STRIDE_H - 1) // STRIDE_H
    PROGRAMS: tl.constexpr = 1 if TOGETHER else STRIDE_H * STRIDE_W
    residue = tl.program_id(0) % PROGRAMS
    pid = tl.program_id(0) // PROGRAMS
    row, q0 = row_tile(pid // C_TILES, (W + STRIDE_W - 1) // STRIDE_W, BM)
    tile_n = pid % C_TILES
    n = (row // rows).to(tl.int64)
    p = row % rows
    q = q0 + tl.arange(0, BM)
    c = tile_n * BN + tl.arange(0, BN)
    m_c = tail_mask(c, C, BN)
    p_dy = dy_ptr + ((n * P + p) * Q + q0) * K + (tl.arange(0, BM) * K)[:, None] + (c * MULTIPLIER)[None, :]
    p_dx = dx_ptr + ((n * H + p * STRIDE_H) * W + q0 * STRIDE_W) * C
    p_dx += (tl.arange(0, BM) * (STRIDE_W * C))[:, None] + c[None, :]
    p_w = w_ptr + tile_n * (R * S * MULTIPLIER * BN) + tl.arange(0, BN)
    fits_h = (p >= ABOVE) & (p + BELOW < P) & ((p + 1) * STRIDE_H <= H)
    fits_w = (q0 >= BEFORE) & (q0 + BM - 1 + AFTER < Q) & ((q0 + BM) * STRIDE_W <= W)
    if not TOGETHER:
        h0 = residue // STRIDE_W
        w0 = residue % STRIDE_W
        acc = residue_sum(
            p_dy, p, q, m_c, P, Q, p_w, h0, w0, K, MULTIPLIER, R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W,
            DIL_H, DIL_W, BM, BN, ACC,
        )  # fmt: skip
        m_dx = ((p * STRIDE_H + h0 < H) & (q * STRIDE_W + w0 < W))[:, None] & m_c
        tl.store(p_dx + (h0.to(tl.int64) * W + w0) * C, acc.to(dx_ptr.dtype.element_ty), mask=m_dx)
    elif fits_h & fits_w:  # most programs need no mask for the image's border
        store_classes(
            p_dy, p_dx, p, q, m_c, H, W, P, Q, p_w, C, K, MULTIPLIER, R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W,
            DIL_H, DIL_W, BM, BN, ACC, True,
        )  # fmt: skip
    else:
        store_classes(
            p_dy, p_dx, p, q, m_c, H, W, P, Q, p_w, C, K, MULTIPLIER, R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W,
            DIL_H, DIL_W, BM, BN, ACC, False,
        )  # fmt: skip
