"""Runs a loaded kernel over a grid on torch's own OpenMP threads.

A launch packs one block of memory, the *job*: a header that the threads share and the kernel's arguments after it. Each
thread takes chunks of the grid from the job's counter until none is left, so an uneven or disturbed machine stays busy.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from functools import cache
from pathlib import Path

import torch

from .build import Binary
from .jit import emit_object, loader
from .target import host

_HEADER = "PqqqqPq"  # kernel, programs, chunk, next program, threads started, scratch, scratch bytes per thread
HEADER_SIZE = struct.calcsize(_HEADER)
_SLOT = {"ptr": "P", "i1": "?7x", "i8": "b7x", "i16": "h6x", "i32": "i4x", "i64": "q", "f32": "f4x", "f64": "d",
         "f16": "e6x"}  # fmt: skip
_PAGE = 4096


def _openmp() -> tuple[int, int]:
    """Addresses of GOMP_parallel and omp_in_parallel in the OpenMP library that torch uses (0, 0 without one)."""
    candidates = sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*.so*"))
    candidates += sorted((Path(torch.__file__).parent.parent / "torch.libs").glob("lib*omp*.so*"))
    for name in [*map(str, candidates), None]:
        try:
            library = ctypes.CDLL(name)
            functions = library.GOMP_parallel, library.omp_in_parallel
            return tuple(ctypes.cast(f, ctypes.c_void_p).value for f in functions)
        except (OSError, AttributeError):
            continue
    return 0, 0


_RUNTIME = """
target triple = "{triple}"
define void @work(ptr %job) {{
  %p1 = getelementptr i8, ptr %job, i64 8
  %p2 = getelementptr i8, ptr %job, i64 16
  %p3 = getelementptr i8, ptr %job, i64 24
  %p4 = getelementptr i8, ptr %job, i64 32
  %p5 = getelementptr i8, ptr %job, i64 40
  %p6 = getelementptr i8, ptr %job, i64 48
  %arguments = getelementptr i8, ptr %job, i64 {header}
  %kernel = load ptr, ptr %job
  %programs = load i64, ptr %p1
  %chunk = load i64, ptr %p2
  %slot = atomicrmw add ptr %p4, i64 1 monotonic
  %base = load ptr, ptr %p5
  %stride = load i64, ptr %p6
  %offset = mul i64 %slot, %stride
  %scratch = getelementptr i8, ptr %base, i64 %offset
  br label %next
next:
  %first = atomicrmw add ptr %p3, i64 %chunk monotonic
  %some = icmp slt i64 %first, %programs
  br i1 %some, label %run, label %done
run:
  %end = add i64 %first, %chunk
  %over = icmp slt i64 %programs, %end
  %last = select i1 %over, i64 %programs, i64 %end
  call void %kernel(ptr %arguments, ptr %scratch, i64 %first, i64 %last)
  br label %next
done:
  ret void
}}
define void @launch(ptr %job, i32 %threads) {{
  %one = icmp slt i32 %threads, 2
  br i1 %one, label %alone, label %ask
ask:
  %nested = call i32 inttoptr (i64 {in_parallel} to ptr)()
  %inside = icmp ne i32 %nested, 0
  br i1 %inside, label %alone, label %together
alone:
  call void @work(ptr %job)
  ret void
together:
  call void inttoptr (i64 {parallel} to ptr)(ptr @work, ptr %job, i32 %threads, i32 0)
  ret void
}}
"""


class _Pool:
    """The launch function of this process, and whether it uses threads."""

    def __init__(self):
        parallel, in_parallel = _openmp()
        self.parallel = bool(parallel)
        text = _RUNTIME.format(triple=host().triple, header=HEADER_SIZE, parallel=parallel, in_parallel=in_parallel)
        address, self._handle = loader.load(emit_object(text), "launch")
        self.launch = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int)(address)


_pool = cache(_Pool)


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
        layout = _HEADER + "".join(_SLOT[a] for a in binary.arguments) + "i4xi4xi4x"
        self.pack = struct.Struct("=" + layout.replace("P", "Q")).pack
        self._pool = _pool()  # kept: threads that race for the first launch may make one each
        self._launch, self._threaded = self._pool.launch, self._pool.parallel
        self._scratch = binary.scratch

    def __call__(self, grid: tuple[int, int, int], values) -> bytes | None:
        """Returns the job, as the kernel left it; None for an empty grid."""
        x, y, z = grid
        programs = x * y * z
        if programs <= 0:
            return None
        threads = min(torch.get_num_threads(), programs) if self._threaded and not _forked else 1
        chunk = max(1, programs // (threads * 16)) if threads > 1 else programs
        stride = self._scratch
        room = _scratch(threads * stride) if stride else 0
        job = self.pack(self.address, programs, chunk, 0, 0, room, stride, *values, x, y, z)
        self._launch(job, threads)
        return job
