"""Tensors rearranged: reshape, permute, join, split, gather, broadcast, views of three dimensions."""

import pytest
import torch
import triton
import triton.language as tl
from oracle import DTYPES, check


@triton.jit
def rearrange(x, out, op: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """`op` turns an A × B tensor into one of A * B elements, in any shape; stored row by row."""
    v = op(tl.load(x + tl.arange(0, A)[:, None] * B + tl.arange(0, B)[None, :]))
    tl.store(out + tl.arange(0, A * B), tl.reshape(v, [A * B]))


PROGRAMS = {}


def program(function):
    PROGRAMS[function.__name__] = triton.jit(function)
    return PROGRAMS[function.__name__]


@program
def transposed(x):
    return tl.trans(x)


@program
def reshaped(x):
    return tl.trans(tl.reshape(x, [4, 8, 4, 4]), (2, 0, 3, 1)) + 1.0


@program
def permuted_back(x):
    return tl.permute(tl.permute(tl.reshape(x, [8, 16, 4]), (1, 2, 0)), (2, 0, 1))


@program
def split_and_joined(x):
    a, b = tl.split(tl.reshape(x, [16, 16, 2]))
    return tl.join(b * 2, a)


@program
def interleaved(x):
    a, b = tl.split(tl.trans(tl.reshape(x, [16, 2, 16]), (0, 2, 1)))
    return tl.interleave(a, b)


@program
def flipped(x):
    return tl.flip(x, 1)


@program
def concatenated(x):
    row = tl.reshape(x, [512])
    a, b = tl.split(tl.trans(tl.reshape(row, [2, 256])))
    return tl.cat(b, a, can_reorder=True)


@program
def swizzled(x):
    i = tl.arange(0, 16)[:, None]
    j = tl.arange(0, 32)[None, :]
    a, b = tl.swizzle2d(i, j, 16, 32, 4)
    return x + a * 100 + b


@program
def gathered(x):
    j = (tl.arange(0, 16)[:, None] * 7 + tl.arange(0, 32)[None, :] * 5) % 32
    return tl.gather(x, j, 1)


@program
def gathered_rows(x):
    i = (tl.arange(0, 16)[:, None] * 7 + tl.arange(0, 32)[None, :] * 5) % 16
    return tl.gather(x, i, 0)


@program
def centred(x):
    """A reduction's result broadcast back, twice."""
    y = x - tl.sum(x, 1)[:, None]
    return y * tl.max(y, 0)[None, :]


@program
def outer(x):
    """Broadcasts of both axes, and of a scalar."""
    r, c = tl.sum(x, 1), tl.sum(x, 0)
    return r[:, None] * c[None, :] + tl.sum(r, 0)


@program
def kept_dims(x):
    return x * tl.sum(x, 1, keep_dims=True) + tl.min(x, 0, keep_dims=True)


@program
def full(x):
    return x + tl.full([16, 32], 3, tl.float32) + tl.zeros_like(x) + tl.cast(tl.arange(0, 32), tl.float32)[None, :]


@pytest.mark.parametrize("op", PROGRAMS.values(), ids=PROGRAMS)
def test_rearranged(op):
    """Of small integers: what is computed besides is exact."""
    x = torch.randint(-9, 10, (16, 32)).float()
    if op is concatenated:  # its order is free
        (_, out) = check_sorted(x)
    else:
        check(rearrange, (1,), x, torch.zeros_like(x), op, 16, 32)


def check_sorted(x):
    out = torch.zeros_like(x)
    rearrange[(1,)](x, out, concatenated, 16, 32)
    torch.testing.assert_close(out.flatten().sort().values, x.flatten().sort().values, rtol=0, atol=0)
    return x, out


@pytest.mark.parametrize("dtype", ["i1", "i8", "i16", "i64", "f16", "bf16", "f64"])
def test_types(dtype):
    x = torch.randint(0, 2, (16, 32)).to(DTYPES[dtype])
    for op in (transposed, split_and_types, gathered):
        check(rearrange, (1,), x, torch.zeros_like(x), op, 16, 32)


@triton.jit
def split_and_types(x):
    a, b = tl.split(tl.reshape(x, [16, 16, 2]))
    return tl.join(b, a)


@triton.jit
def three_dimensions(x, out, sa, sb, sc, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    a = tl.arange(0, A)[:, None, None]
    b = tl.arange(0, B)[None, :, None]
    c = tl.arange(0, C)[None, None, :]
    v = tl.load(x + a * sa + b * sb + c * sc, mask=(a + b < 7) & (c != 3), other=-1.0)
    tl.store(out + (a * B + b) * C + c, v)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_strides(order):
    x = torch.randn(4, 8, 16)
    view = x.permute(order)
    check(three_dimensions, (1,), x, torch.zeros(view.shape), *view.stride(), *view.shape)
