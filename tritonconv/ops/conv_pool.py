"""Convolution, activation and max-pooling in one kernel, with autograd.

What is kept for the gradient is the pooled result and, of each maximum, which output of its window it is: a byte. The
outputs themselves never go to memory. The activation may only grow with its input; so it is that of the maximum.
"""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import Tensor

from ..geometry import ConvGeometry, Pair, PoolGeometry
from ..launch import conv_pool as launch
from ..launch.common import empty_nhwc
from ..launch.norm import Norm
from . import activations
from .conv import conv2d, geometry_of, on_images
from .encoding import numbers
from .fprop import gradients, save, weight_of
from .library import Operator, opaque
from .max_pool import max_pool2d
from .support import autocast, is_stand_in, needs_gradient, pair


class FpropMaxPool(Operator):
    """activation(max-pooling(norm(x ∗ weight + bias))), with a norm of given statistics or, without them, none."""

    schema = (
        "fprop_max_pool(Tensor x, Tensor weight, Tensor? bias, Tensor? mean, Tensor? var, Tensor? gamma, Tensor? beta,"
        " float eps, SymInt[] geometry, int[] window, str? activation) -> Tensor"
    )
    flops = attrgetter("flops")

    @staticmethod
    def run(x, weight, bias, mean, var, gamma, beta, eps, geometry, window, activation):
        norm = Norm(mean, var, gamma, beta, eps)
        return launch.fprop(x, weight, bias, geometry, window, activation, norm=norm)

    @staticmethod
    def fake(x, weight, bias, mean, var, gamma, beta, eps, geometry, window, activation):
        return empty_nhwc(x, *geometry.firsts(window).output)


class FpropMaxPoolWithTaps(Operator):
    """activation(max-pooling(x ∗ weight + bias)), and of each maximum which output of its window it is."""

    schema = (
        "fprop_max_pool_with_taps(Tensor x, Tensor weight, Tensor? bias, SymInt[] geometry, int[] window,"
        " str? activation, bool keep) -> (Tensor y, Tensor taps)"
    )
    flops = attrgetter("flops")

    @staticmethod
    def run(x, weight, bias, geometry, window, activation, keep):
        return launch.fprop_with_taps(x, weight, bias, geometry, window, activation, keep)

    @staticmethod
    def fake(x, weight, bias, geometry, window, activation, keep):
        output = geometry.firsts(window).output
        return empty_nhwc(x, *output), empty_nhwc(x, *output, dtype=torch.uint8)

    @staticmethod
    def save(ctx, inputs, results):
        x, weight, _, geometry, window, activation, keep = inputs
        y, taps = results
        save(ctx, x, weight, y if activation else None, geometry, activation, keep, taps)
        ctx.pooling = launch.pooling(geometry, window)
        ctx.mark_non_differentiable(taps)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dy, _):
        if dy is None:
            return (None,) * 7
        weight, y, taps, *x = ctx.saved_tensors
        if ctx.activation:
            dy = activations.activation(ctx.activation).backward(dy, y)
        dz = Spread.call(dy, taps, ctx.pooling) if any(ctx.needs_input_grad[:2]) else None
        return *gradients(ctx, dy, dz, weight, x), None, None, None, None


class Spread(Operator):
    """Linear, of maxima to the outputs that they are."""

    schema = "spread(Tensor dy, Tensor taps, SymInt[] geometry) -> Tensor"

    @staticmethod
    def run(dy, taps, geometry):
        return launch.spread(dy, taps, geometry)

    @staticmethod
    def fake(dy, taps, geometry):
        return empty_nhwc(dy, *geometry.input)

    @staticmethod
    def save(ctx, inputs, dz):
        _, taps, ctx.geometry = inputs
        ctx.save_for_backward(taps)

    @staticmethod
    def backward(ctx, ddz):
        (taps,) = ctx.saved_tensors
        return _chosen(ddz, taps, ctx.geometry), None, None


def _chosen(z: Tensor, taps: Tensor, geometry: PoolGeometry) -> Tensor:
    """Of each window of z [N, C, H, W] the tap that `taps` [N, C, P, Q] say."""
    (R, S), P, Q = geometry.stride, geometry.P, geometry.Q
    windows = z[:, :, : P * R, : Q * S].unflatten(3, (Q, S)).unflatten(2, (P, R)).transpose(3, 4)
    return windows.flatten(4).gather(4, taps.long().unsqueeze(4)).squeeze(4)


def takes(x: Tensor, geometry: ConvGeometry | str, window: Pair, activation: activations.Text) -> bool:
    """Whether one kernel convolves and pools; `activation` is canonical."""
    if isinstance(geometry, str) or not (activation is None or activations.is_monotone(activation)):
        return False
    if is_stand_in(x) and not all(type(number) is int for number in numbers(geometry)):
        return False  # the algorithm, and so the kernel, is chosen by sizes
    return launch.takes(x, geometry, window)


@opaque
def conv2d_max_pool(
    input, weight, bias, stride, padding, dilation, groups, residual, activation, max_pool, inner=None
) -> Tensor:
    """See `tritonconv.functional.conv2d`."""
    activation = activations.canonical(activation)
    x, w, b = autocast(input, weight, bias)
    geometry = geometry_of(x, w, b, stride, padding, dilation, groups)
    window = pair(max_pool)
    alone = residual is None and inner is None
    if window is None or not alone or not takes(x, geometry, window, activation):
        y = conv2d(input, weight, bias, stride, padding, dilation, groups, residual, activation, inner)
        return max_pool2d(y, max_pool, None, 0, 1, False, False)
    if not needs_gradient(x, w, b):
        norm = *(None,) * 4, 0.0
        return on_images(x, w, lambda x: FpropMaxPool.call(x, w, b, *norm, geometry, window, activation))
    _, keep = weight_of(w)
    return on_images(x, w, lambda x: FpropMaxPoolWithTaps.call(x, w, b, geometry, window, activation, keep)[0])
