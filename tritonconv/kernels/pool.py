"""Max-pooling over NHWC activations."""

import triton
import triton.language as tl

from .common import inside, tap_step, taps_of, unravel


@triton.jit
def max_pool(
    x_ptr, y_ptr, index_ptr, N, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y [N, P, Q, C] and, unless `index_ptr` is None, where in its H × W image each maximum lies (h·W + w).

    As in torch: the first of equal maxima counts, the last NaN wins, a window of −inf points at its first pixel.
    Grid: (tiles of N·P·Q, tiles of C).
    """
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    in_range = m < N * P * Q
    n, p, q = unravel(m, P, Q)
    best = tl.full((BM, BN), float("-inf"), ACC)
    index = tl.full((BM, BN), -1, tl.int32)
    for tap in range(0, R * S):
        h = p * STRIDE_H - PAD_H + tap // S * DIL_H
        w = q * STRIDE_W - PAD_W + tap % S * DIL_W
        m_row = in_range & inside(h, w, H, W)
        mask = m_row[:, None] & (c < C)[None, :]
        o_x = ((n * H + h) * W + w).to(tl.int64) * C
        x = tl.load(x_ptr + o_x[:, None] + c[None, :], mask=mask, other=float("-inf")).to(ACC)  # [BM, BN]
        better = (x > best) | (x != x)
        if index_ptr is not None:
            better = mask & (better | (index < 0))
            index = tl.where(better, (h * W + w)[:, None], index)
        best = tl.where(better, x, best)
    o_y = m.to(tl.int64)[:, None] * C + c[None, :]
    m_y = in_range[:, None] & (c < C)[None, :]
    tl.store(y_ptr + o_y, best.to(y_ptr.dtype.element_ty), mask=m_y)
    if index_ptr is not None:
        tl.store(index_ptr + o_y, index.to(index_ptr.dtype.element_ty), mask=m_y)


@triton.jit
def max_pool_backward(
    dy_ptr, index_ptr, dx_ptr, N, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dx [N, H, W, C]: each pixel gathers dy from the windows that chose it, always in the same order.

    Grid: (tiles of N·H·W, tiles of C).
    """
    ACC: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    TAP_H: tl.constexpr = tap_step(STRIDE_H, DIL_H)
    TAP_W: tl.constexpr = tap_step(STRIDE_W, DIL_W)
    COUNT_W: tl.constexpr = (S + TAP_W - 1) // TAP_W
    COUNT: tl.constexpr = (R + TAP_H - 1) // TAP_H * COUNT_W
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    in_range = m < N * H * W
    n, h, w = unravel(m, H, W)
    r, taps_h = taps_of(h + PAD_H, STRIDE_H, DIL_H, R)
    s, taps_w = taps_of(w + PAD_W, STRIDE_W, DIL_W, S)
    acc = tl.zeros((BM, BN), ACC)
    for i in range(0, COUNT):
        u = i // COUNT_W
        v = i % COUNT_W
        p = (h + PAD_H - (r + u * TAP_H) * DIL_H) // STRIDE_H  # exact where u < taps_h
        q = (w + PAD_W - (s + v * TAP_W) * DIL_W) // STRIDE_W
        m_row = in_range & (u < taps_h) & (v < taps_w) & inside(p, q, P, Q)
        mask = m_row[:, None] & (c < C)[None, :]
        o_y = ((n * P + p) * Q + q).to(tl.int64)[:, None] * C + c[None, :]
        index = tl.load(index_ptr + o_y, mask=mask, other=-1)  # [BM, BN]
        dy = tl.load(dy_ptr + o_y, mask=mask, other=0.0).to(ACC)  # [BM, BN]
        acc += tl.where(index == (h * W + w)[:, None], dy, 0.0)
    o_x = m.to(tl.int64)[:, None] * C + c[None, :]
    tl.store(dx_ptr + o_x, acc.to(dx_ptr.dtype.element_ty), mask=in_range[:, None] & (c < C)[None, :])
