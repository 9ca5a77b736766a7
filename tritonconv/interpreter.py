"""Runs a `@triton.jit` kernel on Triton's interpreter (numpy, one program after the other), in this process.

Triton offers its interpreter only to processes started with TRITON_INTERPRET=1, because then `@triton.jit` itself
returns something else. Here the kernel is the ordinary JITFunction that the compilers take. What a launch needs is put
in place for its duration and taken away after it: `triton.language` speaks numpy (Triton's own patch), and a
JITFunction that is called, or bound as a method (`x.max(axis=0)`), runs its interpreted twin. Bfloat16, on whose bits
Triton's interpreter computes as if they were integers, is computed in float32 and rounded to nearest even.

Launches are serialised by a lock. No kernel may be compiled in another thread meanwhile: both use `triton.language`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator

import numpy as np
import triton.compiler.code_generator  # noqa: F401  it notes what `tl.static_assert` is, and must not note the patch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle
from triton.runtime.jit import JITFunction

_lock = threading.RLock()
_OPTIONS = interpreter.InterpreterOptions(sanitize_overflow=False)


class _Rewriter(interpreter.FunctionRewriter):
    """Triton's rewriting of a kernel's source, compiled into a namespace of its own instead of the kernel's module."""

    def _compile_and_exec(self, tree):
        # GridExecutor patches the language modules that it finds in this namespace; `tl.core` is what `tl.max` and its
        # like call, and kernels rarely import it themselves.
        namespace = {
            **vars(interpreter),
            "_triton_language_core": tl.core,
            **self.fn.__globals__,
            **inspect.getclosurevars(self.fn).nonlocals,
        }
        exec(compile(tree, self.filename, "exec"), namespace)
        return namespace[self.fn.__name__]


@functools.cache
def _twin(fn: Callable) -> Callable:
    """The Python function under a kernel, rewritten to compute on the interpreter's tensors."""
    return _Rewriter(fn).rewrite_ast()


def _call(self, *args, **kwargs):
    return _twin(self.fn)(*args, **kwargs)


def _bind(self, instance, owner=None):
    return self if instance is None else functools.partial(_call, self, instance)


def _is_bf16(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _widen(handle: TensorHandle) -> TensorHandle:
    if not _is_bf16(handle):
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _narrow(handle: TensorHandle) -> TensorHandle:
    bits = handle.data.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x40
    return TensorHandle(np.where(np.isnan(handle.data), quiet_nan, rounded).astype(np.uint16), tl.bfloat16)


class _Builder(interpreter.InterpreterBuilder):
    """The numpy behind `triton.language`, with bfloat16 arithmetic."""

    @property
    def options(self):
        # Goes before the instance's own, which check each integer operation for overflow and so take twice the time.
        return _OPTIONS

    def set_grid_dim(self, *grid):
        super().set_grid_dim(*grid)
        # Runs after Triton's patch and before the first program. Triton 3.6 converts an array of shape (1,), which
        # numpy refuses since 2.4; the patch being undone restores the original.
        tl.tensor.__index__ = lambda self: int(self.handle.data.squeeze())

    def get_bf16(self, value):
        return _narrow(self.get_fp32(value))

    def cast_impl(self, src, dst_type):
        if dst_type.scalar == tl.bfloat16:
            return _narrow(super().cast_impl(_widen(src), tl.float32))
        return super().cast_impl(_widen(src), dst_type)

    def create_fp_to_fp(self, src, dst_type, rounding_mode):
        if _is_bf16(src) or dst_type.scalar == tl.bfloat16:
            return self.cast_impl(src, dst_type)
        return super().create_fp_to_fp(src, dst_type, rounding_mode)

    def _in_float32(self, operation, *handles, op):
        result = operation(*map(_widen, handles), op)
        return TensorHandle(result.data, tl.int1) if result.data.dtype == bool else _narrow(result)

    def unary_op(self, arg, op):
        if _is_bf16(arg):
            return self._in_float32(super().unary_op, arg, op=op)
        return super().unary_op(arg, op)

    def binary_op(self, lhs, rhs, op):
        if _is_bf16(lhs):
            return self._in_float32(super().binary_op, lhs, rhs, op=op)
        result = super().binary_op(lhs, rhs, op)
        # Triton labels the result of a comparison with its operands' type, into which `create_splat` then converts it.
        return TensorHandle(result.data, tl.int1) if result.data.dtype == bool else result

    def ternary_op(self, lhs, rhs, other, op):
        if _is_bf16(other):
            return self._in_float32(super().ternary_op, lhs, rhs, other, op=op)
        return super().ternary_op(lhs, rhs, other, op)

    def create_fma(self, x, y, z):
        dtype = z.dtype.scalar
        if dtype == tl.float64:
            return super().create_fma(x, y, z)
        # Triton before 3.9 rounds the product, which float64 holds exactly.
        x, y, z = (_widen(handle).data.astype(np.float64) for handle in (x, y, z))
        return self.create_fp_trunc(TensorHandle(x * y + z, tl.float64), dtype)

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        return super().create_dot(_widen(a), _widen(b), d, input_precision, max_num_imprecise_acc)


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    """Within this context a kernel can be called, is a method where a class has it, and computes by `_Builder`."""
    builder = interpreter.interpreter_builder
    calls = {kind: kind.__call__ for kind in (JITFunction, interpreter.InterpretedFunction)}
    builder.__class__ = _Builder
    for kind in calls:
        kind.__call__, kind.__get__ = _call, _bind
    try:
        yield
    finally:
        builder.__class__ = interpreter.InterpreterBuilder
        for kind, call in calls.items():
            kind.__call__ = call
            del kind.__get__


def run(kernel, grid: tuple[int, ...], *args, **kwargs) -> None:
    """Launch `kernel[grid](*args, **kwargs)` on the interpreter; options of the compilers (`num_warps` …) are ignored.

    `kernel` is a JITFunction, or, in a process started with TRITON_INTERPRET=1, the InterpretedFunction in its place.
    Tensors may live on any device; those of another device than the CPU are copied there and back.
    An error in the kernel is raised as `triton.runtime.errors.InterpreterError`, the original as its cause.
    """
    with _lock, _installed(), np.errstate(all="ignore"):  # as on a GPU, inf and NaN are results and raise no warning
        interpreter.GridExecutor(_twin(kernel.fn), kernel.arg_names, grid)(*args, **kwargs)
