"""Loads, stores, atomics and descriptors: masks, tails, strides, aliases."""

import pytest
import torch
import triton
import triton.language as tl
from oracle import DTYPES, assert_close, check, values
from triton.tools.tensor_descriptor import TensorDescriptor

from tritonconv import interpreter
from tritonconv.cpu import engine, show
from tritonconv.engines import Launch


@triton.jit
def copy(x, out, n, stride, offset, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + i * stride + offset, mask=i < n, other=7)
    tl.store(out + i, v, mask=i < n + 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_copy(dtype):
    x = values(DTYPES[dtype], 300)
    out = torch.zeros(300, dtype=DTYPES[dtype])
    for n, stride, offset in ((77, 1, 0), (50, 3, 1), (64, -1, 63), (20, 0, 5)):
        check(copy, (2,), x, out, n, stride, offset, 64)


@triton.jit
def across(x, out, n, m, stride, A: tl.constexpr, B: tl.constexpr):
    """What lies in columns is stored in rows, by one store and by two that share it."""
    i = tl.arange(0, A)[:, None]
    j = tl.arange(0, B)[None, :]
    v = tl.load(x + i + j * stride, mask=(i < n) & (j < m), other=5)
    tl.store(out + i * B + j, tl.load(x + i + j * stride + 1), mask=i < n)
    tl.store(out + A * B + i * B + j, v + 1)
    tl.store(out + 2 * A * B + i * B + j, v * 2, mask=j < n)


@pytest.mark.parametrize("dtype", ("f32", "i32", "bf16", "f64"))
def test_columns_to_rows(dtype):
    """As the library launches kernels, whose tensors share no memory."""
    x = values(DTYPES[dtype], 40 * 70)
    for n, m, A, B in ((64, 32, 64, 32), (20, 19, 32, 32), (3, 16, 8, 16)):
        launch = Launch(across, (1, 1, 1), (n, m, 70), {"A": A, "B": B}, 1, 1)
        got, want = (torch.zeros(3 * A * B, dtype=DTYPES[dtype]) for _ in range(2))
        engine.bind(launch)(x, got)
        interpreter.run(across, launch.grid, x, want, *launch.sizes, **launch.constexprs)
        assert_close(got, want)


@triton.jit
def scattered(x, index, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    j = tl.load(index + i, mask=i < n, other=0)
    tl.store(out + j, tl.load(x + j, mask=j % 3 != 0, other=-1.0), mask=(i < n) & (j % 2 == 0))


def test_gather_and_scatter():
    check(scattered, (1,), torch.randn(64), torch.randperm(64), torch.zeros(64), 50, 64)


@triton.jit
def scalars(x, out, n, s, flag, h):
    """Scalars of every kind, loaded, computed with and stored."""
    a = tl.load(x + 1)
    b = tl.load(x + n, mask=n < 4, other=2.5)
    tl.store(out, a + b * s)
    tl.store(out + 1, tl.where(flag != 0, a, b))
    tl.store(out + 2, h // 3 + n, mask=n > 100)
    tl.store(out + 3, (h // 3 + n).to(tl.float32))
    tl.store(out + 4, tl.sqrt(tl.abs(a)) + tl.num_programs(0))


@pytest.mark.parametrize("n", [2, 7])
@pytest.mark.parametrize("flag", [0, 5])
def test_scalars(flag, n):
    check(scalars, (1,), torch.randn(4), torch.zeros(5), n, 0.5, flag, 2**40, enable_fp_fusion=False)


@triton.jit
def in_place(x, n, BLOCK: tl.constexpr):
    """What is stored must not be what a load before it sees."""
    i = tl.arange(0, BLOCK)
    a = tl.load(x + i)
    b = tl.load(x + n - 1 - i)
    tl.store(x + i, a + b * 2)
    tl.store(x + n - 1 - i, tl.load(x + n - 1 - i) + a)


def test_aliases():
    check(in_place, (1,), torch.arange(64.0), 64, 64)


@triton.jit
def shift_in_place(x, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x + i + 1, tl.load(x + i))


def test_overlapping_store():
    check(shift_in_place, (1,), torch.arange(65.0), 64)


@triton.jit
def nested_tuple(pair, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x, inner = pair
    tl.store(out + i, tl.load(x + i) + inner[1] * tl.load(inner[0] + i), mask=i < n)


def test_tuple_arguments():
    x, y, out = torch.randn(16), torch.randn(16), torch.zeros(16)
    nested_tuple[(1,)]((x, (y, 2.0)), out, 16, 16)
    torch.testing.assert_close(out, x + 2 * y)


def test_absent_argument():
    x, out = torch.randn(16), torch.zeros(16)
    optional[(1,)](x, None, out, 16)
    torch.testing.assert_close(out, x)
    optional[(1,)](x, x, out, 16)
    torch.testing.assert_close(out, x + x)


@triton.jit
def optional(x, bias, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    if bias is not None:
        v += tl.load(bias + i)
    tl.store(out + i, v)


# ---- atomics -------------------------------------------------------------------------------------------------------


@triton.jit
def count(x, bins, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(bins + tl.load(x + i, mask=i < n, other=0), 1, mask=i < n)


@pytest.mark.parametrize("dtype", ["i32", "i64", "f32", "f64", "f16"])
def test_atomic_add(dtype):
    x = torch.randint(0, 16, (1000,))
    _, bins = check(count, (8,), x, torch.zeros(16, dtype=DTYPES[dtype]), 1000, 128)
    torch.testing.assert_close(bins.long(), x.bincount(minlength=16))


@triton.jit
def extremes(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + i, mask=i < n, other=0)
    tl.atomic_max(out + i % 4, v, mask=i < n)
    tl.atomic_min(out + 4 + i % 4, v, mask=i < n)


@pytest.mark.parametrize("dtype", ["i32", "u32", "i64", "u64", "f32", "f64"])
def test_atomic_extremes(dtype):
    x = torch.randint(1, 1000, (200,)).to(DTYPES[dtype])
    if dtype[0] != "u":
        x -= 500
    start = torch.ones(8).to(DTYPES[dtype])
    check(extremes, (2,), x, start, 200, 128)


@triton.jit
def bitwise(x, out, old, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    a = tl.atomic_and(out + i, v)
    b = tl.atomic_or(out + i, v * 3, mask=i % 2 == 0)
    c = tl.atomic_xor(out + i, v * 5)
    d = tl.atomic_xchg(out + i, v)
    tl.store(old + i, a + tl.where(i % 2 == 0, b, 0) + c + d)


@pytest.mark.parametrize("dtype", ["i32", "i64"])
def test_atomic_bits(dtype):
    x, out = (torch.randint(0, 1000, (32,)).to(DTYPES[dtype]) for _ in range(2))
    check(bitwise, (1,), x, out, torch.zeros_like(x), 32)


@triton.jit
def compare_and_swap(x, expected, new, old, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(old + i, tl.atomic_cas(x + i, tl.load(expected + i), tl.load(new + i)))


@pytest.mark.parametrize("dtype", ["i32", "i64", "f32"])
def test_atomic_cas(dtype):
    x, expected, new = (torch.randint(0, 3, (32,)).to(DTYPES[dtype]) for _ in range(3))
    check(compare_and_swap, (1,), x, expected, new, torch.zeros_like(x), 32)


@triton.jit
def ticket(counter, slots, BLOCK: tl.constexpr):
    """Each program draws a ticket; none may be drawn twice."""
    mine = tl.atomic_add(counter, 1)
    tl.store(slots + mine, tl.program_id(0) + 1)


def test_atomics_across_threads():
    counter, slots = torch.zeros(1, dtype=torch.int32), torch.zeros(4000, dtype=torch.int32)
    ticket[(4000,)](counter, slots, 1)
    assert counter.item() == 4000
    assert slots.sort().values.tolist() == list(range(1, 4001))


# ---- tensor descriptors --------------------------------------------------------------------------------------------


@triton.jit
def tiles(x, out, M, N, BM: tl.constexpr, BN: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [M, N], [N, 1], [BM, BN])
    target = tl.make_tensor_descriptor(out, [M, N], [N, 1], [BM, BN])
    i, j = tl.program_id(0) * BM, tl.program_id(1) * BN
    target.store([i, j], source.load([i, j]) * 2)


@pytest.mark.parametrize("dtype", ["f32", "f16", "i32"])
def test_descriptors(dtype):
    x = torch.randint(0, 100, (19, 40)).to(DTYPES[dtype])
    _, out = check(tiles, (3, 3), x, torch.zeros_like(x), 19, 40, 8, 16)
    torch.testing.assert_close(out, 2 * x)


def test_the_same_program_is_the_same_code():
    """It does not depend on the order of sets, which differs from one compilation to the next."""
    types = {"x": "*fp32", "out": "*fp32", "M": "i32", "N": "i32"}
    assert len({show.stages(tiles, types, {"BM": 8, "BN": 16})["llvm"] for _ in range(8)}) == 1


@triton.jit
def host_tiles(source, target, BM: tl.constexpr, BN: tl.constexpr):
    i, j = tl.program_id(0) * BM, tl.program_id(1) * BN
    target.store([i, j], source.load([i, j]) * 2)


def test_host_descriptors():
    x, out = torch.randn(19, 40), torch.zeros(19, 40)
    descriptors = [TensorDescriptor.from_tensor(t, [8, 16]) for t in (x, out)]
    host_tiles[(3, 3)](*descriptors, 8, 16)
    torch.testing.assert_close(out, 2 * x)
