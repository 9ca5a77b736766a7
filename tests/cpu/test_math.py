"""Elementary functions against double precision."""

import numpy
import pytest
import torch
import triton
import triton.language as tl
from oracle import DTYPES, assert_close
from triton.language.extra import libdevice

N = 4096


@triton.jit
def unary(x, out, op: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, op(tl.load(x + i)))


@triton.jit
def binary(x, y, out, op: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, op(tl.load(x + i), tl.load(y + i)))


@triton.jit
def erf_of(x):
    return tl.math.erf(x)


@triton.jit
def exp_of(x):
    return tl.exp(x)


@triton.jit
def exp2_of(x):
    return tl.exp2(x)


@triton.jit
def log_of(x):
    return tl.log(x)


@triton.jit
def log2_of(x):
    return tl.log2(x)


@triton.jit
def sin_of(x):
    return tl.sin(x)


@triton.jit
def cos_of(x):
    return tl.cos(x)


@triton.jit
def sqrt_of(x):
    return tl.sqrt(x)


@triton.jit
def rsqrt_of(x):
    return tl.rsqrt(x)


@triton.jit
def floor_of(x):
    return tl.floor(x)


@triton.jit
def ceil_of(x):
    return tl.ceil(x)


@triton.jit
def sigmoid_of(x):
    return tl.sigmoid(x)


@triton.jit
def tanh_of(x):
    return libdevice.tanh(x)


@triton.jit
def log1p_of(x):
    return libdevice.log1p(x)


@triton.jit
def expm1_of(x):
    return libdevice.expm1(x)


@triton.jit
def round_of(x):
    return libdevice.rint(x)


@triton.jit
def pow_of(x, y):
    return libdevice.pow(x, y)


@triton.jit
def atan2_of(x, y):
    return libdevice.atan2(x, y)


@triton.jit
def divide_exactly(x, y):
    return tl.math.div_rn(x, y)


EXACT = {"sqrt": sqrt_of, "floor": floor_of, "ceil": ceil_of, "round": round_of}
# function → (Triton's, ulp by which the best polynomial and its final rounding may be off)
ROUNDED = {
    "exp": (exp_of, 2), "exp2": (exp2_of, 2), "log": (log_of, 2), "log2": (log2_of, 2), "sin": (sin_of, 2),
    "cos": (cos_of, 2), "rsqrt": (rsqrt_of, 2), "erf": (erf_of, 4), "sigmoid": (sigmoid_of, 4), "tanh": (tanh_of, 3),
    "log1p": (log1p_of, 2), "expm1": (expm1_of, 2),
}  # fmt: skip


def arguments(dtype: torch.dtype) -> torch.Tensor:
    """All magnitudes, both signs, and what is not finite."""
    tiny, huge = torch.finfo(dtype).smallest_normal / 2**8, torch.finfo(dtype).max
    exponents = torch.linspace(torch.tensor(tiny).log2(), torch.tensor(huge, dtype=torch.float64).log2() - 1e-3, N // 4)
    wide = torch.exp2(exponents.double())
    near = torch.linspace(-20, 20, N // 2 - 8, dtype=torch.float64)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.0, -1.0, 0.5], dtype=torch.float64)
    return torch.cat([special, near, wide, -wide]).to(dtype)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", EXACT)
def test_exact(name, dtype):
    x = arguments(DTYPES[dtype])
    out = torch.empty_like(x)
    unary[(1,)](x, out, EXACT[name], N)
    with numpy.errstate(invalid="ignore"):
        want = getattr(numpy, name.replace("round", "rint"))(x.numpy())
    assert_close(out, torch.from_numpy(want))


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", ROUNDED)
def test_rounded(name, dtype):
    function, ulp = ROUNDED[name]
    x = arguments(DTYPES[dtype])
    out = torch.empty_like(x)
    unary[(1,)](x, out, function, N)
    # 1 / (1 + exp(-x)), which is how Triton writes sigmoid, is zero where exp(-x) overflows
    assert_close(out, getattr(torch, name)(x.double()).to(x.dtype), ulp, atol=torch.finfo(x.dtype).tiny)


@pytest.mark.parametrize(
    "op,reference,dtype,ulp",
    [(pow_of, torch.pow, "f32", 2), (pow_of, torch.pow, "f64", 1), (atan2_of, torch.atan2, "f32", 2),
     (atan2_of, torch.atan2, "f64", 1), (divide_exactly, torch.div, "f32", 0)],
)  # fmt: skip
def test_binary(op, reference, dtype, ulp):
    x, y = arguments(DTYPES[dtype]), arguments(DTYPES[dtype]).flip(0) / 3
    out = torch.empty_like(x)
    binary[(1,)](x, y, out, op, N)
    assert_close(out, reference(x.double(), y.double()).to(x.dtype), ulp)


@triton.jit
def flags(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    tl.store(out + i, libdevice.isnan(v).to(tl.int32) + libdevice.isinf(v) * 2 + libdevice.signbit(v) * 4)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_flags(dtype):
    x, out = arguments(DTYPES[dtype]), torch.zeros(N, dtype=torch.int32)
    flags[(1,)](x, out, N)
    assert torch.equal(out, x.isnan().int() + x.isinf() * 2 + (x.signbit() * 4))


@triton.jit
def bits(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    tl.store(out + i, libdevice.popc(v))
    tl.store(out + N + i, libdevice.clz(v))
    tl.store(out + 2 * N + i, libdevice.ffs(v))


@pytest.mark.parametrize("dtype,width", [(torch.int32, 32), (torch.int64, 64)])
def test_bits(dtype, width):
    special = [0, 1, -1, 2 ** (width - 1) - 1, -(2 ** (width - 1))]
    x = torch.tensor(special + [(-3) ** k for k in range(1, 17)] + [1 << k for k in range(11)], dtype=dtype)
    out = torch.zeros(3, 32, dtype=torch.int32)
    bits[(1,)](x, out, 32)
    patterns = [v % 2**width for v in x.tolist()]
    expected = [[v.bit_count(), width - v.bit_length(), (v & -v).bit_length()] for v in patterns]
    assert out.T.tolist() == expected
