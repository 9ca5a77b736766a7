"""A fully connected layer of one vector: a product that takes as long as reading the weight does."""

import triton
import triton.language as tl

from .activations import activate


@triton.jit
def linear(
    x_ptr, w_ptr, bias_ptr, y_ptr, C: tl.constexpr, K: tl.constexpr, ACTIVATION: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y[k] = activation(Σ w[k, c] x[c] + bias[k]); `w_ptr`: [K, C]. Grid: (tiles of K).

    A program reads BN rows side by side: of one at a time a CPU does not fetch far enough ahead.
    """
    ACC: tl.constexpr = tl.float64 if y_ptr.dtype.element_ty == tl.float64 else tl.float32
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
