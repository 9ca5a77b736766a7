"""Convolution and its gradients as operators.

Fprop, Dgrad and Wgrad are linear in each tensor and have each other as derivatives, so that there are derivatives of
every order.
"""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import Tensor

from ..geometry import ConvGeometry, RowGeometry
from ..launch import conv as launch
from ..launch.norm import Norm, empty_statistics, finalize
from . import activations
from .again import kept, restored
from .library import Operator
from .support import is_channels_last, is_input, is_stand_in, nchw, needs_gradient


class Fprop(Operator):
    """activation(x ∗ weight + bias + residual). `keep`: whether the packed weight may serve again."""

    schema = (
        "fprop(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, SymInt[] geometry, str? activation, bool keep)"
        " -> Tensor"
    )
    flops = attrgetter("flops")

    @staticmethod
    def run(x, weight, bias, residual, geometry, activation, keep):
        return launch.fprop(x, weight, bias, geometry, activation, keep, residual=residual)

    @staticmethod
    def fake(x, weight, bias, residual, geometry, activation, keep):
        return empty_result(x, geometry.output, geometry)

    @staticmethod
    def save(ctx, inputs, y):
        x, weight, _, _, geometry, activation, keep = inputs
        save(ctx, x, weight, y if activation else None, geometry, activation, keep)

    @staticmethod
    def backward(ctx, dy):
        weight, y, *x = ctx.saved_tensors
        if ctx.activation:
            dy = activations.activation(ctx.activation).backward(dy, y)
        return *gradients(ctx, dy, dy, weight, x), dy if ctx.needs_input_grad[3] else None, None, None, None


class FpropWithMoments(Operator):
    """x ∗ weight + bias, and its mean and biased variance per channel. These carry no gradient: who normalizes by them
    differentiates through them."""

    schema = (
        "fprop_with_moments(Tensor x, Tensor weight, Tensor? bias, SymInt[] geometry, bool keep)"
        " -> (Tensor y, Tensor mean, Tensor var)"
    )
    flops = attrgetter("flops")

    @staticmethod
    def run(x, weight, bias, geometry, keep):
        y, moments = launch.fprop_with_moments(x, weight, bias, geometry, keep)
        return y, *finalize(moments, geometry.N * geometry.P * geometry.Q)

    @staticmethod
    def fake(x, weight, bias, geometry, keep):
        return empty_result(x, geometry.output, geometry), *empty_statistics(x, geometry.K)

    @staticmethod
    def save(ctx, inputs, results):
        x, weight, _, geometry, keep = inputs
        save(ctx, x, weight, None, geometry, None, keep)
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)  # else autograd fills zeros for both of the others

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * 5
        weight, _, *x = ctx.saved_tensors
        return *gradients(ctx, dy, dy, weight, x), None, None


def save(ctx, x, weight, y, geometry, activation, keep, *more) -> None:
    """Saves weight, y, `more`, and what x is `restored` from."""
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    ctx.recipe_of_x, parts = kept(x if needs_weight else None)
    ctx.save_for_backward(weight if needs_x else None, y, *more, *parts)
    ctx.geometry, ctx.activation, ctx.keep = geometry, activation, keep
    ctx.channels_last = needs_weight and is_channels_last(weight)
    # Who differentiates with respect to an input may take views of the gradient, as torch's memory format allows.
    contiguous = needs_x and not (isinstance(geometry, RowGeometry) or is_channels_last(x) or is_channels_last(weight))
    ctx.nchw = contiguous and is_input(x)


