"""Convolution: what kernels take of a call, and how they run it; the rest is for torch."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ..geometry import ConvGeometry, Pair, RowGeometry, same_padding
from ..launch.norm import ABSENT, Norm
from . import activations
from .epilogue import activated, divided, finish, is_apart, is_separate, prepared, suits, with_slopes
from .fprop import Fprop, FpropWithNorm, weight_of
from .interior import is_inside
from .library import opaque
from .support import (
    autocast,
    fits,
    is_channels_last,
    is_empty,
    nchw,
    operand,
    pair,
    remembered,
    sides,
    too_many_pixels,
    unsupported_call,
    unsupported_operands,
)


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
    """Whether torch convolves x [N, C, H, W] into channels_last memory, which float64 on a GPU it never does; or nobody
    sees what it would do."""
    if is_inside():
        return True
    return (is_channels_last(x) or is_channels_last(weight)) and not (x.is_cuda and x.dtype.itemsize == 8)


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
