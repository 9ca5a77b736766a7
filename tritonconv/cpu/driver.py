"""Triton's view of the CPU as a device. Loaded by Triton through its entry points.

Triton wants exactly one concrete driver class in this module.
"""

from __future__ import annotations

import os
import time
import warnings

import torch
from triton.backends import driver as triton_driver

from .build import Binary, Damaged, compile_source
from .compiler import NAME, cpu_target
from .compiler import CPUBackend as _Backend
from .runtime import Kernel


class _Utils:
    """What Triton asks of a driver's utilities when it loads a binary."""

    @staticmethod
    def load_binary(name, image, shared, device):
        """(module, function, registers, spills, threads at most); Triton loads anew at every launch while module is None."""
        return image, image, 0, 0, 1 << 30

    @staticmethod
    def unload_module(module):
        pass

    @staticmethod
    def get_device_properties(device):
        return {"max_shared_mem": 1 << 30, "multiprocessor_count": torch.get_num_threads(), "max_num_regs": 0, "warpSize": 1}


class _Launcher:
    """Called by Triton's JIT for every launch, with the kernel's arguments, constexprs included."""

    def __init__(self, src, metadata):
        self.source = src
        self.kernel = None
        self.kinds = tuple(src.signature.values())

    def __call__(self, x, y, z, stream, image, packed, launch_metadata, enter, leave, *args):
        if self.kernel is None:
            self.kernel = Kernel(self._binary(image))
        if enter is not None:
            enter(launch_metadata)
        self.kernel((x, y, z), list(_runtime(self.kinds, args)))
        if leave is not None:
            leave(launch_metadata)


    def _binary(self, image: bytes) -> Binary:
        try:
            return Binary.unpack(image)
        except Damaged as error:
            warnings.warn(f"a kernel in Triton's cache is built again: {error}", RuntimeWarning, stacklevel=3)
            backend = _Backend(cpu_target())
            return compile_source(self.source, backend, backend.parse_options({}))


def _runtime(kinds, args):
    """The addresses and numbers that the machine code takes, of arguments of these kinds ("*fp32", "i32", "constexpr" …)."""
    for kind, arg in zip(kinds, args, strict=True):
        if kind == "constexpr":
            continue
        if isinstance(kind, tuple):
            yield from _runtime(kind, arg)
        elif kind[0] == "*":
            yield _address(arg)
        elif kind.startswith("tensordesc"):  # travels as its parts
            base, *rest = triton_driver.decompose_descriptor(arg)
            yield _address(base)
            yield from rest
        elif kind == "u64" and arg >> 63:
            yield arg - (1 << 64)
        else:
            yield arg


def _address(pointer) -> int:
    """A tensor's address; a number is one already, and None a null pointer."""
    device = getattr(pointer, "device", None)
    if device is not None and device.type != "cpu":
        raise ValueError(f"the CPU target was given a tensor on {device}")
    return pointer.data_ptr() if hasattr(pointer, "data_ptr") else pointer or 0


class _Event:
    def __init__(self, enable_timing: bool = True):
        self.time = 0.0

    def record(self, stream=None):
        self.time = time.perf_counter()

    def elapsed_time(self, end) -> float:
        return (end.time - self.time) * 1e3

    def synchronize(self):
        pass


class _Interface:
    """A device that is always synchronous."""

    Event = _Event

    @staticmethod
    def synchronize(device=None):
        pass

    @staticmethod
    def current_device():
        return 0


class CPUDriver(triton_driver.DriverBase):
    utils = _Utils
    launcher_cls = _Launcher

    @staticmethod
    def is_active() -> bool:
        """A GPU's driver comes first. TRITON_DEFAULT_BACKEND, or `triton.runtime.driver.set_active(CPUDriver())`, chooses this
        one beside a GPU."""
        return os.environ.get("TRITON_DEFAULT_BACKEND") == NAME or not (torch.cuda.is_available() or torch.xpu.is_available())

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self):
        return cpu_target()

    def get_current_device(self):
        return "cpu"  # Triton keys its kernel caches on this alone: it must differ from every GPU's number

    def get_current_stream(self, device):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_interface(self):
        return _Interface

    def get_empty_cache_for_benchmark(self):
        return torch.empty(64 << 20, dtype=torch.uint8)  # beyond the last-level caches

    def clear_cache(self, cache):
        cache.zero_()

    def get_benchmarker(self):
        from triton.testing import do_bench

        return do_bench
