"""Depthwise convolution, a window per channel: fprop and wgrad over NHWC activations, without a dot.

C channels go in, K come out; channel k reads channel k // (K / C) alone. Programs take columns of one row of pixels, so
that all but the column is a number and not a tensor. Sizes that vary at run time: N, H, W of the input and P, Q of the
output. An offset that is a multiple of the channel count is int64, since a tensor may have 2³¹ elements or more.
"""

import triton
import triton.language as tl

from .common import accumulator, inside
from .epilogue import finished


@triton.jit
def row_tile(tile, columns, BM: tl.constexpr):
    """The row of pixels, all images' rows counted, and the first of BM columns in it that a tile covers."""
    tiles = tl.cdiv(columns, BM)
    return tile // tiles, tile % tiles * BM


@triton.jit
def tail_mask(n, N: tl.constexpr, BN: tl.constexpr):
    """[1, BN]: which of the channels n there are; a constant where all tiles are full."""
    return (n < N)[None, :] if N % BN != 0 else tl.full((1, BN), True, tl.int1)


@triton.jit
def tap_sum(
    p_x, h, w, m_n, H, W, PIXEL: tl.constexpr, p_w, R: tl.constexpr, S: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr,
    INSIDE: tl.constexpr,
):  # fmt: skip
    """What `window_sum` returns. INSIDE: every pixel of every tap exists."""
    acc = tl.zeros((BM, BN), ACC)
    mask = m_n
    for r in tl.static_range(R):
        for s in tl.static_range(S):
            if not INSIDE:
                mask = inside(h + r * DIL_H, w + s * DIL_W, H, W)[:, None] & m_n
            o_x = tl.cast(r * DIL_H * W, tl.int64) * PIXEL + s * DIL_W * PIXEL
            x = tl.load(p_x + o_x, mask=mask, other=0.0).to(ACC)  # [BM, BN]
            weight = tl.load(p_w + (r * S + s) * BN)  # [BN]
            acc += x * weight.to(ACC)[None, :]
    return acc


