"""The threads that run jobs: torch's own, of OpenMP.

A thread has a share of a job's grid, a contiguous one: neighbouring programs write neighbouring memory, and where that
is new, two threads that touch the same stretch of it wait for each other's page faults. It takes its share in chunks,
by a counter, and then what is left of the others', so an uneven or disturbed machine stays busy.

Jobs that follow each other are one parallel region: between two of them the threads wait for each other by a counter,
which takes a fraction of a microsecond, where a region of its own would take two. One that has long to wait sleeps,
since the one it waits for may need its core. And a thread has the same share of all jobs, whose data are in its caches.
"""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from pathlib import Path

import torch

from .jit import emit_object, loader
from .target import host

# kernel, programs, chunk, threads, scratch, scratch bytes per thread
HEADER = "PqqqPq"
HEADER_SIZE = struct.calcsize(HEADER)
SCRATCH = struct.calcsize("Pqqq")  # where in the header the address of scratch is


def openmp() -> tuple[int, int, int]:
    """Addresses of GOMP_parallel, omp_in_parallel and omp_get_num_threads in the OpenMP library that torch uses (zeros
    without one)."""
    candidates = sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*.so*"))
    candidates += sorted((Path(torch.__file__).parent.parent / "torch.libs").glob("lib*omp*.so*"))
    for name in [*map(str, candidates), None]:
        try:
            library = ctypes.CDLL(name)
            functions = library.GOMP_parallel, library.omp_in_parallel, library.omp_get_num_threads
            return tuple(ctypes.cast(f, ctypes.c_void_p).value for f in functions)
        except (OSError, AttributeError):
            continue
    return 0, 0, 0


