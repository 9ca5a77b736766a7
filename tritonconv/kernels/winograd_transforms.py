"""The transforms of Winograd's minimal filtering along one axis, and their transposes, of which gradients are made.

OUT outputs of a filter of TAPS taps are the product of two polynomials, computed at OUT + TAPS − 1 points. For F(4, 3),
F(2, 5) and F(4, 2) they are ±1/√2, ±√2, ∞ and, but for the last, 0: their transforms take few fused multiply-adds, and
lose less to rounding than at 0, ±1, ±2, ∞ (Lavin and Gray 2016; Barabasz et al. 2020). For F(2, 3) they are 0, ±1, ∞,
for F(2, 2) 0, −1, ∞. In two dimensions all is done along each axis.
"""

import triton
import triton.language as tl

A = tl.constexpr(0.5**0.5)  # points are ±A, ±1/A
B = tl.constexpr(2**0.5)


@triton.jit
def transform_filter(w, OUT: tl.constexpr):
    """The taps along one axis → their polynomial's values, each over the product of the point's distances to the
    others."""
    if len(w) == 5:
        s1 = (-2 / 3) * w[0] - (1 / 3) * w[2] - (1 / 6) * w[4]
        d1 = (-2 / 3 * A) * w[1] - (1 / 3 * A) * w[3]
        s2 = (1 / 6) * w[0] + (1 / 3) * w[2] + (2 / 3) * w[4]
        d2 = (1 / 6 * B) * w[1] + (1 / 3 * B) * w[3]
        return w[0], s1 + d1, s1 - d1, s2 + d2, s2 - d2, w[4]
    elif len(w) == 3 and OUT == 2:
        s = 0.5 * (w[0] + w[2])
        return -w[0], s + 0.5 * w[1], s - 0.5 * w[1], w[2]
    elif len(w) == 3:
        s1 = (-2 / 3) * w[0] - (1 / 3) * w[2]
        d1 = (-2 / 3 * A) * w[1]
        s2 = (1 / 6) * w[0] + (1 / 3) * w[2]
        d2 = (1 / 6 * B) * w[1]
        return w[0], s1 + d1, s1 - d1, s2 + d2, s2 - d2, w[2]
    elif OUT == 2:
        return w[0], w[1] - w[0], w[1]
    else:
        d1 = (1 / 3 * B) * w[0]
        d2 = (1 / 3 * A) * w[0]
        s = (1 / 3) * w[1]
        return -s - d1, d1 - s, s + d2, s - d2, w[1]


@triton.jit
def at_pairs(x0, x1, x2, x3, x4):
    """Their polynomial's remainders at ±A, ±B and ∞."""
    t1 = x3 - 2 * x1
    u1 = x2 - 2 * x0
    t2 = x3 - 0.5 * x1
    u2 = x2 - 0.5 * x0
    return t1 + A * u1, t1 - A * u1, t2 + B * u2, t2 - B * u2, x4 - 2.5 * x2 + x0


@triton.jit
def transform_input(x):
    """The inputs along one axis → their polynomial's remainders, each times one factor of the product."""
    if len(x) == 3:
        return x[0] + x[1], x[1], x[1] + x[2]
    elif len(x) == 4:
        return x[2] - x[0], x[2] + x[1], x[2] - x[1], x[3] - x[1]
    elif len(x) == 5:
        return at_pairs(x[0], x[1], x[2], x[3], x[4])
    else:
        return (x[4] - 2.5 * x[2] + x[0],) + at_pairs(x[1], x[2], x[3], x[4], x[5])


@triton.jit
def transform_output(m, OUT: tl.constexpr):
    """The products along one axis → OUT outputs."""
    if len(m) == 3:
        return m[0] + m[1], m[2] - m[1]
    elif len(m) == 4:
        return m[0] + m[1] + m[2], m[1] - m[2] + m[3]
    else:
        i: tl.constexpr = len(m) - 5  # the first of the pairs
        s1 = m[i] + m[i + 1]
        d1 = m[i] - m[i + 1]
        s2 = m[i + 2] + m[i + 3]
        d2 = m[i + 2] - m[i + 3]
        first = m[0] + s1 + s2 if i else s1 + s2
        # Constants come last: one times a tensor the interpreter takes for a constant.
        if OUT == 2:
            return first, d1 * A + d2 * B + m[5]
        else:
            return first, d1 * A + d2 * B, 0.5 * s1 + 2 * s2, d1 * (0.5 * A) + d2 * (2 * B) + m[i + 4]


@triton.jit
def untransform_output(y, TAPS: tl.constexpr):
    """The transpose of `transform_output`: outputs' gradients along one axis → those of the products."""
    if len(y) == 2 and TAPS == 2:
        return y[0], y[0] - y[1], y[1]
    elif len(y) == 2:
        return y[0], y[0] + y[1], y[0] - y[1], y[1]
    else:
        s1 = y[0] + 0.5 * y[2]
        d1 = A * y[1] + (0.5 * A) * y[3]
        s2 = y[0] + 2 * y[2]
        d2 = B * y[1] + (2 * B) * y[3]
        pairs = s1 + d1, s1 - d1, s2 + d2, s2 - d2, y[3]
        return pairs if TAPS == 2 else (y[0],) + pairs


@triton.jit
def untransform_filter(u):
    """The transpose of `transform_filter`: values' gradients along one axis → those of two or three taps."""
    if len(u) == 3:
        return u[0] - u[1], u[1] + u[2]
    elif len(u) == 4:
        s = 0.5 * (u[1] + u[2])
        return s - u[0], 0.5 * (u[1] - u[2]), s + u[3]
    elif len(u) == 5:
        w0 = (1 / 3 * B) * (u[1] - u[0]) + (1 / 3 * A) * (u[2] - u[3])
        return w0, (1 / 3) * (u[2] + u[3] - (u[0] + u[1])) + u[4]
    else:
        s1 = u[1] + u[2]
        s2 = u[3] + u[4]
        w1 = (-2 / 3 * A) * (u[1] - u[2]) + (1 / 6 * B) * (u[3] - u[4])
        return u[0] - (2 / 3) * s1 + (1 / 6) * s2, w1, u[5] + (1 / 3) * (s2 - s1)


@triton.jit
def column_of(rows, j: tl.constexpr):
    column = ()
    for i in tl.static_range(len(rows)):
        column = column + (rows[i][j],)
    return column
