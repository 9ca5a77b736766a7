"""The library's own way in: a kernel compiled from dtypes alone, found on disk or built, and called without Triton's launcher."""

from __future__ import annotations

import torch
from triton.compiler import ASTSource

from . import build, cache
from .compiler import CPUBackend, cpu_target
from .runtime import Kernel

_POINTER = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64", torch.bool: "*i1",
    torch.int8: "*i8", torch.uint8: "*u8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
_kernels: dict[tuple, Kernel] = {}


def _integer(value: int) -> str:
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


def compile_kernel(kernel, signature: dict[str, str], constexprs: dict[str, object]) -> build.Binary:
    """Machine code of `kernel` (a JITFunction) for this machine, from disk if it is there.

    `signature`: parameter → "*fp32", "i32", …, "constexpr".
    """
    name = cache.key(kernel.cache_key, signature, sorted((k, repr(v)) for k, v in constexprs.items()))
    binary = cache.find(name)
    if binary is None:
        backend = CPUBackend(cpu_target())
        binary = build.compile_source(ASTSource(kernel, signature, constexprs, {}), backend, backend.parse_options({}))
        cache.keep(name, binary)
    return binary


def kernel_for(kernel, tensors: tuple[torch.dtype | None, ...], sizes: tuple[int, ...], constexprs: dict) -> Kernel:
    """The compiled kernel for tensors of these dtypes (None where the kernel is given none), then sizes, then constexprs."""
    names = kernel.arg_names
    signature = dict(zip(names, ["constexpr" if t is None else _POINTER[t] for t in tensors] + [_integer(v) for v in sizes]))
    fixed = {n: None for n, t in zip(names, tensors) if t is None} | dict(constexprs)
    signature |= dict.fromkeys(constexprs, "constexpr")
    key = (kernel, *signature.items(), *sorted((k, repr(v)) for k, v in fixed.items()))
    found = _kernels.get(key)
    if found is None:
        found = _kernels[key] = Kernel(compile_kernel(kernel, signature, fixed))
    return found


def bind(launch):
    """A function of the launch's tensors. The compiled kernel is looked up once per combination of dtypes."""
    by_dtype: dict[tuple, Kernel] = {}
    grid, sizes = launch.grid, tuple(launch.sizes)

    def run(*tensors):
        dtypes = tuple([None if t is None else t.dtype for t in tensors])
        kernel = by_dtype.get(dtypes)
        if kernel is None:
            kernel = by_dtype[dtypes] = kernel_for(launch.kernel, dtypes, sizes, launch.constexprs)
        kernel(grid, [t.data_ptr() for t in tensors if t is not None] + list(sizes))

    return run
