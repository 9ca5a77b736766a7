"""Expansion and depthwise convolution in one kernel: what lies between them, several times as wide as what goes in and
larger than what comes out, never leaves the cache. For CPUs, in inference.
"""

import triton
import triton.language as tl

from .common import accumulator
from .conv import implicit_gemm
from .depthwise import finish_window, tail_mask, tap_sum
from .epilogue import finish


@triton.jit
def store_zeros(row_ptr, first, last, BN: tl.constexpr):
    """Zeros in the pixels first, …, last − 1, of BN channels each."""
    zero = tl.zeros((1, BN), row_ptr.dtype.element_ty)
    for pixel in range(first, last):
        tl.store(row_ptr + pixel * BN + tl.arange(0, BN)[None, :], zero)


@triton.jit
def expand_depthwise(
    x_ptr, u_ptr, inner_bias_ptr, inner_mean_ptr, inner_var_ptr, inner_gamma_ptr, inner_beta_ptr, inner_slope_ptr,
    w_ptr, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, workspace_ptr,
    N, H, W, P, Q,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, PIXEL: tl.constexpr,
    INNER_EPS: tl.constexpr, INNER_ACTIVATION: tl.constexpr, EPS: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, ROOM: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """y = depthwise_fprop(z) of z [N, H, W, K] = conv_fprop(x), 1 × 1, each with its bias, norm and activation.

    Pixels of x are PIXEL elements apart. Grid: (any number). The programs share out bands of ROWS rows of y × tiles of
    K. Of a band and a tile one computes all of z that the windows see, pixels BN elements apart, into its own ROOM
    elements of `workspace_ptr`, with zeros around the image, and then the windows' sums. The rows that two bands see
    are computed twice. `u_ptr`: panels [tiles of K, C, BN], `w_ptr`: [tiles of K, R·S, BN].
    """
    ACC: tl.constexpr = accumulator(x_ptr.dtype.element_ty)
    K_TILES: tl.constexpr = (K + BN - 1) // BN
    REACH: tl.constexpr = (R - 1) * DIL_H + 1
    right = PAD_W + W
    width = tl.maximum((Q - 1) * STRIDE_W + (S - 1) * DIL_W + 1, right)
    bands = tl.cdiv(P, ROWS)
    items = (N * bands * K_TILES).to(tl.int64)
    start = (items * tl.program_id(0) // tl.num_programs(0)).to(tl.int32)
    stop = (items * (tl.program_id(0) + 1) // tl.num_programs(0)).to(tl.int32)
    z_ptr = workspace_ptr + tl.program_id(0).to(tl.int64) * ROOM
    for h in range(0, (ROWS - 1) * STRIDE_H + REACH):
        store_zeros(z_ptr + h * width * BN, 0, PAD_W, BN)
        store_zeros(z_ptr + h * width * BN, right, width, BN)

    for item in range(start, stop):
        tile = item % K_TILES
        n = item // K_TILES // bands
        p0 = item // K_TILES % bands * ROWS
        rows = tl.minimum(ROWS, P - p0)
        height = (rows - 1) * STRIDE_H + REACH
        h0 = p0 * STRIDE_H - PAD_H
        first = tl.minimum(tl.maximum(-h0, 0), height)  # the rows of the band that lie in the image
        last = tl.maximum(tl.minimum(H - h0, height), first)
        store_zeros(z_ptr, 0, first * width, BN)
        store_zeros(z_ptr, last * width, height * width, BN)
        k = tile * BN + tl.arange(0, BN)
        pixels = (last - first) * W
        p_x = x_ptr + ((n * H + h0 + first) * W).to(tl.int64) * PIXEL
        p_u = u_ptr + tile * (C * BN)
        for m0 in range(0, pixels, BM):
            m = m0 + tl.arange(0, BM)
            acc = implicit_gemm(
                p_x + m.to(tl.int64) * PIXEL, 0, 0, m < pixels, H, W, PIXEL,
                p_u, 0, 1, 1, 1, 1, 1, 1, C, BM, BN, BK, ACC, PRECISION, POINTWISE=True,
            )  # fmt: skip
            row = (m.to(tl.uint32) // tl.cast(W, tl.uint32)).to(tl.int32)  # sooner done without signs
            place = first * width + PAD_W + m + row * (width - W)
            finish(
                acc, inner_bias_ptr, z_ptr - tile * BN, inner_mean_ptr, inner_var_ptr, inner_gamma_ptr, inner_beta_ptr,
                inner_slope_ptr, None, None,
                place, m < pixels, 0, 0, 0, k, K, K, BN, INNER_EPS, INNER_ACTIVATION, BN,
            )  # fmt: skip
        tl.debug_barrier()

        p_w = w_ptr + tile * (R * S * BN) + tl.arange(0, BN)
        for p in range(0, rows):
            o_row = ((n * P + p0 + p) * Q).to(tl.int64) * K + k[None, :]
            p_row = z_ptr + p * (STRIDE_H * width) * BN + tl.arange(0, BN)[None, :]
            for q0 in range(0, Q, BQ):
                q = q0 + tl.arange(0, BQ)
                acc = tap_sum(
                    p_row + (q * (STRIDE_W * BN))[:, None], 0, 0, tail_mask(k, K, BN), H, width, BN, p_w,
                    R, S, DIL_H, DIL_W, BQ, BN, ACC, True,
                )  # fmt: skip
                finish_window(
                    acc, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, None,
                    o_row + q[:, None] * K, (q < Q)[:, None], tail_mask(k, K, BN), k, K, EPS, ACTIVATION,
                )  # fmt: skip
        tl.debug_barrier()
