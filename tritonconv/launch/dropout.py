"""Dropout by the numbers of torch's generator on CPUs, which is left as torch would have left it."""

from __future__ import annotations

import functools
import math
import os
import threading

import numpy as np
import torch
from torch import Generator, Tensor
from triton import cdiv

from ..engines import Launch
from ..kernels import dropout as kernels
from .common import prepare
from .room import empty, lasting

STATE = 624  # words of a generation, each made of the one before it
_GENERATIONS = 256  # made at once: words that stay in cache until they are read
_PIECE = _GENERATIONS * STATE // 2  # a number is of two words
_TWIST, _BLOCK = 128, 1024
_CPU = torch.device("cpu")
# Where torch's state has, in units of 32 bits: one more than how many words of this generation are left, the place of
# the next one, and the words, with 32 bits of zeros behind each.
_LEFT, _NEXT, _WORDS = 2, 4, slice(6, 6 + 2 * STATE, 2)

_drawing = threading.Lock()
# A child would inherit the lock, but not the thread that opens it.
os.register_at_fork(before=_drawing.acquire, after_in_parent=_drawing.release, after_in_child=_drawing.release)


def twist_launch(target: str, count: int) -> Launch:
    """Tensors: words, and those behind the first 624, count."""
    return Launch(kernels.twist, (1, 1, 1), (count,), {"BLOCK": _TWIST}, 4, 1)


def draw_launch(target: str, N: int, bound: int) -> Launch:
    """Tensors: pairs [N], keep [N]."""
    return Launch(kernels.draw, (cdiv(N, _BLOCK), 1, 1), (N, bound), {"BLOCK": _BLOCK}, 4, 1)


def dropout_launch(target: str, N: int) -> Launch:
    """Tensors: x [N], keep [N], scale [1], y [N]."""
    return Launch(kernels.dropout, (cdiv(N, _BLOCK), 1, 1), (N,), {"BLOCK": _BLOCK}, 4, 1)


@functools.cache
def _room() -> Tensor:
    return lasting((1 + (_GENERATIONS + 1) * STATE + _TWIST,), torch.int32, _CPU)


def drawn(keep: Tensor, probability: float, generator: Generator) -> Tensor:
    """keep [N], uint8: 1 where `torch.empty(N).bernoulli_(probability, generator=generator)` would be."""
    bound = math.ceil(math.ldexp(probability, 53))  # numbers are integers
    state = generator.get_state()
    torchs = state.numpy().view(np.int32)
    next = STATE + 1 - int(torchs[_LEFT])
    words = _room()[next % 2 :]  # so that pairs of them are aligned, in which `next` stays odd or even
    ours = words.numpy()
    ours[:STATE] = torchs[_WORDS]
    for first in range(0, len(keep), _PIECE):
        piece = keep[first : first + _PIECE]
        end = next + 2 * len(piece)
        made = (end - 1) // STATE  # generations behind the one at hand
        if made:
            prepare(_CPU, twist_launch, made * STATE)[1](words, words[STATE:])
        prepare(_CPU, draw_launch, len(piece), bound)[1](words[next:end].view(torch.int64), piece)
        ours[:STATE] = ours[made * STATE : (made + 1) * STATE]
        next = end - made * STATE
    torchs[_WORDS], torchs[_LEFT], torchs[_NEXT] = ours[:STATE], STATE + 1 - next, next
    generator.set_state(state)
    return keep


@functools.cache
def draws_as_torch() -> bool:
    """Whether torch draws just so here: with MKL, on Intel's CPUs, it does not."""
    ours, theirs = (Generator().manual_seed(1) for _ in range(2))
    keep = drawn(torch.empty(STATE + 1, dtype=torch.uint8), 0.3, ours)
    same = torch.equal(keep, torch.empty(len(keep)).bernoulli_(0.3, generator=theirs).to(torch.uint8))
    return same and torch.equal(ours.get_state(), theirs.get_state())


def draw(x: Tensor, p: float) -> Tensor:
    """uint8, of the sizes and strides of x, which is dense: 1 for the elements that dropout by p keeps, drawn as torch
    does, in the order of memory."""
    keep = _room_like(x, torch.uint8)
    with _drawing:
        drawn(keep.as_strided((x.numel(),), (1,)), 1 - p, torch.default_generator)
    return keep if keep.stride() == x.stride() else keep.as_strided(x.shape, x.stride())  # of axes of size 1


@functools.lru_cache(maxsize=64)
def _scale(p: float, dtype: torch.dtype) -> Tensor:
    return torch.ones(1, dtype=dtype).div_(1 - p)  # as torch rounds it


def _room_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """For what has the sizes of x, which is dense, in the same order of memory, as torch's operators allocate it."""
    for memory_format in (torch.contiguous_format, torch.channels_last):
        if x.is_contiguous(memory_format=memory_format):
            return empty(x, x.shape, dtype, memory_format)
    return empty(x, (x.numel(),), dtype).as_strided_(x.shape, x.stride())


def dropout(x: Tensor, keep: Tensor, p: float) -> Tensor:
    """x / (1 − p) where it is to be kept, else x · 0; of the sizes and strides of both, which are dense."""
    y = _room_like(x, x.dtype)
    prepare(_CPU, dropout_launch, x.numel())[1](x, keep, _scale(p, x.dtype), y)
    return y
