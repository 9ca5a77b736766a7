"""Convolution with autograd: check, operator, launch.

Fprop, Dgrad and Wgrad are linear in each tensor and have each other as derivatives, so that there are derivatives of
every order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import ConvGeometry, Pair, RowGeometry, same_padding
from ..launch import conv as launch
from ..launch.norm import ABSENT, Norm, empty_statistics, finalize
from . import activations
from .again import kept, restored
from .epilogue import activated, divided, finish, is_apart, is_separate, prepared, suits, with_slopes
from .library import Operator, opaque
from .support import (
    autocast,
    fits,
    is_channels_last,
    is_empty,
    nchw,
    needs_gradient,
    operand,
    pair,
    remembered,
    sides,
    too_many_pixels,
    unsupported_call,
    unsupported_operands,
)


class Fprop(Operator):
    """activation(x ∗ weight + bias + residual). `keep`: whether the packed weight may serve again."""

    schema = (
        "fprop(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, SymInt[] geometry, str? activation, bool keep)"
        " -> Tensor"
    )

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

    @staticmethod
    def backward(ctx, dy, *_):
        weight, _, *x = ctx.saved_tensors
        return *gradients(ctx, dy, dy, weight, x), None, None


def save(ctx, x, weight, y, geometry, activation, keep, *more) -> None:
    """Saves weight, y, `more`, and what x is `restored` from."""
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    ctx.recipe_of_x, parts = kept(x if needs_weight else None)
    ctx.save_for_backward(weight if needs_x else None, y, *more, *parts)
    ctx.geometry, ctx.activation, ctx.keep = geometry, activation, keep
    ctx.channels_last = needs_weight and is_channels_last(weight)


def gradients(ctx, dy, dz, weight, x) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of x, weight and bias: dz is the gradient of x ∗ weight, and the sums of dy are those of dz."""
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    # First what needs most memory for a while.
    dw = Wgrad.call(dz, restored(ctx.recipe_of_x, x), ctx.geometry, ctx.channels_last) if needs_weight else None
    dx = Dgrad.call(dz, weight, None, ctx.geometry, None, ctx.keep) if needs_x else None
    db = dy.sum((0, 2, 3)) if needs_bias else None
    return dx, dw, db


class Dgrad(Operator):
    """The gradient of x in `Fprop`; with bias and activation a transposed convolution."""

    schema = "dgrad(Tensor dy, Tensor weight, Tensor? bias, SymInt[] geometry, str? activation, bool keep) -> Tensor"

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
        dw = None
        if needs_weight:
            dw = Wgrad.call(restored(ctx.recipe_of_x, dy), ddx, ctx.geometry, ctx.channels_last)
        ddy = Fprop.call(ddx, weight, None, None, ctx.geometry, None, ctx.keep) if needs_dy else None
        db = ddx.sum((0, 2, 3)) if needs_bias else None
        return ddy, dw, db, None, None, None


class Wgrad(Operator):
    """The gradient of weight in `Fprop`, in channels_last memory or contiguous."""

    schema = "wgrad(Tensor dy, Tensor x, SymInt[] geometry, bool channels_last) -> Tensor"

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


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


@remembered
def _geometry(input, weight, bias, stride, padding, dilation, groups) -> ConvGeometry | str:
    """The geometry of a convolution of these operands, or why there is no kernel for it."""
    reason = unsupported_operands(input, weight, bias)
    if reason is not None:
        return reason
    if stride is None or padding is None or dilation is None or type(groups) is not int:
        return "stride, padding, dilation and groups are not all integers"
    if len(input.shape) not in (3, 4) or len(weight.shape) != 4:
        return f"an input of {len(input.shape)} dimensions with a weight of {len(weight.shape)}"
    N, C, H, W = (1, *input.shape)[-4:]
    K, Cg, R, S = weight.shape
    if is_empty(N, C, K, R, S):
        return f"nothing to compute for input {tuple(input.shape)} and weight {tuple(weight.shape)}"
    if groups < 1 or K % groups or groups * Cg != C or (bias is not None and bias.shape != (K,)):
        return f"{C} and {K} channels in {groups} groups do not fit weight {tuple(weight.shape)} and bias"
    if min(stride) < 1 or min(dilation) < 1:
        return f"stride {stride}, dilation {dilation}"
    if padding == "same" and stride == (1, 1):
        padding = same_padding(R, dilation[0]), same_padding(S, dilation[1])
    elif padding == "valid":
        padding = (0, 0), (0, 0)
    elif isinstance(padding, str) or min(map(min, padding)) < 0:
        return f"padding {padding!r} with stride {stride}"
    geometry = ConvGeometry(N, C, H, W, K, R, S, stride, padding, dilation, groups)
    if is_empty(geometry.P, geometry.Q):
        return "the kernel is larger than the padded input"
    return too_many_pixels(N, H * W, geometry.P * geometry.Q) or geometry


