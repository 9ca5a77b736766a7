"""Runs loaded kernels over their grids (`crew`).

A launch packs one block of memory, the *job*: a header that the threads share and the kernel's arguments after it.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable

import torch

from .build import Binary
from .crew import HEADER, pool
from .jit import loader

_SLOT = {"ptr": "P", "i1": "?7x", "i8": "b7x", "i16": "h6x", "i32": "i4x", "i64": "q", "f32": "f4x", "f64": "d",
         "f16": "e6x"}  # fmt: skip
_PAGE = 4096
_forked = False


def _after_fork():
    """OpenMP's threads do not survive a fork: a child runs alone, on fresh scratch."""
    global _forked, _local
    _forked, _local = True, threading.local()


os.register_at_fork(after_in_child=_after_fork)
_local = threading.local()


def _scratch(size: int) -> int:
    """Address of at least `size` bytes that belong to the calling thread until its next launch."""
    held = getattr(_local, "memory", None)
    if held is None or held.numel() < size + _PAGE:
        held = _local.memory = torch.empty(size + _PAGE, dtype=torch.uint8, device="cpu")
        _local.address = -(-held.data_ptr() // _PAGE) * _PAGE
    return _local.address


def address_of(pointer) -> int:
    """The address in a pointer argument: of a tensor, or a number that is one already; None is a null pointer."""
    device = getattr(pointer, "device", None)
    if device is not None and device.type != "cpu":
        raise ValueError(f"the CPU target was given a tensor on {device}")
    return pointer.data_ptr() if hasattr(pointer, "data_ptr") else pointer or 0


class Kernel:
    """Loaded machine code. Calling it runs the grid: `kernel(grid, values)`, values being addresses and numbers."""

    def __init__(self, binary: Binary):
        self.binary = binary
        self.address, self._handle = loader.load(binary.image, binary.name)
        unknown = [a for a in binary.arguments if a not in _SLOT]
        if unknown:
            raise TypeError(f"kernel {binary.name}: the CPU target cannot pass an argument of type {unknown[0]}")
        layout = HEADER + "".join(_SLOT[a] for a in binary.arguments) + "i4xi4xi4x"
        self.pack = struct.Struct("=" + layout.replace("P", "Q")).pack
        self._pool = pool()  # kept: threads that race for the first launch may make one each
        self._launch, self._threaded = self._pool.launch, self._pool.parallel
        self._scratch = binary.scratch

    def __call__(self, grid: tuple[int, int, int], values) -> bytes | None:
        """Returns the job, as the kernel left it; None for an empty grid."""
        job = self.job(grid, values, _scratch)
        if job is not None:
            self._launch(job)
        return job

    def job(self, grid: tuple[int, int, int], values, scratch: Callable[[int], int]) -> bytes | None:
        """What a launch hands over. `scratch(size)`: the address of so many bytes, for the time of the launch."""
        x, y, z = grid
        programs = x * y * z
        if programs <= 0:
            return None
        threads = min(torch.get_num_threads(), programs) if self._threaded and not _forked else 1
        chunk = max(1, programs // (threads * 16)) if threads > 1 else programs
        stride = self._scratch
        room = scratch(threads * stride) if stride else 0
        return self.pack(self.address, programs, chunk, threads, room, stride, *values, x, y, z)
