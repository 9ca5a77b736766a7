"""What happens to a convolution's sums before they are stored: bias, batch norm, residual, activation, statistics."""

import triton
import triton.language as tl

from .activations import activate, inner_of
from .moments import store_moments
from .norm import scale_and_shift


@triton.jit
def store_rows(out_ptr, row, in_range, acc, n, N: tl.constexpr, BN: tl.constexpr):
    """Store acc [BM, BN] at rows `out_ptr + row` [BM], columns n [BN] of N."""
    mask = in_range[:, None]
    if N % BN != 0:
        mask = mask & (n < N)[None, :]
    tl.store(out_ptr + row[:, None] + n[None, :], acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def normed(
    acc, bias_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, first, k, K: tl.constexpr, EPS: tl.constexpr,
    ACTIVATION: tl.constexpr, AXIS: tl.constexpr = 1,
):  # fmt: skip
    """norm(inner(acc + bias[first + k])) of acc [BM, BN], whose channels first + k, k < K, lie along AXIS.

    norm(z) = (z − mean) / √(var + EPS) · gamma + beta, per channel; left out where `mean_ptr` is None."""
    ACC: tl.constexpr = acc.dtype
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + first + k, mask=k < K, other=0.0).to(ACC)  # [BM] or [BN]
        acc += tl.expand_dims(bias, 1 - AXIS)
    acc = activate(acc, inner_of(ACTIVATION))
    if mean_ptr is not None:
        scale, shift = scale_and_shift(mean_ptr, var_ptr, gamma_ptr, beta_ptr, first, k, K, EPS, ACC)
        acc = acc * tl.expand_dims(scale, 1 - AXIS) + tl.expand_dims(shift, 1 - AXIS)
    return acc


@triton.jit
def finished(
    acc, bias_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr, first, k, K: tl.constexpr,
    at, mask, EPS: tl.constexpr, ACTIVATION: tl.constexpr, AXIS: tl.constexpr = 1,
):  # fmt: skip
    """activation(norm(inner(acc + bias)) + residual[at]) of acc [BM, BN], with the norm and channels of `normed`."""
    acc = normed(acc, bias_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, first, k, K, EPS, ACTIVATION, AXIS)
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + at, mask=mask, other=0.0).to(acc.dtype)  # [BM, BN]
    channels = tl.expand_dims(first + k, 1 - AXIS)
    return activate(acc, ACTIVATION, slope_ptr, channels, tl.expand_dims(k < K, 1 - AXIS))


@triton.jit
def finish(
    acc, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr, moments_ptr,
    m, in_range, tile, tiles, first, k, K: tl.constexpr, CHANNELS: tl.constexpr, PIXEL_Y: tl.constexpr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y[m, first + k] = activation(norm(inner(acc + bias[first + k])) + residual[m, first + k]) of acc [BM, BN], k < K.

    There are CHANNELS in all, and rows of so many in the residual; those of y are PIXEL_Y elements apart. m [BM] are
    the rows of one tile, as far as they are `in_range`. The norm is that of `normed`.
    `moments_ptr`, where it is not None, gets the partial statistics [3, tiles, CHANNELS] of what is stored.
    """
    ACC: tl.constexpr = acc.dtype
    if residual_ptr is not None:
        residual_ptr += first
    at = m.to(tl.int64)[:, None] * CHANNELS + k[None, :]
    mask = in_range[:, None] & (k < K)[None, :]
    acc = finished(
        acc, bias_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr,
        first, k, K, at, mask, EPS, ACTIVATION,
    )  # fmt: skip
    store_rows(y_ptr + first, m.to(tl.int64) * PIXEL_Y, in_range, acc, k, K, BN)
    if moments_ptr is not None:
        stored = acc.to(y_ptr.dtype.element_ty).to(ACC)
        count = tl.sum(in_range.to(tl.int32), 0)
        store_moments(moments_ptr, tile, tiles, stored, in_range, count, first + k, k < K, CHANNELS)
