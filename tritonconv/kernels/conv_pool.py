"""Convolution whose result is pooled before it is stored, and the way back from maxima to the convolution's outputs.

Windows are POOL_H × POOL_W outputs that lie side by side without overlapping; what remains at the edges is in none.
"""

import triton
import triton.language as tl

from .activations import activate
from .common import accumulator, in_groups, unravel
from .conv import implicit_gemm
from .epilogue import normed, store_rows
from .windows import tile_of


@triton.jit
def tile_of_windows(N, P, Q, K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP_M: tl.constexpr):
    """The windows m [BM] and channels k [BN] of this program's tile, its group, and which of its tiles of K it is."""
    K_TILES: tl.constexpr = (K + BN - 1) // BN
    tile_m, tile_n = in_groups(tl.program_id(0), tl.cdiv(N * P * Q, BM), K_TILES, GROUP_M)
    return tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN), tl.program_id(1).to(tl.int64), tile_n


@triton.jit
def conv_tap(
    tap, n, p, q, in_range, group, tile, k, x_ptr, w_ptr, bias_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, H, W,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, WHOLE: tl.constexpr, PIXEL: tl.constexpr,
    POOL_H: tl.constexpr, POOL_W: tl.constexpr, EPS: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """z [BM, BN] at one tap of the windows (n, p, q) [BM], those that are `in_range`, in channels k of a `tile` of a
    group. The rest is as in `conv_max_pool`."""
    h = p * STRIDE_H + tap // POOL_W * (STRIDE_H // POOL_H) - PAD_H
    w = q * STRIDE_W + tap % POOL_W * (STRIDE_W // POOL_W) - PAD_W
    pixel = (n * H + h) * W + w
    z = implicit_gemm(
        x_ptr + group * C + pixel.to(tl.int64) * PIXEL, h, w, in_range, H, W, PIXEL,
        w_ptr + (group * ((K + BN - 1) // BN) + tile) * (R * S * C * BN), 0, S, 1,
        R, S, DIL_H, DIL_W,
        C, BM, BN, BK, ACC, PRECISION, WHOLE=WHOLE,
    )  # fmt: skip
    return normed(z, bias_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, group * K, k, K, EPS, ACTIVATION)


@triton.jit
def conv_max_pool(
    x_ptr, w_ptr, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, tap_ptr, N, H, W, P, Q,
    GROUPS: tl.constexpr, C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, WHOLE: tl.constexpr, PIXEL: tl.constexpr,
    POOL_H: tl.constexpr, POOL_W: tl.constexpr, EPS: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """y[n, p, q, k] = activation(max z[n, p·POOL_H + u, q·POOL_W + v, k] over u and v), z = norm(bias + x ∗ w).

    There are P × Q windows, and STRIDE leads from one to the next; all else is as in `conv_fprop`. `tap_ptr`, where it
    is not None, gets the u·POOL_W + v of each maximum, chosen as in `max_pool` among the values as y's dtype has them.
    Each tap of the windows is a product of its own, whose rows are the windows: the maximum is taken element by
    element, in the order of the taps, and nothing has to be exchanged among rows.
    Grid: (tiles of N·P·Q × tiles of K, groups). `w_ptr`: panels [GROUPS, tiles of K, R·S·C, BN].
    """
    ACC: tl.constexpr = accumulator(x_ptr.dtype.element_ty)
    m, k, group, tile = tile_of_windows(N, P, Q, K, BM, BN, GROUP_M)
    in_range = m < N * P * Q
    n, p, q = unravel(m, P, Q)
    best = tl.full((BM, BN), float("-inf"), ACC)
    best_tap = tl.zeros((BM, BN), tl.int32)
    for tap in range(0, POOL_H * POOL_W):
        z = conv_tap(
            tap, n, p, q, in_range, group, tile, k, x_ptr, w_ptr, bias_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr,
            H, W, C, K, R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DIL_H, DIL_W, WHOLE, PIXEL,
            POOL_H, POOL_W, EPS, None, PRECISION, BM, BN, BK, ACC,
        )  # fmt: skip
        z = z.to(y_ptr.dtype.element_ty).to(ACC)
        better = (z > best) | (z != z)
        best = tl.where(better, z, best)
        if tap_ptr is not None:
            best_tap = tl.where(better, tap, best_tap)

    row = m.to(tl.int64) * (GROUPS * K)
    store_rows(y_ptr + group * K, row, in_range, activate(best, ACTIVATION), k, K, BN)
    if tap_ptr is not None:
        store_rows(tap_ptr + group * K, row, in_range, best_tap, k, K, BN)


@triton.jit
def conv_avg_pool(
    x_ptr, w_ptr, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, N, H, W, P, Q,
    GROUPS: tl.constexpr, C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, WHOLE: tl.constexpr, PIXEL: tl.constexpr,
    POOL_H: tl.constexpr, POOL_W: tl.constexpr, EPS: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """y[n, p, q, k]: the mean of activation(z[n, p·POOL_H + u, q·POOL_W + v, k]) over u and v, z = norm(inner(bias +
    x ∗ w)). All else is as in `conv_max_pool`."""
    ACC: tl.constexpr = accumulator(x_ptr.dtype.element_ty)
    m, k, group, tile = tile_of_windows(N, P, Q, K, BM, BN, GROUP_M)
    in_range = m < N * P * Q
    n, p, q = unravel(m, P, Q)
    total = tl.zeros((BM, BN), ACC)
    for tap in range(0, POOL_H * POOL_W):
        z = conv_tap(
            tap, n, p, q, in_range, group, tile, k, x_ptr, w_ptr, bias_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr,
            H, W, C, K, R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DIL_H, DIL_W, WHOLE, PIXEL,
            POOL_H, POOL_W, EPS, ACTIVATION, PRECISION, BM, BN, BK, ACC,
        )  # fmt: skip
        total += activate(z, ACTIVATION, slope_ptr, (group * K + k)[None, :], (k < K)[None, :])
    mean = total / (POOL_H * POOL_W)
    store_rows(y_ptr + group * K, m.to(tl.int64) * (GROUPS * K), in_range, mean, k, K, BN)


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
