"""The library's own way in: a kernel is compiled from dtypes alone, or found on disk, and called without Triton's
launcher.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from .. import kernels
from . import build, cache, debug
from .compiler import CPUBackend, cpu_target
from .forks import forked
from .launcher import runtime_arguments
from .runtime import Kernel

_POINTER = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64", torch.bool: "*i1",
    torch.int8: "*i8", torch.uint8: "*u8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
_LIBRARY = Path(kernels.__file__).parent
_kernels: dict[str, Kernel] = {}
# By thread: what is told of its launches, as `watcher(kernel, launch, tensors)`; of one that is checked no kernel.
watchers: dict[int, Callable[[Kernel | None, object, Sequence[torch.Tensor | None]], None]] = {}


def _integer(value: int) -> str:
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


def _code(kernel: JITFunction) -> str:
    """Names a kernel's source. Triton's own key parses the kernel and all that it calls, 8 ms for a convolution, where
    the library's files are read in less than one.
    """
    function = kernel.fn
    if Path(function.__code__.co_filename).parent != _LIBRARY:
        return kernel.cache_key
    return f"{build.sources(_LIBRARY)} {function.__module__}.{function.__qualname__}"


def _debugging() -> bool:
    """Whether launches are checked against their tensors' bounds: TRITONCONV_DEBUG=1, read at each bind."""
    return os.environ.get("TRITONCONV_DEBUG", "0") not in ("", "0")


@dataclass(frozen=True, eq=False)
class Request:
    """What a kernel's machine code is made from. `signature`: parameter → "*fp32", "i32", …, "constexpr"."""

    kernel: JITFunction
    signature: dict[str, str]
    constexprs: dict[str, object]
    checked: bool = False

    @cached_property
    def name(self) -> str:
        constexprs = sorted((k, repr(v)) for k, v in self.constexprs.items())
        return cache.key(_code(self.kernel), self.signature, constexprs, self.checked)

    def compile(self) -> build.Binary:
        backend = CPUBackend(cpu_target())
        # What the library's launches write is memory that they have just been given.
        options = backend.parse_options({"debug": self.checked, "disjoint": True})
        binary = build.compile_source(ASTSource(self.kernel, self.signature, self.constexprs, {}), backend, options)
        cache.keep(self.name, binary)
        return binary


def request(launch, dtypes: tuple[torch.dtype | None, ...], checked: bool = False) -> Request:
    """The request for a launch on tensors of `dtypes`, None where the kernel is given none."""
    names = launch.kernel.arg_names
    types = ["constexpr" if t is None else _POINTER[t] for t in dtypes] + [_integer(size) for size in launch.sizes]
    for at, box in launch.boxes.items():
        types[at] = f"tensordesc<{types[at][1:]}{list(box.block)}>"
    signature = dict(zip(names, types, strict=False)) | dict.fromkeys(launch.constexprs, "constexpr")
    absent = {name: None for name, t in zip(names, dtypes, strict=False) if t is None}
    return Request(launch.kernel, signature, absent | dict(launch.constexprs), checked)


def load(requests: Sequence[Request]) -> list[Kernel]:
    """The requested kernels, from disk if they are there. Several that are not are compiled side by side."""
    kernels = {r.name: _kernels.get(r.name) for r in requests}
    wanted = {r.name: r for r in requests if kernels[r.name] is None}
    binaries = {name: cache.find(name) for name in wanted}
    absent = [wanted[name] for name, binary in binaries.items() if binary is None]
    binaries.update(zip([r.name for r in absent], forked(Request.compile, absent), strict=True))
    made = {name: Kernel(binary) for name, binary in binaries.items()}
    _kernels.update(made)
    return [(kernels | made)[r.name] for r in requests]


def load_launches(launches: Sequence[tuple]) -> list[Kernel]:
    """The kernels of `request`'s arguments, (launch, dtypes) each."""
    return load([request(launch, dtypes, _debugging()) for launch, dtypes in launches])


def bind(launch):
    """A function of the launch's tensors. The compiled kernel is looked up once per combination of dtypes."""
    by_dtype: dict[tuple, Kernel] = {}
    grid, sizes, checked = launch.grid, tuple(launch.sizes), _debugging()

    def kernel_of(tensors) -> Kernel:
        dtypes = tuple([None if t is None else t.dtype for t in tensors])
        kernel = by_dtype.get(dtypes)
        if kernel is None:
            (kernel,) = load([request(launch, dtypes, checked)])
            by_dtype[dtypes] = kernel
        if watchers and (watcher := watchers.get(threading.get_ident())) is not None:
            watcher(None if checked else kernel, launch, tensors)
        return kernel

    def run(*tensors):
        kernel_of(tensors)(grid, [t.data_ptr() for t in tensors if t is not None] + list(sizes))

    def arguments(operands, pointer) -> list:
        """What the machine code takes, descriptors taken apart."""
        given = [operand for operand in operands if operand is not None]
        kinds = ["*" if isinstance(operand, torch.Tensor) else "tensordesc" for operand in given]
        return [*runtime_arguments(kinds, given, pointer), *sizes]

    def run_boxed(*tensors):
        operands = launch.operands(tensors)  # which own their memory until the kernel is through
        kernel_of(tensors)(grid, arguments(operands, torch.Tensor.data_ptr))

    def run_checked(*tensors):
        debug.launch(kernel_of(tensors), grid, arguments(launch.operands(tensors), lambda tensor: tensor))

    return run_checked if checked else run_boxed if launch.boxes else run
