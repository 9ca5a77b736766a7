"""Reductions and scans: every axis, tuples, combine functions of one's own, order, ties and NaN."""

import pytest
import torch
import triton
import triton.language as tl
from oracle import DTYPES, FLOATS, assert_close, check, values


@triton.jit
def reduce(x, out, op: tl.constexpr, axis: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    i = tl.arange(0, A)[:, None, None] * (B * C) + tl.arange(0, B)[None, :, None] * C + tl.arange(0, C)[None, None, :]
    r = op(tl.load(x + i), axis)
    if axis == 0:
        o = tl.arange(0, B)[:, None] * C + tl.arange(0, C)[None, :]
    elif axis == 1:
        o = tl.arange(0, A)[:, None] * C + tl.arange(0, C)[None, :]
    else:
        o = tl.arange(0, A)[:, None] * B + tl.arange(0, B)[None, :]
    tl.store(out + o, r.to(out.dtype.element_ty))


@triton.jit
def total(x, axis: tl.constexpr):
    return tl.sum(x, axis)


@triton.jit
def greatest(x, axis: tl.constexpr):
    return tl.max(x, axis)


@triton.jit
def least(x, axis: tl.constexpr):
    return tl.min(x, axis)


@triton.jit
def parity(x, axis: tl.constexpr):
    return tl.xor_sum(x, axis)


@triton.jit
def first_greatest(x, axis: tl.constexpr):
    return tl.argmax(x, axis)


@triton.jit
def first_least(x, axis: tl.constexpr):
    return tl.argmin(x, axis)


SHAPES = [(4, 8, 16), (16, 1, 2), (1, 32, 1), (4, 2, 128)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axes(axis, shape):
    """Integers, so that every order of summation gives the same."""
    x = torch.randint(-9, 10, shape).float()
    out = torch.zeros([n for d, n in enumerate(shape) if d != axis])
    for op in (total, greatest, first_greatest):
        check(reduce, (1,), x, out, op, axis, *shape)


@pytest.mark.parametrize("dtype", ["i8", "u8", "i16", "i32", "u32", "i64", "u64"])
@pytest.mark.parametrize("op", [total, least, greatest, parity], ids=lambda f: f.__name__)
def test_integers(op, dtype):
    x = values(DTYPES[dtype], 256).reshape(4, 8, 8)
    check(reduce, (1,), x, torch.zeros(4, 8, dtype=DTYPES[dtype]), op, 2, 4, 8, 8)


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats(dtype):
    """Against torch: the interpreter adds up and compares the bits of bfloat16."""
    x = torch.randint(-9, 10, (4, 8, 8)).to(DTYPES[dtype])
    for op, reference in ((total, torch.sum), (least, torch.amin), (greatest, torch.amax)):
        out = torch.zeros(4, 8, dtype=DTYPES[dtype])
        reduce[(1,)](x, out, op, 2, 4, 8, 8)
        assert_close(out, reference(x.double(), 2).to(out.dtype))


@pytest.mark.parametrize("axis", [0, 2])
def test_ties_and_infinities(axis):
    """The first of equals wins."""
    x = torch.tensor([1.0, 3.0, 3.0, -torch.inf, -torch.inf, 3.0, torch.inf, torch.inf] * 64).reshape(8, 8, 8)
    for op in (first_greatest, first_least, greatest, least):
        check(reduce, (1,), x, torch.zeros(8, 8), op, axis, 8, 8, 8)


@triton.jit
def total_of_all(x, out, N: tl.constexpr):
    v = tl.load(x + tl.arange(0, N))
    tl.store(out, tl.sum(v))
    tl.store(out + 1, tl.max(v))
    tl.store(out + 2, tl.sum(v.to(tl.float32) * 0.5).to(out.dtype.element_ty))


@pytest.mark.parametrize("n", [1, 2, 64, 1024])
def test_to_scalar(n):
    check(total_of_all, (1,), torch.randint(-50, 50, (n,)).float(), torch.zeros(3), n)


@triton.jit
def merge_moments(mean_a, m2_a, n_a, mean_b, m2_b, n_b):
    """Chan, Golub and LeVeque's parallel variance."""
    n = n_a + n_b
    delta = mean_b - mean_a
    return mean_a + delta * n_b / n, m2_a + m2_b + delta * delta * n_a * n_b / n, n


@triton.jit
def moments(x, out, axis: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    v = tl.load(x + tl.arange(0, A)[:, None] * B + tl.arange(0, B)[None, :])
    mean, m2, n = tl.reduce((v, tl.zeros_like(v), tl.full(v.shape, 1.0, tl.float32)), axis, merge_moments)
    o = tl.arange(0, A if axis == 1 else B)
    tl.store(out + o, mean)
    tl.store(out + 64 + o, m2 / n)


@pytest.mark.parametrize("axis", [0, 1])
def test_welford(axis):
    x = torch.randn(32, 64) + 3
    _, out = check(moments, (1,), x, torch.zeros(128), axis, 32, 64, atol=2e-6)
    n = x.shape[1 - axis]
    torch.testing.assert_close(out[:n], x.mean(axis))
    torch.testing.assert_close(out[64 : 64 + n], x.var(axis, correction=0))


@triton.jit
def keep_last(a, b):
    return b


@triton.jit
def keep_first(a, b):
    return a


@triton.jit
def ends(x, out, N: tl.constexpr):
    v = tl.load(x + tl.arange(0, N))
    tl.store(out, tl.reduce(v, 0, keep_first))
    tl.store(out + 1, tl.reduce(v, 0, keep_last))


def test_order_is_kept():
    """A combine function need not commute."""
    x = torch.arange(64.0)
    out = torch.zeros(2)
    ends[(1,)](x, out, 64)
    assert out.tolist() == [0, 63]


@triton.jit
def scan(x, out, op: tl.constexpr, axis: tl.constexpr, reverse: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    i = tl.arange(0, A)[:, None] * B + tl.arange(0, B)[None, :]
    tl.store(out + i, op(tl.load(x + i), axis, reverse).to(out.dtype.element_ty))


@triton.jit
def running_sum(x, axis: tl.constexpr, reverse: tl.constexpr):
    return tl.cumsum(x, axis, reverse=reverse)


@triton.jit
def running_product(x, axis: tl.constexpr, reverse: tl.constexpr):
    return tl.cumprod(x, axis, reverse=reverse)


@triton.jit
def larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def running_maximum(x, axis: tl.constexpr, reverse: tl.constexpr):
    return tl.associative_scan(x, axis, larger, reverse=reverse)


@triton.jit
def affine(a1, b1, a2, b2):
    """x -> a2 (a1 x + b1) + b2: associative, not commutative."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def recurrence(x, axis: tl.constexpr, reverse: tl.constexpr):
    a, b = tl.associative_scan((x * 0 + 2, x), axis, affine, reverse=reverse)
    return a + b


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("op", [running_sum, running_product, running_maximum, recurrence], ids=lambda f: f.__name__)
def test_scan(op, axis, reverse):
    x = torch.randint(1, 4, (8, 16))
    check(scan, (1,), x, torch.zeros(8, 16, dtype=torch.int64), op, axis, reverse, 8, 16)


@pytest.mark.parametrize("dtype", ["i8", "f16", "f64"])
def test_scan_types(dtype):
    x = torch.randint(-2, 3, (1, 64)).to(DTYPES[dtype])
    check(scan, (1,), x, torch.zeros(1, 64, dtype=DTYPES[dtype]), running_sum, 1, False, 1, 64)


@triton.jit
def sort(x, out, descending: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    i = tl.arange(0, A)[:, None] * B + tl.arange(0, B)[None, :]
    tl.store(out + i, tl.sort(tl.load(x + i), descending=descending))


@pytest.mark.parametrize("dtype", ["f32", "i32"])
@pytest.mark.parametrize("descending", [False, True])
def test_sort(descending, dtype):
    x = torch.randint(-99, 99, (4, 16)).to(DTYPES[dtype])
    _, out = check(sort, (1,), x, torch.zeros_like(x), descending, 4, 16)
    torch.testing.assert_close(out, x.sort(1, descending=descending).values)


@triton.jit
def topk(x, out, N: tl.constexpr, K: tl.constexpr):
    tl.store(out + tl.arange(0, K), tl.topk(tl.load(x + tl.arange(0, N)), K))


def test_topk():
    x = torch.randperm(64).float()
    out = torch.zeros(8)
    topk[(1,)](x, out, 64, 8)
    torch.testing.assert_close(out, x.topk(8).values)


@triton.jit
def histogram(x, out, n, N: tl.constexpr, BINS: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    tl.store(out + tl.arange(0, BINS), tl.histogram(v, BINS))
    tl.store(out + BINS + tl.arange(0, BINS), tl.histogram(v, BINS, mask=i < n))


def test_histogram():
    x = torch.randint(0, 8, (64,), dtype=torch.int32)
    check(histogram, (1,), x, torch.zeros(16, dtype=torch.int32), 50, 64, 8)
