"""Triton's view of the CPU as a device. Loaded by Triton through its entry points.

Triton wants exactly one concrete driver class in this module.
"""

from __future__ import annotations

import time

import torch
from triton.backends import driver as triton_driver

from .build import Binary
from .compiler import cpu_target
from .runtime import Kernel


class _Utils:
    """What Triton asks of a driver's utilities when it loads a binary."""

    @staticmethod
    def load_binary(name, image, shared, device):
        return None, image, 0, 0, 1 << 30

    @staticmethod
    def unload_module(module):
        pass

    @staticmethod
    def get_device_properties(device):
        return {"max_shared_mem": 1 << 30, "multiprocessor_count": torch.get_num_threads(), "max_num_regs": 0, "warpSize": 1}


class _Launcher:
    """Called by Triton's JIT for every launch, with the kernel's arguments, constexprs included."""

    def __init__(self, src, metadata):
        self.metadata = metadata
        self.kernel = None
        self.positions = [i for i, ty in enumerate(_flat(src.signature.values())) if ty != "constexpr"]

    def __call__(self, x, y, z, stream, image, packed, launch_metadata, enter, leave, *args):
        if self.kernel is None:
            m = self.metadata
            self.kernel = Kernel(Binary(m.name, image, m.scratch, tuple(m.arguments)))
        flat = list(_flat(args))
        values = [_address(flat[i]) for i in self.positions]
        if enter is not None:
            enter(launch_metadata)
        self.kernel((x, y, z), values)
        if leave is not None:
            leave(launch_metadata)


def _flat(values):
    for v in values:
        if isinstance(v, (tuple, list)):
            yield from _flat(v)
        elif hasattr(v, "base") and hasattr(v, "block_shape"):  # a host-side tensor descriptor travels as its parts
            yield from triton_driver.decompose_descriptor(v)
        else:
            yield v


def _address(value):
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise ValueError(f"the CPU target was given a tensor on {value.device}")
        return value.data_ptr()
    return value.data_ptr() if hasattr(value, "data_ptr") else value


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
        """A GPU's driver comes first; `triton.runtime.driver.set_active(CPUDriver())` chooses this one beside a GPU."""
        return not torch.cuda.is_available() and not (hasattr(torch, "xpu") and torch.xpu.is_available())

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
