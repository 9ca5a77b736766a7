"""The library's own way in: a kernel is compiled from dtypes alone, or found on disk, and called without Triton's
launcher.
"""

from __future__ import annotations

import os

import torch
from triton.compiler import ASTSource

from . import build, cache, debug
from .compiler import CPUBackend, cpu_target
from .runtime import Kernel

_POINTER = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64", torch.bool: "*i1",
    torch.int8: "*i8", torch.uint8: "*u8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
_kernels: dict[tuple, Kernel] = {}


def _integer(value: int) -> str:
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


def _debugging() -> bool:
    """Whether the library's launches are checked against their tensors' bounds: TRITONCONV_DEBUG=1, read at each
    bind."""
    return os.environ.get("TRITONCONV_DEBUG", "0") not in ("", "0")


def compile_kernel(
    kernel, signature: dict[str, str], constexprs: dict[str, object], checked: bool = False
) -> build.Binary:
    """Machine code of `kernel` (a JITFunction) for this machine, from disk if it is there.

    `signature`: parameter → "*fp32", "i32", …, "constexpr".
    """
    name = cache.key(kernel.cache_key, signature, sorted((k, repr(v)) for k, v in constexprs.items()), checked)
    binary = cache.find(name)
    if binary is None:
        backend = CPUBackend(cpu_target())
        options = backend.parse_options({"debug": checked})
        binary = build.compile_source(ASTSource(kernel, signature, constexprs, {}), backend, options)
        cache.keep(name, binary)
    return binary


def kernel_for(
    kernel, tensors: tuple[torch.dtype | None, ...], sizes: tuple[int, ...], constexprs: dict, checked: bool = False
) -> Kernel:
    """The compiled kernel for tensors of these dtypes (None where it is given none), then sizes, then constexprs."""
    names = kernel.arg_names
    kinds = ["constexpr" if t is None else _POINTER[t] for t in tensors] + [_integer(v) for v in sizes]
    signature = dict(zip(names, kinds, strict=False))
    fixed = {n: None for n, t in zip(names, tensors, strict=False) if t is None} | dict(constexprs)
    signature |= dict.fromkeys(constexprs, "constexpr")
    key = (kernel, checked, *signature.items(), *sorted((k, repr(v)) for k, v in fixed.items()))
    found = _kernels.get(key)
    if found is None:
        found = _kernels[key] = Kernel(compile_kernel(kernel, signature, fixed, checked))
    return found


def bind(launch):
    """A function of the launch's tensors. The compiled kernel is looked up once per combination of dtypes."""
    by_dtype: dict[tuple, Kernel] = {}
    grid, sizes, checked = launch.grid, tuple(launch.sizes), _debugging()

    def kernel_of(tensors) -> Kernel:
        dtypes = tuple([None if t is None else t.dtype for t in tensors])
        kernel = by_dtype.get(dtypes)
        if kernel is None:
            kernel = by_dtype[dtypes] = kernel_for(launch.kernel, dtypes, sizes, launch.constexprs, checked)
        return kernel

    def run(*tensors):
        kernel_of(tensors)(grid, [t.data_ptr() for t in tensors if t is not None] + list(sizes))

    def run_checked(*tensors):
        debug.launch(kernel_of(tensors), grid, [t for t in tensors if t is not None] + list(sizes))

    return run_checked if checked else run
