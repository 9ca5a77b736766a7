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

import torch
from torch import Tensor
from torch.nn import Parameter

HUGE = 2 << 20  # bytes of a page
POOLED = sys.platform != "win32"  # mappings there are of another kind
LEAST = HUGE  # bytes of a result that gets a block of its own
_AMPLE = 2  # how many times its size a result may have


def _mapped(size: int) -> mmap.mmap:
    """Memory of `size` bytes from the system, private as malloc's is, in huge pages if there are any."""
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


class Pool:
    """Blocks that tensors lie in, each its own mapping, and those that are free for the next ones: together never more
    than were once in use together."""

    def __init__(self):
        self._used: dict[int, tuple[weakref.ref, mmap.mmap]] = {}  # by the identity of what tells when a view dies
        self._free: list[mmap.mmap] = []
        self._most = 0  # bytes that were in use together
        self.lock = threading.Lock()

    def take(self, size: int) -> memoryview:
        """`size` bytes, which are given back when no one has them any more."""
        with self.lock:
            block = self._fitting(size) or self._fresh(size)
            view = memoryview(block)[:size]
            death = weakref.ref(view, self._give_back)
            self._used[id(death)] = death, block
            self._most = max(self._most, self.used())
        return view

    def used(self) -> int:
        """Bytes in use."""
        return sum(len(block) for _, block in list(self._used.values()))

    def free(self) -> int:
        """Bytes that are free for the next results."""
        return sum(map(len, self._free))

    def release(self) -> None:
        """Gives what is free back to the system. Called wherever a model dies, within `take` too, so without a lock."""
        self._free.clear()

    def _fitting(self, size: int) -> mmap.mmap | None:
        fitting = [block for block in self._free if size <= len(block) <= _AMPLE * size]
        if not fitting:
            return None
        block = min(fitting, key=len)
        with contextlib.suppress(ValueError):  # released meanwhile
            self._free.remove(block)
        return block

    def _fresh(self, size: int) -> mmap.mmap:
        used = self.used() + size
        while self._free and used + self.free() > self._most:
            del self._free[:1]  # free for longest
        return _mapped(size)

    def _give_back(self, death: weakref.ref) -> None:
        # Called wherever the last tensor dies, within `take` too: so it takes no lock, and each step is atomic.
        _, block = self._used.pop(id(death))
        self._free.append(block)


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
        with contextlib.suppress(OSError):  # of memory, which torch says in its own words
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
