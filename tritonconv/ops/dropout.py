"""Dropout in training on a CPU, by just the numbers that torch draws: there it draws one after the other, which takes
longer than a small convolution, and takes three more passes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .. import engines
from ..launch import dropout as launch
from .support import DTYPES, is_stand_in, needs_gradient, unsupported_call

_LEAST = 1 << 14  # elements: for fewer torch takes no longer, all that comes before kernels counted


class Dropout(Function):
    """x / (1 − p) where `keep`, else x · 0: the derivative is the same of dy."""

    @staticmethod
    def forward(ctx, x, keep, p):
        ctx.save_for_backward(keep)
        ctx.p = p
        return launch.dropout(x, keep, p)

    @staticmethod
    def backward(ctx, dy):
        (keep,) = ctx.saved_tensors
        # In another order of memory it is torch that chooses the result's.
        if dy.stride() != keep.stride() or is_stand_in(dy) or unsupported_call(dy) is not None:
            return dy * keep.to(dy.dtype).div_(1 - ctx.p), None, None
        return _masked(dy, keep, ctx.p), None, None


def _masked(x: Tensor, keep: Tensor, p: float) -> Tensor:
    return Dropout.apply(x, keep, p) if needs_gradient(x) else launch.dropout(x, keep, p)


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`F.dropout(input, p, training, inplace)`, bit by bit, as is what the generator gives next."""
    if not training or inplace or not _is_taken(input, p):
        return F.dropout(input, p, training, inplace)
    return _masked(input, launch.draw(input, p), p)


def _is_taken(input: Tensor, p: float) -> bool:
    if torch.compiler.is_compiling() or type(p) is not float or not 0 < p < 1:
        return False
    if is_stand_in(input) or unsupported_call(input) is not None or torch._C._len_torch_dispatch_stack():
        return False
    plain = input.device.type == "cpu" and input.layout is torch.strided and input.dtype in DTYPES
    if not plain or input.numel() < _LEAST or not _is_dense(input) or engines.is_listing():
        return False
    return launch.draws_as_torch()


def _is_dense(x: Tensor) -> bool:
    """Whether its elements fill a piece of memory, in whatever order."""
    size = 1
    for stride, length in sorted(zip(x.stride(), x.shape, strict=True)):
        if length > 1 and stride != size:
            return False
        size *= length
    return True
