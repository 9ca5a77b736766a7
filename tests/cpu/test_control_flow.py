"""Loops, branches and returns, with scalars and tensors passing through them."""

import pytest
import torch
import triton
import triton.language as tl
from oracle import check

N = 32


@triton.jit
def swapped(x, out, n, N: tl.constexpr):
    """Carried tensors that exchange places."""
    i = tl.arange(0, N)
    a, b, c = tl.load(x + i), tl.load(x + i) * 2, tl.full([N], 1, tl.float32)
    for k in range(n):
        a, b, c = b, a + k, a
    tl.store(out + i, a + 10 * b + 100 * c)


@triton.jit
def rotated(x, out, n, N: tl.constexpr):
    """A carried tensor that each turn reads at other places, integers and booleans carried too."""
    i = tl.arange(0, N)
    v, j, odd = tl.load(x + i), i, i % 2 == 0
    p = x + i
    for k in tl.range(1, n + 1):
        v = tl.flip(v, 0) + tl.sum(v, 0)
        j = j * 3 % N
        odd = odd ^ (j > k)
        p += 1
    tl.store(out + i, v + j + odd.to(tl.float32) + tl.load(p))


@triton.jit
def nested(x, out, n, N: tl.constexpr):
    i = tl.arange(0, N)
    total = tl.zeros([N], tl.float32)
    count = 0
    for a in range(0, n, 2):
        row = tl.load(x + (i + a) % N)
        for b in range(a, n):
            total += row * b
            count += 1
        for b in tl.static_range(3):
            total += tl.where(i > b, row, -row)
    tl.store(out + i, total + count)


@triton.jit
def backwards(x, out, n, N: tl.constexpr):
    i = tl.arange(0, N)
    total = tl.zeros([N], tl.float32)
    for k in range(n, 0, -1):
        total = total * 2 + tl.load(x + i) * k
    for k in range(0, -n, -2):
        total -= k
    tl.store(out + i, total)


