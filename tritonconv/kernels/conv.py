"""Convolution as an implicit GEMM: fprop and dgrad over NHWC activations and packed weights.

C and K are channels per group, GROUPS of them side by side in a pixel. Where x is read, pixels lie PIXEL elements
apart: GROUPS·C, or fewer where they overlap (`launch.conv.overlapping`). Sizes that vary at run time: N, H, W of the
input and P, Q of the output. An offset that is a multiple of the channel count is int64, since a tensor may have 2³¹
elements or more.
"""

import triton
import triton.language as tl

from .boxes import box_of_tile, boxed_gemm, tiles_of
from .common import accumulator, in_groups, inside, pointwise, product, tap_step, taps_of, unravel
from .epilogue import finish, store_rows


@triton.jit
def implicit_gemm(
    a_ptr, h, w, in_range, H, W, PIXEL: tl.constexpr,
    b_ptr, b_tap, B_STEP_H: tl.constexpr, B_STEP_W: tl.constexpr,
    taps_h, taps_w, STEP_H: tl.constexpr, STEP_W: tl.constexpr,
    C: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    split=0, SPLIT: tl.constexpr = 1, BOXED: tl.constexpr = False, POINTWISE: tl.constexpr = False,
    WHOLE: tl.constexpr = False, TURNED: tl.constexpr = 0,
):  # fmt: skip
    """[BM, BN] sums over taps (r, s) and channels c of image[h + r·STEP_H, w + s·STEP_W, c] × panel[tap, c, n].

    `a_ptr` [BM] points at channel 0 of pixel (h, w) of each row's H × W image, PIXEL elements a pixel; pixels outside
    the image and rows not `in_range` count as zero. `b_ptr` is the panel [·, C, BN] of one output tile, whose tap for
    (r, s) is b_tap + r·B_STEP_H + s·B_STEP_W; if TURNED, it lies as [BN, ·, C], so many elements for each n.
    Of SPLIT equal parts of the reduction it is the sum over the one `split`.
    If POINTWISE there is one tap, which sees the pixel itself. WHOLE: no tap of a row in range is outside of the image.
    If BOXED, `b_ptr` describes all panels as rows of BN elements, in boxes of BK, and b_tap counts from the first one.
    """
    C_BLOCKS: tl.constexpr = (C + BK - 1) // BK
    o_c = tl.arange(0, BK)
    p_a = a_ptr[:, None] + o_c[None, :]
    BESIDE: tl.constexpr = 1 if TURNED else BN
    if not BOXED:
        p_b = b_ptr + o_c[:, None] * BESIDE + tl.arange(0, BN)[None, :] * (TURNED if TURNED else 1)
    acc = tl.zeros((BM, BN), ACC)
    # One flat loop over (tap, channel block), which compilers pipeline; nested loops they do not.
    turns = taps_h * taps_w * C_BLOCKS
    share = tl.cdiv(turns, SPLIT)
    first = split * share if SPLIT > 1 else 0
    for i in range(first, tl.minimum(first + share, turns) if SPLIT > 1 else turns):
        if POINTWISE:
            r, s, c, m_row = 0, 0, i * BK, in_range
        else:
            tap = i // C_BLOCKS
            c = (i % C_BLOCKS) * BK
            r = tap // taps_w
            s = tap % taps_w
            m_row = in_range if WHOLE else in_range & inside(h + r * STEP_H, w + s * STEP_W, H, W)
        o_a = (r * STEP_H * W + s * STEP_W).to(tl.int64) * PIXEL + c
        b_row = (b_tap + r * B_STEP_H + s * B_STEP_W) * C + c
        o_b = b_row * BESIDE
        if C % BK == 0:
            a = tl.load(p_a + o_a, mask=m_row[:, None], other=0.0)  # [BM, BK]
            b = b_ptr.load([b_row, 0]) if BOXED else tl.load(p_b + o_b)  # [BK, BN]
        else:
            # Both are masked: beyond C lie the next pixel and the next tap, and their inf or NaN times zero is NaN.
            m_c = o_c < C - c
            a = tl.load(p_a + o_a, mask=m_row[:, None] & m_c[None, :], other=0.0)  # [BM, BK]
            b = tl.load(p_b + o_b, mask=m_c[:, None], other=0.0)  # [BK, BN]
        acc = product(a, b, acc, PRECISION, TURNED != 0)
    return acc


