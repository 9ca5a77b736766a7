"""Max-pooling with autograd: check, Function, launch."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from ..geometry import PoolGeometry
from ..launch import pool as launch
from .support import is_channels_last, nchw, operand, pair, unsupported_call, unsupported_operands


class MaxPool(Function):
    @staticmethod
    def forward(ctx, x, geometry, index_dtype):
        y, indices = launch.max_pool(x, geometry, index_dtype)
        ctx.save_for_backward(indices)
        ctx.geometry = geometry
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        return y, indices

    @staticmethod
    def backward(ctx, dy, _):
        if dy is None:
            return None, None, None
        (indices,) = ctx.saved_tensors
        return MaxPoolBackward.apply(dy, indices, ctx.geometry), None, None


class MaxPoolBackward(Function):
    @staticmethod
    def forward(ctx, dy, indices, geometry):
        ctx.save_for_backward(indices)
        return launch.max_pool_backward(dy, indices, geometry)

    @staticmethod
    def backward(ctx, ddx):
        (indices,) = ctx.saved_tensors
        chosen = indices.flatten(2).long()
        return ddx.flatten(2).gather(2, chosen).view(indices.shape), None, None


@functools.lru_cache(maxsize=4096)
def _geometry(input, window, stride, padding, dilation, ceil_mode) -> PoolGeometry | str:
    """The geometry of a max-pooling of this operand, or why there is no kernel for it."""
    reason = unsupported_operands(input)
    if reason is not None:
        return reason
    if window is None or stride is None or padding is None or dilation is None or type(ceil_mode) is not bool:
        return "kernel_size, stride, padding and dilation are not all integers"
    if len(input.shape) not in (3, 4) or min(input.shape) < 1:
        return f"nothing to compute for input {tuple(input.shape)}"
    N, C, H, W = (1, *input.shape)[-4:]
    if min(window) < 1 or min(stride) < 1 or min(dilation) < 1 or min(padding) < 0:
        return f"kernel_size {window}, stride {stride}, padding {padding}, dilation {dilation}"
    if any(2 * pad > dil * (size - 1) + 1 for pad, dil, size in zip(padding, dilation, window, strict=True)):
        return f"padding {padding} is more than half of the window"
    geometry = PoolGeometry(N, C, H, W, *window, stride, padding, dilation, ceil_mode)
    if geometry.P < 1 or geometry.Q < 1:
        return "the window is larger than the padded input"
    if N * max(H * W, geometry.P * geometry.Q) >= 2**31:
        return "2**31 pixels or more"
    return geometry


def geometry_of(input, kernel_size, stride, padding, dilation, ceil_mode) -> PoolGeometry | str:
    """The geometry of a call of `max_pool2d`, or, where it is torch that has to run it, why."""
    reason = unsupported_call(input)
    if reason is not None:
        return reason
    window = pair(kernel_size)
    stride = window if stride in (None, [], ()) else pair(stride)
    return _geometry(operand(input), window, stride, pair(padding), pair(dilation), ceil_mode)


def max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices):
    """See `tritonconv.functional.max_pool2d`."""
    geometry = geometry_of(input, kernel_size, stride, padding, dilation, ceil_mode)
    if isinstance(geometry, str):
        return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    index_dtype = torch.int64 if return_indices else torch.int32
    if torch.is_grad_enabled() and input.requires_grad:
        y, indices = MaxPool.apply(batched, geometry, index_dtype)
    else:
        y, indices = launch.max_pool(batched, geometry, index_dtype if return_indices else None)

    def like_input(result: Tensor) -> Tensor:
        result = result if is_channels_last(batched) else nchw(result)
        return result if input.dim() == 4 else result.squeeze(0)

    return (like_input(y), like_input(indices)) if return_indices else like_input(y)
