"""What is kept in scratch memory and what is computed or read again, and that the numbers are the same either way."""

import pytest
import torch
import triton
import triton.language as tl
from oracle import check

from benchmarks import programs
from tritonconv.cpu import show

ROWS = {"x_ptr": "*fp32", "y_ptr": "*fp32", "N": "i32"}
NORM = {"x_ptr": "*fp32", "weight_ptr": "*fp32", "bias_ptr": "*fp32", "y_ptr": "*fp32", "N": "i32", "eps": "fp32"}


def test_cheap_values_are_computed_again():
    """Layer norm reads its row three times and keeps nothing: x − mean is cheaper than memory."""
    llvm = show.stages(programs.layer_norm, NORM, {"BLOCK": 1024})["llvm"]
    assert llvm.count("%scratch") == 1  # the parameter


def test_a_reduction_writes_what_is_kept():
    """Softmax's exp is computed by the sum's nest: two loops over the row, and the store's."""
    llvm = show.stages(programs.softmax, ROWS, {"BLOCK": 1024})["llvm"]
    assert llvm.count(" = phi i64") == 1 + 3 + 1  # programs, the three, and what fills the row's masked end
    assert "%scratch," in llvm


@pytest.mark.parametrize("columns", (1024, 1000, 37))
def test_softmax(columns):
    check(programs.softmax, (3,), torch.randn(3, columns), torch.zeros(3, columns), columns, 1024, ulp=4)


def test_the_last_nest_that_reads_a_long_row_asks_for_the_next_programs():
    """Softmax's sum reads the row as the last, layer norm's store; short rows come by themselves."""
    for kernel, types in ((programs.softmax, ROWS), (programs.layer_norm, NORM)):
        assert "call void @llvm.prefetch" in show.stages(kernel, types, {"BLOCK": 4096})["llvm"]
        assert "call void @llvm.prefetch" not in show.stages(kernel, types, {"BLOCK": 1024})["llvm"]


@triton.jit
def softmax_of_chosen(row_ptr, x_ptr, y_ptr, N: tl.constexpr):
    """y[i] = softmax(x[row[i]])."""
    i, n = tl.program_id(0), tl.arange(0, N)
    x = tl.load(x_ptr + tl.load(row_ptr + i) * N + n)
    e = tl.exp(x - tl.max(x, 0))
    tl.store(y_ptr + i * N + n, e / tl.sum(e, 0))


def test_nothing_is_asked_for_where_memory_says_where_a_row_is():
    types = {"row_ptr": "*i32", "x_ptr": "*fp32", "y_ptr": "*fp32"}
    assert "call void @llvm.prefetch" not in show.stages(softmax_of_chosen, types, {"N": 4096})["llvm"]


@pytest.mark.parametrize("columns", (4096, 4000, 2049))
def test_rows_that_are_asked_for(columns):
    x, weight, bias = torch.randn(3, columns), torch.randn(columns), torch.randn(columns)
    check(programs.softmax, (3,), x, torch.zeros(3, columns), columns, 4096, ulp=4)
    check(programs.layer_norm, (3,), x, weight, bias, torch.zeros(3, columns), columns, 1e-5, 4096, ulp=8, atol=2e-6)


@triton.jit
def twice_in_place(x_ptr, BLOCK: tl.constexpr):
    """The second store writes what was read before the first one."""
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.store(x_ptr + i, x + 1)
    tl.store(x_ptr + i, x * 2 + tl.sum(x, 0))


@triton.jit
def kept_in_place(x_ptr, BLOCK: tl.constexpr):
    """What is kept comes from memory that is overwritten before its first use."""
    i = tl.arange(0, BLOCK)
    e = tl.exp(tl.load(x_ptr + i))
    tl.store(x_ptr + i, tl.zeros((BLOCK,), tl.float32))
    tl.store(x_ptr + i, e / tl.sum(e, 0))


@pytest.mark.parametrize("kernel", (twice_in_place, kept_in_place))
def test_memory_written_between_is_not_read_again(kernel):
    check(kernel, (1,), torch.linspace(0, 1, 512), 512, ulp=8)


@triton.jit
def both_axes(x_ptr, rows_ptr, columns_ptr, y_ptr, M: tl.constexpr, N: tl.constexpr):
    """exp(x) is kept by the first of two sums, which runs over the slower dimension."""
    m, n = tl.arange(0, M), tl.arange(0, N)
    at = m[:, None] * N + n[None, :]
    e = tl.exp(tl.load(x_ptr + at))  # [M, N]
    columns = tl.sum(e, 0)
    rows = tl.sum(e, 1)
    tl.store(columns_ptr + n, columns)
    tl.store(rows_ptr + m, rows)
    tl.store(y_ptr + at, e / rows[:, None])


def test_kept_by_a_sum_over_rows():
    M, N = 16, 128
    outputs = torch.zeros(M), torch.zeros(N), torch.zeros(M, N)
    check(both_axes, (1,), torch.randn(M, N), *outputs, M, N, ulp=16)


@triton.jit
def mixed(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """A tensor whose first use is another that is kept."""
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    a = tl.exp(x)
    b = tl.sqrt(a)
    tl.store(y_ptr + i, a * tl.sum(b, 0) + b * tl.max(a, 0), mask=i < n)


@pytest.mark.parametrize("n", (256, 250))
def test_kept_by_a_nest_that_keeps_another(n):
    check(mixed, (1,), torch.randn(256), torch.zeros(256), n, 256, ulp=16)


@triton.jit
def streamed(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < n) + 1, mask=i < n, cache_modifier=".cs")


@pytest.mark.parametrize("n", (1000, 1024, 130))
@pytest.mark.parametrize("first", (0, 1, 8, 15, 16))  # elements; a line of memory has 16
def test_stores_past_the_caches(first, n):
    y = torch.zeros(1024 + 64)
    room = y[-y.data_ptr() % 64 // 4 :]
    check(streamed, (4,), torch.randn(1024), room[first : first + 1024], n, 256)
    streamed[(4,)](torch.zeros(1024), room[first:], n, 256)
    assert torch.equal(room, ((torch.arange(len(room)) >= first) & (torch.arange(len(room)) < first + n)).float())


@triton.jit
def streamed_rows(x_ptr, y_ptr, m, n, BM: tl.constexpr, BN: tl.constexpr):
    i, j = tl.arange(0, BM), tl.arange(0, BN)
    at, mask = i[:, None] * n + j[None, :], (i < m)[:, None] & (j < n)[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0)
    tl.store(y_ptr + at, x * tl.sum(x, 1)[:, None], mask=mask, cache_modifier=".cs")


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.float16, torch.int32))
@pytest.mark.parametrize("n", (128, 101, 3))
def test_rows_past_the_caches(n, dtype):
    x = torch.randint(-3, 4, (7, n)).to(dtype)
    check(streamed_rows, (1,), x, torch.zeros_like(x), 7, n, 8, 128)


@triton.jit
def streamed_in_place(x_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x_ptr + i, tl.load(x_ptr + i) * 2 + 1, cache_modifier=".cs")


@pytest.mark.parametrize("first", (0, 3, 16))
def test_in_place_past_the_caches(first):
    """Vectors that overlap would compute twice what they find written."""
    x = torch.randint(-9, 9, (1024 + 64,)).float()
    want = x.clone()
    want[first : first + 256] = want[first : first + 256] * 2 + 1
    streamed_in_place[(1,)](x[first:], 256)
    assert torch.equal(x, want)
