"""Average and L² pooling over NHWC activations, and their gradients."""

import triton
import triton.language as tl

from .common import accumulator, inside, quotient
from .windows import cells_of, covered_by, covering, few, most_windows, pixels_of, reach, span, tile_of, window_step


@triton.jit
def avg_tap(
    acc, tap, x_ptr, n, first_h, first_w, end_h, end_w, in_range, c, H, W, C,
    S: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr, WHOLE: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """The sums [BM·BK, BN] with one more tap of the windows."""
    h = first_h + tap // S * DIL_H
    w = first_w + tap % S * DIL_W
    m_row = in_range if WHOLE else in_range & inside(h, w, end_h, end_w)
    mask = m_row[:, None] & (c < C)[None, :]
    o_x = ((n * H + h) * W + w).to(tl.int64) * C
    x = tl.load(x_ptr + o_x[:, None] + c[None, :], mask=mask, other=0.0).to(acc.dtype)  # [BM·BK, BN]
    return acc + (x * x if NORM == 2 else x)


@triton.jit
def avg_pool(
    x_ptr, y_ptr, N, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr, ADAPTIVE: tl.constexpr,
    WHOLE: tl.constexpr, DIVISOR: tl.constexpr, NORM: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y [N, P, Q, C]: the mean of each window, or, for NORM 2, √(R · S · the mean of its squares).

    DIVISOR is what a sum is divided by: a number, or "padded" or "inside" for the pixels that are in its window.
    Grid: (tiles of N·P, of Q, of C). WHOLE: all windows lie inside of the image.
    """
    ACC: tl.constexpr = accumulator(x_ptr.dtype.element_ty)
    n, p, q, in_range = tile_of(N, P, Q, BM, BK)
    c = tl.program_id(2) * BN + tl.arange(0, BN)
    first_h, end_h = span(p, H, P, STRIDE_H, PAD_H, ADAPTIVE)
    first_w, end_w = span(q, W, Q, STRIDE_W, PAD_W, ADAPTIVE)
    acc = tl.zeros((BM * BK, BN), ACC)
    if few(R * S):
        for tap in tl.static_range(R * S):
            acc = avg_tap(
                acc, tap, x_ptr, n, first_h, first_w, end_h, end_w, in_range, c, H, W, C, S, DIL_H, DIL_W, WHOLE, NORM
            )
    else:
        for tap in range(0, R * S):
            acc = avg_tap(
                acc, tap, x_ptr, n, first_h, first_w, end_h, end_w, in_range, c, H, W, C, S, DIL_H, DIL_W, WHOLE, NORM
            )
    if DIVISOR == "padded" or DIVISOR == "inside":
        size_h = pixels_of(p, H, P, R, STRIDE_H, PAD_H, ADAPTIVE, DIVISOR == "padded")
        size_w = pixels_of(q, W, Q, S, STRIDE_W, PAD_W, ADAPTIVE, DIVISOR == "padded")
        y = quotient(acc, (size_h * size_w).to(ACC)[:, None])
    else:
        y = quotient(acc, DIVISOR)
    if NORM == 2:
        y = tl.sqrt(y * (R * S))
    o_y = ((n * P + p) * Q + q).to(tl.int64)[:, None] * C + c[None, :]
    tl.store(y_ptr + o_y, y.to(y_ptr.dtype.element_ty), mask=in_range[:, None] & (c < C)[None, :])


@triton.jit
def avg_pool_backward_cells(
    dy_ptr, dx_ptr, N, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    DIVISOR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PIXEL: tl.constexpr,
):  # fmt: skip
    """What `avg_pool_backward` computes, of small regular windows. Grid: (tiles of N × rows of cells, of columns of
    cells, of C)."""
    ACC: tl.constexpr = accumulator(dy_ptr.dtype.element_ty)
    REACH_W: tl.constexpr = reach(S, STRIDE_W, DIL_W)
    PADDED: tl.constexpr = DIVISOR == "padded"
    n, i, j, in_range = cells_of(N, H, W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, BM, BK)
    c = tl.program_id(2) * BN + tl.arange(0, BN)
    shares = ()
    for window in tl.static_range(reach(R, STRIDE_H, DIL_H) * REACH_W):
        p = i - window // REACH_W
        q = j - window % REACH_W
        m_row = in_range & inside(p, q, P, Q)
        o_y = ((n * P + p) * Q + q).to(tl.int64)[:, None] * C + c[None, :]
        dy = tl.load(dy_ptr + o_y, mask=m_row[:, None] & (c < C)[None, :], other=0.0).to(ACC)  # [BM·BK, BN]
        if PADDED or DIVISOR == "inside":
            size_h = pixels_of(p, H, P, R, STRIDE_H, PAD_H, False, PADDED)
            size_w = pixels_of(q, W, Q, S, STRIDE_W, PAD_W, False, PADDED)
            # A window that is not there may have no pixels.
            shares = shares + (dy / tl.where(m_row, size_h * size_w, 1).to(ACC)[:, None],)
        else:
            shares = shares + (dy / DIVISOR,)
    for pixel in tl.static_range(STRIDE_H * STRIDE_W):
        h = i * STRIDE_H + pixel // STRIDE_W - PAD_H
        w = j * STRIDE_W + pixel % STRIDE_W - PAD_W
        acc = tl.zeros((BM * BK, BN), ACC)
        for tap in tl.static_range(R * S):
            if covered_by(pixel, tap, S, STRIDE_H, STRIDE_W, DIL_H, DIL_W) >= 0:
                acc += shares[covered_by(pixel, tap, S, STRIDE_H, STRIDE_W, DIL_H, DIL_W)]
        o_x = ((n * H + h) * W + w).to(tl.int64)[:, None] * (C if PIXEL is None else PIXEL) + c[None, :]
        m_x = (in_range & inside(h, w, H, W))[:, None] & (c < C)[None, :]
        tl.store(dx_ptr + o_x, acc.to(dx_ptr.dtype.element_ty), mask=m_x)


@triton.jit
def avg_window(
    acc, i, dy_ptr, n, last_p, last_q, count_p, count_q, in_range, c, H, W, P, Q, C,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr,
    PAD_W: tl.constexpr, STEP_H: tl.constexpr, STEP_W: tl.constexpr, COUNT_W: tl.constexpr,
    ADAPTIVE: tl.constexpr, DIVISOR: tl.constexpr,
):  # fmt: skip
    """acc [BM·BK, BN] and what the i-th of the windows that cover a pixel hands to it."""
    u = i // COUNT_W
    v = i % COUNT_W
    p = last_p - u * STEP_H
    q = last_q - v * STEP_W
    m_row = in_range & (u < count_p) & (v < count_q) & inside(p, q, P, Q)
    mask = m_row[:, None] & (c < C)[None, :]
    o_y = ((n * P + p) * Q + q).to(tl.int64)[:, None] * C + c[None, :]
    dy = tl.load(dy_ptr + o_y, mask=mask, other=0.0).to(acc.dtype)  # [BM·BK, BN]
    if DIVISOR == "padded" or DIVISOR == "inside":
        size_h = pixels_of(p, H, P, R, STRIDE_H, PAD_H, ADAPTIVE, DIVISOR == "padded")
        size_w = pixels_of(q, W, Q, S, STRIDE_W, PAD_W, ADAPTIVE, DIVISOR == "padded")
        # A window that is not there may have no pixels.
        dy /= tl.where(m_row, size_h * size_w, 1).to(acc.dtype)[:, None]
    return acc + dy


@triton.jit
def avg_pool_backward(
    dy_ptr, dx_ptr, N, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr, ADAPTIVE: tl.constexpr,
    DIVISOR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PIXEL: tl.constexpr,
):  # fmt: skip
    """dx [N, H, W, C]: the sum of dy / divisor over the windows that cover a pixel. Pixels of dx are PIXEL elements
    apart, if that is given.

    Grid: (tiles of N·H, of W, of C).
    """
    ACC: tl.constexpr = accumulator(dy_ptr.dtype.element_ty)
    STEP_H: tl.constexpr = window_step(STRIDE_H, DIL_H)
    STEP_W: tl.constexpr = window_step(STRIDE_W, DIL_W)
    COUNT_H: tl.constexpr = most_windows(R, STRIDE_H, DIL_H, ADAPTIVE)
    COUNT_W: tl.constexpr = most_windows(S, STRIDE_W, DIL_W, ADAPTIVE)
    n, h, w, in_range = tile_of(N, H, W, BM, BK)
    c = tl.program_id(2) * BN + tl.arange(0, BN)
    last_p, count_p = covering(h, H, P, R, STRIDE_H, PAD_H, DIL_H, ADAPTIVE)
    last_q, count_q = covering(w, W, Q, S, STRIDE_W, PAD_W, DIL_W, ADAPTIVE)
    acc = tl.zeros((BM * BK, BN), ACC)
    if few(COUNT_H * COUNT_W):
        for i in tl.static_range(COUNT_H * COUNT_W):
            acc = avg_window(
                acc, i, dy_ptr, n, last_p, last_q, count_p, count_q, in_range, c, H, W, P, Q, C,
                R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W, STEP_H, STEP_W, COUNT_W, ADAPTIVE, DIVISOR,
            )  # fmt: skip
    else:
        for i in range(0, COUNT_H * COUNT_W):
            acc = avg_window(
                acc, i, dy_ptr, n, last_p, last_q, count_p, count_q, in_range, c, H, W, P, Q, C,
                R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W, STEP_H, STEP_W, COUNT_W, ADAPTIVE, DIVISOR,
            )  # fmt: skip
    if DIVISOR != "padded" and DIVISOR != "inside":
        acc /= DIVISOR
    o_x = ((n * H + h) * W + w).to(tl.int64)[:, None] * (C if PIXEL is None else PIXEL) + c[None, :]
    tl.store(dx_ptr + o_x, acc.to(dx_ptr.dtype.element_ty), mask=in_range[:, None] & (c < C)[None, :])


@triton.jit
def global_avg_pool(x_ptr, y_ptr, N, C, T, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """y [N, C]: the mean over the T pixels of each image of x [N, T, C]. Grid: (tiles of N, tiles of C).

    BK pixels are summed at a time, side by side: few images of few channels keep many lanes busy, too.
    """
    ACC: tl.constexpr = accumulator(x_ptr.dtype.element_ty)
    n = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    t = tl.arange(0, BK)
    m_y = (n < N)[:, None] & (c < C)[None, :]
    p_x = x_ptr + (n.to(tl.int64)[:, None, None] * T + t[None, :, None]) * C + c[None, None, :]
    acc = tl.zeros((BM, BN), ACC)
    for start in range(0, T, BK):
        mask = m_y[:, None, :] & (t < T - start)[None, :, None]
        acc += tl.sum(tl.load(p_x, mask=mask, other=0.0).to(ACC), 1)  # [BM, BK, BN]
        p_x += BK * C
    o_y = n.to(tl.int64)[:, None] * C + c[None, :]
    tl.store(y_ptr + o_y, quotient(acc, T).to(y_ptr.dtype.element_ty), mask=m_y)
