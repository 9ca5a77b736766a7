"""Matrix products of every type, alone, chained, batched and in loops."""

import pytest
import torch
import triton
import triton.language as tl
from oracle import DTYPES, check


@triton.jit
def product(a, b, c, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, TRANSPOSED: tl.constexpr):
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    left = tl.load(a + m * K + k[None, :])
    if TRANSPOSED:
        right = tl.trans(tl.load(b + tl.arange(0, N)[:, None] * K + k[None, :]))
    else:
        right = tl.load(b + k[:, None] * N + n)
    acc = tl.load(c + m * N + n)
    tl.store(out + m * N + n, tl.dot(left, right, acc, out_dtype=acc.dtype))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "f64", "i8"])
@pytest.mark.parametrize("M,N,K", [(16, 16, 16), (1, 64, 8), (32, 2, 64), (8, 1, 4), (4, 64, 32)])
def test_product(M, N, K, dtype, transposed):
    """Small integers: exact."""
    a, b = (torch.randint(-8, 9, s).to(DTYPES[dtype]) for s in ((M, K), (N, K) if transposed else (K, N)))
    acc = {"i8": torch.int32, "f64": torch.float64}.get(dtype, torch.float32)
    c = torch.randint(-8, 9, (M, N)).to(acc)
    out = torch.zeros_like(c)
    product[(1,)](a, b, c, out, M, N, K, transposed)
    exact = a.double() @ (b.T if transposed else b).double() + c.double()
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=0)


@triton.jit
def mlp(x, w1, w2, out, M: tl.constexpr, K: tl.constexpr, H: tl.constexpr, N: tl.constexpr):
    """A product of a product, with something between."""
    m, k, h, n = tl.arange(0, M), tl.arange(0, K), tl.arange(0, H), tl.arange(0, N)
    hidden = tl.dot(tl.load(x + m[:, None] * K + k[None, :]), tl.load(w1 + k[:, None] * H + h[None, :]))
    hidden = tl.maximum(hidden, 0) + 1
    y = tl.dot(hidden.to(w2.dtype.element_ty), tl.load(w2 + h[:, None] * N + n[None, :]))
    tl.store(out + m[:, None] * N + n[None, :], y + tl.sum(hidden, 1)[:, None])


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_chained(dtype):
    x, w1, w2 = (torch.randint(-2, 3, s).to(DTYPES[dtype]) for s in ((16, 32), (32, 16), (16, 64)))
    check(mlp, (1,), x, w1, w2, torch.zeros(16, 64), 16, 32, 16, 64)