@triton.jit
def window_sum(
    x_ptr, h, w0, STRIDE_W: tl.constexpr, m_n, H, W, PIXEL: tl.constexpr, p_w, R: tl.constexpr, S: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """[BM, BN] sums over taps (r, s) of image[h + r·DIL_H, w + s·DIL_W, n] × weight[r, s, n].

    The columns w [BM] are w0, w0 + STRIDE_W, …; `x_ptr` [1, BN] points at pixel (0, 0) of the H × W image, channels n,
    PIXEL elements a pixel. Pixels outside the image count as zero. `p_w` [BN] points at tap (0, 0) of the weights
    [R·S, BN].
    """
    w = w0 + tl.arange(0, BM) * STRIDE_W
    p_x = x_ptr + (h.to(tl.int64) * W + w0) * PIXEL + (tl.arange(0, BM) * (STRIDE_W * PIXEL))[:, None]
    fits_h = (h >= 0) & (h + (R - 1) * DIL_H < H)
    fits_w = (w0 >= 0) & (w0 + (BM - 1) * STRIDE_W + (S - 1) * DIL_W < W)
    # Most programs need no mask for the image's border.
    if fits_h & fits_w:
        acc = tap_sum(p_x, h, w, m_n, H, W, PIXEL, p_w, R, S, DIL_H, DIL_W, BM, BN, ACC, True)
    else:
        acc = tap_sum(p_x, h, w, m_n, H, W, PIXEL, p_w, R, S, DIL_H, DIL_W, BM, BN, ACC, False)
    return acc


@triton.jit
def finish_window(
    acc, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr, o_y, m_q, m_k, k,
    K: tl.constexpr, EPS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """y[o_y] = activation(norm(inner(acc + bias[k])) + residual[o_y]) of acc [BM, BN], in rows m_q [BM, 1] and channels
    m_k [1, BN]. The norm is that of `conv_fprop`."""
    acc = finished(
        acc, bias_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr,
        0, k, K, o_y, m_q & m_k, EPS, ACTIVATION,
    )  # fmt: skip
    tl.store(y_ptr + o_y, acc.to(y_ptr.dtype.element_ty), mask=m_q & m_k)


@triton.jit
def depthwise_fprop(
    x_ptr, w_ptr, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr,
    N, H, W, P, Q,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, EPS: tl.constexpr, ACTIVATION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y[n, p, q, k] = activation(norm(inner(bias[k] + Σ x[n, p·stride − pad + r·dilation, …, c] w[r, s, k])) +
    residual).

    The norm is that of `conv_fprop`. Grid: (N·P × tiles of Q × tiles of K). `w_ptr`: panels [tiles of K, R·S, BN].
    """
    ACC: tl.constexpr = accumulator(x_ptr.dtype.element_ty)
    K_TILES: tl.constexpr = (K + BN - 1) // BN
    row, q0 = row_tile(tl.program_id(0) // K_TILES, Q, BM)
    tile_n = tl.program_id(0) % K_TILES
    q = q0 + tl.arange(0, BM)
    k = tile_n * BN + tl.arange(0, BN)
    acc = window_sum(
        x_ptr + (row // P).to(tl.int64) * H * W * C + (k // (K // C))[None, :],
        row % P * STRIDE_H - PAD_H, q0 * STRIDE_W - PAD_W, STRIDE_W, tail_mask(k, K, BN), H, W, C,
        w_ptr + tile_n * (R * S * BN) + tl.arange(0, BN), R, S, DIL_H, DIL_W, BM, BN, ACC,
    )  # fmt: skip

    o_y = ((tl.cast(row, tl.int64) * Q + q) * K)[:, None] + k[None, :]
    finish_window(
        acc, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr,
        o_y, (q < Q)[:, None], tail_mask(k, K, BN), k, K, EPS, ACTIVATION,
    )  # fmt: skip


@triton.jit
def tap_products(
    acc, p_dy, p_x, q0, w0, m_k, W, Q, C: tl.constexpr, K: tl.constexpr, STRIDE_W: tl.constexpr, DIL_W: tl.constexpr,
    BM: tl.constexpr, ACC: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """acc[s] + dy[q] · x[w0 + q·STRIDE_W + s·DIL_W], [BM, BN] each, for the columns q of q0, …, q0 + BM − 1.

    `p_dy` and `p_x` [1, BN] point at column 0 of a row of dy and column w0 of one of x. Columns that do not exist are
    left out: an inf of dy must not meet a padded pixel's zero. INSIDE: all of them exist.
    """
    q = (q0 + tl.arange(0, BM))[:, None]
    dy = tl.load(p_dy + q.to(tl.int64) * K, mask=m_k if INSIDE else (q < Q) & m_k, other=0.0).to(ACC)  # [BM, BN]
    sums = ()
    for s in tl.static_range(len(acc)):
        p_tap = p_x + (q.to(tl.int64) * STRIDE_W + s * DIL_W) * C
        if INSIDE:
            x = tl.load(p_tap, mask=m_k, other=0.0)  # [BM, BN]
            sums += (acc[s] + dy * x.to(ACC),)
        else:
            w = w0 + q * STRIDE_W + s * DIL_W
            m_tap = (q < Q) & (w >= 0) & (w < W)
            x = tl.load(p_tap, mask=m_tap & m_k, other=0.0)  # [BM, BN]
            sums += (acc[s] + tl.where(m_tap, dy, 0.0) * x.to(ACC),)
    return sums


@triton.jit
def depthwise_wgrad(
    dy_ptr, x_ptr, dw_ptr, N, H, W, P, Q, rows, stride_split, stride_k, stride_tap,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dw[split][k, r, s] = Σ dy[n, p, q, k] x[n, p·stride − pad + r·dilation, …, c] over a split's rows (n, p).

    A program sums for a block of TAPS_H × TAPS_W taps, so that it reads dy and x once for all of them. A split has
    `rows` rows of output pixels, the last what remains. Grid: (blocks of taps, tiles of K, splits): programs that run
    next to each other read the same pixels. Strides are those of `dw_ptr`, in elements.
    """
    ACC: tl.constexpr = accumulator(x_ptr.dtype.element_ty)
    r0 = tl.program_id(0) // (S // TAPS_W) * TAPS_H
    s0 = tl.program_id(0) % (S // TAPS_W) * TAPS_W
    split = tl.program_id(2)
    k = tl.program_id(1) * BN + tl.arange(0, BN)
    m_k = tail_mask(k, K, BN)
    w0 = s0 * DIL_W - PAD_W
    # Tiles of columns all of whose taps lie in the image are those from `left` on; the others are `edges` columns.
    left = tl.cdiv(tl.maximum(-w0, 0), STRIDE_W * BM) * BM
    right = tl.minimum(tl.cdiv(W - w0 - (TAPS_W - 1) * DIL_W, STRIDE_W), Q)
    inner = tl.maximum(right - left, 0) // BM * BM
    acc = (tl.zeros((BM, BN), ACC),) * (TAPS_H * TAPS_W)
    for row in range(split * rows, tl.minimum((split + 1) * rows, N * P)):
        p_dy = dy_ptr + tl.cast(row, tl.int64) * Q * K + k[None, :]
        sums = ()
        for r in tl.static_range(TAPS_H):
            h = row % P * STRIDE_H - PAD_H + (r0 + r) * DIL_H
            p_x = x_ptr + ((tl.cast(row // P, tl.int64) * H + h) * W + w0) * C + (k // (K // C))[None, :]
            exists = (h >= 0) & (h < H)
            part = acc[r * TAPS_W : (r + 1) * TAPS_W]
            for q0 in range(left, tl.where(exists, left + inner, left), BM):
                part = tap_products(part, p_dy, p_x, q0, w0, m_k, W, Q, C, K, STRIDE_W, DIL_W, BM, ACC, True)
            for edge in range(0, tl.where(exists, Q - inner, 0), BM):
                q0 = tl.where(edge < left, edge, edge + inner)
                part = tap_products(part, p_dy, p_x, q0, w0, m_k, W, Q, C, K, STRIDE_W, DIL_W, BM, ACC, False)
            sums += part
        acc = sums
    p_dw = dw_ptr + split.to(tl.int64) * stride_split + k * stride_k
    for i in tl.static_range(TAPS_H * TAPS_W):
        tap = (r0 + i // TAPS_W) * S + s0 + i % TAPS_W
        tl.store(p_dw + tap * stride_tap, tl.sum(acc[i], 0).to(dw_ptr.dtype.element_ty), mask=k < K)