def geometry_of(input, weight, bias, stride, padding, dilation, groups) -> ConvGeometry | str:
    """The geometry of a call of `conv2d`, or, where it is torch that has to run it, why."""
    reason = unsupported_call(input, weight) if bias is None else unsupported_call(input, weight, bias)
    if reason is not None:
        return reason
    padding = padding if isinstance(padding, str) else sides(padding) or _both_sides(pair(padding))
    return _geometry(operand(input), operand(weight), operand(bias), pair(stride), padding, pair(dilation), groups)


def _both_sides(padding: Pair | None) -> tuple[Pair, Pair] | None:
    return padding and ((padding[0],) * 2, (padding[1],) * 2)


def by_torch(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    """`F.conv2d`, which knows no padding for each side."""
    if (given := sides(padding)) is not None:
        (top, bottom), (left, right) = given
        input, padding = F.pad(input, (left, right, top, bottom)), 0
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


@opaque
def conv2d(input, weight, bias, stride, padding, dilation, groups, residual, activation, inner=None) -> Tensor:
    """See `tritonconv.functional.conv2d`."""
    x, w, b = autocast(input, weight, bias)
    activation, inner = prepared(activation, x), activations.canonical(inner)
    if is_apart(inner, activation, x, w, b, residual):
        y = conv2d(input, weight, bias, stride, padding, dilation, groups, None, inner)
        return finish(y, residual, activation)
    geometry = geometry_of(x, w, b, stride, padding, dilation, groups)
    if isinstance(geometry, str):
        y = by_torch(input, weight, bias, stride, padding, dilation, groups)
        return finish(finish(y, None, inner), residual, activation)
    batched = x.dim() == 4
    adds = residual is None or (batched and fits(residual, geometry.output, x, gives_channels_last(x, w)))
    ours, left = divided(residual, activation, adds, suits(activation, geometry.K, x, batched))
    return finish(on_images(x, w, lambda x: run(x, w, b, geometry, *ours, inner)), *left)


def gives_channels_last(x: Tensor, weight: Tensor) -> bool:
    """Whether torch convolves x [N, C, H, W] into channels_last memory."""
    return is_channels_last(x) or is_channels_last(weight)


def on_images(x: Tensor, weight: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """run(x) for x [N, C, H, W] or [C, H, W], in the memory format that torch convolves into."""
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    y = run(batched)
    y = y if gives_channels_last(batched, weight) else nchw(y)
    return y if x.dim() == 4 else y.squeeze(0)


def formatted(y: Tensor, geometry: ConvGeometry, channels_last: bool) -> Tensor:
    """A result of the geometry's kernels in the memory format asked for."""
    return y if channels_last or isinstance(geometry, RowGeometry) else nchw(y)


def run(
    x: Tensor, w: Tensor, b: Tensor | None, geometry: ConvGeometry, residual=None, activation=None, inner=None
) -> Tensor:
    """activation(inner(x ∗ w + b) + residual), [N, K, P, Q] in channels_last memory; w [K, C/groups, (R,) S]. There is
    no gradient of it with an `inner`."""
    if inner is not None:
        return run_with_norm(x, w, b, geometry, ABSENT, residual, activation, inner)
    w, keep = weight_of(w)
    if is_separate(activation, x, w, b, residual):
        return activated(Fprop.call(x, w, b, residual, geometry, None, keep), activation)
    if isinstance(activation, Tensor):
        return run_with_norm(x, w, b, geometry, ABSENT, residual, activation)
    return Fprop.call(x, w, b, residual, geometry, activation, keep)


def run_with_norm(
    x, w, b, geometry: ConvGeometry, norm: Norm, residual=None, activation=None, inner=None
) -> Tensor:
    """activation(norm(inner(x ∗ w + b)) + residual), without gradients, by given statistics."""
    norm, text = with_slopes(norm, activation)
    return FpropWithNorm.call(x, w, b, residual, *norm, geometry, activations.in_order(inner, text))


def weight_of(w: Tensor) -> tuple[Tensor, bool]:
    """The weight [K, C/groups, R, S] for an operator, and whether its pack may serve again: that of one in training
    cannot. Another may lack R, for its pack is found by the tensor that it is."""
    trained = needs_gradient(w)
    return w.unsqueeze(2) if trained and w.dim() == 3 else w, not trained
