"""1-D convolution over activations [N, C, W] as they lie: GEMMs whose columns are positions.

C and K are channels per group, GROUPS of them one after another in an image. Tap s of output position q reads input
position (q·DOWN + s·STEP + FIRST) / UP, if that is an integer: fprop has its stride in DOWN, dgrad in UP. So that the
positions of a load lie side by side, an input of DOWN > 1 lies in its phases (`split_phases`), and outputs of UP > 1
are taken by residue classes, each of which the same taps reach. An offset that is a multiple of an activation's row is
int64, since a tensor may have 2³¹ elements or more.
"""

import triton
import triton.language as tl

from .common import accumulator, product, tap_step, taps_of
from .epilogue import finished
from .moments import store_moments


@triton.constexpr_function
def reaches(r, S, first, step, stride):
    """Whether a window, whose tap s is at s·step + first, has a tap in phase r."""
    return any((s * step + first - r) % stride == 0 for s in range(S))


@triton.jit
def split_phases(
    x_ptr, y_ptr, W, length,
    S: tl.constexpr, FIRST: tl.constexpr, STEP: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y [rows, STRIDE, length]: position q·STRIDE + r of x [rows, W] at (r, q), and zeros beyond the last; of phases r
    that a window reaches.

    Grid: (rows, tiles of length).
    """
    row = tl.program_id(0).to(tl.int64)
    q = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    for r in tl.static_range(STRIDE):
        if reaches(r, S, FIRST, STEP, STRIDE):
            w = q * STRIDE + r
            x = tl.load(x_ptr + row * W + w, mask=w < W, other=0.0)  # [BLOCK]
            tl.store(y_ptr + (row * STRIDE + r) * length + q, x, mask=q < length)


@triton.constexpr_function
def phases_before(first, stride):
    """Positions of a phase that lie before the image, where a window's first tap does so by `first`."""
    return -(min(first, 0) // stride)


@triton.jit
def conv1d(
    x_ptr, w_ptr, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr, moments_ptr,
    W, Q,
    GROUPS: tl.constexpr, C: tl.constexpr, K: tl.constexpr, S: tl.constexpr, FIRST: tl.constexpr, STEP: tl.constexpr,
    DOWN: tl.constexpr, UP: tl.constexpr, EPS: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y[n, k, q] = activation(norm(inner(bias[k] + Σ x[n, c, (q·DOWN + s·STEP + FIRST)/UP] w[k, s, c])) + residual).

    norm and moments are those of `conv.conv_fprop`; a tile of statistics is one of an image's Q, and of UP = 1. dgrad
    is the same sum with C and K, and the taps' direction, exchanged. W is the length of a phase of x.
    Grid: (tiles of K × tiles of a class of Q × UP classes, groups, N). `w_ptr`: [GROUPS, K, S, C].
    """
    ACC: tl.constexpr = accumulator(x_ptr.dtype.element_ty)
    K_TILES: tl.constexpr = (K + BM - 1) // BM
    BEFORE: tl.constexpr = phases_before(FIRST, DOWN)
    TAP: tl.constexpr = tap_step(UP, STEP)
    # Tiles of K, and classes, run next to each other: they read the same positions.
    phase = tl.program_id(0) % UP
    tile = tl.program_id(0) // UP // K_TILES
    group = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64) * GROUPS + group
    k = tl.program_id(0) // UP % K_TILES * BM + tl.arange(0, BM)
    at_tile = tile * BN + tl.arange(0, BN)
    q = at_tile * UP + phase
    o_c = tl.arange(0, BK)
    p_w = w_ptr + (group.to(tl.int64) * K + k)[:, None] * (S * C) + o_c[None, :]
    p_x = x_ptr + (image * C + o_c)[:, None] * (W * DOWN) + at_tile[None, :]
    acc = tl.zeros((BM, BN), ACC)
    if UP == 1:
        first, taps = 0, S
    else:
        first, taps = taps_of(phase + FIRST, UP, -STEP, S)
    # A loop over the taps, so that whether one's positions are all inside is asked once. Targets that pipeline make it
    # one loop with the inner.
    for tap in tl.range(0, taps, flatten=True):
        s = first + tap * TAP
        if DOWN > 1:
            position = s * STEP + (FIRST + BEFORE * DOWN)
            shift = position // DOWN - BEFORE
            start = position % DOWN * W + shift
        else:
            shift = (phase + s * STEP + FIRST) // UP  # exact: the class's taps are congruent
            start = shift
        w = at_tile + shift
        m_w = ((w >= 0) & (w < W))[None, :]
        for c in range(0, C, BK):
            m_k = (k < K)[:, None]
            m_x = m_w
            if C % BK != 0:
                m_c = o_c < C - c
                m_k = m_k & m_c[None, :]
                m_x = m_x & m_c[:, None]
            o_x = tl.cast(c, tl.int64) * (W * DOWN) + start
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
    DOWN: tl.constexpr, PIXEL: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dw[split][k, c, s] = Σ dy[n, k, q] x[n, q·DOWN + s·STEP + FIRST, c] over all n and the split's positions q.

    x, unlike dy, is [N, W, GROUPS·C]: both then are read where they lie, the one by elements and the other by vectors.
    Its pixels lie PIXEL elements apart.
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
    start = tl.maximum(split * positions, tl.cdiv(-shift, DOWN))
    stop = tl.minimum(tl.minimum((split + 1) * positions, Q), tl.cdiv(W - shift, DOWN))
    p_dy = dy_ptr + (group.to(tl.int64) * K + k)[:, None] * Q + o_q[None, :]
    p_x = x_ptr + group * C + c[None, :]
    acc = tl.zeros((BM, BN), ACC)
    for n in tl.range(0, N, flatten=True):
        p_n = p_dy + tl.cast(n, tl.int64) * (GROUPS * K) * Q
        first = tl.cast(n, tl.int64) * W + shift
        for q in range(start, stop, BK):
            m_q = o_q < stop - q
            dy = tl.load(p_n + q, mask=(k < K)[:, None] & m_q[None, :], other=0.0)  # [BM, BK]
            o_x = (first + (q + o_q) * DOWN) * PIXEL
            mask = m_q[:, None] & (c < C)[None, :]
            x = tl.load(p_x + o_x[:, None], mask=mask, other=0.0, eviction_policy="evict_last")  # [BK, BN]
            acc = product(dy, x, acc, PRECISION)
    p_dw = dw_ptr + split.to(tl.int64) * stride_split + tap * stride_tap
    o_dw = (group.to(tl.int64) * K + k)[:, None] * stride_k + c[None, :] * stride_c
    tl.store(p_dw + o_dw, acc.to(dw_ptr.dtype.element_ty), mask=(k < K)[:, None] & (c < C)[None, :])
