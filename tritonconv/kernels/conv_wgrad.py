"""wgrad of convolution as an implicit GEMM, over activations as in `conv`."""

import triton
import triton.language as tl

from .common import accumulator, advance, inside, pointwise, product, unravel


@triton.jit
def conv_wgrad(
    dy_ptr, x_ptr, dw_ptr, N, H, W, P, Q, rows, stride_split, stride_k, stride_c, stride_tap,
    GROUPS: tl.constexpr, C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, PIXEL: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STRETCH: tl.constexpr,
):  # fmt: skip
    """dw[split][k, c, r, s] = Σ dy[n, p, q, k] x[n, p·stride − pad + r·dilation, …, c] over a split's (n, p, q).

    A split has `rows` output pixels, the last what remains. Where there is a STRETCH a plain matrix product takes so
    many of them at a time: few enough to stay in cache while the parts of the tile read them one after the other. Any
    other takes a row of the image at a time, and `rows` is a multiple of Q.
    Grid: (tiles of K × tiles of C, taps, groups × splits). Strides are those of `dw_ptr`, in elements.
    """
    ACC: tl.constexpr = accumulator(x_ptr.dtype.element_ty)
    C_TILES: tl.constexpr = (C + BN - 1) // BN
    tap = tl.program_id(1)
    group = (tl.program_id(2) % GROUPS).to(tl.int64)
    split = tl.program_id(2) // GROUPS
    k = tl.program_id(0) // C_TILES * BM + tl.arange(0, BM)
    c = tl.program_id(0) % C_TILES * BN + tl.arange(0, BN)
    h0 = tap // S * DIL_H - PAD_H
    w0 = tap % S * DIL_W - PAD_W
    p_dy = dy_ptr + group * K + k[:, None]
    p_x = x_ptr + group * C + c[None, :]
    acc = tl.zeros((BM, BN), ACC)
    stop = tl.minimum((split + 1) * rows, N * P * Q)
    t = tl.arange(0, BK)
    if PIXEL == GROUPS * C and pointwise(R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W):
        # A plain matrix product, whose reduction is over pixels.
        if STRETCH:
            for first in range(split * rows, stop, STRETCH):
                end = tl.minimum(first + STRETCH, stop)
                for start in range(first, end, BK):
                    m_row = t < end - start
                    m = tl.cast(start, tl.int64) + t
                    o_dy = m[None, :] * (GROUPS * K)
                    o_x = m[:, None] * PIXEL
                    m_x = m_row[:, None] & (c < C)[None, :]
                    dy = tl.load(p_dy + o_dy, mask=(k < K)[:, None] & m_row[None, :], other=0.0)  # [BM, BK]
                    x = tl.load(p_x + o_x, mask=m_x, other=0.0, eviction_policy="evict_last")  # [BK, BN]
                    acc = product(dy, x, acc, PRECISION)
        else:
            first = (split * rows).to(tl.int64) + t
            p_dy += first[None, :] * (GROUPS * K)
            p_x += first[:, None] * PIXEL
            for start in range(split * rows, stop, BK):
                m_row = t < stop - start
                dy = tl.load(p_dy, mask=(k < K)[:, None] & m_row[None, :], other=0.0)  # [BM, BK]
                x = tl.load(p_x, mask=m_row[:, None] & (c < C)[None, :], other=0.0)  # [BK, BN]
                acc = product(dy, x, acc, PRECISION)
                p_dy += BK * GROUPS * K
                p_x += BK * PIXEL
    elif STRETCH:
        # Columns whose tap lies in the image. The others are left out: an inf of dy must not meet the zero of padding.
        first = tl.maximum(tl.cdiv(-w0, STRIDE_W), 0)
        last = tl.minimum(tl.cdiv(W - w0, STRIDE_W), Q)
        for row in range(split * rows // Q, stop // Q):
            h = row % P * STRIDE_H + h0
            p_row = p_dy + tl.cast(row, tl.int64) * Q * (GROUPS * K)
            p_image = p_x + ((tl.cast(row // P, tl.int64) * H + h) * W + w0) * PIXEL
            for start in range(first, tl.where((h >= 0) & (h < H), last, first), BK):
                m_row = t < last - start
                q = tl.cast(start, tl.int64) + t
                o_dy = q[None, :] * (GROUPS * K)
                o_x = q[:, None] * (STRIDE_W * PIXEL)
                m_x = m_row[:, None] & (c < C)[None, :]
                dy = tl.load(p_row + o_dy, mask=(k < K)[:, None] & m_row[None, :], other=0.0)  # [BM, BK]
                x = tl.load(p_image + o_x, mask=m_x, other=0.0, eviction_policy="evict_last")  # [BK, BN]
                acc = product(dy, x, acc, PRECISION)
    else:
        n, p, q = unravel(split * rows + t, P, Q)
        step_n, step_p, step_q = unravel(BK, P, Q)
        for start in range(split * rows, stop, BK):
            h = p * STRIDE_H + h0
            w = q * STRIDE_W + w0
            o_x = ((n * H + h) * W + w).to(tl.int64) * PIXEL
            m = start + t
            o_dy = m.to(tl.int64) * (GROUPS * K)
            # A padded pixel masks dy too: an inf there must not meet the zero that stands for the pixel.
            m_row = (m < stop) & inside(h, w, H, W)
            dy = tl.load(p_dy + o_dy[None, :], mask=(k < K)[:, None] & m_row[None, :], other=0.0)  # [BM, BK]
            x = tl.load(p_x + o_x[:, None], mask=m_row[:, None] & (c < C)[None, :], other=0.0)  # [BK, BN]
            acc = product(dy, x, acc, PRECISION)
            n, p, q = advance(n, p, q, step_n, step_p, step_q, P, Q)
    p_dw = dw_ptr + split.to(tl.int64) * stride_split + tap * stride_tap
    o_dw = (group * K + k)[:, None] * stride_k + c[None, :] * stride_c
    tl.store(p_dw + o_dw, acc.to(dw_ptr.dtype.element_ty), mask=(k < K)[:, None] & (c < C)[None, :])
