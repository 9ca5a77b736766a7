"""Windows of pooling over NHWC activations, and the tiles of pixels that kernels take.

A window is either regular (R × S taps with a stride, a padding and a dilation) or adaptive: window p of P over H pixels
is [⌊p·H/P⌋, ⌈(p + 1)·H/P⌉), and R × S the longest there are. Backward, each pixel gathers from the windows that cover
it, always in the same order. Of regular windows that are small, a program takes *cells* of STRIDE_H × STRIDE_W pixels:
which windows cover which of its pixels is the same for all cells, and each window is read once for all of them.
"""

import math

import triton
import triton.language as tl

from .common import tap_step, taps_of


@triton.constexpr_function
def window_step(stride, dilation):
    """Windows that reach the same pixel lie this far apart."""
    return dilation // math.gcd(stride, dilation)


@triton.constexpr_function
def most_windows(R, stride, dilation, adaptive):
    """How many windows cover a pixel at most, along one axis; R of an adaptive pooling already says so, backward."""
    return R if adaptive else -(-R // tap_step(stride, dilation))


@triton.constexpr_function
def few(count):
    """Whether a loop of so many turns is written out: what it computes then stays in registers on the way."""
    return count <= 16


@triton.jit
def tile_of(N, P, Q, BM: tl.constexpr, BK: tl.constexpr):
    """The pixels (n, p, q) [BM·BK] of this program's BM rows × BK columns of N images of P × Q, and which exist.

    With rows, unlike with any pixels, no column has to be found by division.
    """
    i = tl.arange(0, BM * BK)
    row = tl.program_id(0) * BM + i // BK
    q = tl.program_id(1) * BK + i % BK
    return row // P, row % P, q, (row < N * P) & (q < Q)


@triton.constexpr_function
def reach(R, stride, dilation):
    """How many windows an axis of a cell meets: that of its own place and those before it."""
    return (R - 1) * dilation // stride + 1


@triton.constexpr_function
def covered_by(pixel, tap, S, stride_h, stride_w, dil_h, dil_w):
    """Which of the windows that a cell meets has its `tap` at `pixel` of the cell, in the order of rows upwards and of
    columns leftwards; -1 if none has."""
    above = tap // S * dil_h - pixel // stride_w
    left = tap % S * dil_w - pixel % stride_w
    if above % stride_h or left % stride_w:
        return -1
    return above // stride_h * ((S - 1) * dil_w // stride_w + 1) + left // stride_w


@triton.jit
def cells_of(
    N, H, W, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The cells (n, i, j) [BM·BK] of this program, and which exist; the first ones begin with the padding."""
    return tile_of(N, tl.cdiv(H + PAD_H, STRIDE_H), tl.cdiv(W + PAD_W, STRIDE_W), BM, BK)


@triton.jit
def span(p, H, P, STRIDE: tl.constexpr, PAD: tl.constexpr, ADAPTIVE: tl.constexpr):
    """Where window p of an axis begins, and the end of the pixels that it may cover."""
    if ADAPTIVE:
        first = p * H // P
        end = ((p + 1) * H + P - 1) // P
    else:
        first = p * STRIDE - PAD
        end = H
    return first, end


@triton.jit
def covering(
    h, H, P, R: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, DIL: tl.constexpr, ADAPTIVE: tl.constexpr
):
    """The windows of an axis that cover pixel h, as (last, count): last − j·window_step for 0 <= j < count.

    Of the regular ones, those in [0, P) exist.
    """
    if ADAPTIVE:
        # p·H/P < h + 1 and (p + 1)·H/P > h: the same as a window, with the sizes' roles exchanged.
        first, end = span(h, P, H, STRIDE, PAD, ADAPTIVE)
        last = end - 1
        count = end - first
    else:
        r, count = taps_of(h + PAD, STRIDE, DIL, R)
        last = (h + PAD - r * DIL) // STRIDE  # exact where count > 0
    return last, count


@triton.jit
def pixels_of(
    p, H, P, R: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, ADAPTIVE: tl.constexpr, PADDED: tl.constexpr
):
    """How many pixels window p of an axis has; in the padding, too, if PADDED, but never beyond it."""
    first, end = span(p, H, P, STRIDE, PAD, ADAPTIVE)
    if PADDED:
        size = tl.minimum(R, H + PAD - first)
    elif ADAPTIVE:
        size = end - first
    else:
        size = tl.minimum(first + R, end) - tl.maximum(first, 0)
    return size


@triton.jit
def first_inside(first, DIL: tl.constexpr):
    """The first tap at or behind 0 of a window that begins at `first`."""
    return tl.where(first < 0, first + (DIL - 1 - first) // DIL * DIL, first)
