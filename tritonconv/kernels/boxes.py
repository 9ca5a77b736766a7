"""The implicit GEMM with operands that come as boxes, through tensor descriptors.

On GPUs with a tensor memory accelerator one instruction copies a box into shared memory, whatever lies outside of the
tensor as zero: neither addresses nor masks of single pixels are left to compute. Stride must be 1: a tap's pixels are
then a box of the image for each box of the output.
"""

import triton
import triton.language as tl

from .common import unravel


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
    a, n0, h0, w0, c0, TN: tl.constexpr, TP: tl.constexpr, TQ: tl.constexpr,
    b, b_tap, B_STEP_H: tl.constexpr, B_STEP_W: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, STEP_H: tl.constexpr, STEP_W: tl.constexpr,
    C: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    split, SPLIT: tl.constexpr,
):  # fmt: skip
    """[TN·TP·TQ, BN] sums over taps (r, s) and channels c of the pixels of the box, moved by (r·STEP_H, s·STEP_W).

    `a` describes [N, H, W, channels], in boxes of [TN, TP, TQ, BK], of which the one of tap (0, 0) begins at (n0, h0,
    w0) and channel c0. `b` describes all panels as rows of BN elements, in boxes of BK rows; the one of tap (r, s) is
    b_tap + r·B_STEP_H + s·B_STEP_W taps of C rows from the first. C is a multiple of BK.
    """
    C_BLOCKS: tl.constexpr = C // BK
    TURNS: tl.constexpr = R * S * C_BLOCKS
    SHARE: tl.constexpr = (TURNS + SPLIT - 1) // SPLIT
    acc = tl.zeros((TN * TP * TQ, BN), ACC)
    first = split * SHARE if SPLIT > 1 else 0
    b_row = (b_tap * C).to(tl.int32)  # as coordinates are
    c0 = c0.to(tl.int32)
    for i in range(first, tl.minimum(first + SHARE, TURNS) if SPLIT > 1 else TURNS):
        tap = i // C_BLOCKS
        c = (i % C_BLOCKS) * BK
        r = tap // S
        s = tap % S
        pixels = a.load([n0, h0 + r * STEP_H, w0 + s * STEP_W, c0 + c])  # [TN, TP, TQ, BK]
        panel = b.load([b_row + (r * B_STEP_H + s * B_STEP_W) * C + c, 0])  # [BK, BN]
        acc = tl.dot(pixels.reshape(TN * TP * TQ, BK), panel, acc, input_precision=PRECISION, out_dtype=ACC)
    return acc
