"""Pooling over NHWC activations.

A window is either regular (R × S taps with a stride, a padding and a dilation) or adaptive: window p of P over H pixels
is [⌊p·H/P⌋, ⌈(p + 1)·H/P⌉), and R × S the longest there are. Backward, each pixel gathers from the windows that cover
it, always in the same order.
"""

import math

import triton
import triton.language as tl

from .common import inside, tap_step, taps_of


@triton.constexpr_function
def window_step(stride, dilation):
    """Windows that reach the same pixel lie this far apart."""
    return dilation // math.gcd(stride, dilation)


@triton.constexpr_function
def most_windows(R, stride, dilation, adaptive):
    """How many windows cover a pixel at most, along one axis; R of an adaptive pooling already says so, backward."""
    return R if adaptive else -(-R // tap_step(stride, dilation))


@triton.jit
def tile_of(N, P, Q, BM: tl.constexpr, BK: tl.constexpr):
    """The pixels (n, p, q) [BM·BK] of this program's BM rows × BK columns of N images of P × Q, and which exist.

    With rows, unlike with any pixels, no column has to be found by division.
    """
    i = tl.arange(0, BM * BK)
    row = tl.program_id(0) * BM + i // BK
    q = tl.program_id(1) * BK + i % BK
    return row // P, row % P, q, (row < N * P) & (q < Q)


@triton.jit
def span(p, H, P, STRIDE: tl.constexpr, PAD: tl.constexpr, ADAPTIVE: tl.constexpr):
    """Where window p of an axis begins, and the end of the pixels that it may cover."""
    if ADAPTIVE:
        first = p * H // P
        end = ((p + 1) * H + P - 1) // P
    else:
        first = p * STRIDE - PAD
        end = H
    return first, end


@triton.jit
def covering(
    h, H, P, R: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, DIL: tl.constexpr, ADAPTIVE: tl.constexpr
):
    """The windows of an axis that cover pixel h, as (last, count): last − j·window_step for 0 <= j < count.

    Of the regular ones, those in [0, P) exist.
    """
    if ADAPTIVE:
        # p·H/P < h + 1 and (p + 1)·H/P > h: the same as a window, with the sizes' roles exchanged.
        first, end = span(h, P, H, STRIDE, PAD, ADAPTIVE)
        last = end - 1
        count = end - first
    else:
        r, count = taps_of(h + PAD, STRIDE, DIL, R)
        last = (h + PAD - r * DIL) // STRIDE  # exact where count > 0
    return last, count


@triton.jit
def pixels_of(
    p, H, P, R: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, ADAPTIVE: tl.constexpr, PADDED: tl.constexpr
):
    """How many pixels window p of an axis has; in the padding, too, if PADDED, but never beyond it."""
    first, end = span(p, H, P, STRIDE, PAD, ADAPTIVE)
    if PADDED:
        size = tl.minimum(R, H + PAD - first)
    elif ADAPTIVE:
        size = end - first
    else:
        size = tl.minimum(first + R, end) - tl.maximum(first, 0)
    return size


@triton.jit
def max_pool(
    x_ptr, y_ptr, index_ptr, N, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr, ADAPTIVE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y [N, P, Q, C] and, unless `index_ptr` is None, where in its H × W image each maximum lies (h·W + w).

    As in torch: the first of equal maxima counts, the last NaN wins, a window of −inf points at its first pixel.
    Grid: (tiles of N·P, of Q, of C).
    """
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    n, p, q, in_range = tile_of(N, P, Q, BM, BK)
    c = tl.program_id(2) * BN + tl.arange(0, BN)
    first_h, end_h = span(p, H, P, STRIDE_H, PAD_H, ADAPTIVE)
    first_w, end_w = span(q, W, Q, STRIDE_W, PAD_W, ADAPTIVE)
    best = tl.full((BM * BK, BN), float("-inf"), ACC)
    index = tl.full((BM * BK, BN), -1, tl.int32)
    for tap in range(0, R * S):
        h = first_h + tap // S * DIL_H
        w = first_w + tap % S * DIL_W
        m_row = in_range & inside(h, w, end_h, end_w)
        mask = m_row[:, None] & (c < C)[None, :]
        o_x = ((n * H + h) * W + w).to(tl.int64) * C
        x = tl.load(x_ptr + o_x[:, None] + c[None, :], mask=mask, other=float("-inf")).to(ACC)  # [BM·BK, BN]
        better = (x > best) | (x != x)
        if index_ptr is not None:
            better = mask & (better | (index < 0))
            index = tl.where(better, (h * W + w)[:, None], index)
        best = tl.where(better, x, best)
    o_y = ((n * P + p) * Q + q).to(tl.int64)[:, None] * C + c[None, :]
    m_y = in_range[:, None] & (c < C)[None, :]
    tl.store(y_ptr + o_y, best.to(y_ptr.dtype.element_ty), mask=m_y)
    if index_ptr is not None:
        tl.store(index_ptr + o_y, index.to(index_ptr.dtype.element_ty), mask=m_y)


@triton.jit
def max_pool_backward(
    dy_ptr, index_ptr, dx_ptr, N, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr, ADAPTIVE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dx [N, H, W, C]: the sum of dy over the windows that chose a pixel. Grid: (tiles of N·H, of W, of C)."""
    ACC: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    STEP_H: tl.constexpr = window_step(STRIDE_H, DIL_H)
    STEP_W: tl.constexpr = window_step(STRIDE_W, DIL_W)
    COUNT_H: tl.constexpr = most_windows(R, STRIDE_H, DIL_H, ADAPTIVE)
    COUNT_W: tl.constexpr = most_windows(S, STRIDE_W, DIL_W, ADAPTIVE)
    n, h, w, in_range = tile_of(N, H, W, BM, BK)
    c = tl.program_id(2) * BN + tl.arange(0, BN)
    last_p, count_p = covering(h, H, P, R, STRIDE_H, PAD_H, DIL_H, ADAPTIVE)
    last_q, count_q = covering(w, W, Q, S, STRIDE_W, PAD_W, DIL_W, ADAPTIVE)
    acc = tl.zeros((BM * BK, BN), ACC)
    for i in range(0, COUNT_H * COUNT_W):
        u = i // COUNT_W
        v = i % COUNT_W
        p = last_p - u * STEP_H
        q = last_q - v * STEP_W
        m_row = in_range & (u < count_p) & (v < count_q) & inside(p, q, P, Q)
        mask = m_row[:, None] & (c < C)[None, :]
        o_y = ((n * P + p) * Q + q).to(tl.int64)[:, None] * C + c[None, :]
        index = tl.load(index_ptr + o_y, mask=mask, other=-1)  # [BM·BK, BN]
        dy = tl.load(dy_ptr + o_y, mask=mask, other=0.0).to(ACC)  # [BM·BK, BN]
        acc += tl.where(index == (h * W + w)[:, None], dy, 0.0)
    o_x = ((n * H + h) * W + w).to(tl.int64)[:, None] * C + c[None, :]
    tl.store(dx_ptr + o_x, acc.to(dx_ptr.dtype.element_ty), mask=in_range[:, None] & (c < C)[None, :])


@triton.jit
def max_unpool(x_ptr, index_ptr, y_ptr, M, C, PIXELS, IMAGE, BM: tl.constexpr, BN: tl.constexpr):
    """y [N, IMAGE, C], zero beforehand: each of x [N, PIXELS, C], M = N·PIXELS, goes where its index says.

    Where indices of an image repeat, one of their values stays. Grid: (tiles of M, tiles of C).
    """
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (m < M)[:, None] & (c < C)[None, :]
    o_x = m.to(tl.int64)[:, None] * C + c[None, :]
    x = tl.load(x_ptr + o_x, mask=mask)  # [BM, BN]
    index = tl.load(index_ptr + o_x, mask=mask)  # [BM, BN]
    pixel = (m // PIXELS).to(tl.int64)[:, None] * IMAGE + index
    tl.store(y_ptr + pixel * C + c[None, :], x, mask=mask)


@triton.jit
def avg_pool(
    x_ptr, y_ptr, N, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr, ADAPTIVE: tl.constexpr,
    DIVISOR: tl.constexpr, NORM: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y [N, P, Q, C]: the mean of each window, or, for NORM 2, √(R · S · the mean of its squares).

    DIVISOR is what a sum is divided by: a number, or "padded" or "inside" for the pixels that are in its window.
    Grid: (tiles of N·P, of Q, of C).
    """
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    n, p, q, in_range = tile_of(N, P, Q, BM, BK)
    c = tl.program_id(2) * BN + tl.arange(0, BN)
    first_h, end_h = span(p, H, P, STRIDE_H, PAD_H, ADAPTIVE)
    first_w, end_w = span(q, W, Q, STRIDE_W, PAD_W, ADAPTIVE)
    acc = tl.zeros((BM * BK, BN), ACC)
    for tap in range(0, R * S):
        h = first_h + tap // S * DIL_H
        w = first_w + tap % S * DIL_W
        m_row = in_range & inside(h, w, end_h, end_w)
        mask = m_row[:, None] & (c < C)[None, :]
        o_x = ((n * H + h) * W + w).to(tl.int64) * C
        x = tl.load(x_ptr + o_x[:, None] + c[None, :], mask=mask, other=0.0).to(ACC)  # [BM·BK, BN]
        acc += x * x if NORM == 2 else x
    if DIVISOR == "padded" or DIVISOR == "inside":
        size_h = pixels_of(p, H, P, R, STRIDE_H, PAD_H, ADAPTIVE, DIVISOR == "padded")
        size_w = pixels_of(q, W, Q, S, STRIDE_W, PAD_W, ADAPTIVE, DIVISOR == "padded")
        y = acc / (size_h * size_w).to(ACC)[:, None]
    else:
        y = acc / DIVISOR
    if NORM == 2:
        y = tl.sqrt(y * (R * S))
    o_y = ((n * P + p) * Q + q).to(tl.int64)[:, None] * C + c[None, :]
    tl.store(y_ptr + o_y, y.to(y_ptr.dtype.element_ty), mask=in_range[:, None] & (c < C)[None, :])


@triton.jit
def avg_pool_backward(
    dy_ptr, dx_ptr, N, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr, ADAPTIVE: tl.constexpr,
    DIVISOR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dx [N, H, W, C]: the sum of dy / divisor over the windows that cover a pixel.

    Grid: (tiles of N·H, of W, of C).
    """
    ACC: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    STEP_H: tl.constexpr = window_step(STRIDE_H, DIL_H)
    STEP_W: tl.constexpr = window_step(STRIDE_W, DIL_W)
    COUNT_H: tl.constexpr = most_windows(R, STRIDE_H, DIL_H, ADAPTIVE)
    COUNT_W: tl.constexpr = most_windows(S, STRIDE_W, DIL_W, ADAPTIVE)
    COUNTED: tl.constexpr = DIVISOR == "padded" or DIVISOR == "inside"
    n, h, w, in_range = tile_of(N, H, W, BM, BK)
    c = tl.program_id(2) * BN + tl.arange(0, BN)
    last_p, count_p = covering(h, H, P, R, STRIDE_H, PAD_H, DIL_H, ADAPTIVE)
    last_q, count_q = covering(w, W, Q, S, STRIDE_W, PAD_W, DIL_W, ADAPTIVE)
    acc = tl.zeros((BM * BK, BN), ACC)
    for i in range(0, COUNT_H * COUNT_W):
        u = i // COUNT_W
        v = i % COUNT_W
        p = last_p - u * STEP_H
        q = last_q - v * STEP_W
        m_row = in_range & (u < count_p) & (v < count_q) & inside(p, q, P, Q)
        mask = m_row[:, None] & (c < C)[None, :]
        o_y = ((n * P + p) * Q + q).to(tl.int64)[:, None] * C + c[None, :]
        dy = tl.load(dy_ptr + o_y, mask=mask, other=0.0).to(ACC)  # [BM·BK, BN]
        if COUNTED:
            size_h = pixels_of(p, H, P, R, STRIDE_H, PAD_H, ADAPTIVE, DIVISOR == "padded")
            size_w = pixels_of(q, W, Q, S, STRIDE_W, PAD_W, ADAPTIVE, DIVISOR == "padded")
            # A window that is not there may have no pixels.
            dy /= tl.where(m_row, size_h * size_w, 1).to(ACC)[:, None]
        acc += dy
    if not COUNTED:
        acc /= DIVISOR
    o_x = ((n * H + h) * W + w).to(tl.int64)[:, None] * C + c[None, :]
    tl.store(dx_ptr + o_x, acc.to(dx_ptr.dtype.element_ty), mask=in_range[:, None] & (c < C)[None, :])


@triton.jit
def global_avg_pool(x_ptr, y_ptr, N, C, T, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """y [N, C]: the mean over the T pixels of each image of x [N, T, C]. Grid: (tiles of N, tiles of C).

    BK pixels are summed at a time, side by side: few images of few channels keep many lanes busy, too.
    """
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
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
    tl.store(y_ptr + o_y, (acc / T).to(y_ptr.dtype.element_ty), mask=m_y)
