"""The interpreter engine on kernels of all kinds: it is the oracle for the other engines."""

import os
import subprocess
import sys
import threading

import pytest
import torch
import triton
import triton.language as tl
from cases import normal
from triton.runtime.errors import InterpreterError
from triton.runtime.jit import JITFunction

from tritonconv import interpreter


@triton.jit
def square(x):
    return x * x


@triton.jit
def product(a, b):
    return a * b


@triton.jit
def reductions(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=1.0)
    tl.store(out_ptr + 0, tl.sum(x, axis=0))
    tl.store(out_ptr + 1, tl.max(x, axis=0))
    tl.store(out_ptr + 2, x.min(axis=0))  # bound as a method
    tl.store(out_ptr + 3, tl.reduce(x, 0, product))  # a combining function of the kernel's own
    tl.store(out_ptr + 4, square(tl.argmax(x, axis=0)))
    tl.store(out_ptr + 5, tl.cdiv(n, 4))
    tl.store(out_ptr + 6, tl.sum(tl.sigmoid(tl.zeros((4,), tl.float32)), axis=0))


def test_functions_that_are_kernels_themselves():
    x = torch.tensor([3.0, -2.0, 5.0, 2.0, 1.0])
    out = torch.empty(7)
    interpreter.run(reductions, (1,), x, out, 5, BLOCK=8)
    assert out.tolist() == [12, 5, -2, -60, 4, 2, 2]


@triton.jit
def programs(out_ptr, STEP: tl.constexpr):
    i, j, k = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    for _ in range(0, tl.num_programs(0), STEP):
        place = (i * tl.num_programs(1) + j) * tl.num_programs(2) + k
        tl.atomic_add(out_ptr + place, place)


def test_grids_and_loops():
    out = torch.zeros(2 * 3 * 4, dtype=torch.int32)
    interpreter.run(programs, (2, 3, 4), out, STEP=1, num_warps=8)
    assert torch.equal(out, 2 * torch.arange(24, dtype=torch.int32))