def gradients(ctx, dy, dz, weight, x) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of x, weight and bias: dz is the gradient of x ∗ weight, and the sums of dy are those of dz."""
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    dz = laid(dz, ctx.geometry) if needs_x and needs_weight else dz
    # First what needs most memory for a while.
    dw = Wgrad.call(dz, restored(ctx.recipe_of_x, x), ctx.geometry, ctx.channels_last) if needs_weight else None
    dx = Dgrad.call(dz, weight, None, ctx.geometry, None, ctx.keep) if needs_x else None
    dx = nchw(dx) if ctx.nchw else dx
    db = dy.sum((0, 2, 3)) if needs_bias else None
    return dx, dw, db


class Dgrad(Operator):
    """The gradient of x in `Fprop`; with bias and activation a transposed convolution."""

    schema = "dgrad(Tensor dy, Tensor weight, Tensor? bias, SymInt[] geometry, str? activation, bool keep) -> Tensor"
    flops = attrgetter("flops")

    @staticmethod
    def run(dy, weight, bias, geometry, activation, keep):
        return launch.dgrad(dy, weight, bias, geometry, activation, keep)

    @staticmethod
    def fake(dy, weight, bias, geometry, activation, keep):
        return empty_result(dy, geometry.input, geometry)

    @staticmethod
    def save(ctx, inputs, dx):
        dy, weight, _, geometry, activation, keep = inputs
        save(ctx, dy, weight, dx if activation else None, geometry, activation, keep)

    @staticmethod
    def backward(ctx, ddx):
        weight, dx, *dy = ctx.saved_tensors
        if ctx.activation:
            ddx = activations.activation(ctx.activation).backward(ddx, dx)
        needs_dy, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        ddx = laid(ddx, ctx.geometry) if needs_dy and needs_weight else ddx
        dw = None
        if needs_weight:
            dw = Wgrad.call(restored(ctx.recipe_of_x, dy), ddx, ctx.geometry, ctx.channels_last)
        ddy = Fprop.call(ddx, weight, None, None, ctx.geometry, None, ctx.keep) if needs_dy else None
        ddy = nchw(ddy) if ctx.nchw else ddy
        db = ddx.sum((0, 2, 3)) if needs_bias else None
        return ddy, dw, db, None, None, None


class Wgrad(Operator):
    """The gradient of weight in `Fprop`, in channels_last memory or contiguous."""

    schema = "wgrad(Tensor dy, Tensor x, SymInt[] geometry, bool channels_last) -> Tensor"

    @staticmethod
    def flops(geometry):
        return geometry.groups * geometry.flops  # torch counts this derivative as if there were none

    @staticmethod
    def run(dy, x, geometry, channels_last):
        return launch.wgrad(dy, x, geometry, _format(channels_last))

    @staticmethod
    def fake(dy, x, geometry, channels_last):
        return torch.empty(geometry.weight, dtype=dy.dtype, device=dy.device, memory_format=_format(channels_last))

    @staticmethod
    def save(ctx, inputs, dw):
        dy, x, ctx.geometry, _ = inputs
        ctx.save_for_backward(dy, x)

    @staticmethod
    def backward(ctx, ddw):
        dy, x = ctx.saved_tensors
        needs_dy, needs_x = ctx.needs_input_grad[:2]
        ddy = Fprop.call(x, ddw, None, None, ctx.geometry, None, False) if needs_dy else None
        dx = Dgrad.call(dy, ddw, None, ctx.geometry, None, False) if needs_x else None
        return ddy, dx, None, None


class FpropWithNorm(Operator):
    """activation(norm(inner(x ∗ weight + bias)) + residual) by given statistics or without a norm, in one kernel."""

    schema = (
        "fprop_with_norm(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? mean,"
        " Tensor? var, Tensor? gamma, Tensor? beta, float eps, Tensor? slope, SymInt[] geometry, str? activation)"
        " -> Tensor"
    )
    flops = attrgetter("flops")

    @staticmethod
    def run(x, weight, bias, residual, mean, var, gamma, beta, eps, slope, geometry, activation):
        norm = Norm(mean, var, gamma, beta, eps, slope)
        return launch.fprop(x, weight, bias, geometry, activation, norm=norm, residual=residual)

    @staticmethod
    def fake(x, weight, bias, residual, mean, var, gamma, beta, eps, slope, geometry, activation):
        return empty_result(x, geometry.output, geometry)


class DgradWithNorm(Operator):
    """activation(norm(a transposed convolution)), as `FpropWithNorm`."""

    schema = (
        "dgrad_with_norm(Tensor dy, Tensor weight, Tensor? bias, Tensor? mean, Tensor? var, Tensor? gamma,"
        " Tensor? beta, float eps, Tensor? slope, SymInt[] geometry, str? activation) -> Tensor"
    )
    flops = attrgetter("flops")

    @staticmethod
    def run(dy, weight, bias, mean, var, gamma, beta, eps, slope, geometry, activation):
        return launch.dgrad(dy, weight, bias, geometry, activation, norm=Norm(mean, var, gamma, beta, eps, slope))

    @staticmethod
    def fake(dy, weight, bias, mean, var, gamma, beta, eps, slope, geometry, activation):
        return empty_result(dy, geometry.input, geometry)


def empty_result(like: Tensor, shape: tuple[int, ...], geometry: ConvGeometry) -> Tensor:
    """Room for a result of the geometry's kernels."""
    memory_format = _format(not isinstance(geometry, RowGeometry))
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def laid(dy: Tensor, geometry: ConvGeometry) -> Tensor:
    """dy as the geometry's kernels read it, for two that would each copy it."""
    return dy if is_stand_in(dy) else dy.contiguous(memory_format=_format(not isinstance(geometry, RowGeometry)))


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def weight_of(w: Tensor) -> tuple[Tensor, bool]:
    """The weight [K, C/groups, R, S] for an operator, and whether its pack may serve again: that of one in training
    cannot. Another may lack R, for its pack is found by the tensor that it is."""
    trained = needs_gradient(w)
    return w.unsqueeze(2) if trained and w.dim() == 3 else w, not trained
