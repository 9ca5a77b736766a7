"""Conversions between every pair of types, roundings, and views of bits."""

import pytest
import torch
import triton
import triton.language as tl
from oracle import DTYPES, FLOATS, assert_close, check, values

N = 128


@triton.jit
def cast(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i).to(out.dtype.element_ty))


@triton.jit
def cast_toward_zero(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i).to(out.dtype.element_ty, fp_downcast_rounding="rtz"))


@triton.jit
def bitcast(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i).to(out.dtype.element_ty, bitcast=True))


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_cast(source, target):
    x = values(DTYPES[source], N)
    if source in FLOATS and target not in FLOATS:  # what does not fit is undefined
        x = values(torch.int8, N).to(DTYPES[source]) + 0.5
        x = x.abs() if target[0] == "u" else x.clamp(-128, 127)
    (_, out) = check(cast, (1,), x, torch.zeros(N, dtype=DTYPES[target]), N)
    if target != "i1":  # the interpreter keeps the bits of what is no bool
        assert_close(out, x.to(DTYPES[target]))


def test_cast_to_bool():
    x = torch.tensor([0, 1, 2, 256, -1, 0, 65536, 3])
    for dtype in (torch.int32, torch.int64):
        out = torch.zeros(8, dtype=torch.bool)
        cast[(1,)](x.to(dtype), out, 8)
        assert out.tolist() == x.bool().tolist()


@pytest.mark.parametrize("target", ["f16", "bf16"])
@pytest.mark.parametrize("source", ["f32", "f64"])
def test_downcast_rounds_once(source, target):
    """Values next to the midpoint of two halves: rounding by way of another type would go wrong."""
    one = torch.ones(N, dtype=torch.float64)
    step = torch.finfo(DTYPES[target]).eps
    x = (one + step * torch.arange(N) + step / 2 + torch.linspace(-1, 1, N).sign() * 2.0**-22).to(DTYPES[source])
    x[::3] = x[::3].double().add(2.0**-45).to(DTYPES[source])
    out = torch.zeros(N, dtype=DTYPES[target])
    cast[(1,)](x, out, N)
    assert_close(out, x.to(DTYPES[target]))


def test_downcast_toward_zero():
    x = values(torch.float32, N)
    out = torch.zeros(N, dtype=torch.bfloat16)
    cast_toward_zero[(1,)](x, out, N)
    exact = (x.view(torch.int32) & -65536).view(torch.float32).to(torch.bfloat16)
    assert_close(out, exact)


@pytest.mark.parametrize(
    "source,target",
    [("f32", "i32"), ("i32", "f32"), ("f16", "i16"), ("i16", "bf16"), ("bf16", "f16"), ("f64", "u64"), ("i64", "f64")],
)
def test_bitcast(source, target):
    x = torch.arange(N).to(DTYPES[source]) if source[0] == "i" else values(DTYPES[source], N)
    check(bitcast, (1,), x, torch.zeros(N, dtype=DTYPES[target]), N)
