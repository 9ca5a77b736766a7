"""Pieces that kernels of several files share."""

import math

import triton
import triton.language as tl


@triton.constexpr_function
def accumulator(dtype):
    """What sums over elements of this dtype are taken in."""
    return tl.float64 if dtype == tl.float64 else tl.float32


@triton.jit
def unravel(index, D1, D2):
    """The coordinates (i0, i1, i2) of a flat index, 32 bits wide, into an array of shape [·, D1, D2]."""
    # None is negative, and to divide takes half as many instructions where that is known.
    index, D1, D2 = tl.cast(index, tl.uint32), tl.cast(D1, tl.uint32), tl.cast(D2, tl.uint32)
    rest = index // D2
    i0 = rest // D1
    return i0.to(tl.int32), (rest - i0 * D1).to(tl.int32), (index - rest * D2).to(tl.int32)


@triton.jit
def in_groups(number, M_TILES, N_TILES: tl.constexpr, GROUP_M: tl.constexpr):
    """(tile along M, tile along N) of the program of this number: all tiles along N of GROUP_M tiles along M."""
    m = number // N_TILES
    n = number % N_TILES
    if GROUP_M > 1 and N_TILES > 1:  # else before Triton 3.9 compilers do not see that the only tile along N is tile 0
        m, n = tl.swizzle2d(m, n, M_TILES, N_TILES, GROUP_M)
    return m, n


@triton.jit
def advance(i0, i1, i2, step0, step1, step2, D1, D2):
    """The coordinates i of `unravel` moved on by those of a step, with carries in place of divisions."""
    i2 += step2
    i1 += step1 + (i2 >= D2)
    i0 += step0 + (i1 >= D1)
    return i0, tl.where(i1 >= D1, i1 - D1, i1), tl.where(i2 >= D2, i2 - D2, i2)


@triton.jit
def inside(h, w, H, W):
    # A negative number is a large unsigned one: two comparisons do for four.
    return (h.to(tl.uint32, bitcast=True) < H) & (w.to(tl.uint32, bitcast=True) < W)


@triton.constexpr_function
def pointwise(R, S, stride_h, stride_w, pad_h, pad_w):
    """Whether output pixel m depends on input pixel m alone, so that no index need be decoded."""
    return R * S * stride_h * stride_w == 1 and pad_h == 0 and pad_w == 0


@triton.constexpr_function
def tap_step(stride, dilation):
    """Taps of one residue class of the stride lie this far apart."""
    return stride // math.gcd(stride, dilation)


@triton.constexpr_function
def tap_inverse(stride, dilation):
    divisor = math.gcd(stride, dilation)
    return pow(dilation // divisor, -1, stride // divisor)


@triton.jit
def taps_of(position, STRIDE: tl.constexpr, DILATION: tl.constexpr, TAPS: tl.constexpr):
    """Which taps of a strided window reach a padded input position: t·DILATION ≡ position (mod STRIDE).

    They are t = first + j·tap_step for 0 <= j < count; returns (first, count). There are none unless the position is a
    multiple of gcd(STRIDE, DILATION); all divided by which, `first` is the position times the inverse of DILATION.
    """
    STEP: tl.constexpr = tap_step(STRIDE, DILATION)
    DIVISOR: tl.constexpr = STRIDE // STEP
    INVERSE: tl.constexpr = tap_inverse(STRIDE, DILATION)
    residue = position % STRIDE
    first = (residue // DIVISOR * INVERSE) % STEP
    count = tl.where(residue % DIVISOR == 0, (TAPS - first + STEP - 1) // STEP, 0)
    return first, count


@triton.jit
def quotient(x, y):
    """x / y, rounded once. On GPUs `/` of float32 is an approximation, with which tanh may be more than 1."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, tl.cast(y, tl.float32))
    else:
        return x / y


@triton.jit
def to_tf32(x):
    """x of float32 with the 10 bits that TF32 has after the first, rounded to nearest; what is not finite stays."""
    bits = x.to(tl.int32, bitcast=True)
    near = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(x) < float("inf"), near, x)


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr, READY: tl.constexpr = False):
    """acc + a · b. For TF32 operands are rounded first, as in cuDNN: tensor cores cut off the bits that it lacks, which
    would make every product a bit too small, layer after layer. READY: b is rounded already."""
    if PRECISION == "tf32":
        a = to_tf32(a)
        b = b if READY else to_tf32(b)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
