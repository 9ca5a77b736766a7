"""Arithmetic, lane by lane: every operator on every type, over extremes, NaN, infinities and tails."""

import pytest
import torch
import triton
import triton.language as tl
from oracle import DTYPES, FLOATS, INTEGERS, assert_close, check, pairs, values

N, BLOCK = 333, 128  # three programs, the last of them with a tail


@triton.jit
def binary(x, y, out, n, op: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    a = tl.load(x + i, m, other=1)
    b = tl.load(y + i, m, other=1)
    tl.store(out + i, op(a, b).to(out.dtype.element_ty), m)


@triton.jit
def unary(x, out, n, op: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    tl.store(out + i, op(tl.load(x + i, m, other=1)).to(out.dtype.element_ty), m)


ARITHMETIC = {}


def operator(table: dict):
    def register(function):
        table[function.__name__] = triton.jit(function)
        return table[function.__name__]

    return register


@operator(ARITHMETIC)
def add(a, b):
    return a + b


@operator(ARITHMETIC)
def subtract(a, b):
    return a - b


@operator(ARITHMETIC)
def multiply(a, b):
    return a * b


@operator(ARITHMETIC)
def comparisons(a, b):
    bits = (a < b).to(tl.int8) + 2 * (a <= b).to(tl.int8) + 4 * (a == b).to(tl.int8)
    return bits + 8 * (a != b).to(tl.int8) + 16 * (a > b).to(tl.int8) + 32 * (a >= b).to(tl.int8)


@operator(ARITHMETIC)
def choose(a, b):
    return tl.where(a > b, a, b)


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
@pytest.mark.parametrize("op", ARITHMETIC.values(), ids=ARITHMETIC)
def test_arithmetic(op, dtype):
    x, y = pairs(DTYPES[dtype], N)
    check(binary, (3,), x, y, torch.zeros_like(x), N, op, BLOCK)


INTEGER = {}


@operator(INTEGER)
def smaller(a, b):
    return tl.minimum(a, b)


@operator(INTEGER)
def larger(a, b):
    return tl.maximum(a, b)


@operator(INTEGER)
def divide(a, b):
    return a // tl.where(b == 0, 1, b)


@operator(INTEGER)
def remainder(a, b):
    return a % tl.where(b == 0, 1, b)


@operator(INTEGER)
def bits(a, b):
    return ((a & b) + 3 * (a | b)) ^ -a


@operator(INTEGER)
def shifts(a, b):
    return (a << (b & 7)) + (a >> (b & 7))


@operator(INTEGER)
def magnitude(a, b):
    return tl.abs(a)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("op", INTEGER.values(), ids=INTEGER)
def test_integers(op, dtype):
    x, y = pairs(DTYPES[dtype], N)
    check(binary, (3,), x, y, torch.zeros_like(x), N, op, BLOCK)


@triton.jit
def invert(a):
    return ~a


@pytest.mark.parametrize("dtype", INTEGERS)
def test_invert(dtype):
    """Some of Triton's interpreters cannot do it to unsigned numbers."""
    x = values(DTYPES[dtype], N)
    out = torch.zeros_like(x)
    unary[(3,)](x, out, N, invert, BLOCK)
    assert_close(out, (-1 - x.to(torch.int64)).to(x.dtype))


@triton.jit
def high_product(a, b):
    return tl.umulhi(a, b)


@pytest.mark.parametrize("dtype", ["u32", "u64", "i32", "i64"])
def test_umulhi(dtype):
    """The upper half of the product of the bits, read as unsigned numbers."""
    x, y = pairs(DTYPES[dtype], N)
    out = torch.zeros_like(x)
    binary[(3,)](x, y, out, N, high_product, BLOCK)
    bits = int(dtype[1:])
    for a, b, got in zip(x.tolist(), y.tolist(), out.tolist(), strict=True):
        assert got % 2**bits == (a % 2**bits) * (b % 2**bits) >> bits


FLOAT = {}


@operator(FLOAT)
def quotient(a, b):
    return a / b


@operator(FLOAT)
def float_remainder(a, b):
    return a % b


@operator(FLOAT)
def min_keeping_nan(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@operator(FLOAT)
def max_keeping_nan(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@operator(FLOAT)
def clamp_keeping_nan(a, b):
    return tl.clamp(a, -1.0, 2.0, propagate_nan=tl.PropagateNan.ALL)


@operator(FLOAT)
def negative(a, b):
    return -a


@operator(FLOAT)
def absolute(a, b):
    return tl.abs(a)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", FLOAT.values(), ids=FLOAT)
def test_floats(op, dtype):
    x, y = pairs(DTYPES[dtype], N)
    check(binary, (3,), x, y, torch.zeros_like(x), N, op, BLOCK)


@triton.jit
def float_smaller(a, b):
    return tl.minimum(a, b)


@triton.jit
def float_larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def clamp(a, b):
    return tl.clamp(a, -1.0, 2.0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "op,reference",
    [(float_smaller, torch.fmin), (float_larger, torch.fmax), (clamp, lambda a, b: a.nan_to_num(-1).clamp(-1, 2))],
    ids=["minimum", "maximum", "clamp"],
)
def test_number_wins_over_nan(op, reference, dtype):
    """As the hardware's instructions have it; Triton's interpreters before 3.8 return NaN."""
    x, y = pairs(DTYPES[dtype], N)
    out = torch.zeros_like(x)
    binary[(3,)](x, y, out, N, op, BLOCK)
    assert_close(out, reference(x, y))


@triton.jit
def divide_by_number(x, y, out, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i) / tl.load(y + tl.program_id(0)))


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("spread", [0, 8, 30])
def test_division_by_one_number(spread, dtype):
    """A product with the reciprocal, corrected: it rounds as division does."""
    g = torch.Generator().manual_seed(spread)
    x, y = (torch.randn(n, generator=g, dtype=DTYPES[dtype]) for n in (64 * 512, 64))
    x, y = (v * torch.exp2(spread * torch.randn(v.shape, generator=g, dtype=v.dtype)) for v in (x, y))
    y[:3] = torch.tensor([3, 1 / 3, 1 - torch.finfo(y.dtype).eps / 2])
    out = torch.empty_like(x)
    divide_by_number[(64,)](x, y, out, 512)
    want = (x.view(64, 512) / y[:, None]).view(-1)
    tiny = x.abs() < torch.finfo(x.dtype).tiny / torch.finfo(x.dtype).eps  # its remainder is subnormal
    assert_close(out, want, ulp=1)
    assert torch.equal(out[~tiny], want[~tiny])


@pytest.mark.parametrize("dtype", FLOATS)
def test_special_numbers_divided_by_one_number(dtype):
    special = values(DTYPES[dtype], 512)
    for y in special[:14]:
        check(divide_by_number, (1,), special, y[None], torch.zeros_like(special), 512, ulp=1)
