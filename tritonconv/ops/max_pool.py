"""Max-pooling, adaptive or not, and its partial inverse, with autograd: check, operator, launch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import engines
from ..geometry import AdaptiveGeometry
from ..launch import pool as launch
from ..launch.common import empty_nhwc
from .library import Operator, opaque
from .pool import Geometry, adaptive_geometry_of, geometry_of, images, like_input, unpool_sizes_of
from .support import is_stand_in


class MaxPool(Operator):
    """The maxima."""

    schema = "max_pool(Tensor x, SymInt[] geometry) -> Tensor"

    @staticmethod
    def run(x, geometry):
        return launch.max_pool(x, geometry)[0]

    @staticmethod
    def fake(x, geometry):
        return empty_nhwc(x, *geometry.output)


class MaxPoolWithIndices(Operator):
    """The maxima, and of `index_dtype` where in its H × W image each lies."""

    schema = "max_pool_with_indices(Tensor x, SymInt[] geometry, ScalarType index_dtype) -> (Tensor y, Tensor indices)"

    @staticmethod
    def run(x, geometry, index_dtype):
        return launch.max_pool(x, geometry, index_dtype)

    @staticmethod
    def fake(x, geometry, index_dtype):
        return empty_nhwc(x, *geometry.output), empty_nhwc(x, *geometry.output, dtype=index_dtype)

    @staticmethod
    def save(ctx, inputs, results):
        _, ctx.geometry, _ = inputs
        _, indices = results
        ctx.save_for_backward(indices)
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dy, _):
        if dy is None:
            return None, None, None
        (indices,) = ctx.saved_tensors
        return MaxPoolBackward.call(dy, indices, ctx.geometry), None, None


class MaxPoolBackward(Operator):
    schema = "max_pool_backward(Tensor dy, Tensor indices, SymInt[] geometry) -> Tensor"

    @staticmethod
    def run(dy, indices, geometry):
        return launch.max_pool_backward(dy, indices, geometry)

    @staticmethod
    def fake(dy, indices, geometry):
        return empty_nhwc(dy, *geometry.input)

    @staticmethod
    def save(ctx, inputs, dx):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, ddx):
        (indices,) = ctx.saved_tensors
        return _chosen(ddx, indices), None, None


class MaxUnpool(Operator):
    """x where the indices say, zero elsewhere."""

    schema = "max_unpool(Tensor x, Tensor indices, SymInt[] geometry) -> Tensor"

    @staticmethod
    def run(x, indices, geometry):
        return launch.max_unpool(x, indices, geometry)

    @staticmethod
    def fake(x, indices, geometry):
        return empty_nhwc(x, *geometry.input)

    @staticmethod
    def save(ctx, inputs, y):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, dy):
        (indices,) = ctx.saved_tensors
        return _chosen(dy, indices), None, None


def _chosen(images: Tensor, indices: Tensor) -> Tensor:
    """What lies in `images` [N, C, H, W] where `indices` [N, C, P, Q] say."""
    return images.flatten(2).gather(2, indices.flatten(2).long()).view(indices.shape)


def _pool(input: Tensor, geometry: Geometry, return_indices: bool):
    x = images(input)
    if not (return_indices or (torch.is_grad_enabled() and input.requires_grad)):
        return like_input(MaxPool.call(x, geometry), input)
    index_dtype = torch.int64 if return_indices else _least(geometry.H * geometry.W)
    y, indices = MaxPoolWithIndices.call(x, geometry, index_dtype)
    return (like_input(y, input), like_input(indices, input)) if return_indices else like_input(y, input)


@opaque
def max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices):
    """See `tritonconv.functional.max_pool2d`."""
    geometry = geometry_of(input, kernel_size, stride, padding, dilation, ceil_mode)
    if isinstance(geometry, str):
        return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return _pool(input, geometry, return_indices)


@opaque
def adaptive_max_pool2d(input, output_size, return_indices):
    """See `tritonconv.functional.adaptive_max_pool2d`."""
    geometry = adaptive_geometry_of(input, output_size)
    if isinstance(geometry, str):
        return F.adaptive_max_pool2d(input, output_size, return_indices)
    return _pool(input, geometry, return_indices)


@opaque
def max_unpool2d(input, indices, kernel_size, stride, padding, output_size) -> Tensor:
    """See `tritonconv.functional.max_unpool2d`."""
    sizes = unpool_sizes_of(input, indices, kernel_size, stride, padding, output_size)
    if isinstance(sizes, str) or not _are_inside(indices, sizes[2] * sizes[3]):
        return F.max_unpool2d(input, indices, kernel_size, stride, padding, output_size)
    x = images(input)
    geometry = AdaptiveGeometry(*sizes, *x.shape[2:])
    return like_input(MaxUnpool.call(x, indices.reshape(x.shape), geometry), input)


def _least(count: int) -> torch.dtype:
    """The integers that count so far, and take the least memory until backward."""
    return torch.int16 if count <= 1 << 15 else torch.int32


def _are_inside(indices: Tensor, pixels: int) -> bool:
    if engines.is_listing():
        return True
    least, greatest = indices.aminmax()
    inside = (least >= 0) & (greatest < pixels)
    if indices.device.type == "cpu" and not is_stand_in(indices):
        return bool(inside)
    torch._assert_async(inside)  # as in torch's kernel: the host does not wait to know
    return True
