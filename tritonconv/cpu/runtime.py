"""Runs a loaded kernel over a grid on torch's own OpenMP threads.

A launch packs one block of memory, the *job*: a header that the threads share and the kernel's arguments after it. Each
thread has a share of the grid, a contiguous one: neighbouring programs write neighbouring memory, and where that is
new, two threads that touch the same stretch of it wait for each other's page faults. A thread takes its share in
chunks, by a counter, and then what is left of the others', so an uneven or disturbed machine stays busy.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from .build import Binary
from .jit import emit_object, loader
from .target import host

# kernel, programs, chunk, threads, their counters, how many have started, scratch, scratch bytes per thread
_HEADER = "PqqqPqPq"
HEADER_SIZE = struct.calcsize(_HEADER)
SCRATCH = 48  # where in the header the address of scratch is
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
  %p7 = getelementptr i8, ptr %job, i64 56
  %arguments = getelementptr i8, ptr %job, i64 {header}
  %kernel = load ptr, ptr %job
  %programs = load i64, ptr %p1
  %chunk = load i64, ptr %p2
  %threads = load i64, ptr %p3
  %counters = load ptr, ptr %p4
  %slot = atomicrmw add ptr %p5, i64 1 monotonic
  %base = load ptr, ptr %p6
  %stride = load i64, ptr %p7
  %offset = mul i64 %slot, %stride
  %scratch = getelementptr i8, ptr %base, i64 %offset
  br label %share
share:
  %turn = phi i64 [ 0, %0 ], [ %later, %empty ]
  %sum = add i64 %slot, %turn
  %mine = urem i64 %sum, %threads
  %low = mul i64 %mine, %programs
  %start = udiv i64 %low, %threads
  %high = add i64 %low, %programs
  %stop = udiv i64 %high, %threads
  %line = mul i64 %mine, 64
  %counter = getelementptr i8, ptr %counters, i64 %line
  br label %next
next:
  %taken = atomicrmw add ptr %counter, i64 %chunk monotonic
  %first = add i64 %start, %taken
  %some = icmp slt i64 %first, %stop
  br i1 %some, label %run, label %empty
run:
  %end = add i64 %first, %chunk
  %over = icmp slt i64 %stop, %end
  %last = select i1 %over, i64 %stop, i64 %end
  call void %kernel(ptr %arguments, ptr %scratch, i64 %first, i64 %last)
  br label %next
empty:
  %later = add i64 %turn, 1
  %more = icmp ult i64 %later, %threads
  br i1 %more, label %share, label %done
done:
  ret void
}}
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
define void @launch(ptr %job) {{
  %p3 = getelementptr i8, ptr %job, i64 24
  %p4 = getelementptr i8, ptr %job, i64 32
  %p5 = getelementptr i8, ptr %job, i64 40
  store i64 0, ptr %p5
  %threads = load i64, ptr %p3
  %size = mul i64 %threads, 64
  %counters = alloca i8, i64 %size, align 64
  call void @llvm.memset.p0.i64(ptr %counters, i8 0, i64 %size, i1 false)
  store ptr %counters, ptr %p4
  %one = icmp slt i64 %threads, 2
  br i1 %one, label %alone, label %ask
ask:
  %nested = call i32 inttoptr (i64 {in_parallel} to ptr)()
  %inside = icmp ne i32 %nested, 0
  br i1 %inside, label %alone, label %together
alone:
  call void @work(ptr %job)
  ret void
together:
  %count = trunc i64 %threads to i32
  call void inttoptr (i64 {parallel} to ptr)(ptr @work, ptr %job, i32 %count, i32 0)
  ret void
}}
define void @run(ptr %jobs, i64 %count, ptr %moves, i64 %moved, ptr %bases) {{
  br label %more
more:
  %move = phi i64 [ 0, %0 ], [ %following, %rebase ]
  %left = icmp ult i64 %move, %moved
  br i1 %left, label %rebase, label %next
rebase:
  %line = getelementptr [3 x i64], ptr %moves, i64 %move
  %line1 = getelementptr i64, ptr %line, i64 1
  %line2 = getelementptr i64, ptr %line, i64 2
  %word = load ptr, ptr %line
  %which = load i64, ptr %line1
  %offset = load i64, ptr %line2
  %origin = getelementptr i64, ptr %bases, i64 %which
  %base = load i64, ptr %origin
  %address = add i64 %base, %offset
  store i64 %address, ptr %word
  %following = add i64 %move, 1
  br label %more
next:
  %at = phi i64 [ 0, %more ], [ %after, %start ]
  %some = icmp ult i64 %at, %count
  br i1 %some, label %start, label %done
start:
  %place = getelementptr ptr, ptr %jobs, i64 %at
  %job = load ptr, ptr %place
  call void @launch(ptr %job)
  %after = add i64 %at, 1
  br label %next
done:
  ret void
}}
"""


class _Pool:
    """The launch functions of this process, and whether they use threads.

    `launch(job)`; and `run(jobs, count, moves, moved, bases)`, which puts addresses into jobs and launches them in
    order. `jobs` are their addresses; a move is (address of a word, which of the bases, offset from it).
    """

    def __init__(self):
        parallel, in_parallel = _openmp()
        self.parallel = bool(parallel)
        text = _RUNTIME.format(triple=host().triple, header=HEADER_SIZE, parallel=parallel, in_parallel=in_parallel)
        self._image = emit_object(text)
        launch, self._launch = loader.load(self._image, "launch")
        run, self._run = loader.load(self._image, "run")
        self.launch = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(launch)
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self.run = ctypes.CFUNCTYPE(None, pointer, number, pointer, number, ctypes.c_char_p)(run)


pool = cache(_Pool)


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
        return self.pack(self.address, programs, chunk, threads, 0, 0, room, stride, *values, x, y, z)
