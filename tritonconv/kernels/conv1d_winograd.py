"""1-D convolution of three taps by Winograd's algorithm, F(4, 3): 6 products for 4 outputs, not 12.

Activations are [N, C, W] as they lie, so the outputs of a tile, and the positions that it reads, lie a dilation apart.
Neighbouring tiles are of different phases: they begin at neighbouring positions, as far as the dilation goes.
"""

import triton
import triton.language as tl

from .common import product
from .epilogue import finished
from .winograd_transforms import transform_filter, transform_input, transform_output


@triton.jit
def conv1d_winograd_filter(
    w_ptr, u_ptr, C: tl.constexpr, K: tl.constexpr,
    FIRST: tl.constexpr, STRIDE_C: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_TAP: tl.constexpr,
    OUT: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """u [points, K, C]: the transformed taps of a weight of these strides, whose first tap is at FIRST.

    Grid: (tiles of C, tiles of K).
    """
    c = tl.program_id(0) * BK + tl.arange(0, BK)
    k = tl.program_id(1) * BM + tl.arange(0, BM)
    mask = (k < K)[:, None] & (c < C)[None, :]
    p_w = w_ptr + FIRST + k.to(tl.int64)[:, None] * STRIDE_K + c.to(tl.int64)[None, :] * STRIDE_C
    taps = ()
    for s in tl.static_range(3):
        taps = taps + (tl.load(p_w + s * STRIDE_TAP, mask=mask, other=0.0).to(u_ptr.dtype.element_ty),)  # [BM, BK]
    values = transform_filter(taps, OUT)
    p_u = u_ptr + k.to(tl.int64)[:, None] * C + c[None, :]
    for i in tl.static_range(len(values)):
        tl.store(p_u + i * (K * C), values[i], mask=mask)


@triton.jit
def first_outputs(first, DIL: tl.constexpr, OUT: tl.constexpr, BN: tl.constexpr):
    """[BN]: where the outputs of the tiles first, first + 1, … begin; `first` is a multiple of BN."""
    tile = tl.arange(0, BN)
    # Divided are the numbers of lanes or of blocks, where that is the same: a compiler then sees which are neighbours.
    if BN % DIL == 0:
        q = first * OUT + (tile // DIL * (OUT * DIL) + tile % DIL)
    elif DIL % BN == 0:
        q = first // DIL * (OUT * DIL) + first % DIL + tile
    else:
        q = (first + tile) // DIL * (OUT * DIL) + (first + tile) % DIL
    return q


@triton.jit
def store_inputs(
    v_ptr, x_ptr, w, W, C: tl.constexpr, DIL: tl.constexpr, POINTS: tl.constexpr, BN: tl.constexpr,
    INSIDE: tl.constexpr,
):  # fmt: skip
    """v [points, C, BN]: the transforms of the positions from w [BN] on, of all channels. INSIDE: all of them exist."""
    p_v = v_ptr + tl.arange(0, BN)
    for c in range(C):
        p_x = x_ptr + tl.cast(c, tl.int64) * W + w
        x = ()
        for j in tl.static_range(POINTS):
            mask = INSIDE | ((w + j * DIL >= 0) & (w + j * DIL < W))
            x = x + (tl.load(p_x + j * DIL, mask=mask, other=0.0).to(v_ptr.dtype.element_ty),)  # [BN]
        values = transform_input(x)
        for i in tl.static_range(POINTS):
            tl.store(p_v + (i * C + c) * BN, values[i])


@triton.jit
def store_products(
    m_ptr, u_ptr, v_ptr, k, C: tl.constexpr, K: tl.constexpr, POINTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """m [points, BM, BN] = u [points, K, C] × v [points, C, BN], of the rows k [BM]."""
    ACC: tl.constexpr = v_ptr.dtype.element_ty
    o_n = tl.arange(0, BN)[None, :]
    o_c = tl.arange(0, BK)
    for point in range(POINTS):
        p_u = u_ptr + (tl.cast(point, tl.int64) * K + k)[:, None] * C + o_c[None, :]
        p_v = v_ptr + (point * C + o_c)[:, None] * BN + o_n
        acc = tl.zeros((BM, BN), ACC)
        for c in range(0, C, BK):
            if C % BK == 0 and K % BM == 0:
                u = tl.load(p_u + c)  # [BM, BK]
                v = tl.load(p_v + c * BN)  # [BK, BN]
            else:
                m_c = o_c < C - c
                u = tl.load(p_u + c, mask=(k < K)[:, None] & m_c[None, :], other=0.0)  # [BM, BK]
                v = tl.load(p_v + c * BN, mask=m_c[:, None], other=0.0)  # [BK, BN]
            acc = product(u, v, acc, PRECISION)
        tl.store(m_ptr + (point * BM + tl.arange(0, BM))[:, None] * BN + o_n, acc)


@triton.jit
def conv1d_winograd(
    x_ptr, u_ptr, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr, workspace_ptr,
    N, W, Q,
    C: tl.constexpr, K: tl.constexpr, FIRST: tl.constexpr, DIL: tl.constexpr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    OUT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """What `conv1d` computes of three taps DIL apart, without groups and moments.

    Grid: (any number, any number). A program takes every num_programs(0)-th block of BN tiles, and of the tiles of K
    its share of num_programs(1). It transforms a block's inputs once, all channels of them, then per tile of K
    multiplies and transforms back. What lies between, [points, C, BN] and [points, BM, BN] of `workspace_ptr`, is its
    own, and stays in cache. `u_ptr`: transformed weights [points, K, C].
    """
    POINTS: tl.constexpr = OUT + 2
    K_TILES: tl.constexpr = (K + BM - 1) // BM
    blocks = tl.cdiv(tl.cdiv(Q, OUT * DIL) * DIL, BN)
    share = tl.cdiv(K_TILES, tl.num_programs(1))
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, K_TILES)
    program = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    v_ptr = workspace_ptr + program * (POINTS * BN * (C + BM))
    m_ptr = v_ptr + POINTS * BN * C
    p_m = m_ptr + tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
    for block in range(tl.program_id(0), N * blocks, tl.num_programs(0)):
        n = (block // blocks).to(tl.int64)
        q = first_outputs(block % blocks * BN, DIL, OUT, BN)
        p_x = x_ptr + n * C * W
        # Most blocks need no mask for the ends.
        if (tl.min(q, 0) + FIRST >= 0) & (tl.max(q, 0) + FIRST + (POINTS - 1) * DIL < W):
            store_inputs(v_ptr, p_x, q + FIRST, W, C, DIL, POINTS, BN, True)
        else:
            store_inputs(v_ptr, p_x, q + FIRST, W, C, DIL, POINTS, BN, False)
        tl.debug_barrier()
        for tile in range(first, last):
            k = tile * BM + tl.arange(0, BM)
            store_products(m_ptr, u_ptr, v_ptr, k, C, K, POINTS, BM, BN, BK, PRECISION)
            tl.debug_barrier()
            products = ()
            for i in tl.static_range(POINTS):
                products = products + (tl.load(p_m + i * (BM * BN)),)  # [BM, BN]
            outputs = transform_output(products, OUT)
            for i in tl.static_range(OUT):
                at = (n * K + k)[:, None] * Q + (q + i * DIL)[None, :]
                mask = (k < K)[:, None] & (q + i * DIL < Q)[None, :]
                y = finished(
                    outputs[i], bias_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr,
                    0, k, K, at, mask, EPS, ACTIVATION, 0,
                )  # fmt: skip
                tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)
            tl.debug_barrier()
