"""Max-pooling over NHWC activations, its gradient, and unpooling."""

import triton
import triton.language as tl

from .common import accumulator, inside
from .windows import (
    cells_of,
    covered_by,
    covering,
    few,
    first_inside,
    most_windows,
    reach,
    span,
    tile_of,
    window_step,
)


@triton.jit
def max_tap(
    best, index, tap, x_ptr, n, first_h, first_w, end_h, end_w, in_range, c, H, W, C, pixel, INDEXED: tl.constexpr,
    S: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The greatest so far, and where it lies, [BM·BK, BN] each, with one more tap of the windows."""
    h = first_h + tap // S * DIL_H
    w = first_w + tap % S * DIL_W
    m_row = in_range if WHOLE else in_range & inside(h, w, end_h, end_w)
    o_x = ((n * H + h) * W + w).to(tl.int64) * pixel
    mask = m_row[:, None] & (c < C)[None, :]
    x = tl.load(x_ptr + o_x[:, None] + c[None, :], mask=mask, other=float("-inf")).to(best.dtype)  # [BM·BK, BN]
    better = (x > best) | (x != x)
    if INDEXED:
        index = tl.where(better, (h * W + w)[:, None], index)
    return tl.where(better, x, best), index


@triton.jit
def max_pool(
    x_ptr, y_ptr, index_ptr, N, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr, ADAPTIVE: tl.constexpr,
    WHOLE: tl.constexpr, PIXEL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y [N, P, Q, C] and, unless `index_ptr` is None, where in its H × W image each maximum lies (h·W + w).

    As in torch: the first of equal maxima counts, the last NaN wins, a window of −inf points at its first pixel.
    Grid: (tiles of N·P, of Q, of C). WHOLE: all windows lie inside of the image. Pixels of x are PIXEL elements apart,
    if that is given.
    """
    ACC: tl.constexpr = accumulator(x_ptr.dtype.element_ty)
    INDEXED: tl.constexpr = index_ptr is not None
    n, p, q, in_range = tile_of(N, P, Q, BM, BK)
    c = tl.program_id(2) * BN + tl.arange(0, BN)
    first_h, end_h = span(p, H, P, STRIDE_H, PAD_H, ADAPTIVE)
    first_w, end_w = span(q, W, Q, STRIDE_W, PAD_W, ADAPTIVE)
    best = tl.full((BM * BK, BN), float("-inf"), ACC)
    index = tl.zeros((BM * BK, BN), tl.int32)
    pixel = C if PIXEL is None else PIXEL
    if INDEXED:
        index += (first_inside(first_h, DIL_H) * W + first_inside(first_w, DIL_W))[:, None]
    if few(R * S):
        for tap in tl.static_range(R * S):
            best, index = max_tap(
                best, index, tap, x_ptr, n, first_h, first_w, end_h, end_w, in_range, c, H, W, C, pixel, INDEXED,
                S, DIL_H, DIL_W, WHOLE,
            )  # fmt: skip
    else:
        for tap in range(0, R * S):
            best, index = max_tap(
                best, index, tap, x_ptr, n, first_h, first_w, end_h, end_w, in_range, c, H, W, C, pixel, INDEXED,
                S, DIL_H, DIL_W, WHOLE,
            )  # fmt: skip
    o_y = ((n * P + p) * Q + q).to(tl.int64)[:, None] * C + c[None, :]
    m_y = in_range[:, None] & (c < C)[None, :]
    tl.store(y_ptr + o_y, best.to(y_ptr.dtype.element_ty), mask=m_y)
    if INDEXED:
        tl.store(index_ptr + o_y, index.to(index_ptr.dtype.element_ty), mask=m_y)


@triton.jit
def max_pool_backward_cells(
    dy_ptr, index_ptr, dx_ptr, N, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """What `max_pool_backward` computes, of small regular windows. Grid: (tiles of N × rows of cells, of columns of
    cells, of C)."""
    ACC: tl.constexpr = accumulator(dy_ptr.dtype.element_ty)
    REACH_W: tl.constexpr = reach(S, STRIDE_W, DIL_W)
    n, i, j, in_range = cells_of(N, H, W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, BM, BK)
    c = tl.program_id(2) * BN + tl.arange(0, BN)
    indices, gradients = (), ()
    for window in tl.static_range(reach(R, STRIDE_H, DIL_H) * REACH_W):
        p = i - window // REACH_W
        q = j - window % REACH_W
        mask = (in_range & inside(p, q, P, Q))[:, None] & (c < C)[None, :]
        o_y = ((n * P + p) * Q + q).to(tl.int64)[:, None] * C + c[None, :]
        indices = indices + (tl.load(index_ptr + o_y, mask=mask, other=-1),)  # [BM·BK, BN]
        gradients = gradients + (tl.load(dy_ptr + o_y, mask=mask, other=0.0).to(ACC),)  # [BM·BK, BN]
    for pixel in tl.static_range(STRIDE_H * STRIDE_W):
        h = i * STRIDE_H + pixel // STRIDE_W - PAD_H
        w = j * STRIDE_W + pixel % STRIDE_W - PAD_W
        acc = tl.zeros((BM * BK, BN), ACC)
        for tap in tl.static_range(R * S):
            if covered_by(pixel, tap, S, STRIDE_H, STRIDE_W, DIL_H, DIL_W) >= 0:
                index = indices[covered_by(pixel, tap, S, STRIDE_H, STRIDE_W, DIL_H, DIL_W)]
                dy = gradients[covered_by(pixel, tap, S, STRIDE_H, STRIDE_W, DIL_H, DIL_W)]
                acc += tl.where(index == (h * W + w)[:, None], dy, 0.0)
        o_x = ((n * H + h) * W + w).to(tl.int64)[:, None] * C + c[None, :]
        m_x = (in_range & inside(h, w, H, W))[:, None] & (c < C)[None, :]
        tl.store(dx_ptr + o_x, acc.to(dx_ptr.dtype.element_ty), mask=m_x)


@triton.jit
def max_window(
    acc, i, dy_ptr, index_ptr, n, pixel, last_p, last_q, count_p, count_q, in_range, c, P, Q, C,
    STEP_H: tl.constexpr, STEP_W: tl.constexpr, COUNT_W: tl.constexpr,
):  # fmt: skip
    """acc [BM·BK, BN] and what the i-th of the windows that cover a pixel hands to it."""
    u = i // COUNT_W
    v = i % COUNT_W
    p = last_p - u * STEP_H
    q = last_q - v * STEP_W
    m_row = in_range & (u < count_p) & (v < count_q) & inside(p, q, P, Q)
    mask = m_row[:, None] & (c < C)[None, :]
    o_y = ((n * P + p) * Q + q).to(tl.int64)[:, None] * C + c[None, :]
    index = tl.load(index_ptr + o_y, mask=mask, other=-1)  # [BM·BK, BN]
    dy = tl.load(dy_ptr + o_y, mask=mask, other=0.0).to(acc.dtype)  # [BM·BK, BN]
    return acc + tl.where(index == pixel[:, None], dy, 0.0)


@triton.jit
def max_pool_backward(
    dy_ptr, index_ptr, dx_ptr, N, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr, ADAPTIVE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dx [N, H, W, C]: the sum of dy over the windows that chose a pixel. Grid: (tiles of N·H, of W, of C)."""
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
            acc = max_window(
                acc, i, dy_ptr, index_ptr, n, h * W + w, last_p, last_q, count_p, count_q, in_range, c, P, Q, C,
                STEP_H, STEP_W, COUNT_W,
            )  # fmt: skip
    else:
        for i in range(0, COUNT_H * COUNT_W):
            acc = max_window(
                acc, i, dy_ptr, index_ptr, n, h * W + w, last_p, last_q, count_p, count_q, in_range, c, P, Q, C,
                STEP_H, STEP_W, COUNT_W,
            )  # fmt: skip
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
