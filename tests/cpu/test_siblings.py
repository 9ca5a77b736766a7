"""Stores that share an expression share a loop nest, and nothing else changes."""

import pytest
import torch
import triton
import triton.language as tl
from oracle import check

from tritonconv.cpu import show


@triton.jit
def butterfly(x, y, n, BLOCK: tl.constexpr):
    """Both outputs from both inputs."""
    i = tl.program_id(0) * 2 * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(x + i, mask=i < n, other=0.0)
    b = tl.load(x + BLOCK + i, mask=BLOCK + i < n, other=0.0)
    s = a + b
    tl.store(y + i, s, mask=i < n)
    tl.store(y + BLOCK + i, s - 2 * b, mask=BLOCK + i < n)


SIGNATURE = {"x": "*fp32", "y": "*fp32", "n": "i32"}


def test_what_they_share_is_computed_once_and_not_kept():
    llvm, cautious = (show.stages(butterfly, SIGNATURE, {"BLOCK": 64}, disjoint)["llvm"] for disjoint in (True, False))
    assert llvm.count("%scratch") == 1  # the parameter
    assert cautious.count("%scratch") > 1  # as long as y may overlap itself or x


@pytest.mark.parametrize("n", (1024, 1000, 900))
def test_outputs_of_their_own(n):
    check(butterfly, (4,), torch.randn(1024), torch.zeros(1024), n, 128)


@triton.jit
def in_place(x, BLOCK: tl.constexpr):
    """Reads other places of the memory that it writes: all is read before anything is written."""
    i = tl.arange(0, BLOCK)
    a = tl.load(x + i)
    b = tl.load(x + (BLOCK - 1 - i) + BLOCK)
    tl.store(x + BLOCK + i, a + b)
    tl.store(x + i, a - b)


def test_in_place():
    check(in_place, (1,), torch.randn(512), 256)


@triton.jit
def chain(x, y, BLOCK: tl.constexpr):
    """The second store's value reads what the first one wrote."""
    i = tl.arange(0, BLOCK)
    a = tl.load(x + i)
    tl.store(y + i, a)
    b = tl.load(y + (BLOCK - 1 - i))
    tl.store(y + BLOCK + i, a + b)


def test_a_load_between_keeps_them_apart():
    check(chain, (1,), torch.randn(256), torch.zeros(512), 256)


@triton.jit
def many(x, w, y, z, total, M: tl.constexpr, N: tl.constexpr):
    """Shares by way of a broadcast, beside a reduction, and a store that shares nothing."""
    m, n = tl.arange(0, M), tl.arange(0, N)
    a = tl.load(x + m[:, None] * N + n[None, :])
    scale = tl.exp(tl.load(w + n))
    s = a * scale[None, :]
    tl.store(total + m, tl.sum(s, 1))
    tl.store(y + m[:, None] * N + n[None, :], s)
    tl.store(z + m[:, None] + n[None, :] * M, s + 1)  # transposed
    tl.store(y + M * N + m[:, None] * N + n[None, :], tl.full((M, N), 7.0, tl.float32))


def test_with_other_users_and_layouts():
    x, w = torch.randn(8, 32), torch.randn(32)
    check(many, (1,), x, w, torch.zeros(16, 32), torch.zeros(32, 8), torch.zeros(8), 8, 32, ulp=2, atol=1e-5)


@triton.jit
def product(a, b, y, z, BLOCK: tl.constexpr):
    """One product, stored in two ways."""
    i = tl.arange(0, BLOCK)
    at = i[:, None] * BLOCK + i[None, :]
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(0, 2 * BLOCK, BLOCK):
        left = tl.load(a + i[:, None] * 2 * BLOCK + k + i[None, :])
        acc = tl.dot(left, tl.load(b + (k + i)[:, None] * BLOCK + i[None, :]), acc)
    tl.store(y + at, acc)
    tl.store(z + at, tl.maximum(acc, 0))


def test_a_product_stored_twice():
    a, b = (torch.randint(-4, 5, shape).float() for shape in ((16, 32), (32, 16)))
    check(product, (1,), a, b, torch.zeros(16, 16), torch.zeros(16, 16), 16)