@triton.jit
def arithmetic(x_ptr, y_ptr, z_ptr, out_ptr, flag_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x, y, z = tl.load(x_ptr + i), tl.load(y_ptr + i), tl.load(z_ptr + i)
    tl.store(out_ptr + 0 * N + i, x + y)
    tl.store(out_ptr + 1 * N + i, x * y)
    tl.store(out_ptr + 2 * N + i, -x)
    tl.store(out_ptr + 3 * N + i, tl.fma(x, y, z))
    tl.store(out_ptr + 4 * N + i, tl.where(x < y, x, y))
    tl.store(out_ptr + 5 * N + i, tl.abs(x))
    tl.store(out_ptr + 6 * N + i, i.to(out_ptr.dtype.element_ty))
    tl.store(out_ptr + 7 * N + i, tl.full((N,), 0.1, out_ptr.dtype.element_ty))
    tl.store(flag_ptr + i, x < y)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
def test_arithmetic_is_torchs(dtype):
    N = 512
    x, y, z = (normal((N,), dtype, seed=seed) for seed in range(3))
    x[:3] = torch.tensor([float("nan"), float("inf"), 1.9990234375])
    out, flags = torch.empty(8, N, dtype=dtype), torch.empty(N, dtype=torch.bool)
    interpreter.run(arithmetic, (1,), x, y, z, out, flags, N)
    fused = (x.double() * y.double() + z.double()).to(dtype)
    want = (x + y, x * y, -x, fused, torch.where(x < y, x, y), x.abs(), torch.arange(N), torch.full((N,), 0.1))
    torch.testing.assert_close(out, torch.stack([w.to(dtype) for w in want]), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(flags, x < y)


@triton.jit
def cast(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_ptr + i, tl.load(x_ptr + i).to(out_ptr.dtype.element_ty))


@pytest.mark.parametrize("source", (torch.float64, torch.float32, torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("target", (torch.float64, torch.float32, torch.float16, torch.bfloat16), ids=str)
def test_casts_round_to_nearest_even(source, target):
    edges = [float("nan"), float("inf"), -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 255.5, 2 - 2**-9, 1e-40, 6e4]
    x = torch.cat((torch.tensor(edges, dtype=torch.float64), normal((502,)))).to(source)
    out = torch.empty(512, dtype=target)
    interpreter.run(cast, (1,), x, out, 512)
    torch.testing.assert_close(out, x.to(target), rtol=0, atol=0, equal_nan=True)


@triton.jit
def matmul(a_ptr, b_ptr, out_ptr, ACC: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    tile = i[:, None] * N + i[None, :]
    acc = tl.dot(tl.load(a_ptr + tile), tl.load(b_ptr + tile), tl.zeros((N, N), ACC), out_dtype=ACC)
    tl.store(out_ptr + tile, acc)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16, torch.float64), ids=str)
def test_dot(dtype):
    a, b = (normal((16, 16), dtype, seed=seed) for seed in range(2))
    wide, ACC = (torch.float64, tl.float64) if dtype is torch.float64 else (torch.float32, tl.float32)
    out = torch.empty(16, 16, dtype=wide)
    interpreter.run(matmul, (1,), a, b, out, ACC, 16)
    torch.testing.assert_close(out, a.to(wide) @ b.to(wide))


def test_a_kernel_of_a_closure():
    scale: tl.constexpr = tl.constexpr(3)

    @triton.jit
    def scaled(x_ptr):
        tl.store(x_ptr, tl.load(x_ptr) * scale)

    x = torch.tensor([2.0])
    interpreter.run(scaled, (1,), x)
    assert x.item() == 6


@triton.jit
def failing(x_ptr):
    tl.store(x_ptr, undefined)  # noqa: F821


def _language():
    owners = (tl, tl.core, tl.math, tl.tensor, tl.dtype, JITFunction, interpreter.interpreter.InterpreterBuilder)
    return [dict(vars(owner)) for owner in owners] + [type(interpreter.interpreter.interpreter_builder)]


def test_nothing_is_left_behind():
    before, names = _language(), set(globals())
    interpreter.run(reductions, (1,), torch.ones(8), torch.empty(7), 8, BLOCK=8)
    with pytest.raises(InterpreterError, match="undefined") as error:
        interpreter.run(failing, (1,), torch.ones(1))
    assert isinstance(error.value.__cause__, NameError)
    assert _language() == before
    assert set(globals()) == names
    with pytest.raises(RuntimeError, match="outside of the scope of a kernel"):
        square(2)


def test_threads_take_turns():
    outs = [torch.zeros(24, dtype=torch.int32) for _ in range(4)]
    threads = [threading.Thread(target=interpreter.run, args=(programs, (2, 3, 4), out, 1)) for out in outs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for out in outs:
        assert torch.equal(out, 2 * torch.arange(24, dtype=torch.int32))


def run_alone(code: str, **variables: str) -> None:
    """In a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_process_with_triton_interpret():
    """There `triton.jit` makes InterpretedFunctions, which run here too."""
    code = """
import torch, torch.nn.functional as F
from tritonconv import engines
from tritonconv.functional import conv2d
with engines.use("interpreter"):
    for dtype in (torch.float32, torch.bfloat16):
        x, w = torch.randint(-3, 4, (1, 3, 5, 5)).to(dtype), torch.randint(-3, 4, (4, 3, 3, 3)).to(dtype)
        x.requires_grad_()
        got, want = (torch.autograd.grad(f(x, w, stride=2).sum(), x)[0] for f in (conv2d, F.conv2d))
        assert torch.equal(got, want)
"""
    run_alone(code, TRITON_INTERPRET="1")


def test_a_compiler_that_starts_after_the_interpreter_sees_the_language_as_it_is():
    """Triton's front end is imported when something is compiled first, and notes then what `tl.static_assert` is."""
    code = """
import torch, triton.language as tl
from tritonconv import engines, functional
with engines.use("interpreter"):
    functional.max_pool2d(torch.ones(1, 1, 4, 4), 2)
from triton.compiler.code_generator import CodeGenerator
assert {tl.static_assert, tl.static_print} <= set(CodeGenerator.statically_implemented_functions)
"""
    run_alone(code)
