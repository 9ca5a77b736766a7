"""Average pooling, adaptive or not, and L^p pooling, with autograd: check, operator, launch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..launch import pool as launch
from ..launch.common import empty_nhwc
from .library import Operator, opaque
from .pool import Geometry, adaptive_geometry_of, geometry_of, images, is_window, like_input


class AvgPool(Operator):
    """The mean of each window: its sum over `divisor` or, if that is None, over the pixels that are in it, padding
    counted or not. Linear, as is its gradient: each is the other's derivative."""

    schema = "avg_pool(Tensor x, SymInt[] geometry, SymInt? divisor, bool count_include_pad) -> Tensor"

    @staticmethod
    def run(x, geometry, divisor, count_include_pad):
        return launch.avg_pool(x, geometry, divisor or geometry.divisor(count_include_pad))

    @staticmethod
    def fake(x, geometry, divisor, count_include_pad):
        return empty_nhwc(x, *geometry.output)

    @staticmethod
    def save(ctx, inputs, y):
        _, *ctx.window = inputs

    @staticmethod
    def backward(ctx, dy):
        return AvgPoolBackward.call(dy, *ctx.window), None, None, None


class AvgPoolBackward(Operator):
    schema = "avg_pool_backward(Tensor dy, SymInt[] geometry, SymInt? divisor, bool count_include_pad) -> Tensor"

    @staticmethod
    def run(dy, geometry, divisor, count_include_pad):
        return launch.avg_pool_backward(dy, geometry, divisor or geometry.divisor(count_include_pad))

    @staticmethod
    def fake(dy, geometry, divisor, count_include_pad):
        return empty_nhwc(dy, *geometry.input)

    @staticmethod
    def save(ctx, inputs, dx):
        _, *ctx.window = inputs

    @staticmethod
    def backward(ctx, ddx):
        return AvgPool.call(ddx, *ctx.window), None, None, None


class L2Pool(Operator):
    """The L² norm of each window, scaled to whole windows where padding or the edge cuts one."""

    schema = "l2_pool(Tensor x, SymInt[] geometry) -> Tensor"

    @staticmethod
    def run(x, geometry):
        return launch.avg_pool(x, geometry, geometry.divisor(count_include_pad=True), norm=2)

    @staticmethod
    def fake(x, geometry):
        return empty_nhwc(x, *geometry.output)

    @staticmethod
    def save(ctx, inputs, y):
        x, ctx.geometry = inputs
        ctx.save_for_backward(x, y)

    @staticmethod
    def backward(ctx, dy):
        """Made of differentiable operations; the norm of zeros has the gradient 0, as in torch."""
        x, y = ctx.saved_tensors
        share = dy / torch.where(y == 0, math.inf, y)
        scale = ctx.geometry.R * ctx.geometry.S
        return x * AvgPoolBackward.call(share, ctx.geometry, None, True) * scale, None


def _average(input: Tensor, geometry: Geometry, divisor: int | None, count_include_pad: bool) -> Tensor:
    return like_input(AvgPool.call(images(input), geometry, divisor, count_include_pad), input)


@opaque
def avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override) -> Tensor:
    """See `tritonconv.functional.avg_pool2d`."""
    geometry = geometry_of(input, kernel_size, stride, padding, 1, ceil_mode)
    takes = type(count_include_pad) is bool and (divisor_override is None or type(divisor_override) is int)
    if isinstance(geometry, str) or not takes or divisor_override == 0:
        return F.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return _average(input, geometry, divisor_override, count_include_pad)


@opaque
def adaptive_avg_pool2d(input, output_size) -> Tensor:
    """See `tritonconv.functional.adaptive_avg_pool2d`."""
    geometry = adaptive_geometry_of(input, output_size)
    if isinstance(geometry, str):
        return F.adaptive_avg_pool2d(input, output_size)
    return _average(input, geometry, None, False)


@opaque
def lp_pool2d(input, norm_type, kernel_size, stride, ceil_mode) -> Tensor:
    """See `tritonconv.functional.lp_pool2d`."""
    geometry = geometry_of(input, kernel_size, stride, 0, 1, ceil_mode)
    takes = is_window(kernel_size) and type(norm_type) in (int, float) and not math.isinf(norm_type)
    if isinstance(geometry, str) or not takes:
        return F.lp_pool2d(input, norm_type, kernel_size, stride, ceil_mode)
    if norm_type != 2 or torch.is_autocast_enabled(input.device.type):
        # Powers are torch's, and so are their dtype under autocast and that a negative sum has no root.
        mean = _average(input.pow(norm_type), geometry, None, True)
        return (mean.sign() * mean.abs().relu()).mul(geometry.R * geometry.S).pow(1.0 / norm_type)
    return like_input(L2Pool.call(images(input), geometry), input)