@triton.jit
def branches(x, out, n, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    s = 1.0
    if n > 2:
        if n % 2 == 0:
            v = tl.sum(v, 0) - v
            s = 2.0
        else:
            v = v * v
    else:
        s = 5.0
    for k in range(n):
        if k % 2 == 0:
            v += k
            tl.store(out + N + i, v)
        else:
            v, s = v * s, s + 1
    tl.store(out + i, v * s)


@triton.jit
def while_scalars(x, out, n, N: tl.constexpr):
    """Collatz's steps."""
    i = tl.arange(0, N)
    steps, m = 0, n + 1
    while m != 1:
        m = m // 2 if m % 2 == 0 else 3 * m + 1
        steps += 1
    tl.store(out + i, tl.load(x + i) + steps)


@triton.jit
def while_tensors(x, out, n, N: tl.constexpr):
    i = tl.arange(0, N)
    v, w, turns = tl.load(x + i), tl.zeros([N], tl.float32), 0
    while (tl.max(v, 0) > 1) & (turns < 50):
        v, w = w * 0.5, v - n
        turns += 1
    tl.store(out + i, v + w * 100 + turns)


@triton.jit
def early_return(x, out, n, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    if n == 0:
        return
    tl.store(out + i, v)
    if tl.sum(v, 0) > 0:
        tl.store(out + i, -v)
        return
    tl.store(out + N + i, v * n)


@triton.jit
def magnitude(v, s):
    """Returns from within: values of both kinds meet after it."""
    if s > 3:
        return v * s, s
    return -v, s + 1


@triton.jit
def returned_values(x, out, n, N: tl.constexpr):
    i = tl.arange(0, N)
    v, s = magnitude(tl.load(x + i), n)
    w, t = magnitude(v, s + 2)
    tl.store(out + i, v + w * s + t)


@triton.jit
def program_ids(x, out, n, N: tl.constexpr):
    a, b, c = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    flat = (c * tl.num_programs(1) + b) * tl.num_programs(0) + a
    if flat < N:
        tl.store(out + flat, tl.load(x + flat) + a + 10 * b + 100 * c + tl.num_programs(2))


PROGRAMS = [swapped, rotated, nested, backwards, branches, while_scalars, while_tensors, early_return, returned_values]


@pytest.mark.parametrize("kernel", PROGRAMS, ids=lambda f: f.__name__)
def test_flow(kernel):
    """Small integers, so that all is exact; 0 turns, one, several."""
    x = torch.randint(-3, 4, (2 * N,)).float()
    for n in (0, 1, 2, 5):
        check(kernel, (1,), x, torch.zeros(2 * N), n, N)
        check(kernel, (1,), x.abs(), torch.zeros(2 * N), n, N)


@triton.jit
def loop_in_branch(x, out, n, N: tl.constexpr):
    """What a branch hands on was made inside of it: it may not be read before."""
    i = tl.arange(0, N)
    total = tl.zeros([N], tl.float32)
    for a in range(n):
        if a % 2 == 0:
            for b in range(a, n):
                total += tl.load(x + i) * b
    tl.store(out + i, total)


@pytest.mark.parametrize("n", (0, 1, 2, 5))
def test_a_loop_in_a_branch_in_a_loop(n):
    check(loop_in_branch, (1,), torch.arange(N).float(), torch.zeros(N), n, N)


@triton.jit
def summed_up(x, out, n, N: tl.constexpr):
    """Sums, products and the last values, of two types, over rows of which the last columns are masked off; then read
    across."""
    i = tl.arange(0, N)[None, :]
    total, last, half = tl.zeros([1, N], tl.float32), tl.zeros([1, N], tl.float32), tl.full([1, N], 1, tl.float16)
    for a in range(n):
        for b in range(a % 3):
            row = tl.load(x + a + b + i, mask=i < N - 3, other=-1.0)
            total, last = total + row * b, row
        half = half * 2 + tl.load(x + a + i).to(tl.float16)
    tl.store(out + i, total + tl.sum(total, 1)[:, None])
    tl.store(out + N + (N - 1 - i), tl.trans(tl.trans(last)) + half)


@pytest.mark.parametrize("width", (16, 32, 64))
@pytest.mark.parametrize("n", (0, 1, 2, 7))
def test_loops_carry_tensors_of_a_few_vectors_in_registers(n, width):
    """Or in memory where they are wider, by the same code."""
    check(summed_up, (1,), torch.arange(128.0) % 11, torch.zeros(2 * width), n, N=width)


@triton.jit
def summed_one(x, out, n, N: tl.constexpr):
    i = tl.arange(0, 1)[:, None] + tl.arange(0, 1)[None, :]
    total = tl.zeros([1, 1], tl.float32)
    for a in range(n):
        total += tl.load(x + a + i)
    tl.store(out + tl.arange(0, 1), tl.sum(total, 0))


@pytest.mark.parametrize("n", (0, 1, 7))
def test_loops_carry_tensors_of_one_element(n):
    check(summed_one, (1,), torch.arange(128.0), torch.zeros(1), n, N)


def test_grid():
    check(program_ids, (3, 4, 2), torch.zeros(N), torch.zeros(N), 0, N)
    out = torch.zeros(N)
    program_ids[(0, 4, 2)](torch.zeros(N), out, 0, N)  # an empty grid runs nothing
    assert not out.any()


@triton.jit
def larger_doubled(a, b):
    if a > b:
        r = a * 2
    else:
        r = b
        while r < 3:
            r += 2
    return r, a - b


@triton.jit
def mapped(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    r, d = tl.map_elementwise(larger_doubled, v, tl.flip(v, 0))
    tl.store(out + i, r)
    tl.store(out + N + i, d)


def test_map_elementwise():
    """The interpreter cannot run it."""
    x, out = torch.randint(-3, 4, (N,)).float(), torch.zeros(2, N)
    mapped[(1,)](x, out, N)
    y = x.flip(0)
    odd_or_large = torch.where(y < 3, torch.where(y % 2 == 0, 4, 3), y)
    torch.testing.assert_close(out[0], torch.where(x > y, 2 * x, odd_or_large), rtol=0, atol=0)
    torch.testing.assert_close(out[1], x - y, rtol=0, atol=0)


@triton.jit
def magnitude_or_double(a):
    if a < 0:
        return -a
    return a * 2


@triton.jit
def mapped_early(x, out, n, N: tl.constexpr):
    """Early returns of the function, in a kernel that has one, too."""
    if tl.program_id(0) >= n:
        return
    i = tl.program_id(0) * N + tl.arange(0, N)
    v = tl.map_elementwise(magnitude_or_double, tl.load(x + i))
    tl.store(out + i, v + tl.map_elementwise(magnitude_or_double, v - 3))


def test_map_elementwise_with_early_returns():
    x, out = torch.randint(-3, 4, (2 * N,)).float(), torch.zeros(2 * N)
    mapped_early[(3,)](x, out, 1, N)
    v = torch.where(x < 0, -x, 2 * x)
    expected = v + torch.where(v < 3, 3 - v, 2 * (v - 3))
    assert torch.equal(out, torch.where(torch.arange(2 * N) < N, expected, 0.0))
