"""Fully connected layers of one vector or a few: products that take as long as reading the weight does."""

import triton
import triton.language as tl

from .activations import activate
from .common import accumulator, product
from .epilogue import finished


@triton.jit
def linear(
    x_ptr, w_ptr, bias_ptr, y_ptr, C: tl.constexpr, K: tl.constexpr, ACTIVATION: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y[k] = activation(Σ w[k, c] x[c] + bias[k]); `w_ptr`: [K, C]. Grid: (tiles of K).

    A program reads BN rows side by side: of one at a time a CPU does not fetch far enough ahead.
    """
    ACC: tl.constexpr = accumulator(y_ptr.dtype.element_ty)
    k = tl.program_id(0) * BN + tl.arange(0, BN)
    o_c = tl.arange(0, BK)
    p_w = w_ptr + k.to(tl.int64)[:, None] * C + o_c[None, :]
    y = tl.zeros((BN,), ACC)
    for c in range(0, C, BK):
        m_c = o_c < C - c
        w = tl.load(p_w + c, mask=(k < K)[:, None] & m_c[None, :], other=0.0).to(ACC)  # [BN, BK]
        x = tl.load(x_ptr + c + o_c, mask=m_c, other=0.0).to(ACC)  # [BK]
        y += tl.sum(w * x[None, :], 1)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + k, mask=k < K, other=0.0).to(ACC)  # [BN]
    tl.store(y_ptr + k, activate(y, ACTIVATION).to(y_ptr.dtype.element_ty), mask=k < K)


@triton.jit
def linear_fprop(
    x_ptr, w_ptr, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr, M,
    C: tl.constexpr, K: tl.constexpr, EPS: tl.constexpr, ACTIVATION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y[m, k] = activation(norm(inner(Σ w[k, c] x[c, m] + bias[k])) + residual[m, k]) of M ≤ BM vectors.

    `x_ptr`: [C, BM]; `w_ptr`: [K, C]. The product is that of the weight and the vectors: so the weight is the operand
    that is read by elements, as it lies. The rest is `finished`'s. Grid: (tiles of K)."""
    ACC: tl.constexpr = accumulator(y_ptr.dtype.element_ty)
    k = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    o_c = tl.arange(0, BK)
    p_w = w_ptr + k.to(tl.int64)[:, None] * C + o_c[None, :]
    p_x = x_ptr + o_c[:, None] * BM + m[None, :]
    acc = tl.zeros((BN, BM), ACC)
    for c in range(0, C, BK):
        m_c = o_c < C - c
        w = tl.load(p_w + c, mask=(k < K)[:, None] & m_c[None, :], other=0.0)  # [BN, BK]
        x = tl.load(p_x + c * BM, mask=m_c[:, None], other=0.0)  # [BK, BM]
        acc = product(w, x, acc, "ieee")
    at = m.to(tl.int64)[None, :] * K + k[:, None]
    mask = (k < K)[:, None] & (m < M)[None, :]
    acc = finished(
        acc, bias_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr,
        0, k, K, at, mask, EPS, ACTIVATION, 0,
    )  # fmt: skip
    tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def linear_dgrad(
    dy_ptr, w_ptr, dx_ptr, M, rows, C: tl.constexpr, K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dx[split][m, c] = Σ dy[m, k] w[k, c] over the `rows` k of a split, the last what remains, of M ≤ BM vectors.

    `w_ptr`: [K, C], of which all passes by once. Grid: (tiles of C, splits)."""
    ACC: tl.constexpr = accumulator(dx_ptr.dtype.element_ty)
    first = tl.program_id(1) * rows
    stop = tl.minimum(first + rows, K)
    m = tl.arange(0, BM)
    c = tl.program_id(0) * BN + tl.arange(0, BN)
    o_k = tl.arange(0, BK)
    p_dy = dy_ptr + m.to(tl.int64)[:, None] * K + o_k[None, :]
    p_w = w_ptr + (first + o_k).to(tl.int64)[:, None] * C + c[None, :]
    acc = tl.zeros((BM, BN), ACC)
    for k in range(first, stop, BK):
        m_k = o_k < stop - k
        dy = tl.load(p_dy + k, mask=(m < M)[:, None] & m_k[None, :], other=0.0)  # [BM, BK]
        w = tl.load(p_w, mask=m_k[:, None] & (c < C)[None, :], other=0.0, eviction_policy="evict_first")  # [BK, BN]
        acc = product(dy, w, acc, "ieee")
        p_w += BK * C
    p_dx = dx_ptr + (tl.program_id(1) * M + m).to(tl.int64)[:, None] * C + c[None, :]
    tl.store(p_dx, acc.to(dx_ptr.dtype.element_ty), mask=(m < M)[:, None] & (c < C)[None, :])


@triton.jit
def linear_wgrad(
    dy_ptr, x_ptr, dw_ptr, M, C: tl.constexpr, K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """dw[k, c] = Σ dy[m, k] x[m, c] over M vectors, BK at a time, written past the caches. Grid: (tiles of K, tiles of
    C)."""
    ACC: tl.constexpr = accumulator(dw_ptr.dtype.element_ty)
    k = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    o_m = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), ACC)
    for first in range(0, M, BK):
        m = first + o_m
        p_dy = dy_ptr + m.to(tl.int64)[None, :] * K + k[:, None]
        p_x = x_ptr + m.to(tl.int64)[:, None] * C + c[None, :]
        dy = tl.load(p_dy, mask=(k < K)[:, None] & (m < M)[None, :], other=0.0)  # [BM, BK]
        x = tl.load(p_x, mask=(m < M)[:, None] & (c < C)[None, :], other=0.0, eviction_policy="evict_last")  # [BK, BN]
        acc = product(dy, x, acc, "ieee")
    p_dw = dw_ptr + k.to(tl.int64)[:, None] * C + c[None, :]
    mask = (k < K)[:, None] & (c < C)[None, :]
    tl.store(p_dw, acc.to(dw_ptr.dtype.element_ty), mask=mask, cache_modifier=".cs")
