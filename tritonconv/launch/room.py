"""Room for results and for what is kept: on a CPU in huge pages, where it is large.

Malloc takes the largest blocks fresh from the system and gives them back when they are freed. In pages of 4 KiB that
costs several times what it takes to write them, a fault for each page; in pages of 2 MiB there are few. And what runs
through memory is fetched ahead to the end of a page, so that large weights are read sooner from huge ones.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Parameter

LEAST = 32 << 20  # bytes of a result; from there on glibc keeps nothing
HUGE = 2 << 20  # bytes of a page


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None).madvise
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function


def _ask_for_huge_pages(address: int, size: int) -> None:
    """A wish: where there are none memory stays as it is."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        _madvise()(first, address + size - first, mmap.MADV_HUGEPAGE)


def empty(
    like: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """As `torch.empty`, on the device of `like` and by default of its dtype."""
    result = torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format)
    # What stands in for a tensor while a compiler looks on has no memory, and sizes that may be symbols.
    if (type(like) is Tensor or type(like) is Parameter) and result.nbytes >= LEAST and result.device.type == "cpu":
        _ask_for_huge_pages(result.data_ptr(), result.nbytes)
    return result


def lasting(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As `torch.empty`, for what is kept: on a CPU it begins with a huge page, if it fills one."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < HUGE:
        return torch.empty(shape, dtype=dtype, device=device)
    whole = torch.empty(size + 2 * HUGE, dtype=torch.uint8)
    first = -whole.data_ptr() % HUGE
    _ask_for_huge_pages(whole.data_ptr() + first, -(-size // HUGE) * HUGE)
    return whole[first : first + size].view(dtype).view(shape)
