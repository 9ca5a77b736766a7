"""Room for results and for what is kept: on a CPU in huge pages, where it is large, and used again.

Malloc takes the largest blocks fresh from the system and gives them back when they are freed. In pages of 4 KiB that
costs several times what it takes to write them, a fault for each page; in pages of 2 MiB it still costs as much again.
So what large results lay in is kept for the next ones, as torch does on GPUs, until a patched model dies. And what
runs through memory is fetched ahead to the end of a page, so that large weights are read sooner from huge ones.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import sys
import threading
import weakref
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

HUGE = 2 << 20  # bytes of a page
POOLED = sys.platform != "win32"  # mappings there are of another kind
LEAST = HUGE  # bytes of a result that lies in the pool
# Bytes that a pool has addresses for, half of what the machine has: nothing is behind them until they are written.
ADDRESSES = os.sysconf("SC_PHYS_PAGES") // 2 * mmap.PAGESIZE if POOLED else 0
_AMPLE = 1.25  # how many times what was in use together it may reach to; in training it comes to 1.0 to 1.18


def _mapped(size: int) -> mmap.mmap:
    """Memory of `size` bytes from the system, private as malloc's is, in huge pages if there are any."""
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


class Stretch(NamedTuple):
    """Bytes of a pool, from `start` to before `end`."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


class Pool:
    """Addresses that tensors lie in side by side, with memory behind those that were used. What dies becomes one with
    what is free beside it, and what comes takes the smallest stretch that holds it: so a training step soon finds all
    that it needs where the one before left it."""

    def __init__(self):
        self._whole: mmap.mmap | None = None
        self._free: list[Stretch] = [Stretch(0, ADDRESSES)]  # in order, none right behind another
        self._dead: list[Stretch] = []  # to be united with what is free
        self._used: dict[int, tuple[weakref.ref, Stretch]] = {}  # by the identity of what tells when a view dies
        self._most = 0  # bytes that were in use together
        self.lock = threading.RLock()

    def take(self, size: int) -> memoryview:
        """`size` bytes, which are given back when no one has them any more. Raises `MemoryError` if they do not fit."""
        with self.lock:
            if self._whole is None:
                self._whole = _mapped(ADDRESSES)
            self._unite()
            stretch = self._cut(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
            view = memoryview(self._whole)[stretch.start : stretch.start + size]
            death = weakref.ref(view, self._give_back)
            self._used[id(death)] = death, stretch
        return view

    def used(self) -> int:
        """Bytes in use."""
        return ADDRESSES - sum(stretch.size for stretch in [*self._free, *self._dead])

    def release(self) -> None:
        """Gives the memory of what is free back to the system."""
        # Called wherever a model dies, within `take` too: that thread has the lock already, and what it holds in its
        # hands, in neither list, keeps its memory.
        with self.lock:
            if self._whole is not None:
                for stretch in [*self._free, *self._dead]:
                    self._whole.madvise(mmap.MADV_DONTNEED, stretch.start, stretch.size)

    def _unite(self) -> None:
        stretches, united = self._free.copy(), []
        while self._dead:
            stretches.append(self._dead.pop())
        for stretch in sorted(stretches):
            if united and united[-1].end == stretch.start:
                stretch = Stretch(united.pop().start, stretch.end)
            united.append(stretch)
        self._free = united

    def _cut(self, size: int) -> Stretch:
        most = max(self._most, self.used() + size)
        fitting = [
            (stretch.size, at)
            for at, stretch in enumerate(self._free)
            if stretch.size >= size and stretch.start + size <= _AMPLE * most
        ]
        if not fitting:
            raise MemoryError
        self._most, (_, at) = most, min(fitting)
        start, end = self._free[at]
        self._free[at : at + 1] = [Stretch(start + size, end)] if start + size < end else []
        return Stretch(start, start + size)

    def _give_back(self, death: weakref.ref) -> None:
        # Called wherever the last tensor dies, within `take` too: so it takes no lock, and each step is atomic.
        _, stretch = self._used.pop(id(death))
        self._dead.append(stretch)


results = Pool()
# A child would inherit the lock, but not the thread that opens it.
os.register_at_fork(
    before=results.lock.acquire, after_in_parent=results.lock.release, after_in_child=results.lock.release
)


def empty(
    like: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """As `torch.empty`, on the device of `like` and by default of its dtype."""
    dtype = dtype or like.dtype
    # What stands in for a tensor while a compiler looks on has no memory, and sizes that may be symbols; and who
    # listens to torch's operators gets to know of memory of its own.
    if (
        like.device.type == "cpu"
        and POOLED
        and (type(like) is Tensor or type(like) is Parameter)
        and not torch._C._len_torch_dispatch_stack()
        and math.prod(shape) * dtype.itemsize >= LEAST
    ):
        with contextlib.suppress(OSError, MemoryError):  # which torch says in its own words, where it has none either
            room = torch.frombuffer(results.take(math.prod(shape) * dtype.itemsize), dtype=dtype)
            like_it = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
            # Nobody else may hold its storage: autograd then adds gradients up where they lie.
            return room.as_strided_(shape, like_it.stride())
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format)


def lasting(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As `torch.empty`, for what is kept: on a CPU it begins with a huge page, if it fills one."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not POOLED or size < HUGE:
        return torch.empty(shape, dtype=dtype, device=device)
    whole = torch.frombuffer(_mapped(size + HUGE), dtype=torch.uint8)
    first = -whole.data_ptr() % HUGE
    return whole[first : first + size].view(dtype).view(shape)
