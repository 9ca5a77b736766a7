"""Max-pooling, adaptive or not, and its partial inverse, with autograd: check, Function, launch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .. import engines
from ..geometry import AdaptiveGeometry
from ..launch import pool as launch
from .pool import Geometry, adaptive_geometry_of, geometry_of, images, like_input, unpool_sizes_of


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
        return _chosen(ddx, indices), None, None


class MaxUnpool(Function):
    @staticmethod
    def forward(ctx, x, indices, geometry):
        ctx.save_for_backward(indices)
        return launch.max_unpool(x, indices, geometry)

    @staticmethod
    def backward(ctx, dy):
        (indices,) = ctx.saved_tensors
        return _chosen(dy, indices), None, None


def _chosen(images: Tensor, indices: Tensor) -> Tensor:
    """What lies in `images` [N, C, H, W] where `indices` [N, C, P, Q] say."""
    return images.flatten(2).gather(2, indices.flatten(2).long()).view(indices.shape)


def _pool(input: Tensor, geometry: Geometry, return_indices: bool):
    x = images(input)
    index_dtype = torch.int64 if return_indices else torch.int32
    if torch.is_grad_enabled() and input.requires_grad:
        y, indices = MaxPool.apply(x, geometry, index_dtype)
    else:
        y, indices = launch.max_pool(x, geometry, index_dtype if return_indices else None)
    return (like_input(y, input), like_input(indices, input)) if return_indices else like_input(y, input)


def max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices):
    """See `tritonconv.functional.max_pool2d`."""
    geometry = geometry_of(input, kernel_size, stride, padding, dilation, ceil_mode)
    if isinstance(geometry, str):
        return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return _pool(input, geometry, return_indices)


def adaptive_max_pool2d(input, output_size, return_indices):
    """See `tritonconv.functional.adaptive_max_pool2d`."""
    geometry = adaptive_geometry_of(input, output_size)
    if isinstance(geometry, str):
        return F.adaptive_max_pool2d(input, output_size, return_indices)
    return _pool(input, geometry, return_indices)


def max_unpool2d(input, indices, kernel_size, stride, padding, output_size) -> Tensor:
    """See `tritonconv.functional.max_unpool2d`."""
    sizes = unpool_sizes_of(input, indices, kernel_size, stride, padding, output_size)
    if isinstance(sizes, str) or not _are_inside(indices, sizes[2] * sizes[3]):
        return F.max_unpool2d(input, indices, kernel_size, stride, padding, output_size)
    x = images(input)
    geometry = AdaptiveGeometry(*sizes, *x.shape[2:])
    if torch.is_grad_enabled() and input.requires_grad:
        y = MaxUnpool.apply(x, indices.reshape(x.shape), geometry)
    else:
        y = launch.max_unpool(x, indices.reshape(x.shape), geometry)
    return like_input(y, input)


def _are_inside(indices: Tensor, pixels: int) -> bool:
    if engines.is_listing():
        return True
    least, greatest = indices.aminmax()
    inside = (least >= 0) & (greatest < pixels)
    if indices.device.type == "cpu":
        return bool(inside)
    torch._assert_async(inside)  # as in torch's kernel: the host does not wait to know
    return True
