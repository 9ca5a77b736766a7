"""Average pooling, adaptive or not, and L^p pooling, with autograd: check, Function, launch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from ..launch import pool as launch
from .pool import Geometry, adaptive_geometry_of, geometry_of, images, is_window, like_input


class AvgPool(Function):
    """Linear, as is its gradient: each is the other's derivative."""

    @staticmethod
    def forward(ctx, x, geometry, divisor):
        ctx.geometry, ctx.divisor = geometry, divisor
        return launch.avg_pool(x, geometry, divisor)

    @staticmethod
    def backward(ctx, dy):
        return AvgPoolBackward.apply(dy, ctx.geometry, ctx.divisor), None, None


class AvgPoolBackward(Function):
    @staticmethod
    def forward(ctx, dy, geometry, divisor):
        ctx.geometry, ctx.divisor = geometry, divisor
        return launch.avg_pool_backward(dy, geometry, divisor)

    @staticmethod
    def backward(ctx, ddx):
        return AvgPool.apply(ddx, ctx.geometry, ctx.divisor), None, None


class L2Pool(Function):
    @staticmethod
    def forward(ctx, x, geometry, divisor):
        y = launch.avg_pool(x, geometry, divisor, norm=2)
        ctx.save_for_backward(x, y)
        ctx.geometry, ctx.divisor = geometry, divisor
        return y

    @staticmethod
    def backward(ctx, dy):
        """Made of differentiable operations; the norm of zeros has the gradient 0, as in torch."""
        x, y = ctx.saved_tensors
        share = dy / torch.where(y == 0, math.inf, y)
        scale = ctx.geometry.R * ctx.geometry.S
        return x * AvgPoolBackward.apply(share, ctx.geometry, ctx.divisor) * scale, None, None


def _average(input: Tensor, geometry: Geometry, divisor: int | str) -> Tensor:
    x = images(input)
    differentiable = torch.is_grad_enabled() and input.requires_grad
    y = (AvgPool.apply if differentiable else launch.avg_pool)(x, geometry, divisor)
    return like_input(y, input)


def avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override) -> Tensor:
    """See `tritonconv.functional.avg_pool2d`."""
    geometry = geometry_of(input, kernel_size, stride, padding, 1, ceil_mode)
    takes = type(count_include_pad) is bool and (divisor_override is None or type(divisor_override) is int)
    if isinstance(geometry, str) or not takes or divisor_override == 0:
        return F.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return _average(input, geometry, divisor_override or geometry.divisor(count_include_pad))


def adaptive_avg_pool2d(input, output_size) -> Tensor:
    """See `tritonconv.functional.adaptive_avg_pool2d`."""
    geometry = adaptive_geometry_of(input, output_size)
    if isinstance(geometry, str):
        return F.adaptive_avg_pool2d(input, output_size)
    return _average(input, geometry, geometry.divisor(count_include_pad=False))


def lp_pool2d(input, norm_type, kernel_size, stride, ceil_mode) -> Tensor:
    """See `tritonconv.functional.lp_pool2d`."""
    geometry = geometry_of(input, kernel_size, stride, 0, 1, ceil_mode)
    takes = is_window(kernel_size) and type(norm_type) in (int, float) and not math.isinf(norm_type)
    if isinstance(geometry, str) or not takes:
        return F.lp_pool2d(input, norm_type, kernel_size, stride, ceil_mode)
    divisor = geometry.divisor(count_include_pad=True)
    if norm_type != 2 or torch.is_autocast_enabled(input.device.type):
        # Powers are torch's, and so are their dtype under autocast and that a negative sum has no root.
        mean = _average(input.pow(norm_type), geometry, divisor)
        return (mean.sign() * mean.abs().relu()).mul(geometry.R * geometry.S).pow(1.0 / norm_type)
    x = images(input)
    if torch.is_grad_enabled() and input.requires_grad:
        return like_input(L2Pool.apply(x, geometry, divisor), input)
    return like_input(launch.avg_pool(x, geometry, divisor, norm=2), input)
