"""Debug mode, launched: gives a checked kernel its tensors' bounds and raises what it found."""

from __future__ import annotations

import struct
from itertools import compress

import torch

from .build import Binary
from .checks import Check
from .crew import HEADER_SIZE
from .runtime import Kernel, address_of

_RECORD = struct.Struct("=qqq")  # number of the check that failed, byte or lane, program


def launch(kernel: Kernel, grid: tuple[int, int, int], arguments: list) -> None:
    """Runs a checked kernel on tensors (or addresses) and numbers. Its first fault is an IndexError or
    AssertionError."""
    slots = kernel.binary.arguments
    is_pointer = [slot == "ptr" for slot in slots[: len(arguments)]]
    pointers = list(compress(arguments, is_pointer))
    values = [address_of(a) if p else a for a, p in zip(arguments, is_pointer, strict=True)]
    job = kernel(grid, [*values, *(word for p in pointers for word in _memory(p)), 0, 0, 0])
    if job is None:
        return
    number, offset, program = _RECORD.unpack_from(job, HEADER_SIZE + 8 * (len(slots) - 3))
    if number:
        x, y, _ = grid
        place = program % x, program // x % y, program // (x * y)
        _raise(kernel.binary, kernel.binary.checks[number - 1], pointers, offset, place)


def _memory(pointer) -> tuple[int, int]:
    """(address, bytes) of the storage that a tensor views; all memory for a bare address, of which nothing is known."""
    if isinstance(pointer, torch.Tensor) and pointer.numel():
        storage = pointer.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    return (0, -1) if isinstance(pointer, int) and pointer else (0, 0)


def _raise(binary: Binary, check: Check, pointers: list, offset: int, program: tuple[int, int, int]):
    where = f"({check.line}, program {program})"
    if check.what == "assert":
        raise AssertionError(f"{binary.name}: {check.subject} {where}")
    pointer = pointers[check.pointer]
    start, size = _memory(pointer)
    view = start - address_of(pointer)  # offsets are told from the tensor's first element
    raise IndexError(
        f"{binary.name}: {check.what} of {check.size} bytes at byte {offset + view} of {check.subject}, "
        f"whose memory is bytes [{view}, {view + size}) {where}"
    )