@triton.jit
def batched(a, b, out, B: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    p, m = tl.arange(0, B)[:, None, None], tl.arange(0, M)[None, :, None]
    k, n = tl.arange(0, K), tl.arange(0, N)[None, None, :]
    left = tl.load(a + (p * M + m) * K + k[None, None, :])
    right = tl.load(b + (p * K + k[None, :, None]) * N + n)
    tl.store(out + (p * M + m) * N + n, tl.dot(left, right))


def test_batched():
    a, b = torch.randint(-4, 5, (4, 16, 8)).float(), torch.randint(-4, 5, (4, 8, 32)).float()
    *_, out = check(batched, (1,), a, b, torch.zeros(4, 16, 32), 4, 16, 32, 8)
    torch.testing.assert_close(out, a @ b, rtol=0, atol=0)


@triton.jit
def gram(x, out, n, D: tl.constexpr, BLOCK: tl.constexpr):
    """A loop in which both factors come from one load, beside another carried sum."""
    d = tl.arange(0, D)
    acc = tl.zeros([D, D], tl.float32)
    total = tl.zeros([D], tl.float32)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        v = tl.load(x + i[:, None] * D + d[None, :], mask=i[:, None] < n, other=0.0)
        acc = tl.dot(tl.trans(v), v, acc)
        total += tl.sum(v, 0)
    tl.store(out + d[:, None] * D + d[None, :], acc + total[:, None])


@pytest.mark.parametrize("n", [0, 5, 40])
def test_gram(n):
    check(gram, (1,), torch.randint(-4, 5, (64, 16)).float(), torch.zeros(16, 16), n, 16, 16)


@triton.jit
def two_sums(a, b, out, n, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """Two products a turn, the second of what the first one summed up to."""
    m, c, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    first = tl.zeros([M, N], tl.float32)
    second = tl.zeros([M, N], tl.float32)
    for step in range(n):
        left = tl.load(a + m[:, None] * (4 * K) + step * K + k[None, :])
        right = tl.load(b + (step * K + k[:, None]) * N + c[None, :])
        second = tl.dot(left * 2, right, second)
        first += tl.dot(left, right)
        second += first
    tl.store(out + m[:, None] * N + c[None, :], first + second)


def test_two_products():
    a, b = torch.randint(-3, 4, (16, 64)).float(), torch.randint(-3, 4, (64, 16)).float()
    for n in (0, 1, 4):
        check(two_sums, (1,), a, b, torch.zeros(16, 16), n, 16, 16, 16)


@triton.jit
def masked_rows(a, b, out, rows, n, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, OTHER: tl.constexpr):
    """Rows and columns that are masked off read OTHER, and count."""
    m, c = tl.arange(0, M), tl.arange(0, N)
    acc = tl.full([M, N], 1, tl.float32)
    for start in range(0, n, K):
        k = start + tl.arange(0, K)
        left = tl.load(a + m[:, None] * n + k[None, :], mask=(m[:, None] < rows) & (k[None, :] < n), other=OTHER)
        right = tl.load(b + k[:, None] * N + c[None, :], mask=(k[:, None] < n) & (c[None, :] < N - 2), other=OTHER)
        acc = tl.dot(left, right, acc)
    tl.store(out + m[:, None] * N + c[None, :], acc)


@pytest.mark.parametrize("other", [0.0, 3.0])
@pytest.mark.parametrize("n", [3, 16, 37])
def test_masks(n, other):
    a, b = torch.randint(-4, 5, (16, n)).float(), torch.randint(-4, 5, (n, 32)).float()
    check(masked_rows, (1,), a, b, torch.zeros(16, 32), 11, n, 16, 32, 16, other)


@triton.jit
def not_finite(a, b, out, n, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, c = tl.arange(0, M), tl.arange(0, N)
    acc = tl.zeros([M, N], tl.float32)
    for start in range(0, n, K):
        k = start + tl.arange(0, K)
        left = tl.load(a + m[:, None] * n + k[None, :], mask=k[None, :] < n - 2, other=0.0)
        right = tl.load(b + k[:, None] * N + c[None, :], mask=k[:, None] < n, other=0.0)
        acc = tl.dot(left, right, acc)
    tl.store(out + m[:, None] * N + c[None, :], acc)


def test_masked_factor_times_infinity():
    """0 * inf is NaN: a mask on one factor alone does not shorten the sum."""
    a, b = torch.ones(16, 32), torch.ones(32, 16)
    b[31, 3], b[30, 4], a[2, 1], b[5, 5] = torch.inf, torch.nan, torch.inf, -torch.inf
    check(not_finite, (1,), a, b, torch.zeros(16, 16), 32, 16, 16, 16)


@triton.jit
def leading(a, b, out, K, COLUMNS: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BK: tl.constexpr):
    """Of a product's N columns the first ones."""
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, BK)
    acc = tl.zeros((M, N), out.dtype.element_ty)
    for start in range(0, K, BK):
        left = tl.load(a + m * K + (start + k)[None, :])
        right = tl.load(b + (start + k)[:, None] * N + n)
        acc = tl.dot(left, right, acc, out_dtype=acc.dtype)
    tl.store(out + m * N + n, acc + 1, mask=n < COLUMNS)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("N,columns", [(64, c) for c in (1, 8, 12, 24, 40, 48, 63, 64)] + [(32, 24), (4, 3), (2, 2)])
def test_columns_that_are_not_stored(N, columns, dtype):
    a, b = (torch.randint(-8, 9, s).to(DTYPES[dtype]) for s in ((23, 48), (48, N)))
    out = torch.full((32, N), -1, dtype=DTYPES[dtype])
    check(leading, (1,), torch.cat([a, a[:9]]), b, out, 48, columns, 32, N, 16)
