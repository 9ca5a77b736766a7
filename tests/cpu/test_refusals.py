"""What the target cannot do fails when it is compiled, naming the operation and the line; what a kernel prints."""

import inspect

import pytest
import torch
import triton
import triton.language as tl

from tritonconv.cpu.errors import UnsupportedOp


@triton.jit(noinline=True)
def outlined(v):
    return v * 2


@triton.jit
def calls(x):
    tl.store(x, outlined(tl.load(x)))  # the line


@triton.jit
def assembles(x):
    v = tl.load(x + tl.arange(0, 4))
    v = tl.inline_asm_elementwise("mov $0, $1;", "=r,r", [v], dtype=tl.float32, is_pure=True, pack=1)  # the line
    tl.store(x + tl.arange(0, 4), v)


@triton.jit
def scales(x):
    i = tl.arange(0, 32)
    a = tl.load(x + i[:, None] * 32 + i[None, :]).to(tl.uint8)
    s = tl.full([32, 2], 127, tl.uint8)
    tl.store(x + i[:, None] * 32 + i[None, :], tl.dot_scaled(a, s, "e2m1", a, s, "e2m1"))  # the line


@triton.jit
def adds_bfloat16(x):
    tl.atomic_add(x.to(tl.pointer_type(tl.bfloat16)), 1.0)  # the line


@pytest.mark.parametrize(
    "kernel,op",
    [
        (calls, "tt.call"),
        (assembles, "tt.elementwise_inline_asm"),
        (scales, "tt.dot_scaled"),
        (adds_bfloat16, "tt.atomic_rmw"),
    ],
)
def test_unsupported(kernel, op):
    lines, first = inspect.getsourcelines(kernel.fn)
    line = first + next(i for i, text in enumerate(lines) if "# the line" in text)
    with pytest.raises(UnsupportedOp, match=rf"cannot lower {op}\b.*{__file__}:{line}"):
        kernel[(1,)](torch.zeros(1024))


@triton.jit
def eighths(x):
    tl.store(x, tl.load(x).to(tl.float8e4nv).to(tl.float32))


def test_float8():
    with pytest.raises(triton.CompilationError, match="fp8e4nv not supported"):
        eighths[(1,)](torch.zeros(1))


@triton.jit
def prints(x, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.device_print("x: 100%", tl.load(x + i), i)
    tl.device_print("program")


def test_print(capfd):
    prints[(1,)](torch.tensor([0.5, -2.0]), 2)
    assert capfd.readouterr().out.splitlines() == [
        "pid (0, 0, 0) idx (0) x: 100%: 0.500000",
        "pid (0, 0, 0) idx (1) x: 100%: -2.000000",
        "pid (0, 0, 0) idx (0) x: 100%: 0",
        "pid (0, 0, 0) idx (1) x: 100%: 1",
        "pid (0, 0, 0) program",
    ]
