"""Convolution, activation and max-pooling in one kernel, with autograd.

What is kept for the gradient is the pooled result and, of each maximum, which output of its window it is: a byte. The
outputs themselves never go to memory. The activation may only grow with its input; so it is that of the maximum.
"""

from __future__ import annotations

from torch import Tensor
from torch.autograd import Function

from ..geometry import ConvGeometry, Pair, PoolGeometry
from ..launch import conv_pool as launch
from . import activations
from .conv import Dgrad, Wgrad, conv2d, geometry_of, on_images, save
from .max_pool import max_pool2d
from .support import autocast, needs_gradient, pair


class FpropMaxPool(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, geometry, window, activation):
        keep_pack = not weight.requires_grad
        y, taps = launch.fprop_with_taps(x, weight, bias, geometry, window, activation, keep_pack)
        save(ctx, x, weight, y if activation else None, geometry, activation, taps)
        ctx.pooling = launch.pooling(geometry, window)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, y, taps = ctx.saved_tensors
        if ctx.activation:
            dy = activations.activation(ctx.activation).backward(dy, y)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dz = Spread.apply(dy, taps, ctx.pooling) if needs_x or needs_weight else None
        dx = Dgrad.apply(dz, weight, None, ctx.geometry, None) if needs_x else None
        dw = Wgrad.apply(dz, x, ctx.geometry, ctx.weight_format) if needs_weight else None
        db = dy.sum((0, 2, 3)) if needs_bias else None
        return dx, dw, db, None, None, None


class Spread(Function):
    """Linear, of maxima to the outputs that they are."""

    @staticmethod
    def forward(ctx, dy, taps, geometry):
        ctx.save_for_backward(taps)
        ctx.geometry = geometry
        return launch.spread(dy, taps, geometry)

    @staticmethod
    def backward(ctx, ddz):
        (taps,) = ctx.saved_tensors
        return _chosen(ddz, taps, ctx.geometry), None, None


def _chosen(z: Tensor, taps: Tensor, geometry: PoolGeometry) -> Tensor:
    """Of each window of z [N, C, H, W] the tap that `taps` [N, C, P, Q] say."""
    (R, S), P, Q = geometry.stride, geometry.P, geometry.Q
    windows = z[:, :, : P * R, : Q * S].unflatten(3, (Q, S)).unflatten(2, (P, R)).transpose(3, 4)
    return windows.flatten(4).gather(4, taps.long().unsqueeze(4)).squeeze(4)


def takes(x: Tensor, geometry: ConvGeometry | str, window: Pair, activation: str | None) -> bool:
    """Whether one kernel convolves and pools; `activation` is canonical."""
    if isinstance(geometry, str) or not (activation is None or activations.is_monotone(activation)):
        return False
    return launch.takes(x, geometry, window)


def conv2d_max_pool(input, weight, bias, stride, padding, dilation, groups, residual, activation, max_pool) -> Tensor:
    """See `tritonconv.functional.conv2d`."""
    activation = None if activation is None else activations.canonical(activation)
    x, w, b = autocast(input, weight, bias)
    geometry = geometry_of(x, w, b, stride, padding, dilation, groups)
    window = pair(max_pool)
    if window is None or residual is not None or not takes(x, geometry, window, activation):
        y = conv2d(input, weight, bias, stride, padding, dilation, groups, residual, activation)
        return max_pool2d(y, max_pool, None, 0, 1, False, False)
    run = FpropMaxPool.apply if needs_gradient(x, w, b) else launch.fprop
    return on_images(x, w, lambda x: run(x, w, b, geometry, window, activation))