@triton.jit
def conv_fprop(
    x_ptr, w_ptr, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr, moments_ptr,
    N, H, W, P, Q,
    GROUPS: tl.constexpr, C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, WHOLE: tl.constexpr, PIXEL: tl.constexpr,
    PIXEL_Y: tl.constexpr, EPS: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr, SPLIT: tl.constexpr,
    BOXED: tl.constexpr, BOX_N: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """y[n, p, q, k] = activation(norm(inner(bias[k] + Σ x[n, p·stride − pad + r·dilation, …, c] w[r, s, c, k])) +
    residual).

    Pixels of x are PIXEL elements apart, those of y PIXEL_Y. WHOLE: all windows lie inside of the image. The rest of it
    is `finish`'s. If the sums are split in parts, `y_ptr` gets the parts, [SPLIT, N·P·Q, GROUPS·K], and `conv_finish`
    does the rest.
    Grid: (tiles of N·P·Q × tiles of K, groups, SPLIT). `w_ptr`: panels [GROUPS, tiles of K, R·S·C, BN], or [GROUPS,
    tiles of K, BN, R·S·C] if TURNED. If BOXED it is a descriptor, and if there are BOX_N × BOX_H × BOX_W = BM then so
    is `x_ptr`, and tiles are boxes of the output.
    """
    ACC: tl.constexpr = accumulator(y_ptr.dtype.element_ty)
    K_TILES: tl.constexpr = (K + BN - 1) // BN
    M = N * P * Q
    group = tl.program_id(1).to(tl.int64)
    m_tiles = tiles_of(N, P, Q, BM, BOX_N, BOX_H, BOX_W)
    tile_m, tile_n = in_groups(tl.program_id(0), m_tiles, K_TILES, GROUP_M)
    panel = group * K_TILES + tile_n

    if BOX_N:
        n, p, q, m, in_range = box_of_tile(tile_m, N, P, Q, BOX_N, BOX_H, BOX_W)
        acc = boxed_gemm(
            x_ptr, n, p, q, group * C, BOX_N, BOX_H, BOX_W, GROUPS * C,
            w_ptr, panel * (R * S), S, 1,
            R, S, STRIDE_H, STRIDE_W, -PAD_H, -PAD_W, DIL_H, DIL_W,
            C, BN, BK, ACC, PRECISION, tl.program_id(2), SPLIT,
        )  # fmt: skip
    else:
        m = tile_m * BM + tl.arange(0, BM)
        in_range = m < M
        # A plain matrix product: output pixel m is input pixel m, unless pixels overlap.
        PLAIN: tl.constexpr = PIXEL >= GROUPS * C and pointwise(R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W)
        if PLAIN:
            pixel, h, w = m, 0, 0
        else:
            n, p, q = unravel(m, P, Q)
            h = p * STRIDE_H - PAD_H
            w = q * STRIDE_W - PAD_W
            pixel = (n * H + h) * W + w
        if BOXED:
            panels, tap = w_ptr, (panel * (R * S)).to(tl.int32)
        else:
            panels, tap = w_ptr + panel * (R * S * C * BN), 0
        acc = implicit_gemm(
            x_ptr + group * C + pixel.to(tl.int64) * PIXEL, h, w, in_range, H, W, PIXEL,
            panels, tap, S, 1,
            R, S, DIL_H, DIL_W,
            C, BM, BN, BK, ACC, PRECISION, tl.program_id(2), SPLIT, BOXED, PLAIN, WHOLE, R * S * C if TURNED else 0,
        )  # fmt: skip

    k = tile_n * BN + tl.arange(0, BN)
    if SPLIT > 1:
        p_partial = y_ptr + tl.program_id(2).to(tl.int64) * M * (GROUPS * K) + group * K
        store_rows(p_partial, m.to(tl.int64) * (GROUPS * K), in_range, acc, k, K, BN)
    else:
        finish(
            acc, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr, moments_ptr,
            m, in_range, tile_m, m_tiles, group * K, k, K, GROUPS * K, PIXEL_Y, EPS, ACTIVATION, BN,
        )  # fmt: skip


@triton.jit
def conv_dgrad(
    dy_ptr, w_ptr, bias_ptr, dx_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, N, H, W, P, Q,
    GROUPS: tl.constexpr, C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr, SPLIT: tl.constexpr,
    BOXED: tl.constexpr, BOX_N: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """dx[n, h, w, c] = activation(norm(bias[c] + Σ dy[n, p, q, k] w[r, s, k, c])), summed where p·stride + r·dilation =
    h + pad, and so for (q, s) and w. With bias, norm (see `conv_fprop`) and activation it is transposed convolution.

    Which taps take part depends only on (h, w) modulo the stride, so each residue class is a GEMM of its own, without a
    wasted product. A class that no tap reaches still writes: zeros, through the epilogue.
    If the sums are split in parts, `dx_ptr` gets the parts, [SPLIT, N·H·W, GROUPS·C], and `conv_finish` does the rest.
    BOXED and BOX_N, BOX_H, BOX_W, which need stride 1, are as in `conv_fprop`.
    Grid: (tiles of a class's pixels × tiles of C × classes, groups, SPLIT). `w_ptr`: panels [GROUPS, tiles of C,
    R·S·K, BN].
    """
    ACC: tl.constexpr = accumulator(dx_ptr.dtype.element_ty)
    C_TILES: tl.constexpr = (C + BN - 1) // BN
    TAP_H: tl.constexpr = tap_step(STRIDE_H, DIL_H)
    TAP_W: tl.constexpr = tap_step(STRIDE_W, DIL_W)
    # The classes of one tile run next to each other: they read the same dy, and write to the same rows of dx.
    pid = tl.program_id(0) // (STRIDE_H * STRIDE_W)
    group = tl.program_id(1).to(tl.int64)
    h0 = tl.program_id(0) // STRIDE_W % STRIDE_H
    w0 = tl.program_id(0) % STRIDE_W
    # Of the largest class.
    m_tiles = tiles_of(N, tl.cdiv(H, STRIDE_H), tl.cdiv(W, STRIDE_W), BM, BOX_N, BOX_H, BOX_W)
    tile_m, tile_n = in_groups(pid, m_tiles, C_TILES, GROUP_M)
    panel = group * C_TILES + tile_n

    if BOX_N:
        n, h, w, dx_pixel, in_range = box_of_tile(tile_m, N, H, W, BOX_N, BOX_H, BOX_W)
        acc = boxed_gemm(
            dy_ptr, n, h, w, group * K, BOX_N, BOX_H, BOX_W, GROUPS * K,
            w_ptr, panel * (R * S), S, 1,
            R, S, 1, 1, PAD_H, PAD_W, -DIL_H, -DIL_W,
            K, BN, BK, ACC, PRECISION, tl.program_id(2), SPLIT,
        )  # fmt: skip
    else:
        # The class holds the pixels (h0 + i·STRIDE_H, w0 + j·STRIDE_W).
        class_h = (H - h0 + STRIDE_H - 1) // STRIDE_H
        class_w = (W - w0 + STRIDE_W - 1) // STRIDE_W
        m = tile_m * BM + tl.arange(0, BM)
        in_range = m < N * class_h * class_w
        r, taps_h = taps_of(h0 + PAD_H, STRIDE_H, DIL_H, R)
        s, taps_w = taps_of(w0 + PAD_W, STRIDE_W, DIL_W, S)
        PLAIN: tl.constexpr = pointwise(R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W)
        if PLAIN:
            dy_pixel, dx_pixel, p, q = m, m, 0, 0
        else:
            n, i, j = unravel(m, class_h, class_w)
            p = i + (h0 + PAD_H - r * DIL_H) // STRIDE_H  # exact: the class's taps are congruent
            q = j + (w0 + PAD_W - s * DIL_W) // STRIDE_W
            dy_pixel = (n * P + p) * Q + q
            # At stride 1 the one class holds all pixels.
            dx_pixel = m if STRIDE_H * STRIDE_W == 1 else (n * H + h0 + i * STRIDE_H) * W + w0 + j * STRIDE_W
        if BOXED:
            panels, tap = w_ptr, (panel * (R * S)).to(tl.int32)
        else:
            panels, tap = w_ptr + panel * (R * S * K * BN), 0
        acc = implicit_gemm(
            dy_ptr + group * K + dy_pixel.to(tl.int64) * (GROUPS * K), p, q, in_range, P, Q, GROUPS * K,
            panels, tap + r * S + s, TAP_H * S, TAP_W,
            taps_h, taps_w, -(TAP_H * DIL_H // STRIDE_H), -(TAP_W * DIL_W // STRIDE_W),
            K, BM, BN, BK, ACC, PRECISION, tl.program_id(2), SPLIT, BOXED, PLAIN, False, R * S * K if TURNED else 0,
        )  # fmt: skip

    c = tile_n * BN + tl.arange(0, BN)
    if SPLIT > 1:
        p_partial = dx_ptr + tl.program_id(2).to(tl.int64) * N * H * W * (GROUPS * C) + group * C
        store_rows(p_partial, dx_pixel.to(tl.int64) * (GROUPS * C), in_range, acc, c, C, BN)
    else:
        finish(
            acc, bias_ptr, dx_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, None, None,
            dx_pixel, in_range, 0, 0, group * C, c, C, GROUPS * C, GROUPS * C, EPS, ACTIVATION, BN,
        )  # fmt: skip
