"""Depthwise convolution, a window per channel: fprop, dgrad and wgrad over NHWC activations, without a dot.

C channels go in, K come out; channel k reads channel k // (K / C) alone. Programs take columns of one row of pixels, so
that all but the column is a number and not a tensor. Sizes that vary at run time: N, H, W of the
input and P, Q of the output. An offset that is a multiple of the channel count is int64, since a tensor may have 2³¹
elements or more.
"""

import triton
import triton.language as tl

from .common import activate, inside, tap_step, taps_of
from .norm import affine, normalized


@triton.jit
def row_tile(tile, columns, BM: tl.constexpr):
    """The row of an image, all images' rows counted, and the columns [BM] in it that a tile covers."""
    tiles = tl.cdiv(columns, BM)
    return tile // tiles, tile % tiles * BM + tl.arange(0, BM)


@triton.jit
def columns_mask(n, N: tl.constexpr, BN: tl.constexpr):
    """[1, BN]: which columns n there are; a constant where all tiles are full."""
    return (n < N)[None, :] if N % BN != 0 else tl.full((1, BN), True, tl.int1)


@triton.jit
def window_sum(
    p_x, p_w, in_range, h, w, k, H, W, C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """[BM, BN] sums over the taps of x[h + r·DIL_H, w + s·DIL_W, c] × w[r, s, k]. INSIDE: all of these pixels exist."""
    acc = tl.zeros((BM, BN), ACC)
    m_k = columns_mask(k, K, BN)
    mask = m_k
    for r in tl.static_range(R):
        for s in tl.static_range(S):
            if not INSIDE:
                mask = (in_range & inside(h + r * DIL_H, w + s * DIL_W, H, W))[:, None] & m_k
            o_x = tl.cast(r * DIL_H * W + s * DIL_W, tl.int64) * C
            x = tl.load(p_x + o_x, mask=mask, other=0.0).to(ACC)  # [BM, BN]
            acc += x * tl.load(p_w + (r * S + s) * BN).to(ACC)[None, :]  # [BN]
    return acc


@triton.jit
def depthwise_fprop(
    x_ptr, w_ptr, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, residual_ptr, N, H, W, P, Q,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, EPS: tl.constexpr, ACTIVATION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y[n, p, q, k] = activation(norm(bias[k] + Σ x[n, p·stride − pad + r·dilation, …, c] w[r, s, k]) + residual).

    The norm is that of `conv_fprop`. Grid: (rows of N·P × tiles of Q, tiles of K). `w_ptr`: panels [tiles of K, R·S, BN].
    """
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    row, q = row_tile(tl.program_id(0), Q, BM)
    tile_n = tl.program_id(1)
    k = tile_n * BN + tl.arange(0, BN)
    h = row % P * STRIDE_H - PAD_H
    w = q * STRIDE_W - PAD_W
    p_x = x_ptr + (row // P * H + h).to(tl.int64) * W * C + w.to(tl.int64)[:, None] * C + (k // (K // C))[None, :]
    p_w = w_ptr + tile_n * (R * S * BN) + tl.arange(0, BN)
    # Most programs need no mask for the image's border.
    start = tl.min(q, 0) * STRIDE_W - PAD_W
    reach = (BM - 1) * STRIDE_W + (S - 1) * DIL_W
    if (h >= 0) & (h + (R - 1) * DIL_H < H) & (start >= 0) & (start + reach < W):
        acc = window_sum(p_x, p_w, q < Q, h, w, k, H, W, C, K, R, S, DIL_H, DIL_W, BM, BN, ACC, True)
    else:
        acc = window_sum(p_x, p_w, q < Q, h, w, k, H, W, C, K, R, S, DIL_H, DIL_W, BM, BN, ACC, False)

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + k, mask=k < K, other=0.0).to(ACC)[None, :]  # [BN]
    if mean_ptr is not None:
        acc, _ = normalized(acc, mean_ptr, var_ptr, k, K, EPS)
        acc = affine(acc, gamma_ptr, beta_ptr, 0, k, K)
    o_y = (row.to(tl.int64) * Q + q) * K
    m_y = (q < Q)[:, None] & columns_mask(k, K, BN)
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + o_y[:, None] + k[None, :], mask=m_y, other=0.0).to(ACC)  # [BM, BN]
    tl.store(y_ptr + o_y[:, None] + k[None, :], activate(acc, ACTIVATION).to(y_ptr.dtype.element_ty), mask=m_y)


@triton.jit
def depthwise_dgrad(
    dy_ptr, w_ptr, dx_ptr, N, H, W, P, Q,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dx[n, h, w, c] = Σ dy[n, p, q, k] w[r, s, k] where p·stride + r·dilation = h + pad, and so for (q, s) and w.

    Which taps take part depends only on (h, w) modulo the stride: a program takes pixels of one residue class.
    Grid: (rows × tiles of columns of the largest class, tiles of C, classes). `w_ptr`: panels [tiles of C, R·S, K/C, BN].
    """
    ACC: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    MULTIPLIER: tl.constexpr = K // C
    TAP_H: tl.constexpr = tap_step(STRIDE_H, DIL_H)
    TAP_W: tl.constexpr = tap_step(STRIDE_W, DIL_W)
    row, j = row_tile(tl.program_id(0), (W + STRIDE_W - 1) // STRIDE_W, BM)
    tile_n = tl.program_id(1)
    c = tile_n * BN + tl.arange(0, BN)
    # The class holds the pixels (h0 + i·STRIDE_H, w0 + j·STRIDE_W).
    h0 = tl.program_id(2) // STRIDE_W
    w0 = tl.program_id(2) % STRIDE_W
    rows = (H + STRIDE_H - 1) // STRIDE_H
    n = row // rows
    i = row % rows
    h = h0 + i * STRIDE_H
    w = w0 + j * STRIDE_W
    m_w = (h < H) & (w < W)
    r, taps_h = taps_of(h0 + PAD_H, STRIDE_H, DIL_H, R)
    s, taps_w = taps_of(w0 + PAD_W, STRIDE_W, DIL_W, S)
    p = i + (h0 + PAD_H - r * DIL_H) // STRIDE_H  # exact: the class's taps are congruent
    q = j + (w0 + PAD_W - s * DIL_W) // STRIDE_W
    p_dy = dy_ptr + (n * P + p).to(tl.int64) * Q * K + q.to(tl.int64)[:, None] * K + (c * MULTIPLIER)[None, :]
    p_w = w_ptr + (tile_n * (R * S) + r * S + s) * (MULTIPLIER * BN) + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), ACC)
    for u in tl.static_range((R + TAP_H - 1) // TAP_H):  # taps of the largest class: the others skip some
        for v in tl.static_range((S + TAP_W - 1) // TAP_W):
            up = u * (TAP_H * DIL_H // STRIDE_H)
            left = v * (TAP_W * DIL_W // STRIDE_W)
            m_tap = (u < taps_h) & (v < taps_w)
            mask = (m_w & m_tap & inside(p - up, q - left, P, Q))[:, None] & (c < C)[None, :]
            p_tap = p_dy - tl.cast(up * Q + left, tl.int64) * K
            o_w = (u * TAP_H * S + v * TAP_W) * (MULTIPLIER * BN)
            for t in tl.static_range(MULTIPLIER):
                dy = tl.load(p_tap + t, mask=mask, other=0.0).to(ACC)  # [BM, BN]
                acc += dy * tl.load(p_w + (o_w + t * BN), mask=m_tap, other=0.0).to(ACC)[None, :]  # [BN]
    o_dx = ((n * H + h).to(tl.int64) * W + w) * C
    tl.store(dx_ptr + o_dx[:, None] + c[None, :], acc.to(dx_ptr.dtype.element_ty), mask=m_w[:, None] & (c < C)[None, :])


@triton.jit
def depthwise_wgrad(
    dy_ptr, x_ptr, dw_ptr, N, H, W, P, Q, rows, stride_split, stride_k, stride_tap,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dw[split][k, r, s] = Σ dy[n, p, q, k] x[n, p·stride − pad + r·dilation, …, c] over a split's rows (n, p).

    A split has `rows` rows of output pixels, the last what remains. Grid: (taps, tiles of K, splits): programs that run
    next to each other read the same pixels. Strides are those of `dw_ptr`, in elements.
    """
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    tap = tl.program_id(0)
    split = tl.program_id(2)
    k = tl.program_id(1) * BN + tl.arange(0, BN)
    h0 = tap // S * DIL_H - PAD_H
    w0 = tap % S * DIL_W - PAD_W
    acc = tl.zeros((BN,), ACC)
    for row in range(split * rows, tl.minimum((split + 1) * rows, N * P)):
        h = row % P * STRIDE_H + h0
        # A tap outside the image masks dy too: an inf there must not meet the zero that stands for the pixel.
        columns = tl.where((h >= 0) & (h < H), Q, 0)
        p_dy = dy_ptr + row.to(tl.int64) * Q * K + k
        p_x = x_ptr + (row // P * H + h).to(tl.int64) * W * C + k // (K // C)
        for start in range(0, columns, BM):
            q = start + tl.arange(0, BM)
            w = q * STRIDE_W + w0
            m_row = (q < Q) & (w >= 0) & (w < W)
            mask = m_row[:, None] & (k < K)[None, :]
            dy = tl.load(p_dy[None, :] + q[:, None].to(tl.int64) * K, mask=mask, other=0.0)  # [BM, BN]
            x = tl.load(p_x[None, :] + w[:, None].to(tl.int64) * C, mask=mask, other=0.0)  # [BM, BN]
            acc += tl.sum(dy.to(ACC) * x.to(ACC), 0)
    p_dw = dw_ptr + split.to(tl.int64) * stride_split + k * stride_k + tap * stride_tap
    tl.store(p_dw, acc.to(dw_ptr.dtype.element_ty), mask=k < K)
