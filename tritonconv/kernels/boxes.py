"""The implicit GEMM with operands that come as boxes, through tensor descriptors.

On GPUs with a tensor memory accelerator one instruction copies a box into shared memory, whatever lies outside of the
tensor as zero: neither addresses nor masks of single pixels are left to compute. A tap's pixels are a box of the image
for each box of the output; with a stride, if it divides the image, they are one of [N, H / stride, stride, W / stride,
stride · channels], which is how the same memory is then described.
"""

import triton
import triton.language as tl

from .common import product, unravel


@triton.jit
def tiles_of(N, P, Q, BM: tl.constexpr, TN: tl.constexpr, TP: tl.constexpr, TQ: tl.constexpr):
    """The tiles of [N, P, Q] pixels: boxes [TN, TP, TQ], or BM pixels one behind the other where TN is 0."""
    if TN:
        return tl.cdiv(N, TN) * tl.cdiv(P, TP) * tl.cdiv(Q, TQ)
    else:
        return tl.cdiv(N * P * Q, BM)


@triton.jit
def box_of_tile(tile, N, P, Q, TN: tl.constexpr, TP: tl.constexpr, TQ: tl.constexpr):
    """Where the box of pixels [TN, TP, TQ] of that number begins, (n, p, q); and its pixels' flat indices [TN·TP·TQ] in
    [N, P, Q], with which of them there are."""
    n0, p0, q0 = unravel(tile, tl.cdiv(P, TP), tl.cdiv(Q, TQ))
    n0, p0, q0 = n0 * TN, p0 * TP, q0 * TQ
    n, p, q = unravel(tl.arange(0, TN * TP * TQ), TP, TQ)
    n, p, q = n0 + n, p0 + p, q0 + q
    return n0, p0, q0, (n * P + p) * Q + q, (n < N) & (p < P) & (q < Q)


@triton.jit
def boxed_gemm(
    a, n0, p0, q0, c0, TN: tl.constexpr, TP: tl.constexpr, TQ: tl.constexpr, PIXEL: tl.constexpr,
    b, b_tap, B_STEP_H: tl.constexpr, B_STEP_W: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    FIRST_H: tl.constexpr, FIRST_W: tl.constexpr, STEP_H: tl.constexpr, STEP_W: tl.constexpr,
    C: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    split, SPLIT: tl.constexpr,
):  # fmt: skip
    """[TN·TP·TQ, BN] sums over taps (r, s) and channels c of the pixels p·STRIDE_H + FIRST_H + r·STEP_H, and so for w,
    of the box's (p, q), which begin at (n0, p0, q0).

    `a` describes [N, H, W, PIXEL], in boxes of [TN, TP, TQ, BK], c0 being the first channel; with a stride as above.
    `b` describes all panels as rows of BN elements, in boxes of BK rows; the one of tap (r, s) is
    b_tap + r·B_STEP_H + s·B_STEP_W taps of C rows from the first. C is a multiple of BK.
    """
    C_BLOCKS: tl.constexpr = C // BK
    TURNS: tl.constexpr = R * S * C_BLOCKS
    SHARE: tl.constexpr = (TURNS + SPLIT - 1) // SPLIT
    BM: tl.constexpr = TN * TP * TQ
    # Of matrix instructions on sm_90 only the second operand comes from shared memory in whatever shape it has there;
    # the first would pass through registers. With fewer filters a turn has too few instructions that way.
    TURNED: tl.constexpr = BN >= 128
    acc = tl.zeros((BN, BM) if TURNED else (BM, BN), ACC)
    first = split * SHARE if SPLIT > 1 else 0
    b_row = (b_tap * C).to(tl.int32)  # as coordinates are
    c0 = c0.to(tl.int32)
    for i in range(first, tl.minimum(first + SHARE, TURNS) if SPLIT > 1 else TURNS):
        tap = i // C_BLOCKS
        c = (i % C_BLOCKS) * BK
        r = tap // S
        s = tap % S
        h = r * STEP_H + FIRST_H
        w = s * STEP_W + FIRST_W
        if STRIDE_H * STRIDE_W == 1:
            pixels = a.load([n0, p0 + h, q0 + w, c0 + c])  # [TN, TP, TQ, BK]
        else:
            # Lifted, so that what is divided is not negative.
            LIFT_H: tl.constexpr = (STRIDE_H - 1 - FIRST_H) // STRIDE_H
            LIFT_W: tl.constexpr = (STRIDE_W - 1 - FIRST_W) // STRIDE_W
            h += LIFT_H * STRIDE_H
            w += LIFT_W * STRIDE_W
            at_h = p0 - LIFT_H + h // STRIDE_H
            at_w = q0 - LIFT_W + w // STRIDE_W
            pixels = a.load([n0, at_h, h % STRIDE_H, at_w, w % STRIDE_W * PIXEL + c0 + c])  # [TN, TP, 1, TQ, BK]
        pixels = pixels.reshape(BM, BK)
        panel = b.load([b_row + (r * B_STEP_H + s * B_STEP_W) * C + c, 0])  # [BK, BN]
        acc = product(panel.T, pixels.T, acc, PRECISION) if TURNED else product(pixels, panel, acc, PRECISION)
    return acc.T if TURNED else acc
