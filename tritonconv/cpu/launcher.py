"""What Triton calls to load a binary, to launch it and to time it."""

from __future__ import annotations

import time
import warnings

import torch

from . import debug
from .build import Binary, Damaged, compile_source
from .compiler import CPUBackend, cpu_target
from .runtime import Kernel, address_of


class Utils:
    """What Triton asks of a driver's utilities when it loads a binary."""

    @staticmethod
    def load_binary(name, image, shared, device):
        """(module, function, registers, spills, most threads). While `module` is None, Triton loads at every launch."""
        return image, image, 0, 0, 1 << 30

    @staticmethod
    def unload_module(module):
        pass

    @staticmethod
    def get_device_properties(device):
        threads = torch.get_num_threads()
        return {"max_shared_mem": 1 << 30, "multiprocessor_count": threads, "max_num_regs": 0, "warpSize": 1}


class Launcher:
    """Called by Triton's JIT for every launch, with the kernel's arguments, constexprs included."""

    def __init__(self, src, metadata):
        self.source, self.metadata = src, metadata
        self.kernel = None
        self.kinds = tuple(src.signature.values())

    def __call__(self, x, y, z, stream, image, packed, launch_metadata, enter, leave, *args):
        if self.kernel is None:
            self.kernel = Kernel(self._binary(image))
        if enter is not None:
            enter(launch_metadata)
        if self.metadata.debug:
            debug.launch(self.kernel, (x, y, z), list(runtime_arguments(self.kinds, args, lambda argument: argument)))
        else:
            self.kernel((x, y, z), list(runtime_arguments(self.kinds, args, address_of)))
        if leave is not None:
            leave(launch_metadata)

    def _binary(self, image: bytes) -> Binary:
        try:
            return Binary.unpack(image)
        except Damaged as error:
            warnings.warn(f"a kernel in Triton's cache is built again: {error}", RuntimeWarning, stacklevel=3)
            backend = CPUBackend(cpu_target())
            return compile_source(self.source, backend, backend.parse_options(self.metadata._asdict()))


def runtime_arguments(kinds, args, pointer):
    """What the machine code takes, of arguments of these kinds ("*fp32", "i32", "constexpr" …): for a pointer,
    `pointer(argument)`.
    """
    for kind, arg in zip(kinds, args, strict=True):
        if kind == "constexpr":
            continue
        if isinstance(kind, tuple):
            yield from runtime_arguments(kind, arg, pointer)
        elif kind[0] == "*":
            yield pointer(arg)
        elif kind.startswith("tensordesc"):  # travels as its parts, with the flags that this Triton's descriptors have
            yield pointer(arg.base)
            yield from (*arg.shape, *arg.strides, arg.padding == "nan")
            if hasattr(arg, "round_f32_to_tf32"):
                yield arg.round_f32_to_tf32
            yield from (*arg.shape, *arg.strides)
        elif kind[0] == "u" and arg >> (int(kind[1:]) - 1):  # slots are signed
            yield arg - (1 << int(kind[1:]))
        else:
            yield arg


class _Event:
    def __init__(self, enable_timing: bool = True):
        self.time = 0.0

    def record(self, stream=None):
        self.time = time.perf_counter()

    def elapsed_time(self, end) -> float:
        return (end.time - self.time) * 1e3

    def synchronize(self):
        pass


class Interface:
    """A device that is always synchronous."""

    Event = _Event

    @staticmethod
    def synchronize(device=None):
        pass

    @staticmethod
    def current_device():
        return 0
