"""Rows that are shorter than their block: the masked rest of a reduction and of a store."""

import pytest
import torch
import triton
import triton.language as tl
from oracle import check

from benchmarks import programs

BLOCK = 512
LENGTHS = (1, 63, 64, 65, 127, 128, 129, 300, 511, 512)


@pytest.mark.parametrize("n", LENGTHS)
def test_layer_norm(n):
    args = torch.randn(3, n), torch.randn(n), torch.randn(n), torch.zeros(3, n)
    check(programs.layer_norm, (3,), *args, n, 1e-5, BLOCK, ulp=8, atol=2e-6)


@triton.jit
def several(x_ptr, y_ptr, n, other, BLOCK: tl.constexpr):
    """Reductions to which the masked rest counts: each of its numbers, until that makes no difference, or none."""
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=other)
    tl.store(y_ptr, tl.sum(x, 0))
    tl.store(y_ptr + 1, tl.max(x, 0))
    tl.store(y_ptr + 2, tl.reduce(x, 0, product))
    tl.store(y_ptr + 3, tl.sum(tl.where(i < n, x - 1, 2.0), 0))
    tl.store(y_ptr + 4, tl.sum((i < n).to(tl.int32), 0))
    tl.store(y_ptr + 5, tl.sum(tl.where(i < n, i, 1), 0))
    tl.store(y_ptr + 6, tl.sum(tl.load(x_ptr + i) + tl.load(x_ptr + i, mask=i < n, other=0.0), 0))


@triton.jit
def product(a, b):
    return a * b


@pytest.mark.parametrize("other", [0.0, -0.0, 1.0, 2.0, -2.0, float("-inf"), float("nan")])
@pytest.mark.parametrize("n", LENGTHS)
def test_reductions(n, other):
    """Powers of two, so that every order of multiplication gives the same."""
    x = torch.exp2(torch.arange(BLOCK) % 3 - 1.0)
    check(several, (1,), x, torch.zeros(7), n, other, BLOCK)


@triton.jit
def kept(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """What the first sum's nest keeps is read beyond the mask, too."""
    i = tl.arange(0, BLOCK)
    e = tl.exp(tl.load(x_ptr + i, mask=i < n, other=1.0) * 0)
    s = tl.sum(tl.where(i < n, e, 0.0), 0)
    tl.store(y_ptr + i, e / s + tl.max(e, 0))


@triton.jit
def tile(x_ptr, y_ptr, m, n, BM: tl.constexpr, BN: tl.constexpr):
    i, j = tl.arange(0, BM), tl.arange(0, BN)
    mask = (i < m)[:, None] & (j < n)[None, :]
    x = tl.load(x_ptr + i[:, None] * n + j[None, :], mask=mask, other=float("-inf"))  # [BM, BN]
    e = tl.exp(x - tl.where(i < m, tl.max(x, 1), 0.0)[:, None])
    tl.store(y_ptr + i[:, None] * n + j[None, :], e / tl.sum(e, 1)[:, None], mask=mask)


@pytest.mark.parametrize("n", LENGTHS)
def test_what_is_kept(n):
    check(kept, (1,), torch.randn(BLOCK), torch.zeros(BLOCK), n, BLOCK, ulp=4)


@pytest.mark.parametrize("n", (1, 65, 300, 512))
@pytest.mark.parametrize("m", (1, 3, 4))
def test_rows_of_a_tile(m, n):
    check(tile, (1,), torch.randn(m, n), torch.zeros(m, n), m, n, 4, BLOCK, ulp=8)


@triton.jit
def special(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=float("-inf"))
    tl.store(y_ptr, tl.max(x, 0))
    tl.store(y_ptr + 1, tl.min(tl.where(i < n, x, float("inf")), 0))
    tl.store(y_ptr + 2, tl.sum(tl.where(i < n, x, 0.0), 0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -0.0])
@pytest.mark.parametrize("at", (0, 64, 299))
def test_numbers_that_are_not_finite(at, value):
    x = torch.randint(-9, 9, (300,)).float()
    x[at] = value
    check(special, (1,), x, torch.zeros(3), 300, BLOCK)
