"""Reductions that are split into parts, computed by programs of their own: the sum of the parts."""

import triton
import triton.language as tl

from .epilogue import finish


@triton.jit
def sum_splits(partial_ptr, out_ptr, SPLIT, size, TOGETHER: tl.constexpr, BLOCK: tl.constexpr):
    """out[i] = Σ partial[split, i], TOGETHER splits at a time, always in the same order. Grid: (tiles of `size`)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    split = tl.arange(0, TOGETHER)
    mask = (i < size)[None, :]
    p_partial = partial_ptr + split.to(tl.int64)[:, None] * size + i[None, :]
    acc = tl.load(p_partial, mask=mask & (split < SPLIT)[:, None], other=0.0)  # [TOGETHER, BLOCK]
    for first in range(TOGETHER, SPLIT, TOGETHER):
        p_partial += size.to(tl.int64) * TOGETHER
        there = mask if TOGETHER == 1 else mask & (split < SPLIT - first)[:, None]
        acc += tl.load(p_partial, mask=there, other=0.0)  # [TOGETHER, BLOCK]
    tl.store(out_ptr + i, tl.sum(acc, 0).to(out_ptr.dtype.element_ty), mask=i < size)


@triton.jit
def conv_finish(
    partial_ptr, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr, moments_ptr,
    M, SPLIT,
    K: tl.constexpr, EPS: tl.constexpr, ACTIVATION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """`finish` of acc = Σ partial[split], summed in the order of the splits; `partial_ptr` [SPLIT, M, K].

    Grid: (tiles of M, tiles of K).
    """
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    k = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (m < M)[:, None] & (k < K)[None, :]
    p_partial = partial_ptr + m.to(tl.int64)[:, None] * K + k[None, :]
    acc = tl.load(p_partial, mask=mask, other=0.0)  # [BM, BN]
    for _ in range(1, SPLIT):
        p_partial += M.to(tl.int64) * K
        acc += tl.load(p_partial, mask=mask, other=0.0)  # [BM, BN]
    finish(
        acc, bias_ptr, y_ptr, mean_ptr, var_ptr, gamma_ptr, beta_ptr, slope_ptr, residual_ptr, moments_ptr,
        m, m < M, tl.program_id(0), tl.num_programs(0), 0, k, K, K, K, EPS, ACTIVATION, BN,
    )  # fmt: skip
