"""Convolution whose result is max-pooled before it is stored, and the way back to the convolution's outputs.

Windows are POOL_H × POOL_W outputs that lie side by side without overlapping; what remains at the edges is in none.
"""

import triton
import triton.language as tl

from .activations import activate
from .common import unravel
from .conv import implicit_gemm
from .epilogue import store_rows
from .norm import scale_and_shift
from .windows import tile_of


@triton.jit
def conv_max_pool(
    x_ptr, w_ptr, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, tap_ptr, N, H, W, P, Q,
    GROUPS: tl.constexpr, C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, WHOLE: tl.constexpr, PIXEL: tl.constexpr,
    POOL_H: tl.constexpr, POOL_W: tl.constexpr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """y[n, p, q, k] = activation(max z[n, p·POOL_H + u, q·POOL_W + v, k] over u and v), z = norm(bias + x ∗ w).

    There are P × Q windows, and STRIDE leads from one to the next; all else is as in `conv_fprop`. `tap_ptr`, where it
    is not None, gets the u·POOL_W + v of each maximum, chosen as in `max_pool` among the values as y's dtype has them.
    Each tap of the windows is a product of its own, whose rows are the windows: the maximum is taken element by
    element, in the order of the taps, and nothing has to be exchanged among rows.
    Grid: (tiles of N·P·Q × tiles of K, groups). `w_ptr`: panels [GROUPS, tiles of K, R·S·C, BN].
    """
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    K_TILES: tl.constexpr = (K + BN - 1) // BN
    M = N * P * Q
    pid = tl.program_id(0)
    group = tl.program_id(1).to(tl.int64)
    tile_m, tile_n = tl.swizzle2d(pid // K_TILES, pid % K_TILES, tl.cdiv(M, BM), K_TILES, GROUP_M)

    m = tile_m * BM + tl.arange(0, BM)
    k = tile_n * BN + tl.arange(0, BN)
    n, p, q = unravel(m, P, Q)
    best = tl.full((BM, BN), float("-inf"), ACC)
    best_tap = tl.zeros((BM, BN), tl.int32)
    for tap in range(0, POOL_H * POOL_W):
        h = p * STRIDE_H + tap // POOL_W * (STRIDE_H // POOL_H) - PAD_H
        w = q * STRIDE_W + tap % POOL_W * (STRIDE_W // POOL_W) - PAD_W
        pixel = (n * H + h) * W + w
        z = implicit_gemm(
            x_ptr + group * C + pixel.to(tl.int64) * PIXEL, h, w, m < M, H, W, PIXEL,
            w_ptr + (group * K_TILES + tile_n) * (R * S * C * BN), 0, S, 1,
            R, S, DIL_H, DIL_W,
            C, BM, BN, BK, ACC, PRECISION, WHOLE=WHOLE,
        )  # fmt: skip
        if bias_ptr is not None:
            z += tl.load(bias_ptr + group * K + k, mask=k < K, other=0.0).to(ACC)[None, :]  # [BN]
        if mean_ptr is not None:
            scale, shift = scale_and_shift(mean_ptr, var_ptr, gamma_ptr, beta_ptr, group * K, k, K, EPS, ACC)
            z = z * scale[None, :] + shift[None, :]
        z = z.to(y_ptr.dtype.element_ty).to(ACC)
        better = (z > best) | (z != z)
        best = tl.where(better, z, best)
        if tap_ptr is not None:
            best_tap = tl.where(better, tap, best_tap)

    row = m.to(tl.int64) * (GROUPS * K)
    store_rows(y_ptr + group * K, row, m < M, activate(best, ACTIVATION), k, K, BN)
    if tap_ptr is not None:
        store_rows(tap_ptr + group * K, row, m < M, best_tap, k, K, BN)


@triton.jit
def spread(
    dy_ptr, tap_ptr, dz_ptr, N, C, H, W, P, Q, POOL_H: tl.constexpr, POOL_W: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dz [N, H, W, C]: dy [N, P, Q, C] where its window's tap says, zero elsewhere, outside of the windows too.

    Grid: (tiles of N·⌈H / POOL_H⌉, of ⌈W / POOL_W⌉, of C).
    """
    n, p, q, in_range = tile_of(N, tl.cdiv(H, POOL_H), tl.cdiv(W, POOL_W), BM, BK)
    c = tl.program_id(2) * BN + tl.arange(0, BN)
    mask = (in_range & (p < P) & (q < Q))[:, None] & (c < C)[None, :]
    o_y = ((n * P + p) * Q + q).to(tl.int64)[:, None] * C + c[None, :]
    dy = tl.load(dy_ptr + o_y, mask=mask, other=0.0)  # [BM·BK, BN]
    best_tap = tl.load(tap_ptr + o_y, mask=mask, other=0).to(tl.int32)  # [BM·BK, BN]
    for tap in tl.static_range(POOL_H * POOL_W):
        h = p * POOL_H + tap // POOL_W
        w = q * POOL_W + tap % POOL_W
        o_z = ((n * H + h) * W + w).to(tl.int64)[:, None] * C + c[None, :]
        m_z = (in_range & (h < H) & (w < W))[:, None] & (c < C)[None, :]
        tl.store(dz_ptr + o_z, tl.where(best_tap == tap, dy, 0.0), mask=m_z)
