"""Activations, and their derivatives in terms of the result or the argument.

ACTIVATION is None, "relu" or "leaky_relu(0.2)". Of "tanh>relu" the first is that of the sums, before norm and residual,
and the second comes last; "tanh>" has the first alone.

PReLU's slopes are a tensor: one for each channel of "prelu", one for all of "prelu(1)".
"""

import triton
import triton.language as tl

from .common import quotient


@triton.constexpr_function
def parse(text):
    """("leaky_relu", 0.2) for "leaky_relu(0.2)", ("relu", None) for "relu"."""
    name, _, number = text.partition("(")
    return name, float(number.removesuffix(")")) if number else None


@triton.constexpr_function
def inner_of(activation):
    return None if activation is None else activation.rpartition(">")[0] or None


@triton.constexpr_function
def name_of(activation):
    return None if activation is None else parse(activation.rpartition(">")[2])[0] or None


@triton.constexpr_function
def number_of(activation):
    return None if activation is None else parse(activation.rpartition(">")[2])[1]


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def clamp(x, low, high):
    # Comparisons with NaN are false, so that NaN stays, as in torch.
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit
def tanh(x):
    """Within three units in the last place, of float32 and of float64."""
    if x.dtype == tl.float32:
        # m / (m + 2) with m = e²ᵃ − 1, a = |x|. For 2a = n·ln 2 + r that is 2ⁿ·(eʳ − 1) + (2ⁿ − 1), in which nothing
        # small is lost. Added to 1.5·2²³, a number becomes an integer, in the low bits.
        b = clamp(tl.abs(x) * 2, 0.0, 20.0)
        t = b * 1.44269504088896341 + 12582912.0
        n = t - 12582912.0
        power = ((t.to(tl.int32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
        r = n * 2.12194440e-4 + (n * -0.693359375 + b)
        p = (((1.38145604e-3 * r + 8.36873520e-3) * r + 4.16683890e-2) * r + 1.66665211e-1) * r + 4.99999940e-1
        m = (p * r * r + r) * power + (power - 1)
        y = quotient(m, m + 2)
        sign = x.to(tl.int32, bitcast=True) & -0x80000000
        return (y.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)
    # Near zero 1 − 2 / (e²ˣ + 1) would lose what is small in the one: there x + x³·P(x²)/Q(x²) (Cephes, S. Moshier).
    s = x * x
    p = ((-9.64399179425052238628e-1 * s - 9.92877231001918586564e1) * s - 1.61468768441708447952e3) * s
    q = ((s + 1.12811678491632931402e2) * s + 2.23548839060100448583e3) * s + 4.84406305325125486048e3
    big = 1 - 2 / (tl.exp(2 * tl.abs(x)) + 1)
    return tl.where(tl.abs(x) < 0.625, x + x * p / q, tl.where(x < 0, -big, big))


@triton.jit
def slopes(slope_ptr, c, m_c, ACTIVATION: tl.constexpr):
    """PReLU's, of channels c."""
    ONE: tl.constexpr = number_of(ACTIVATION) is not None
    return tl.load(slope_ptr + c * 0 if ONE else slope_ptr + c, mask=m_c, other=0.0)  # as c


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, slope_ptr=None, c=0, m_c=True):
    """x [BM, BN] behind the activation. Of PReLU alone: `slope_ptr`, and the channels c where m_c, both [1, BN] or
    [BM, 1]."""
    NAME: tl.constexpr = name_of(ACTIVATION)
    NUMBER: tl.constexpr = number_of(ACTIVATION)
    if NAME == "relu":
        x = tl.where(x < 0, 0.0, x)  # false for NaN, so that NaN stays, as in torch
    elif NAME == "relu6":
        x = clamp(x, 0.0, 6.0)
    elif NAME == "leaky_relu":
        x = tl.where(x > 0, x, x * NUMBER)
    elif NAME == "elu":
        # exp(x) − 1 near zero: e²ʰ − 1 = 2·tanh h / (1 − tanh h)
        t = tanh(tl.where(x > 0, 0.0, x) * 0.5)
        x = tl.where(x > 0, x, NUMBER * quotient(2 * t, 1 - t))
    elif NAME == "sigmoid":
        x = sigmoid(x)
    elif NAME == "tanh":
        x = tanh(x)
    elif NAME == "hardsigmoid":
        x = clamp(x + 3, 0.0, 6.0) / 6
    elif NAME == "silu":
        x = x * sigmoid(x)
    elif NAME == "hardswish":
        x = x * clamp(x + 3, 0.0, 6.0) / 6
    elif NAME == "gelu":
        x = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        x = 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif NAME == "prelu":
        x = tl.where(x > 0, x, x * slopes(slope_ptr, c, m_c, ACTIVATION).to(x.dtype))
    else:
        tl.static_assert(NAME is None, "no such activation")
    return x


@triton.jit
def derivative(dy, y, ACTIVATION: tl.constexpr):
    """What `activate` makes of dy on the way back, y being its result."""
    NAME: tl.constexpr = name_of(ACTIVATION)
    NUMBER: tl.constexpr = number_of(ACTIVATION)
    if NAME == "relu":
        dy = tl.where(y <= 0, 0.0, dy)  # false for NaN, so that its gradient passes, as in torch
    elif NAME == "relu6":
        dy = tl.where((y <= 0) | (y >= 6), 0.0, dy)
    elif NAME == "leaky_relu":
        dy = tl.where(y > 0, dy, dy * NUMBER)
    elif NAME == "elu":
        dy = tl.where(y > 0, dy, dy * (y + NUMBER))
    elif NAME == "sigmoid":
        dy = dy * y * (1 - y)
    elif NAME == "tanh":
        dy = dy * (1 - y * y)
    elif NAME == "hardsigmoid":
        dy = tl.where((y > 0) & (y < 1), dy / 6, 0.0)
    else:
        tl.static_assert(NAME is None, "the result of this activation does not tell its derivative")
    return dy


@triton.jit
def derivative_at(dy, x, ACTIVATION: tl.constexpr):
    """What `activate` makes of dy on the way back, x being its argument."""
    NAME: tl.constexpr = name_of(ACTIVATION)
    if NAME == "silu":
        s = sigmoid(x)
        dy = dy * (s * (1 + x * (1 - s)))
    elif NAME == "hardswish":
        dy = tl.where(x <= -3, 0.0, tl.where(x >= 3, dy, dy * (x / 3 + 0.5)))
    elif NAME == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        dy = dy * (0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * density)
    elif NAME == "gelu_tanh":
        t = tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))
        inner = 0.7978845608028654 * (1 + 0.134145 * x * x)
        dy = dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner)
    else:
        dy = derivative(dy, activate(x, ACTIVATION), ACTIVATION)
    return dy
