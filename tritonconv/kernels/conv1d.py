"""1-D convolution at stride 1 over activations [N, C, W] as they lie: GEMMs whose columns are positions.

C and K are channels per group, GROUPS of them one after another in an image. Tap s of output position q reads input
position q + s·STEP + FIRST. An offset that is a multiple of an activation's row is int64, since a tensor may have 2³¹
elements or more.
"""

import triton
import triton.language as tl

from .common import accumulator, product
from .epilogue import finished
from .moments import store_moments


@triton.jit
def conv1d(
    x_ptr, w_ptr, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr, moments_ptr,
    W, Q,
    GROUPS: tl.constexpr, C: tl.constexpr, K: tl.constexpr, S: tl.constexpr, FIRST: tl.constexpr, STEP: tl.constexpr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y[n, k, q] = activation(norm(inner(bias[k] + Σ x[n, c, q + s·STEP + FIRST] w[k, s, c])) + residual).

    norm and moments are those of `conv.conv_fprop`; a tile of statistics is one of an image's Q. dgrad is the same sum
    with C and K, and the taps' direction, exchanged.
    Grid: (tiles of K × tiles of Q, groups, N). `w_ptr`: [GROUPS, K, S, C].
    """
    ACC: tl.constexpr = accumulator(x_ptr.dtype.element_ty)
    K_TILES: tl.constexpr = (K + BM - 1) // BM
    # Tiles of K run next to each other: they read the same positions.
    tile = tl.program_id(0) // K_TILES
    group = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64) * GROUPS + group
    k = tl.program_id(0) % K_TILES * BM + tl.arange(0, BM)
    q = tile * BN + tl.arange(0, BN)
    o_c = tl.arange(0, BK)
    p_w = w_ptr + (group.to(tl.int64) * K + k)[:, None] * (S * C) + o_c[None, :]
    p_x = x_ptr + (image * C + o_c)[:, None] * W + q[None, :]
    acc = tl.zeros((BM, BN), ACC)
    # A loop over the taps, so that whether one's positions are all inside is asked once. Targets that pipeline make it
    # one loop with the inner.
    for s in tl.range(0, S, flatten=True):
        w = q + (s * STEP + FIRST)
        m_w = ((w >= 0) & (w < W))[None, :]
        for c in range(0, C, BK):
            m_k = (k < K)[:, None]
            m_x = m_w
            if C % BK != 0:
                m_c = o_c < C - c
                m_k = m_k & m_c[None, :]
                m_x = m_x & m_c[:, None]
            o_x = tl.cast(c, tl.int64) * W + (s * STEP + FIRST)
            if C % BK == 0 and K % BM == 0:
                a = tl.load(p_w + (s * C + c))  # [BM, BK]
            else:
                a = tl.load(p_w + (s * C + c), mask=m_k, other=0.0)  # [BM, BK]
            b = tl.load(p_x + o_x, mask=m_x, other=0.0, eviction_policy="evict_last")  # [BK, BN]
            acc = product(a, b, acc, PRECISION)

    at = (image * K + k)[:, None] * Q + q[None, :]
    mask = (k < K)[:, None] & (q < Q)[None, :]
    acc = finished(
        acc, bias_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr,
        group * K, k, K, at, mask, EPS, ACTIVATION, 0,
    )  # fmt: skip
    tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=mask)
    if moments_ptr is not None:
        stored = acc.to(y_ptr.dtype.element_ty).to(ACC)
        tiles = tl.cdiv(Q, BN)
        place = tl.program_id(2) * tiles + tile
        count = tl.minimum(Q - tile * BN, BN)
        tiles *= tl.num_programs(2)
        store_moments(moments_ptr, place, tiles, stored, q < Q, count, group * K + k, k < K, GROUPS * K, 0)


@triton.jit
def conv1d_wgrad(
    dy_ptr, x_ptr, dw_ptr, N, W, Q, positions, stride_split, stride_k, stride_c, stride_tap,
    GROUPS: tl.constexpr, C: tl.constexpr, K: tl.constexpr, FIRST: tl.constexpr, STEP: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dw[split][k, c, s] = Σ dy[n, k, q] x[n, q + s·STEP + FIRST, c] over all n and the split's positions q.

    x, unlike dy, is [N, W, GROUPS·C]: both then are read where they lie, the one by elements and the other by vectors.
    Grid: (tiles of K × tiles of C, taps, groups × splits). Strides are those of `dw_ptr`, in elements.
    """
    ACC: tl.constexpr = accumulator(x_ptr.dtype.element_ty)
    C_TILES: tl.constexpr = (C + BN - 1) // BN
    tap = tl.program_id(1)
    group = tl.program_id(2) % GROUPS
    split = tl.program_id(2) // GROUPS
    k = tl.program_id(0) // C_TILES * BM + tl.arange(0, BM)
    c = tl.program_id(0) % C_TILES * BN + tl.arange(0, BN)
    o_q = tl.arange(0, BK)
    shift = tap * STEP + FIRST
    # Only positions whose input is inside.
    start = tl.maximum(split * positions, -shift)
    stop = tl.minimum(tl.minimum((split + 1) * positions, Q), W - shift)
    p_dy = dy_ptr + (group.to(tl.int64) * K + k)[:, None] * Q + o_q[None, :]
    p_x = x_ptr + group * C + c[None, :]
    acc = tl.zeros((BM, BN), ACC)
    for n in tl.range(0, N, flatten=True):
        p_n = p_dy + tl.cast(n, tl.int64) * (GROUPS * K) * Q
        first = tl.cast(n, tl.int64) * W + shift
        for q in range(start, stop, BK):
            m_q = o_q < stop - q
            dy = tl.load(p_n + q, mask=(k < K)[:, None] & m_q[None, :], other=0.0)  # [BM, BK]
            o_x = (first + q + o_q) * (GROUPS * C)
            mask = m_q[:, None] & (c < C)[None, :]
            x = tl.load(p_x + o_x[:, None], mask=mask, other=0.0, eviction_policy="evict_last")  # [BK, BN]
            acc = product(dy, x, acc, PRECISION)
    p_dw = dw_ptr + split.to(tl.int64) * stride_split + tap * stride_tap
    o_dw = (group.to(tl.int64) * K + k)[:, None] * stride_k + c[None, :] * stride_c
    tl.store(p_dw + o_dw, acc.to(dw_ptr.dtype.element_ty), mask=(k < K)[:, None] & (c < C)[None, :])
