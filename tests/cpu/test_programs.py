"""Programs as people write them: each runs natively and on the interpreter, on numbers whose sums are exact."""

import pytest
import torch
import triton
import triton.language as tl
from oracle import check


def small(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randint(-4, 5, shape).to(dtype)


@triton.jit
def histogram(x, bins, n, BLOCK: tl.constexpr, BINS: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    counts = tl.histogram(tl.load(x + i, mask=i < n, other=0), BINS, mask=i < n)
    tl.atomic_add(bins + tl.arange(0, BINS), counts, sem="relaxed")


@triton.jit
def restart(a, start_a, b, start_b):
    return tl.where(start_b != 0, b, a + b), start_a | start_b


@triton.jit
def segmented_sums(x, starts, out, N: tl.constexpr):
    i = tl.arange(0, N)
    sums, _ = tl.associative_scan((tl.load(x + i), tl.load(starts + i)), 0, restart)
    tl.store(out + i, sums)


@triton.jit
def collatz(x, out):
    v, steps = tl.load(x + tl.program_id(0)), 0
    while v != 1:
        v = v // 2 if v % 2 == 0 else 3 * v + 1
        steps += 1
    tl.store(out + tl.program_id(0), steps)


@triton.jit
def dequantized_product(packed, scale, x, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """Two numbers of four bits a byte, one under the other."""
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    q = tl.load(packed + tl.arange(0, K // 2)[:, None] * N + n[None, :])  # [K / 2, N]
    low, high = (q & 0xF).to(tl.int8) - 8, ((q >> 4) & 0xF).to(tl.int8) - 8
    w = tl.join(low, high).permute(0, 2, 1).reshape(K, N).to(tl.float32) * tl.load(scale + n)[None, :]
    y = tl.dot(tl.load(x + m[:, None] * K + k[None, :]), w, input_precision="ieee")
    tl.store(out + m[:, None] * N + n[None, :], y)


@triton.jit
def rotated_pairs(x, cos, sin, out, D: tl.constexpr):
    row, d = tl.program_id(0), tl.arange(0, D // 2)
    a, b = tl.split(tl.reshape(tl.load(x + row * D + tl.arange(0, D)), [D // 2, 2]))
    c, s = tl.load(cos + row * (D // 2) + d), tl.load(sin + row * (D // 2) + d)
    tl.store(out + row * D + tl.arange(0, D), tl.interleave(a * c - b * s, a * s + b * c))


@triton.jit
def life(old, new, H, W, BLOCK: tl.constexpr):
    y, x = tl.program_id(0), tl.arange(0, BLOCK)
    alive = tl.load(old + y * W + x, mask=x < W, other=0)
    around = -alive
    for dy in tl.static_range(-1, 2):
        for dx in tl.static_range(-1, 2):
            around += tl.load(old + ((y + dy + H) % H) * W + (x + dx + W) % W, mask=x < W, other=0)
    tl.store(new + y * W + x, ((around == 3) | ((around == 2) & (alive == 1))).to(tl.int32), mask=x < W)


@triton.jit
def insertion_points(keys, n, x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    v, low, high = tl.load(x + i), tl.zeros([N], tl.int32), tl.zeros([N], tl.int32) + n
    while tl.max(high - low, 0) > 0:
        middle = (low + high) // 2
        right = (tl.load(keys + middle, mask=middle < n, other=0.0) < v) & (low < high)
        low, high = tl.where(right, middle + 1, low), tl.where(right, high, middle)
    tl.store(out + i, low)


@triton.jit
def split_product(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLITS: tl.constexpr):
    m, n = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BN)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for _ in range(tl.cdiv(K, BK * SPLITS)):
        left = tl.load(a + m[:, None] * K + k[None, :], mask=(m < M)[:, None] & (k < K)[None, :], other=0.0)
        right = tl.load(b + k[:, None] * N + n[None, :], mask=(k < K)[:, None] & (n < N)[None, :], other=0.0)
        acc += tl.dot(left, right, input_precision="ieee")
        k += BK * SPLITS
    tl.atomic_add(c + m[:, None] * N + n[None, :], acc, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def square(v):
    return v * v


@triton.jit
def twice(v, function: tl.constexpr):
    return function(function(v))


@triton.jit
def sum_of_all(rows, out, FUNCTION: tl.constexpr, N: tl.constexpr):
    """A tuple of tensors, and a function that is given one."""
    acc = tl.zeros([N], tl.float32)
    for j in tl.static_range(len(rows)):
        acc += twice(tl.load(rows[j] + tl.arange(0, N)), FUNCTION)
    tl.store(out + tl.arange(0, N), acc)


@triton.jit
def convolution(x, w, y, H, W, R: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr):
    p = tl.program_id(0) * BH + tl.arange(0, BH)[:, None]
    q = tl.program_id(1) * BW + tl.arange(0, BW)[None, :]
    acc = tl.zeros((BH, BW), tl.float32)
    for r in range(R):
        for s in range(R):
            h, v = p + r - R // 2, q + s - R // 2
            inside = (h >= 0) & (h < H) & (v >= 0) & (v < W)
            acc += tl.load(x + h * W + v, mask=inside, other=0.0) * tl.load(w + r * R + s)
    tl.store(y + p * W + q, acc, mask=(p < H) & (q < W))


def integers(*shape: int, high: int) -> torch.Tensor:
    return torch.randint(0, high, shape, dtype=torch.int32)


# program → (its grid, its arguments)
PROGRAMS = {
    histogram: ((3,), lambda: (integers(700, high=16), torch.zeros(16, dtype=torch.int32), 700, 256, 16)),
    segmented_sums: ((1,), lambda: (small(128), (torch.rand(128) < 0.1).int(), torch.zeros(128), 128)),
    collatz: ((20,), lambda: (torch.arange(1, 21, dtype=torch.int32), torch.zeros(20, dtype=torch.int32))),
    dequantized_product: (
        (1,),
        lambda: (integers(16, 32, high=256).byte(), small(32), small(16, 32), torch.zeros(16, 32), 16, 32, 32),
    ),
    rotated_pairs: ((4,), lambda: (small(4, 64), small(4, 32), small(4, 32), torch.zeros(4, 64), 64)),
    life: ((20,), lambda: (integers(20, 30, high=2), torch.zeros(20, 30, dtype=torch.int32), 20, 30, 32)),
    insertion_points: (
        (1,),
        lambda: (small(100).sort().values, 100, small(64), torch.zeros(64, dtype=torch.int32), 64),
    ),
    split_product: (
        (2, 3),
        lambda: (small(30, 100), small(100, 13), torch.zeros(30, 13), 30, 13, 100, 16, 16, 16, 3),
    ),
    convolution: ((3, 2), lambda: (small(20, 30), small(3, 3), torch.zeros(20, 30), 20, 30, 3, 8, 16)),
}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_program(program):
    grid, arguments = PROGRAMS[program]
    check(program, grid, *arguments())


def test_tuple_of_tensors():
    rows, out = tuple(small(32) for _ in range(3)), torch.zeros(32)
    sum_of_all[(1,)](rows, out, square, 32)
    assert torch.equal(out, sum(row**4 for row in rows))


@triton.jit
def running_sums(x, out, sums, done, N: tl.constexpr):
    """Each program waits for the one before it."""
    p, i = tl.program_id(0), tl.arange(0, N)
    v, before = tl.load(x + p * N + i), 0.0
    if p > 0:
        while tl.atomic_add(done + p - 1, 0) == 0:
            pass
        before = tl.load(sums + p - 1, volatile=True)
    tl.store(sums + p, before + tl.sum(v, 0))
    tl.debug_barrier()
    tl.atomic_xchg(done + p, 1, sem="release")
    tl.store(out + p * N + i, before + tl.cumsum(v, 0))


@triton.jit
def counted(lock, count, n):
    for _ in range(n):
        while tl.atomic_cas(lock, 0, 1) == 1:
            pass
        tl.store(count, tl.load(count, volatile=True) + 1)
        tl.debug_barrier()
        tl.atomic_xchg(lock, 0)


def test_programs_that_wait_for_each_other():
    x, out, sums, done = small(64 * 64), torch.zeros(64 * 64), torch.zeros(64), torch.zeros(64, dtype=torch.int32)
    running_sums[(64,)](x, out, sums, done, 64)
    assert torch.equal(out, x.cumsum(0))
    lock, count = torch.zeros(2, dtype=torch.int32)
    counted[(8,)](lock, count, 500)
    assert count == 4000


@triton.jit
def sums_of_tables(tables, sizes, out, N: tl.constexpr):
    """Addresses that are numbers in memory."""
    g = tl.program_id(0)
    table, n = tl.load(tables + g).to(tl.pointer_type(tl.float32)), tl.load(sizes + g)
    total = 0.0
    for start in range(0, n, N):
        i = start + tl.arange(0, N)
        total += tl.sum(tl.load(table + i, mask=i < n, other=0.0), 0)
    tl.store(out + g, total)


def test_tables_of_addresses():
    tables = [small(n) for n in (100, 37, 300)]
    out = torch.zeros(3)
    addresses, sizes = torch.tensor([t.data_ptr() for t in tables]), torch.tensor([len(t) for t in tables])
    sums_of_tables[(3,)](addresses, sizes, out, 64)
    assert out.tolist() == [t.sum() for t in tables]
