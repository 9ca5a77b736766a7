"""Integer arithmetic modulo 2**n, in indices too: what the lowering keeps symbolic must wrap where numbers would."""

import pytest
import torch
import triton
import triton.language as tl
from oracle import check

N = 64


@triton.jit
def hashed_lanes(out, seed, N: tl.constexpr):
    """A congruential generator on the lane number, then widened."""
    i = tl.program_id(0) * N + tl.arange(0, N)
    h = i * 1103515245 + 12345
    tl.store(out + i, h.to(tl.int64))


@triton.jit
def hashed_rows(out, seed, N: tl.constexpr):
    """By a factor known at run time, on rows and columns."""
    i, j = tl.arange(0, 8)[:, None], tl.arange(0, N // 8)[None, :]
    h = i * seed + j * 40503 + tl.program_id(0) * seed
    tl.store(out + tl.program_id(0) * N + i * (N // 8) + j, h.to(tl.int64))


@triton.jit
def compared(out, seed, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    below = (i * 1103515245 + seed) < (i * 69069)
    not_above = (i * seed) <= 1 << 29
    tl.store(out + i, below.to(tl.int64) + 2 * not_above.to(tl.int64))


@triton.jit
def divided(out, seed, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    a = i * 1103515245 + seed
    tl.store(out + i, (a // 1000).to(tl.int64) * 1000003 + a % 97 + (a.to(tl.uint32) % 101).to(tl.int64))


@triton.jit
def near_the_end(out, seed, N: tl.constexpr):
    """Lanes that run over the greatest integer."""
    i = tl.program_id(0) * N + tl.arange(0, N)
    h = i + 2147483600
    tl.store(out + i, h.to(tl.int64) + (h > 0).to(tl.int64) * 7 + h % 3)


@triton.jit
def unsigned(out, seed, N: tl.constexpr):
    i = (tl.program_id(0) * N + tl.arange(0, N)).to(tl.uint32)
    h = i * 2654435761 - 77
    tl.store(out + i, (h >> 3).to(tl.int64) + (h // 10).to(tl.int64) + (h < 1 << 31).to(tl.int64))


@triton.jit
def narrow(out, seed, N: tl.constexpr):
    """Eight and sixteen bits."""
    i = tl.program_id(0) * N + tl.arange(0, N)
    a = i.to(tl.int8) * 37
    b = (i.to(tl.uint16) * 1237).to(tl.int32)
    tl.store(out + i, a.to(tl.int64) + b + (a + i.to(tl.int8)).to(tl.int64) * 1000)


@triton.jit
def floats(out, seed, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    h = i * 1664525 + seed
    bits = h.to(tl.uint32, bitcast=True)
    tl.store(out + i, (h.to(tl.float32) * 2.0).to(tl.int64) + bits.to(tl.float64).to(tl.int64))


PROGRAMS = [hashed_lanes, hashed_rows, compared, divided, near_the_end, unsigned, narrow, floats]


@pytest.mark.parametrize("seed", [1013904223, 2147483647, -1640531527])
@pytest.mark.parametrize("kernel", PROGRAMS, ids=lambda f: f.__name__)
def test_wrapping(kernel, seed):
    check(kernel, (4,), torch.zeros(4 * N, dtype=torch.int64), seed, N)
