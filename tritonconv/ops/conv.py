"""Convolution with autograd: check, Function, launch.

The three Functions are linear in each tensor and have each other as derivatives, so that there are derivatives of
every order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from ..geometry import ConvGeometry, RowGeometry, same_padding
from ..launch import conv as launch
from . import activations
from .support import (
    autocast,
    fits,
    is_channels_last,
    nchw,
    needs_gradient,
    operand,
    pair,
    unsupported_call,
    unsupported_operands,
)


class Fprop(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, residual, geometry, activation):
        keep_pack = not weight.requires_grad
        y = launch.fprop(x, weight, bias, geometry, activation, keep_pack, residual=residual)
        save(ctx, x, weight, y if activation else None, geometry, activation)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, y = ctx.saved_tensors
        if ctx.activation:
            dy = activations.activation(ctx.activation).backward(dy, y)
        return *_gradients(ctx, dy, x, weight), dy if ctx.needs_input_grad[3] else None, None, None


class FpropWithMoments(Function):
    """The result's statistics carry no gradient: who normalizes by them differentiates through them."""

    @staticmethod
    def forward(ctx, x, weight, bias, geometry):
        y, moments = launch.fprop_with_moments(x, weight, bias, geometry, keep_pack=not weight.requires_grad)
        save(ctx, x, weight, None, geometry, None)
        ctx.mark_non_differentiable(moments)
        return y, moments

    @staticmethod
    def backward(ctx, dy, _):
        x, weight, _ = ctx.saved_tensors
        return *_gradients(ctx, dy, x, weight), None


def save(ctx, x, weight, y, geometry, activation, *more) -> None:
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None, y, *more)
    ctx.geometry, ctx.activation = geometry, activation
    ctx.weight_format = torch.channels_last if is_channels_last(weight) else torch.contiguous_format


def _gradients(ctx, dy, x, weight) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    dx = Dgrad.apply(dy, weight, None, ctx.geometry, None) if needs_x else None
    dw = Wgrad.apply(dy, x, ctx.geometry, ctx.weight_format) if needs_weight else None
    db = dy.sum((0, 2, 3)) if needs_bias else None
    return dx, dw, db


class Dgrad(Function):
    @staticmethod
    def forward(ctx, dy, weight, bias, geometry, activation):
        dx = launch.dgrad(dy, weight, bias, geometry, activation, keep_pack=not weight.requires_grad)
        save(ctx, dy, weight, dx if activation else None, geometry, activation)
        return dx

    @staticmethod
    def backward(ctx, ddx):
        dy, weight, dx = ctx.saved_tensors
        if ctx.activation:
            ddx = activations.activation(ctx.activation).backward(ddx, dx)
        needs_dy, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        ddy = Fprop.apply(ddx, weight, None, None, ctx.geometry, None) if needs_dy else None
        dw = Wgrad.apply(dy, ddx, ctx.geometry, ctx.weight_format) if needs_weight else None
        db = ddx.sum((0, 2, 3)) if needs_bias else None
        return ddy, dw, db, None, None


class Wgrad(Function):
    @staticmethod
    def forward(ctx, dy, x, geometry, memory_format):
        ctx.save_for_backward(dy, x)
        ctx.geometry = geometry
        return launch.wgrad(dy, x, geometry, memory_format)

    @staticmethod
    def backward(ctx, ddw):
        dy, x = ctx.saved_tensors
        needs_dy, needs_x = ctx.needs_input_grad[:2]
        ddy = Fprop.apply(x, ddw, None, None, ctx.geometry, None) if needs_dy else None
        dx = Dgrad.apply(dy, ddw, None, ctx.geometry, None) if needs_x else None
        return ddy, dx, None, None


@functools.lru_cache(maxsize=4096)
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
    if min(N, C, K, R, S) < 1:
        return f"nothing to compute for input {tuple(input.shape)} and weight {tuple(weight.shape)}"
    if groups < 1 or K % groups or groups * Cg != C or (bias is not None and bias.shape != (K,)):
        return f"{C} and {K} channels in {groups} groups do not fit weight {tuple(weight.shape)} and bias"
    if min(stride) < 1 or min(dilation) < 1:
        return f"stride {stride}, dilation {dilation}"
    if padding == "same" and stride == (1, 1):
        padding = same_padding(R, dilation[0]), same_padding(S, dilation[1])
    elif padding == "valid":
        padding = (0, 0), (0, 0)
    elif isinstance(padding, str) or min(padding) < 0:
        return f"padding {padding!r} with stride {stride}"
    else:
        padding = (padding[0],) * 2, (padding[1],) * 2
    geometry = ConvGeometry(N, C, H, W, K, R, S, stride, padding, dilation, groups)
    if geometry.P < 1 or geometry.Q < 1:
        return "the kernel is larger than the padded input"
    if N * max(H * W, geometry.P * geometry.Q) >= 2**31:
        return "2**31 pixels or more"
    return geometry


def geometry_of(input, weight, bias, stride, padding, dilation, groups) -> ConvGeometry | str:
    """The geometry of a call of `conv2d`, or, where it is torch that has to run it, why."""
    reason = unsupported_call(input, weight) if bias is None else unsupported_call(input, weight, bias)
    if reason is not None:
        return reason
    padding = padding if isinstance(padding, str) else pair(padding)
    return _geometry(operand(input), operand(weight), operand(bias), pair(stride), padding, pair(dilation), groups)


def conv2d(input, weight, bias, stride, padding, dilation, groups, residual, activation) -> Tensor:
    """See `tritonconv.functional.conv2d`."""
    activation = None if activation is None else activations.canonical(activation)
    x, w, b = autocast(input, weight, bias)
    geometry = geometry_of(x, w, b, stride, padding, dilation, groups)
    if isinstance(geometry, str):
        return finish(F.conv2d(input, weight, bias, stride, padding, dilation, groups), residual, activation)
    left = ()  # of the epilogue, to torch
    if residual is not None and not (x.dim() == 4 and fits(residual, geometry.output, x, gives_channels_last(x, w))):
        left, residual, activation = (residual, activation), None, None
    y = on_images(x, w, lambda x: run(x, w, b, residual, geometry, activation))
    return finish(y, *left) if left else y


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


def run(x: Tensor, w: Tensor, b: Tensor | None, residual: Tensor | None, geometry: ConvGeometry, activation) -> Tensor:
    """activation(x ∗ w + b + residual), [N, K, P, Q] in channels_last memory; w [K, C/groups, (R,) S]."""
    if not needs_gradient(x, w, b, residual):
        return launch.fprop(x, w, b, geometry, activation, residual=residual)
    w = w if w.dim() == 4 else w.unsqueeze(2)
    if activation is not None and activations.activation(activation).backward is None:
        return finish(Fprop.apply(x, w, b, residual, geometry, None), None, activation)
    return Fprop.apply(x, w, b, residual, geometry, activation)


def finish(y: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
    """An epilogue in torch."""
    y = y if residual is None else y + residual
    return y if activation is None else activations.activation(activation).apply(y)
