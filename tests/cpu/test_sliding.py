"""Windows that overlap: rows that read the same memory are computed together, and read it once."""

import re

import pytest
import torch
import triton
import triton.language as tl
from oracle import check

from tritonconv.cpu import show
from tritonconv.cpu.sliding import ROWS

M, N, TAPS = 16, 32, 3


@triton.jit
def windows(
    x, y, rows, columns, STRIDE: tl.constexpr, MASKED: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    TAPS: tl.constexpr,
):  # fmt: skip
    """y[m] = x[m·STRIDE] + … + x[m·STRIDE + TAPS − 1]."""
    m, n = tl.arange(0, M), tl.arange(0, N)
    acc = tl.zeros((M, N), tl.float32)
    for s in tl.static_range(TAPS):
        at = (m * STRIDE)[:, None] * N + (n + s * N)[None, :]
        acc += tl.load(x + at, mask=(m < rows)[:, None], other=0.0) if MASKED else tl.load(x + at)
    tl.store(y + m[:, None] * N + n[None, :], acc, mask=(m < rows)[:, None] & (n < columns)[None, :])


@pytest.mark.parametrize("columns", (N, N - 3))
@pytest.mark.parametrize("rows", (M, M - 3, 2, 0))
@pytest.mark.parametrize("masked", (False, True))
@pytest.mark.parametrize("stride", (1, 2, 3))
def test_sums(stride, masked, rows, columns):
    x = torch.randn(M * stride + TAPS, N)
    check(windows, (1,), x, torch.zeros(M, N), rows, columns, stride, masked, M, N, TAPS, disjoint=True)


@pytest.mark.parametrize(("stride", "rows"), ((1, ROWS), (2, ROWS), (3, 1)))
def test_what_rows_share_is_read_once(stride, rows):
    constexprs = {"STRIDE": stride, "MASKED": False, "M": M, "N": N, "TAPS": TAPS}
    signature = {"x": "*fp32", "y": "*fp32", "rows": "i32", "columns": "i32"}
    llvm = show.stages(windows, signature, constexprs, disjoint=True)["llvm"]
    places = re.findall(r"load <\d+ x float>, ptr (%\w+)", llvm)
    assert len(set(places)) == (rows - 1) * stride + TAPS


@triton.jit
def chosen(x, y, z, far, M: tl.constexpr, N: tl.constexpr):
    """Sums that are kept, as what comes out of a branch is; and in place of the memory that they are read from."""
    m, n = tl.arange(0, M), tl.arange(0, N)
    at = m[:, None] * N + n[None, :]
    acc = tl.load(x + at) - tl.load(x + at + 3 * N) if far > 0 else tl.load(x + at) * tl.load(x + at + N)
    tl.store(y + at, acc)
    tl.store(z + at, tl.load(z + at) + tl.load(x + at + 2 * N))


@pytest.mark.parametrize("far", (0, 1))
def test_kept_sums_and_sums_in_place(far):
    operands = torch.randn(M + 3, N), torch.zeros(M, N), torch.randn(M, N)
    check(chosen, (1,), *operands, far, M, N, disjoint=True)