# A job is its header and, behind it, the kernel's arguments. A segment: its jobs, how many, moves, how many. A move:
# the address of a word, which of the bases, the offset from it. An order: jobs, how many, counters of the shares of one
# job and of the next, bytes of each. A crew: its order, how many threads have started, and, in a cache line of their
# own, how often one of them has been through with a job, and how many sleep.
_RUNTIME = """
target triple = "{triple}"
%Job = type {{ ptr, i64, i64, i64, ptr, i64 }}
%Segment = type {{ ptr, i64, ptr, i64 }}
%Move = type {{ ptr, i64, i64 }}
%Order = type {{ ptr, i64, ptr, i64 }}
%Crew = type {{ %Order, i64, [3 x i64], i64, i64 }}
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare void @llvm.x86.sse2.pause()
declare void @llvm.aarch64.hint(i32)
define void @work(ptr %job, i64 %slot, ptr %counters) {{
  %arguments = getelementptr %Job, ptr %job, i64 1
  %header = load %Job, ptr %job
  %kernel = extractvalue %Job %header, 0
  %programs = extractvalue %Job %header, 1
  %chunk = extractvalue %Job %header, 2
  %threads = extractvalue %Job %header, 3
  %base = extractvalue %Job %header, 4
  %stride = extractvalue %Job %header, 5
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
define void @join(ptr %crew) {{
  %started = getelementptr %Crew, ptr %crew, i32 0, i32 1
  %through = getelementptr %Crew, ptr %crew, i32 0, i32 3
  %sleepers = getelementptr %Crew, ptr %crew, i32 0, i32 4
  %order = load %Order, ptr %crew
  %jobs = extractvalue %Order %order, 0
  %count = extractvalue %Order %order, 1
  %counters = extractvalue %Order %order, 2
  %bytes = extractvalue %Order %order, 3
  %slot = atomicrmw add ptr %started, i64 1 monotonic
  %size = call i32 inttoptr (i64 {size} to ptr)()
  %crew_size = zext i32 %size to i64
  %leads = icmp eq i64 %slot, 0
  br label %next
next:
  %at = phi i64 [ 0, %0 ], [ %after, %rouse ], [ %after, %wake ], [ %after, %wait ]
  %place = getelementptr ptr, ptr %jobs, i64 %at
  %job = load ptr, ptr %place
  %p_threads = getelementptr %Job, ptr %job, i32 0, i32 3
  %threads = load i64, ptr %p_threads
  %odd = and i64 %at, 1
  %these = mul i64 %odd, %bytes
  %now = getelementptr i8, ptr %counters, i64 %these
  %others = sub i64 %bytes, %these
  %following = getelementptr i8, ptr %counters, i64 %others
  br i1 %leads, label %clear, label %ask
clear:  ; nobody counts there: all are through with the job before
  call void @llvm.memset.p0.i64(ptr %following, i8 0, i64 %bytes, i1 false)
  br label %ask
ask:
  %needed = icmp ult i64 %slot, %threads
  br i1 %needed, label %take, label %report
take:
  call void @work(ptr %job, i64 %slot, ptr %now)
  br label %report
report:
  %after = add i64 %at, 1
  %last = icmp eq i64 %after, %count
  br i1 %last, label %done, label %count_me
count_me:
  %before = atomicrmw add ptr %through, i64 1 seq_cst
  %have = add i64 %before, 1
  %goal = mul i64 %after, %crew_size
  %all = icmp eq i64 %have, %goal
  br i1 %all, label %rouse, label %wait
rouse:
  %asleep = load atomic i64, ptr %sleepers seq_cst, align 8
  %none = icmp eq i64 %asleep, 0
  br i1 %none, label %next, label %wake
wake:
  %woken = call i64 (i64, ...) inttoptr (i64 {syscall} to ptr)(i64 {futex}, ptr %through, i32 129, i32 2147483647)
  br label %next
wait:
  %spins = phi i64 [ 0, %count_me ], [ %more, %spin ], [ %more, %up ]
  %there = load atomic i64, ptr %through acquire, align 8
  %complete = icmp uge i64 %there, %goal
  br i1 %complete, label %next, label %look
look:
  %more = add i64 %spins, 1
  %long = icmp ugt i64 %more, {patience}
  br i1 %long, label %lie_down, label %spin
spin:
  call void @{pause}
  br label %wait
lie_down:  ; whoever completes the count after this line sees a sleeper
  %others_asleep = atomicrmw add ptr %sleepers, i64 1 seq_cst
  %seen = load atomic i64, ptr %through seq_cst, align 8
  %late = icmp uge i64 %seen, %goal
  br i1 %late, label %up, label %sleep
sleep:  ; unless another number is there by now
  %number = trunc i64 %seen to i32
  %nap = call i64 (i64, ...) inttoptr (i64 {syscall} to ptr)(i64 {futex}, ptr %through, i32 128, i32 %number, ptr null)
  br label %up
up:
  %still_asleep = atomicrmw sub ptr %sleepers, i64 1 seq_cst
  br label %wait
done:
  ret void
}}
define void @run(ptr %segment, ptr %bases) {{
  %given = load %Segment, ptr %segment
  %jobs = extractvalue %Segment %given, 0
  %count = extractvalue %Segment %given, 1
  %moves = extractvalue %Segment %given, 2
  %moved = extractvalue %Segment %given, 3
  br label %more
more:
  %move = phi i64 [ 0, %0 ], [ %following, %rebase ]
  %left = icmp ult i64 %move, %moved
  br i1 %left, label %rebase, label %measure
rebase:
  %p_move = getelementptr %Move, ptr %moves, i64 %move
  %this = load %Move, ptr %p_move
  %word = extractvalue %Move %this, 0
  %which = extractvalue %Move %this, 1
  %offset = extractvalue %Move %this, 2
  %origin = getelementptr i64, ptr %bases, i64 %which
  %base = load i64, ptr %origin
  %address = add i64 %base, %offset
  store i64 %address, ptr %word
  %following = add i64 %move, 1
  br label %more
measure:
  %at = phi i64 [ 0, %more ], [ %after, %look ]
  %most = phi i64 [ 1, %more ], [ %larger, %look ]
  %some = icmp ult i64 %at, %count
  br i1 %some, label %look, label %begin
look:
  %place = getelementptr ptr, ptr %jobs, i64 %at
  %job = load ptr, ptr %place
  %p_threads = getelementptr %Job, ptr %job, i32 0, i32 3
  %threads = load i64, ptr %p_threads
  %wider = icmp ugt i64 %threads, %most
  %larger = select i1 %wider, i64 %threads, i64 %most
  %after = add i64 %at, 1
  br label %measure
begin:
  %bytes = mul i64 %most, 64
  %both = mul i64 %bytes, 2
  %counters = alloca i8, i64 %both, align 64
  %single = icmp ult i64 %most, 2
  br i1 %single, label %alone, label %ask
ask:
  %nested = call i32 inttoptr (i64 {in_parallel} to ptr)()
  %inside = icmp ne i32 %nested, 0
  br i1 %inside, label %alone, label %together
alone:
  %turn = phi i64 [ 0, %begin ], [ 0, %ask ], [ %later, %one ]
  %another = icmp ult i64 %turn, %count
  br i1 %another, label %one, label %done
one:
  %spot = getelementptr ptr, ptr %jobs, i64 %turn
  %mine = load ptr, ptr %spot
  call void @llvm.memset.p0.i64(ptr %counters, i8 0, i64 %bytes, i1 false)
  call void @work(ptr %mine, i64 0, ptr %counters)
  %later = add i64 %turn, 1
  br label %alone
together:
  %crew = alloca %Crew, align 64
  %with_jobs = insertvalue %Crew zeroinitializer, ptr %jobs, 0, 0
  %with_count = insertvalue %Crew %with_jobs, i64 %count, 0, 1
  %with_counters = insertvalue %Crew %with_count, ptr %counters, 0, 2
  %whole = insertvalue %Crew %with_counters, i64 %bytes, 0, 3
  store %Crew %whole, ptr %crew
  call void @llvm.memset.p0.i64(ptr %counters, i8 0, i64 %bytes, i1 false)
  %size = trunc i64 %most to i32
  call void inttoptr (i64 {parallel} to ptr)(ptr @join, ptr %crew, i32 %size, i32 0)
  ret void
done:
  ret void
}}
define void @launch(ptr %job) {{
  %jobs = alloca ptr
  store ptr %job, ptr %jobs
  %segment = alloca %Segment
  %with_jobs = insertvalue %Segment zeroinitializer, ptr %jobs, 0
  %single = insertvalue %Segment %with_jobs, i64 1, 1
  store %Segment %single, ptr %segment
  call void @run(ptr %segment, ptr null)
  ret void
}}
"""
_PATIENCE = 1 << 12  # looks at the counter before a thread sleeps: the one it waits for may have no core
# A breath while looking, and Linux's number of the call to sleep.
_MACHINES = {"x86_64": ("llvm.x86.sse2.pause()", 202), "aarch64": ("llvm.aarch64.hint(i32 1)", 98)}


class _Pool:
    """The launch functions of this process, and whether they use threads: `launch(job)`; and `run(segment, bases)`,
    which puts addresses into jobs, as the moves say, and launches them in order."""

    def __init__(self):
        parallel, in_parallel, size = openmp()
        self.parallel = bool(parallel)
        pause, futex = _MACHINES[host().triple.partition("-")[0]]
        text = _RUNTIME.format(
            triple=host().triple,
            parallel=parallel,
            in_parallel=in_parallel,
            size=size,
            syscall=ctypes.cast(ctypes.CDLL(None).syscall, ctypes.c_void_p).value,
            futex=futex,
            patience=_PATIENCE,
            pause=pause,
        )
        self._image = emit_object(text)
        launch, self._launch = loader.load(self._image, "launch")
        run, self._run = loader.load(self._image, "run")
        self.launch = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(launch)
        self.run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p)(run)


pool = cache(_Pool)
